"""The identity of a run: what must agree with a checkpoint to resume from it."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree, UInt

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import InputError
from jaxcl.training.batches import some_places, take_rows
from jaxcl.training.options import Options, steps_of
from jaxcl.typing import Batch, Key


def fingerprint(tree: PyTree) -> str:
    """A checksum of every leaf's path, dtype, shape and bits.

    Each entry, as 32-bit words, is hashed with its position, and these are added modulo
    2^32, twice in different ways: sums of integers do not depend on the number of devices.
    It detects other weights; it is not cryptographic.

    Args:
      tree: arrays, including typed keys.

    Returns:
      16 hexadecimal digits.

    Cost: one pass over the weights, where they are.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for path, leaf in named:
        array = jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)
        sums = np.asarray(_sums(array)).tolist()
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype}{array.shape} {sums};".encode())
    return digest.hexdigest()[:16]


def _is_key(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


@jax.jit
def _sums(array: Array) -> UInt[Array, " 2"]:
    totals = jnp.zeros(2, jnp.uint32)
    for part, words in enumerate(_words(array)):
        place = _positions(words.shape)
        for which, odd in enumerate((0x9E3779B1, 0x85EBCA77)):
            salt = jnp.uint32((odd + 2 * part) % 2**32)
            mixed = _mix(words ^ _mix(place * salt + salt))
            totals = totals.at[which].add(jnp.sum(mixed, dtype=jnp.uint32))
    return totals


def _words(array: Array) -> list[Array]:
    """Entries as unsigned words of 32 bits; narrow ones are widened, which is exact."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return _words(array.real) + _words(array.imag)
    bits = 8 * array.dtype.itemsize
    if jnp.issubdtype(array.dtype, jnp.floating):
        narrow = array.astype(jnp.float32) if bits < 32 else array
    else:
        narrow = array.astype(jnp.uint32) if bits < 32 else array
    words = lax.bitcast_convert_type(narrow, jnp.uint32)
    if bits <= 32:
        return [words]
    return [words[..., half] for half in range(bits // 32)]


def _positions(shape: tuple[int, ...]) -> Array:
    """The number of each entry in row-major order, modulo 2^32."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return place


def _mix(words: Array) -> Array:
    """A bijective hash of words in which every input bit affects all output bits."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


#: Options that must agree with a checkpoint: they affect what is learned or measured.
_DECISIVE = (
    "num_steps",
    "batch_size",
    "on_non_finite",
    "end_task_examples",
    "eval_examples",
    "early_stopping",
)


def identity(
    key: Key,
    options: Any,
    frozen: PyTree,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What must agree with a checkpoint to resume from it, except the tasks."""
    decisive = {name: getattr(options, name) for name in _DECISIVE}
    stopping = options.early_stopping
    decisive["early_stopping"] = None if stopping is None else list(stopping)
    if stopping is not None:
        decisive["eval_every"] = options.eval_every
    decisive |= {"key": jax.random.key_data(key).tolist()}
    if jax.tree.leaves(frozen):
        decisive |= {"frozen": fingerprint(frozen)}
    return dict(metadata or {}) | decisive  # the caller's names cannot replace these


def check_room(notes: Mapping[str, Any], options: Options, place: Any) -> None:
    """Refuse more tasks than the run was begun with room for.

    Raises:
      ValueError: naming both numbers.
    """
    held, tasks = notes.get("max_tasks"), options.max_tasks
    if held is not None and tasks is not None and tasks > held:
        msg = (
            f"learn: {place} holds a run with room for {held} tasks (max_tasks), got "
            f"{tasks}; begin another one with start= and fresh= for the parts that are "
            "full."
        )
        raise InputError(msg)


class Described(NamedTuple):
    """What the notes of a checkpoint have of its data."""

    tasks: list[dict[str, Any]]
    sets: tuple[str, ...]  # for evaluation only: names that other rows would change


def described_parts(
    tasks: Sequence[Task], evaluation: Mapping[str, Dataset], options: Options
) -> Described:
    """Descriptions of tasks, and of data sets for evaluation only."""
    marks = {name: fingerprint(_some_rows(rows)) for name, rows in evaluation.items()}
    return Described(
        [describe(task, options) for task in tasks],
        tuple(f"set {name} {mark}" for name, mark in marks.items()),
    )


def describe(task: Task, options: Options) -> dict[str, Any]:
    """Name, numbers of rows and steps, task numbers, and a fingerprint of some rows."""
    parts = (task.train, task.test, *([task.valid] if task.valid else []))
    rows = [_some_rows(part) for part in parts]
    numbers = {int(row.task[0]) for part in rows for row in part}
    return {
        "name": task.name,
        "train": int(task.train.count),
        "test": int(task.test.count),
        "steps": int(steps_of(task, options)),
        "task numbers": sorted(numbers),
        "rows": fingerprint([(row.x, row.y) for part in rows for row in part]),
    } | ({} if task.shuffle else {"shuffle": False})


def _some_rows(rows: Dataset) -> list[Batch]:
    """The first, middle and last row, one by one; none of an empty set."""
    return [take_rows(rows, np.array([at]), size=1) for at in some_places(rows)]


def check_tasks_go_on(
    held: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], place: Any
) -> None:
    """Refuse tasks that do not begin with those of the run, in order.

    Raises:
      ValueError: naming the first that differs, or the number that are missing.
    """
    for number, (old, new) in enumerate(zip(held, now, strict=False)):
        differing = [name for name in {**new, **old} if old.get(name) != new.get(name)]
        if differing:
            name = differing[0]
            msg = (
                f"learn: {place} holds a run whose task {number} has {name} "
                f"{old.get(name)!r}, got {new.get(name)!r}; the tasks of a run stay, and "
                "new ones come after them: give another folder for another stream."
            )
            raise InputError(msg)
    if len(held) > len(now):
        msg = (
            f"learn: {place} holds a run of {len(held)} tasks, got {len(now)}; give all "
            "of them, or another folder."
        )
        raise InputError(msg)
