"""The files of checkpoints: their notes, what is damaged, and what may be removed.

A folder holds ``<step>/`` as orbax writes it, and beside it the note ``<step>.json``: the
leaves and all checksums, its own as well. A checkpoint is written as ``<step>.new`` and
takes its name when it is complete; one that is removed is ``<step>.removed`` first. So
whatever a kill leaves has such a name, and the next save removes it.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxcl.errors import InputError, WriteError, warn
from jaxcl.files import checksum, read_checked

#: In the metadata of each checkpoint: others are never removed.
MARK: dict[str, Any] = {"written by": "jaxcl"}


#: In a folder of checkpoints from the start of a run until the first one is complete.
BEGUN = ".begun"

_STEP = r"(0|[1-9][0-9]*)"


class Note(NamedTuple):
    """What stands beside a checkpoint."""

    leaves: dict[str, str]  # dtype and shape by path, in the order of their numbers
    keys: dict[str, str]  # the generator of each leaf that is a random key
    checksums: dict[str, int]  # CRC-32 of every file
    preserve: bool
    metadata: dict[str, Any]
    notes: dict[str, Any]


class DamageError(Exception):
    """What is wrong with a checkpoint."""


def steps(folder: str | Path) -> list[int]:
    """The steps that have a finished checkpoint in ``folder``, ascending."""
    place = Path(folder)
    return [step for step in all_steps(place) if note_of(place / str(step)).is_file()]


def all_steps(folder: Path) -> list[int]:
    """Likewise, with all of orbax that have no note, or one that is not a file."""
    names = set(entries(folder))
    notes = {name[:-5] for name in names if re.fullmatch(rf"{_STEP}\.json", name)}
    bare = {
        name
        for name in names - notes
        if re.fullmatch(_STEP, name)
        and f"{name}.new.json" not in names
        and (folder / name / "orbax.checkpoint").exists()
    }
    gone = {n for n in notes if f"{n}.removed" in names and n not in names}
    return sorted(map(int, (notes - gone) | bare))


def entries(folder: Path) -> list[str]:
    """The names in a folder of checkpoints; none if it is absent.

    One that cannot be read is an error: what is there must not be taken for nothing.
    """
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        msg = (
            f"checkpoint: {folder} cannot be read ({error.strerror}); mend that first."
        )
        raise InputError(msg) from error


def note_of(path: Path) -> Path:
    """The file beside a checkpoint that describes it."""
    return path.with_name(f"{path.name}.json")


def read_note(path: Path) -> Note:
    """The note of a checkpoint; a DamageError if it is absent, unreadable or changed."""
    name = note_of(path).name
    try:
        note = Note(**read_checked(note_of(path)))
        kinds = (note.leaves, str), (note.keys, str), (note.checksums, int)
        for part, kind in (*kinds, (note.metadata, object), (note.notes, object)):
            if not all(isinstance(value, kind) for value in part.values()):
                raise TypeError
    except FileNotFoundError:
        msg = f"missing {name}"
        raise DamageError(msg) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        msg = f"unreadable {name}"
        raise DamageError(msg) from error
    return note


def examined(path: Path) -> Note:
    """The note of a checkpoint; a DamageError naming the first file that has changed."""
    note = read_note(path)
    for name, wanted in note.checksums.items():
        file = path / name
        try:
            found = checksum(file) if file.is_file() else None
        except OSError as error:
            msg = f"unreadable {name}: {error.strerror}"
            raise DamageError(msg) from error
        if found != wanted:
            msg = f"{'missing' if found is None else 'changed'} {name}"
            raise DamageError(msg)
    return note


def checksums(path: Path) -> dict[str, int]:
    """CRC-32 of every file of a checkpoint, by its relative path."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): checksum(file) for file in files}


def is_preserved(path: Path) -> bool:
    """Whether a checkpoint is never removed to make room: those of ends of tasks are."""
    try:
        return bool(read_note(path).preserve)
    except DamageError:
        return False


