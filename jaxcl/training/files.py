"""Files of a run: the lock of its folder, atomic writes, JSON lines, checksums."""

import dataclasses
import json
import math
import os
import platform
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxcl.errors import InputError, check_kind

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


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all; folders above it are created.

    The text goes to a new file beside it, which then takes its name. So neither a link
    there nor one at ``path`` is followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.unlink(missing_ok=True)
    with open(partial, "x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves the new name on nothing
    os.replace(partial, path)


def write_json(path: Path, values: Any) -> None:
    """Write values that JSON can hold, see :func:`plain`, completely or not at all."""
    write_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False) + "\n")


def read_lines(path: Path, *, remedy: str = "delete that line") -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without a last one that a kill has torn.

    Raises:
      InputError: for another line that is damaged, by its number.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError
        except (ValueError, RecursionError, TypeError):
            msg = f"{path}, line {number}, is damaged; {remedy}."
            raise InputError(msg) from None
        records.append(record)
    return records


def plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, null for what is not a number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    array = np.asarray(value)
    if array.dtype.kind in "fV":  # V: bfloat16 and its like
        wide = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
        return _numbers(wide)
    return array.tolist()


def _numbers(array: np.ndarray | np.generic) -> Any:
    if isinstance(array, np.ndarray) and array.ndim:
        return [_numbers(row) for row in array]
    return float(str(array)) if np.isfinite(array) else None


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            total = zlib.crc32(chunk, total)
    return total


def check_plain(who: str, metadata: Mapping[str, Any] | None) -> None:
    """Refuse metadata that JSON cannot hold, before the run begins.

    Raises:
      ValueError: naming the function, and the error.
    """
    remedy = "give a dict of finite numbers and text"
    check_kind(who, Mapping, remedy, optional=True, metadata=metadata)
    try:
        json.dumps(dict(metadata or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"{who}: metadata must be a dict of finite numbers and text: {error}."
        raise InputError(msg) from error


def check_metadata(path: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse the checkpoint of another run, with the differences.

    Raises:
      ValueError: naming up to eight differences.
    """
    lines = [
        f"{name} {held.get(name, 'absent')!r}, not {wanted.get(name, 'absent')!r}"
        for name in sorted({*held, *wanted})
        if held.get(name) != wanted.get(name)
    ]
    if lines:
        msg = (
            f"restore: {path} is of another run: {'; '.join(lines[:8])}. Resume with its "
            "settings, or start in a new folder."
        )
        raise InputError(msg)


__all__ = [
    "check_metadata",
    "check_plain",
    "checksum",
    "lock_folder",
    "plain",
    "read_lines",
    "write_json",
    "write_text",
]
