"""SIGTERM, by which clusters end a job: what is at hand is saved, and nothing is wrong."""

import sys
from pathlib import Path

from jaxcl.training.processes import Terminated, ignore_more, terminable


def tell_end(error: KeyboardInterrupt, folder: Path) -> int:
    """Say how it goes on; the exit code: 0 after SIGTERM, 130 after Ctrl-C."""
    asked = isinstance(error, Terminated)
    word = "terminated" if asked else "interrupted"
    print(f"{word}; the same command goes on from here: {folder}", file=sys.stderr)
    return 0 if asked else 130


__all__ = ["Terminated", "ignore_more", "tell_end", "terminable"]