def is_ours(path: Path) -> bool:
    """Whether :func:`save` has written a checkpoint: by its mark, or its note."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        text = (path / "_CHECKPOINT_METADATA").read_text()
        if json.loads(text)["custom_metadata"] == MARK:
            return True
    with suppress(DamageError):
        return bool(read_note(path))
    return False


def make_room(path: Path, keep: int, *, preserve: bool) -> None:
    """Remove the checkpoints that the one at ``path`` replaces."""
    folder, step = path.parent, int(path.name)
    there = [folder / str(other) for other in all_steps(folder) if other != step]
    there = [other for other in there if is_ours(other)]
    held = [other for other in there if is_preserved(other)]
    complete = [other for other in there if note_of(other).is_file()]
    others = [o for o in complete if int(o.name) < step and o not in held]
    room = keep if preserve else keep - 1
    kept = {*held, *others[max(0, len(others) - room) :]}
    for old in there:
        if old in kept:
            continue
        try:
            remove(old)
        except OSError as error:  # the next save tries again
            warn(f"save: cannot remove {old} ({error}).")


def set_aside(path: Path) -> Path:
    """Give a checkpoint the name of those that are to be removed, and remove its note.

    One that is cut short in its removal then has that name, and not that of a checkpoint.
    A folder in place of the note is not ours: it gets another name, beside it.
    """
    gone = path.with_name(f"{path.name}.removed")
    if path.exists():
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
    note = note_of(path)
    if note.is_dir() and not note.is_symlink():
        with suppress(OSError):  # it holds something
            note.rmdir()
            return gone
        os.replace(note, tempfile.mkdtemp(prefix=f"{note.name}.", dir=note.parent))
    else:
        note.unlink(missing_ok=True)
    return gone


def remove(path: Path) -> None:
    """Remove a checkpoint and its note."""
    gone = set_aside(path)
    if gone.exists():
        shutil.rmtree(gone)


def clean(folder: Path) -> None:
    """Remove what saves and removals that were cut short have left."""
    for name in sorted(entries(folder)):
        found = re.fullmatch(rf"\.?{_STEP}\.(new|removed)(\..*)?", name)
        if found is None:
            continue
        place = folder / found[1]
        if found[2] == "removed" and not place.exists():
            set_aside(place)  # its note
        if (folder / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
        else:
            (folder / name).unlink()


def check_readable(place: str, path: Path, data: Iterable[str]) -> None:
    """Refuse what was just written, if the index of the store does not have all arrays."""
    import tensorstore

    base = {"driver": "file", "path": f"{place}/state/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    held = {key.split(b"/")[0].decode() for key in store.list().result()}
    if not held.issuperset(data):
        msg = (
            f"save: checkpoint {path.name} was written to {path.parent} and cannot be "
            "read again; give a folder with a plainer name."
        )
        raise WriteError(msg)


@contextmanager
def plain_path(path: Path) -> Iterator[str]:
    """A path that the store understands: it has its own use for brackets and backslashes.

    Folders with such names, or with names that are not UTF-8, are reached by a link.
    """
    if re.fullmatch(r"[\w/.,:=@+~ -]*", path.as_posix()):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as place:
        link = Path(place) / "link"
        link.symlink_to(path.parent, target_is_directory=True)
        yield str(link / path.name)


def begin_folder(home: Path) -> None:
    """Mark the folder of a run that begins.

    Refuse one with the metrics of a run whose checkpoints are gone, which it would remove.
    """
    place, metrics = home / "checkpoints", home / "metrics.jsonl"
    if all_steps(place) or BEGUN in entries(place):
        return
    if metrics.is_file() and metrics.stat().st_size:
        msg = (
            f"{metrics} is of a run whose checkpoints are not in {place}; bring these "
            "back, give another folder, or take that file away to begin again."
        )
        raise InputError(msg)
    place.mkdir(exist_ok=True)
    (place / BEGUN).touch()
