"""Tasks for the host loop: rows that are read when they are needed.

A task of the compiled loop is an array of rows; a task here may be larger than memory, and
sizes may differ between tasks. It only needs random access: the number of rows, and the
rows of given numbers. Then the position in a stream is one number, and a run that was
interrupted continues with exactly the next rows.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from jaxcl.data.files import existing_file, expect
from jaxcl.data.pixels import are_images, pixels_as_floats, unit_scale
from jaxcl.errors import (
    InputError,
    check_kind,
    check_size,
    reason_of,
    require,
    shown,
    warn,
)
from jaxcl.tree import at, beyond_int32, check_batch
from jaxcl.typing import Batch, Stream

#: Errors that mean that a row is not usable.
_UNUSABLE = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),  # 10**400, "[" * 5000
)

#: Inputs and labels of one row, from a user's ``parse``.
_Row = tuple[PyTree, PyTree]


@runtime_checkable
class Source(Protocol):
    """Items by number: a list, Grain's ``MapDataset``, TFDS."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


class Dataset(NamedTuple):
    """Examples by number.

    Sequences may have several widths. ``read`` then returns rows at the smallest width
    that holds all of those asked for, and ``groups`` says which rows have equal widths,
    from the narrowest to the widest: a training batch is of one group where that is
    possible. ``example`` is a row at the largest width that a row may have, of which
    memories are made.
    """

    count: int
    read: Callable[[np.ndarray], Batch]  # row numbers [b] -> host arrays [b, ...]
    groups: np.ndarray | None = None  # [count] int
    example: Batch | None = None  # leaves [1, ...]; else read from the last group


class Task(NamedTuple):
    """One task: its training, test and validation sets.

    ``valid`` is for choosing hyperparameters and for stopping early;
    :func:`jaxcl.data.train_valid_split` takes it from the training set. ``num_steps`` or
    ``num_epochs`` are for tasks of their own length. Without ``shuffle``, rows are learned
    in their order: see :func:`jaxcl.data.gradual`.
    """

    name: str
    train: Dataset
    test: Dataset
    valid: Dataset | None = None
    num_steps: int | None = None
    num_epochs: int | None = None
    shuffle: bool = True


def subset(rows: Dataset, numbers: np.ndarray) -> Dataset:
    """Some rows of a dataset, in this order."""
    groups = None if rows.groups is None else rows.groups[numbers]
    read = lambda places: rows.read(numbers[places])
    return Dataset(len(numbers), read, groups, rows.example)


def array_dataset(batch: Batch) -> Dataset:
    """A dataset of rows in memory.

    Of leaves ``[n, ...]``; rows of weight zero are left out. Images as uint8 stay bytes in
    memory; rows that are read are float32 in [0, 1].
    """
    check_batch("array_dataset", batch)
    batch = jax.tree.map(np.asarray, batch)
    real = np.flatnonzero(batch.weight > 0)
    some = "expected rows with a weight above 0, got none; drop the task"
    require(len(real), "array_dataset", some)
    read = lambda numbers: pixels_as_floats(at(real[numbers], batch))
    return Dataset(len(real), read)


def source_dataset(
    source: Source, parse: Callable[[Any], tuple[PyTree, PyTree]], *, task: int
) -> Dataset:
    """A dataset from a sequence: a list, Grain's ``MapDataset``, TFDS.

    Args:
      source: read item by item, when a batch needs them; the first one immediately.
      parse: ``item -> (x, y)``, arrays of the same shapes for all items. Every batch has
        the dtypes of the first item, integers as int32; inputs that are images as uint8,
        ``[h, w]`` or ``[h, w, channels]``, as float32 in [0, 1].
      task: number of the task.

    Raises:
      ValueError: for an item that cannot be used, with its number, when it is read; and
        for floats where the first item has integers.
    """
    check_size("source_dataset", least=0, task=task)
    remedy = "give a list, or what else has a length and items by number"
    check_kind("source_dataset", Source, remedy, source=source)
    some = "expected items, got none; drop the task, or give some"
    require(len(source), "source_dataset", some)

    def item(number, shapes):
        try:
            return _usable(parse(source[number]), shapes, "item 0")
        except _UNUSABLE as error:
            reason = reason_of(error)
            msg = f"source_dataset: item {number} is bad ({reason}); see parse."
            raise InputError(msg) from error

    first = item(0, None)
    shapes, dtypes = _shapes(first), _dtypes(first)

    def read(numbers):
        rows = [item(int(number), shapes) for number in numbers]
        try:
            return _stacked(rows, dtypes, task)
        except TypeError as error:
            msg = (
                f"source_dataset: expected the dtypes of the first item, {dtypes}, from "
                f"all of them ({error}); let parse cast."
            )
            raise InputError(msg) from error

    return Dataset(len(source), read)


def jsonl_dataset(
    path: str | Path,
    parse: Callable[[dict[str, Any]], tuple[PyTree, PyTree]],
    *,
    task: int,
    skip_bad_lines: bool = False,
) -> Dataset:
    """Rows of a file with one JSON object per line; only their offsets are in memory.

    Every line is read once at the start, so that a bad one is found before any compute.

    Args:
      path: of the file, whose empty lines are skipped.
      parse: ``record -> (x, y)``, arrays of finite numbers, of the same shapes for all
        lines; it raises ``KeyError``, ``TypeError``, ``ValueError`` or the like for a
        record it cannot use. Every batch has the dtypes that hold all lines, integers
        as int32, and images as :func:`source_dataset`.
      task: number of the task.
      skip_bad_lines: skip lines that are not a JSON object or cannot be used, with a
        warning that counts them and names the first.

    Raises:
      ValueError: for a bad line, with its number; when read, for a file that has changed.
    """
    check_size("jsonl_dataset", least=0, task=task)
    remedy = "give the path of a JSON-lines file"
    path = existing_file("jsonl_dataset", path, remedy)
    # What changes when the file is written; the offsets are then wrong.
    stamp = lambda: (path.stat().st_size, path.stat().st_mtime_ns)
    indexed = stamp()
    places, dtypes = _indexed(path, parse, skip_bad_lines)

    def read(numbers):
        with path.open("rb") as file:
            changed = f"{path} changed after it was indexed; start again"
            require(stamp() == indexed, "jsonl_dataset", changed)
            rows = []
            for start, length in places[numbers]:
                file.seek(start)
                rows.append(parse(json.loads(file.read(length))))
        return _stacked(rows, dtypes, task)

    return Dataset(len(places), read)


