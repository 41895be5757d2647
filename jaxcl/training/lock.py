"""One process at a time in a folder; the operating system forgets the lock of the dead."""

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from jaxcl.training.processes import any_across_processes, is_primary

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None


ATTEMPTS = 100  # a folder that is removed as often as it is made cannot be had


@contextmanager
def lock_folder(path: Path, *, remedy: str = "give another folder") -> Iterator[bool]:
    """Hold a folder against all other processes; yields whether it was made for this.

    A lock that another process deleted while this one waited for it holds nothing. So the
    file that was locked must still be the one at its path; if not, all begins anew. On a
    file system without locks nothing is held.

    Args:
      path: of the folder; it and those above it are made if absent.
      remedy: what the messages tell to do.

    Raises:
      ValueError: if another process holds it; the message names that process. Also if it
        cannot be made, as behind a link to nowhere.
    """
    unwritable = f"{path} cannot be written to; {remedy}"
    place = path / ".lock"
    made = False
    for _ in range(ATTEMPTS):
        try:
            made = _make(path) or made
            lock = open(place, "a+", encoding="utf-8")  # noqa: SIM115  (closed below)
        except FileNotFoundError:  # the folder was removed again
            if path.parent.is_dir() and os.access(path.parent, os.W_OK):
                continue
            raise ValueError(unwritable) from None
        except OSError as error:
            msg = f"{unwritable} ({error.strerror})"
            raise ValueError(msg) from None
        with lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(_in_use(path, lock, remedy)) from None
                except OSError:  # this file system has no locks
                    pass
                if not _is_at(lock, place):
                    continue
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield made
            return
    raise ValueError(unwritable)


@contextmanager
def lock_across_processes(path: Path) -> Iterator[None]:
    """Hold the folder of a run of one or many processes: the one that leads claims it.

    Raises:
      ValueError: in all processes, if that one may not have it.
    """
    refusal = None
    with ExitStack() as stack:
        if is_primary():
            try:
                stack.enter_context(lock_folder(path))
            except ValueError as error:
                refusal = ValueError(f"learn: {error}")
        (refused,) = any_across_processes(refusal is not None)
        if refused:
            raise refusal or ValueError(
                f"learn: process 0 may not have {path}; see its words."
            )
        yield


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


def _in_use(path: Path, lock: IO, remedy: str) -> str:
    lock.seek(0)
    owner = lock.read().strip() or "another process"
    return f"{path} is in use by {owner}; wait, or {remedy}."


__all__ = ["lock_across_processes", "lock_folder"]
