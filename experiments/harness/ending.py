"""SIGTERM, by which clusters end a job: what is at hand is saved, and nothing is wrong."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """SIGTERM came. A host loop had saved its run before this was raised."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise :class:`Terminated` here when SIGTERM comes; only the main thread can.

    Further ones are ignored from then on: clusters send it to every process of a job, and
    parents pass it on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        del number, frame
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["Terminated", "terminable"]
