"""Signals that end a run: noted, raised, or ignored near its end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM or SIGINT was received since.

    A second SIGINT raises the usual ``KeyboardInterrupt``. A SIGTERM is passed to the
    previous handler at the end. Outside the main thread, where signals cannot be handled,
    the function always returns False.
    """
    asked: list[int] = []
    earlier = signal.getsignal(signal.SIGTERM)

    def note(number, frame):
        if number == signal.SIGINT and asked:
            raise KeyboardInterrupt
        del frame
        asked.append(number)

    try:
        with handling(note, signal.SIGTERM, signal.SIGINT):
            yield lambda: bool(asked)
    finally:
        if signal.SIGTERM in asked and callable(earlier):
            earlier(signal.SIGTERM, None)


@contextmanager
def handling(handler: Any, *numbers: int) -> Iterator[None]:
    """Handle these signals here and restore their handlers; only the main thread can."""
    can = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if can}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A host loop had saved its run before this was raised."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise :class:`Terminated` here when SIGTERM comes; only the main thread can."""

    def end(number, frame):
        del number, frame
        ignore_more()
        raise Terminated

    with handling(end, signal.SIGTERM):
        yield


def ignore_more() -> None:
    """Ignore SIGTERM from here to the end of :func:`terminable`, which is near.

    After Ctrl-C too: it reaches parents as well, and these then send SIGTERM.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