def _indexed(
    path: Path, parse: Callable, skip_bad_lines: bool
) -> tuple[Int[np.ndarray, "n 2"], PyTree]:
    """Offset and length of each good line, and the dtypes that hold all of them."""
    who, places, bad, first, shapes, dtypes = "jsonl_dataset", [], [], 0, None, None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                kind = type(record).__name__
                expect(isinstance(record, dict), f"expected an object, got {kind}")
                with np.errstate(over="ignore"):
                    row = _usable(parse(record), shapes, f"line {first}")
                    _expect_finite(row)  # Python also reads NaN and infinity
                if not places:
                    first, shapes, dtypes = number, _shapes(row), _dtypes(row)
                # The smallest dtypes that also hold this row.
                dtypes = jax.tree.map(np.promote_types, dtypes, _dtypes(row))
            except _UNUSABLE as error:
                reason = reason_of(error)
                bad.append(f"line {number} ({reason})")
                if skip_bad_lines:
                    continue
                msg = (
                    f"{who}: {path}, line {number} is bad ({reason}); fix it, or skip such "
                    "lines with skip_bad_lines."
                )
                raise InputError(msg) from error
            places.append((file.tell() - len(line), len(line)))
    if bad:
        skipped = f"{who}: skipped {len(bad)} bad lines of {path}, the first of them "
        warn(f"{skipped}{bad[0]}.")
    none = f"{path} has no usable line; drop the task or fix the file"
    require(places, who, none)
    return np.array(places), dtypes


def stream_tasks(stream: Stream) -> list[Task]:
    """The tasks of a compiled stream as a list, each computed when it is read.

    The last training and the last test set that were read are cached on the host; others
    are computed again when needed, by the same program.
    """

    def split(make):
        real = lambda pool, plan: jnp.sum(make(pool, plan).weight > 0)
        count = jax.jit(lambda pool, plan: jax.lax.map(lambda p: real(pool, p), plan))
        compiled = jax.jit(make)

        @functools.lru_cache(maxsize=1)
        def made(index):
            return array_dataset(compiled(stream.pool, at(index, stream.plan)))

        def rows(index, count):
            return Dataset(int(count), lambda numbers: made(index).read(numbers))

        counts = np.asarray(count(stream.pool, stream.plan))
        return [rows(index, count) for index, count in enumerate(counts)]

    pairs = zip(split(stream.train), split(stream.test), strict=True)
    return [
        Task(f"{stream.name} {index}", *pair, shuffle=stream.shuffle)
        for index, pair in enumerate(pairs)
    ]


def _usable(row: Any, shapes: PyTree, first: str) -> _Row:
    """The result of ``parse``, if a batch can hold it, with the shapes of the first."""
    # The messages are made where they are needed: this runs for every row.
    if not (isinstance(row, tuple) and len(row) == 2):
        expect(False, f"expected (x, y) from parse, got {shown(row)}")
    if (far := beyond_int32(row)) is not None:
        found = f"got {shown(far)} beyond it"
        expect(False, f"expected integers within int32 from parse, {found}")
    for leaf in jax.tree.leaves(row):
        if np.asarray(leaf).dtype.kind not in "biufcV":  # V: bfloat16 and its like
            expect(False, f"expected numbers from parse, got {shown(leaf)}")
    if shapes not in (None, found := _shapes(row)):
        expect(False, f"expected shapes {shapes}, as {first}, got {found}")
    return row


def _expect_finite(row: _Row) -> None:
    """Refuse what is not finite in the dtypes of a batch, float32 for float64."""
    for leaf in map(np.asarray, jax.tree.leaves(row)):
        narrow = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if not np.isfinite(narrow).all():
            beyond = f", beyond {narrow.dtype}" if np.isfinite(leaf).all() else ""
            expect(False, f"expected finite numbers, got {shown(leaf)}{beyond}")


def _shapes(row: _Row) -> PyTree:
    return jax.tree.map(np.shape, row)


def _dtypes(row: _Row) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf).dtype, row)


def _stacked(rows: list[_Row], dtypes: PyTree, task: int) -> Batch:
    """A batch of rows, in dtypes that hold all of them; images in [0, 1]."""

    def stacked(dtype, *leaves):
        narrow = np.int32 if dtype.kind in "iu" else dtype  # all fit: see _usable
        return np.stack(leaves, dtype=narrow, casting="same_kind")

    def inputs(dtype, *leaves):
        if are_images(dtype, 1 + np.ndim(leaves[0])):
            return unit_scale(np.stack(leaves, dtype=dtype, casting="safe"))
        return stacked(dtype, *leaves)

    x = jax.tree.map(inputs, dtypes[0], *(row[0] for row in rows))
    y = jax.tree.map(stacked, dtypes[1], *(row[1] for row in rows))
    count = len(rows)
    return Batch(x, y, np.ones(count, np.float32), np.full(count, task, np.int32))
