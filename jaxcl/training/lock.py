"""One process at a time in a folder; the operating system forgets the lock of the dead."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from experiments.harness.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None


ATTEMPTS = 100  # a folder that is removed as often as it is made cannot be had


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold a folder against all other processes; yields whether it was made for this.

    A lock that another process deleted while this one waited for it holds nothing. So the
    file that was locked must still be the one at its path; if not, all begins anew.

    Raises:
      InputError: if another process holds it; the message names that process. Also if it
        cannot be made, as behind a link to nowhere.
    """
    place = path / ".lock"
    made = False
    for _ in range(ATTEMPTS):
        try:
            made = _make(path) or made
            lock = open(place, "a+", encoding="utf-8")  # noqa: SIM115  (closed below)
        except FileNotFoundError:  # the folder was removed again
            if path.parent.is_dir() and os.access(path.parent, os.W_OK):
                continue
            raise InputError(_unwritable(path)) from None
        except OSError as error:
            msg = f"{_unwritable(path)} ({error.strerror})"
            raise InputError(msg) from None
        with lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise InputError(_in_use(path, lock)) from None
                if not _is_at(lock, place):
                    continue
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield made
            return
    raise InputError(_unwritable(path))


def _unwritable(path: Path) -> str:
    return f"{path} cannot be written to; choose another --out"


def _make(path: Path) -> bool:
    """Make a folder; whether it was not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _is_at(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path, lock: IO) -> str:
    lock.seek(0)
    owner = lock.read().strip() or "another process"
    return f"{path} is in use by {owner}; wait, or choose another --out."


__all__ = ["claim"]
