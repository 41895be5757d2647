"""Exclusive use of a folder; the operating system releases locks of ended processes."""

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from jaxcl.errors import InputError
from jaxcl.training.processes import any_across_processes, is_primary

try:
    import fcntl
except ImportError:  # Windows: folders are not locked
    fcntl = None


ATTEMPTS = 100  # for a folder that other processes keep removing


@contextmanager
def lock_folder(path: Path, *, remedy: str = "give another folder") -> Iterator[bool]:
    """Lock a folder against all other processes; yields whether it was created.

    A lock file that another process deleted while this one waited for it protects nothing.
    So the locked file must still be the one at its path; if not, the lock is tried again.
    On a file system without locks the folder is not locked.

    Args:
      path: of the folder; it and its parents are created if absent.
      remedy: what to do, for the messages.

    Raises:
      ValueError: if another process has locked it; the message names that process. Also if
        it cannot be created, as at a dangling link.
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
            raise InputError(unwritable) from None
        except OSError as error:
            msg = f"{unwritable} ({error.strerror})"
            raise InputError(msg) from None
        with lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InputError(_in_use(path, lock, remedy)) from None
                except OSError:  # a file system without locks
                    pass
                if not _is_at(lock, place):
                    continue
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield made
            return
    raise InputError(unwritable)


@contextmanager
def lock_across_processes(path: Path) -> Iterator[None]:
    """Lock the folder of a run of one or many processes, by the primary process.

    Raises:
      ValueError: in all processes, if the primary one cannot lock it.
    """
    refusal = None
    with ExitStack() as stack:
        if is_primary():
            try:
                stack.enter_context(lock_folder(path))
            except ValueError as error:
                refusal = InputError(f"learn: {error}")
        (refused,) = any_across_processes(refusal is not None)
        if refused:
            raise refusal or InputError(
                f"learn: process 0 may not have {path}; see its words."
            )
        yield


def _make(path: Path) -> bool:
    """Create a folder; returns whether it was absent."""
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
