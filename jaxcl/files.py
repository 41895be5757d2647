"""Files of a run: the lock of its folder, atomic writes, JSON lines, checksums."""

import dataclasses
import errno
import json
import math
import os
import platform
import stat
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxcl.errors import InputError, WriteError, require, shown

try:
    import fcntl
except ImportError:  # Windows: folders are not locked
    fcntl = None


ATTEMPTS = 100  # for a folder that other processes keep removing


@contextmanager
def lock_folder(
    path: Path, *, remedy: str = "give another folder", read_only: bool = False
) -> Iterator[bool]:
    """Lock a folder against all other processes; yields whether it was created.

    A lock file that another process deleted while this one waited for it protects nothing.
    So the locked file must still be the one at its path; if not, the lock is tried again.
    On a file system without locks the folder is not locked.

    Args:
      path: of the folder; it and its parents are created if absent.
      remedy: what to do, for the messages.
      read_only: whether a folder that exists and cannot be written to is used as it is,
        without a lock.

    Raises:
      InputError: if another process has locked it; the message names that process.
      WriteError: if it cannot be created or written to, as at a dangling link or below a
        file, or if its lock is not a file.
    """
    unwritable = f"{path} cannot be written to; {remedy}"
    place, made = path / ".lock", False
    for _ in range(ATTEMPTS):
        try:
            made = made or not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            number = os.open(place, _LOCK_FLAGS, 0o666)
        except FileNotFoundError:  # the folder was removed again
            if path.parent.is_dir() and os.access(path.parent, os.W_OK):
                continue
            raise WriteError(unwritable) from None
        except OSError as error:
            if read_only and path.is_dir() and error.errno in _READ_ONLY:
                yield False
                return
            why = "its .lock is a link" if place.is_symlink() else error.strerror
            msg = f"{unwritable} ({why})"
            raise WriteError(msg) from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            msg = f"{unwritable} (its .lock is not a file)"
            raise WriteError(msg)
        with os.fdopen(number, "r+", encoding="utf-8") as lock:
            if not _is_locked(lock, place, remedy):
                continue
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
            yield made
            return
    raise WriteError(unwritable)


# A link is not followed, and a pipe does not block.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT
_LOCK_FLAGS |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def _is_locked(lock: IO, place: Path, remedy: str) -> bool:
    """Lock a file, if it is still the one at its path."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = lock.read().strip() or "another process"
        msg = f"{place.parent} is in use by {owner}; wait, or {remedy}."
        raise InputError(msg) from None
    except OSError:  # a file system without locks
        pass
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), place.stat())
    return False


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all; folders above it are created.

    The text goes to a new file beside it, which then takes its name. So neither a link
    there nor one at ``path`` is followed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    partial.unlink(missing_ok=True)
    # A name that is not UTF-8 has surrogates, and JSON can hold the escape of one.
    with open(partial, "x", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves the new name on nothing
    os.replace(partial, path)


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """Yield where to make a folder that takes its ``place`` when all is done, or never.

    It is in a hidden one beside it, with a name of its own: ``.NAME`` may be there.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{place.name}-", dir=place.parent
    ) as held:
        made = Path(held, place.name)
        yield made
        os.replace(made, place)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file completely or not at all; folders above it are created.

    Several processes may write the same file: each has a name of its own until the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
        record = None
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
        damaged = f"{path}, line {number}, is damaged; {remedy}."
        if not isinstance(record, dict):
            raise InputError(damaged)
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
    """Floats with the shortest digits that are exact in their own type."""
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


def write_checked(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of its own, for :func:`read_checked`."""
    held = json.loads(json.dumps(dict(values), allow_nan=False))
    write_text(path, json.dumps({**held, _OWN: _crc_of(held)}, indent=1))


def read_checked(path: Path) -> dict[str, Any]:
    """What :func:`write_checked` wrote; an OSError or ValueError if it is not there."""
    if not path.is_file() and path.exists():
        msg = f"{path} is not a file"
        raise ValueError(msg)
    with suppress(TypeError, AttributeError, RecursionError):
        held = json.loads(path.read_bytes())
        # Files of earlier versions have none.
        if _OWN not in held or held.pop(_OWN) == _crc_of(held):
            return held
    msg = f"{path} was changed"
    raise ValueError(msg)


_OWN = "crc32"


def _crc_of(values: dict[str, Any]) -> int:
    """CRC-32 of values in one order."""
    return zlib.crc32(json.dumps(values, sort_keys=True, allow_nan=False).encode())


def as_folder(who: str, folder: Any, name: str = "folder") -> Path:
    """An absolute path, which does not depend on later changes of the working directory."""
    text = os.fspath(folder) if isinstance(folder, str | os.PathLike) else None
    usable = isinstance(text, str) and text and "\0" not in text
    unlike = f"{name} must be a path, got {shown(folder)}; give its name as text"
    require(usable, who, unlike)
    return Path(os.path.abspath(str(text)))


def as_metadata(who: str, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as JSON holds it: paths become text, NumPy scalars numbers."""

    def converted(value):
        if isinstance(value, np.generic):
            return value.item()
        is_path = isinstance(value, os.PathLike)
        return os.fspath(value) if is_path else json.JSONEncoder().default(value)

    try:
        text = json.dumps(dict(metadata or {}), allow_nan=False, default=converted)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"{who}: metadata must be a dict of finite numbers and text: {error}."
        raise InputError(msg) from error
    return json.loads(text)


def differing(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The names under which two mappings differ, or that only one of them has."""
    return [name for name in {**held, **wanted} if held.get(name) != wanted.get(name)]


def differences(
    held: Mapping[str, Any], wanted: Mapping[str, Any], *, most: int = 3
) -> str:
    """What differs, for a message: ``rate 0.1, not 0.2; seed 'absent', not 1 and 2 more``.

    Empty if nothing does.
    """

    def part(values, name):
        text = repr(values.get(name, "absent"))
        return text if len(text) <= 40 else f"{text[:37]}..."

    names = differing(held, wanted)
    lines = [f"{name} {part(held, name)}, not {part(wanted, name)}" for name in names]
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more
