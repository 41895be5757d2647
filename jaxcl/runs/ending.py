"""SIGTERM, by which clusters end a job: what is at hand is saved, and nothing is wrong."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        ignore_more()
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_more() -> None:
    """Ignore SIGTERM from here to the end of :func:`terminable`, which is near.

    After Ctrl-C too: it reaches parents as well, and these then send SIGTERM.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def tell_end(error: KeyboardInterrupt, folder: Path) -> int:
    """Say how it goes on; the exit code: 0 after SIGTERM, 130 after Ctrl-C."""
    asked = isinstance(error, Terminated)
    word = "terminated" if asked else "interrupted"
    print(f"{word}; the same command goes on from here: {folder}", file=sys.stderr)
    return 0 if asked else 130


__all__ = ["Terminated", "ignore_more", "tell_end", "terminable"]
