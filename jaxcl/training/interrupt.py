"""SIGTERM and SIGINT as a flag in place of an exception."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM or SIGINT was received since.

    A second SIGINT raises the usual ``KeyboardInterrupt``. A SIGTERM is passed to the
    previous handler at the end. Outside the main thread, where signals cannot be handled,
    the function always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number, frame):
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        del frame
        asked.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        earlier = before[signal.SIGTERM]
        if signal.SIGTERM in asked and callable(earlier):
            earlier(signal.SIGTERM, None)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)

__all__ = ["interruptible"]
