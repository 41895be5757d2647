"""An end that was asked for: SIGTERM and SIGINT as a question instead of an exception."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGTERM or SIGINT came since.

    A second SIGINT is the usual ``KeyboardInterrupt``. Whoever handled SIGTERM before is
    told of it at the end. Outside the main thread, where signals cannot be caught, the
    answer is always no.
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
