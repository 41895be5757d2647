"""Checkpoints with random damage: each gives the exact tree, or one line.

python -m tests.fuzz.checkpoints --count 5000 --seed 0
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.errors import InputError
from jaxcl.training import restore, save

STEPS = (1, 2)
METADATA = {"rate": 0.5, "name": "a run"}
VALUES = (
    None,
    True,
    3,
    -1,
    1e308,
    "text",
    "",
    [],
    [1],
    {},
    {"a": 1},
    10**400,
    "\ud800",
)
SECONDS = 20  # after which a restore counts as hanging


def tree_of(step):
    """A small tree of all kinds of leaves."""
    weights = np.random.default_rng(step).normal(size=(3, 4)).astype(np.float32)
    return {
        "w": jnp.asarray(weights),
        "half": jnp.asarray(weights[0], jnp.bfloat16),
        "empty": jnp.zeros((0, 2)),
        "count": jnp.int32(step),
        "key": jax.random.key(step),
    }


def bits(tree):
    """Oracle: the bytes of every leaf, with dtype and shape."""
    key = jax.random.key(0).dtype
    raw = lambda a: jax.random.key_data(a) if a.dtype == key else a
    leaves = jax.tree.leaves(tree)
    return [(str(a.dtype), a.shape, np.asarray(raw(a)).tobytes()) for a in leaves]


def put(file: Path, data: bytes):
    """Write, whatever was there."""
    remove(file)
    file.write_bytes(data)


def remove(path: Path):
    """Remove anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read(file: Path) -> bytes:
    """The bytes of a file; none of anything else."""
    try:
        return file.read_bytes() if file.is_file() else b""
    except OSError:
        return b""


class Case(NamedTuple):
    """One input: a file of a folder of checkpoints, and what draws its damage."""

    rng: random.Random
    file: Path
    folder: Path


def flip_bits(case):
    """One to three bits."""
    data = bytearray(read(case.file))
    for _ in range(case.rng.randint(1, 3) if data else 0):
        data[case.rng.randrange(len(data))] ^= 1 << case.rng.randrange(8)
    put(case.file, bytes(data))


def cut(case):
    """A part of the end."""
    data = read(case.file)
    put(case.file, data[: case.rng.randrange(len(data) + 1)])


def lengthen(case):
    """Bytes at the end."""
    put(case.file, read(case.file) + case.rng.randbytes(case.rng.randint(1, 9)))


def scramble(case):
    """Other bytes."""
    put(case.file, case.rng.randbytes(case.rng.choice((0, 1, 40))))


def nest(case):
    """Brackets."""
    put(case.file, case.rng.choice((b"[", b'{"a":')) * case.rng.choice((10, 5000)))


def delete(case):
    """Nothing there."""
    remove(case.file)


def make_folder(case):
    """A folder in its place."""
    remove(case.file)
    case.file.mkdir()


def make_pipe(case):
    """A pipe in its place."""
    remove(case.file)
    os.mkfifo(case.file)


def make_link(case):
    """A link to nowhere, to itself, to the folder or to the content at another place."""
    data = read(case.file)
    (case.folder / "content").write_bytes(data)
    remove(case.file)
    targets = ("nowhere", case.file.name, case.folder, case.folder / "content")
    case.file.symlink_to(case.rng.choice(targets))


def copy_other(case):
    """The content of another file."""
    put(case.file, read(case.rng.choice(files_of(case.folder))))


def edit_note(case):
    """Another value in a note, which stays JSON."""
    note = case.folder / f"{case.rng.choice(STEPS)}.json"
    try:
        held = json.loads(read(note) or b"{}")
        held[case.rng.choice([*held, "other"])] = case.rng.choice(VALUES)
    except (ValueError, RecursionError, AttributeError, TypeError, IndexError):
        held = case.rng.choice(VALUES)
    put(note, json.dumps(held).encode())


def delete_all(case):
    """A folder of a checkpoint, or one inside it."""
    remove(case.folder / case.rng.choice(("1", "2", "1/state", "2/state")))


def rename(case):
    """Another name."""
    if case.file.exists():
        os.replace(case.file, case.file.with_name(case.rng.choice(("3.json", "other"))))


def forbid(case):
    """No rights; the superuser has them all the same."""
    if case.file.is_file() and not case.file.is_symlink():
        case.file.chmod(0)


DAMAGES: tuple[Callable, ...] = (
    flip_bits,
    flip_bits,
    cut,
    lengthen,
    scramble,
    nest,
    delete,
    make_folder,
    make_pipe,
    make_link,
    copy_other,
    edit_note,
    edit_note,
    delete_all,
    rename,
    forbid,
)


def files_of(folder):
    """All files of the checkpoints, in a fixed order."""
    return sorted(f for f in folder.rglob("*") if f.is_file())


@contextmanager
def limited():
    """Raise a TimeoutError after some seconds."""

    def end(number, frame):
        del number, frame
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(folder, trees) -> str:
    """``restored``, ``refused``, or what went wrong."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            with limited():
                step, tree, _ = restore(folder, trees[1], metadata=METADATA)
        except InputError as error:
            text = str(error)
            return f"more than a line: {text}" if "\n" in text else "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{type(error).__name__}: {error}"
    if step not in trees or bits(tree) != bits(trees[step]):
        return f"another tree at {step}"
    trace = (folder / "2").exists() or (folder / "2.json").exists()
    if (
        step == 1
        and trace
        and "went back to 1" not in "".join(str(w.message) for w in seen)
    ):
        return "went back to 1 without a warning"
    return "restored"


def battery(count: int, seed: int, folder: Path) -> dict:
    """Damage and restore ``count`` checkpoints.

    Args:
      count: of inputs.
      seed: of the damages; each input depends on it and its own number alone.
      folder: an empty one.

    Returns:
      How many were restored and refused, what failed, and the seconds.
    """
    began, trees = time.monotonic(), {step: tree_of(step) for step in STEPS}
    sound, place = folder / "sound", folder / "damaged"
    for step, tree in trees.items():
        save(sound, step, tree, metadata=METADATA)
    names = [file.relative_to(sound) for file in files_of(sound)]
    notes = [name for name in names if name.suffix == ".json"]
    counts, failures = {"restored": 0, "refused": 0}, []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        shutil.copytree(sound, place)
        done = []
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            damage = rng.choice(DAMAGES)
            file = place / rng.choice(rng.choice((names, notes)))
            done.append(f"{damage.__name__} {file.relative_to(place)}")
            if file.parent.is_dir():
                damage(Case(rng, file, place))
        found = outcome(place, trees)
        if found in counts:
            counts[found] += 1
        else:
            failures.append(f"input {number} ({', '.join(done)}): {found}")
        shutil.rmtree(place)
    seconds = round(time.monotonic() - began, 1)
    result = {"battery": "checkpoints", "inputs": count, **counts}
    return {**result, "failures": failures, "seconds": seconds}


def main():
    """Print one line; failures go to stderr, and make the exit status 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = battery(options.count, options.seed, Path(place))
    for failure in result["failures"]:
        print(failure, file=sys.stderr)
    print(json.dumps({**result, "failures": len(result["failures"])}))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
