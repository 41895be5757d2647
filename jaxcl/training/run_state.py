"""The state of a run: what a checkpoint holds, what identifies it, and where it starts."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree, UInt

from jaxcl.data.dataset import Task
from jaxcl.errors import InputError, require, shown
from jaxcl.files import differing
from jaxcl.sharding import ShardingPlan, replicated
from jaxcl.training.checkpoint import (
    leaf_specs,
    named_leaves,
    numbers_of,
    read_leaves,
    restore,
)
from jaxcl.training.checkpoint_files import all_steps, is_preserved, note_of, steps
from jaxcl.training.options import Options
from jaxcl.typing import Key, MethodState


class Best(NamedTuple):
    """The best of a task so far, for stopping early."""

    value: Any  # [] float32; NaN before the first evaluation
    stale: Any  # [] int32, evaluations since
    state: MethodState


class RunState(NamedTuple):
    """The position and state of a run, as in a checkpoint."""

    state: MethodState
    task: Any  # [] int32: tasks that have ended, hence the number of the current one
    step: Any  # [] int32: steps done of the current task
    num_bad: Any  # [] int32: steps so far that were not finite
    evaluated: (
        Any  # [] int32: ends of tasks that are evaluated; the start counts as one
    )
    best: Best | tuple[()] = ()  # with early stopping


def begin(state: MethodState, options: Options) -> RunState:
    """Before the first step."""
    zero = np.int32(0)
    best = new_best(state) if options.early_stopping else ()
    return RunState(state, zero, zero, zero, zero, best)


def new_best(state: MethodState) -> Best:
    """The best of a task before its first evaluation."""
    copy = jax.tree.map(jnp.copy, state)
    return Best(np.float32(np.nan), np.int32(0), copy)


def latest_run_state(
    place: Path | None,
    start: RunState,
    sharding: ShardingPlan | None,
    metadata: Mapping[str, Any],
) -> tuple[RunState, Mapping[str, Any]]:
    """The latest state in a folder of checkpoints and its notes, or ``start`` and none."""
    if place is None or not all_steps(place):
        return start, {}
    found = restore(place, on_devices(start, sharding), metadata=metadata)
    return _with_numbers(found.tree, lambda n: np.asarray(n)[()]), found.notes


def on_devices(run_state: RunState, sharding: ShardingPlan | None) -> RunState:
    """The state as arrays for a checkpoint, with scalars replicated on all devices."""
    if sharding is None:
        return _with_numbers(run_state, jnp.asarray)
    put, same = jax.make_array_from_process_local_data, replicated(sharding)
    return _with_numbers(run_state, lambda number: put(same, np.asarray(number)))


def _with_numbers(run_state: RunState, convert) -> RunState:
    """The same with its numbers on the devices, or on the host."""
    best, names = run_state.best, ("task", "step", "num_bad", "evaluated")
    if isinstance(best, Best):
        best = best._replace(value=convert(best.value), stale=convert(best.stale))
    numbers = {name: convert(getattr(run_state, name)) for name in names}
    return run_state._replace(**numbers, best=best)


def steps_done(run_state: RunState, tasks: Sequence[Task]) -> int:
    """The steps so far; a task that ended early counts with its ``num_steps``."""
    ended = tasks[: int(run_state.task)]
    return sum(task.num_steps or 0 for task in ended) + int(run_state.step)


def position(run_state: RunState, tasks: Sequence[Task]) -> int:
    """A unique number per position; a task's last step and its end are different ones."""
    return steps_done(run_state, tasks) + int(run_state.task)


def evaluation_due(run_state: RunState) -> bool:
    """Whether the evaluation at the last task's end, or at the start, is still to do."""
    return bool(run_state.step == 0 and run_state.evaluated <= run_state.task)


# ----------------------------------------------------- the start from another run


def started_from(start: Path, state: MethodState, fresh: Sequence[str]) -> MethodState:
    """The state of a checkpoint; the fields ``fresh`` stay as in ``state``.

    A part with another structure is refused by the path of its first leaf that differs.
    """
    parts = MethodState._fields
    named = "fresh must name parts of the state, such as ('memory',)"
    others = f"got {shown(fresh)}; there are {', '.join(parts)}"
    require({*fresh} <= {*parts}, "learn", f"{named}, {others}")
    place = _latest_of(start)
    held = read_leaves(place)
    step = int(held.get(".step", 0))
    require(
        step == 0,
        "learn",
        f"start must be the end of a task, got {place}, which is step {step} of one; give "
        "one of a task's end, or finish that run",
    )
    loaded = {
        name: _part(name, part, held, start)
        for name, part in state._asdict().items()
        if name not in fresh
    }
    return state._replace(**loaded)


def _latest_of(place: Path) -> Path:
    """The latest checkpoint of a run's folder, or the one that is named."""
    for folder in (place / "checkpoints", place):
        if folder.is_dir() and (found := steps(folder)):
            ends = [step for step in found if is_preserved(folder / str(step))]
            return folder / str((ends or found)[-1])
    require(
        note_of(place).is_file(),
        "learn",
        f"start must be the folder of a run or FOLDER/checkpoints/NUMBER, got {place}, "
        "where no checkpoint is",
    )
    return place


def _part(
    name: str, part: PyTree, held: Mapping[str, jax.Array], start: Path
) -> PyTree:
    """One field of the state, with the leaves of the checkpoint."""
    own = re.compile(rf"\.state\.{name}($|[.\[])")
    old = leaf_specs({key: leaf for key, leaf in held.items() if own.match(key)})
    wanted = {f".state.{name}{path}": leaf for path, leaf in named_leaves(part).items()}
    new = leaf_specs(wanted)
    for key in differing(old, new):
        msg = (
            f"learn: the state in {start} has {key.removeprefix('.state.')} "
            f"{old.get(key, 'absent')}, the method {new.get(key, 'absent')}; build the "
            f"same parts, or begin with new ones: fresh=({name!r},)."
        )
        raise InputError(msg)
    leaves = [jax.device_put(held[key], leaf.sharding) for key, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(part), leaves)


# ------------------------------------------------------------------------------- identity

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
    key: Key, options: Options, frozen: PyTree, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What must agree with a checkpoint to resume from it, except the tasks."""
    decisive = {name: getattr(options, name) for name in _DECISIVE}
    if options.early_stopping is not None:
        decisive["early_stopping"] = list(options.early_stopping)
        decisive["eval_every"] = options.eval_every
    decisive["key"] = jax.random.key_data(key).tolist()
    if jax.tree.leaves(frozen):
        decisive["frozen"] = fingerprint(frozen)
    return dict(metadata) | decisive  # the caller's names cannot replace these


def fingerprint(tree: PyTree) -> str:
    """A checksum of every leaf's path, dtype, shape and bits.

    Each entry, as 32-bit words, is hashed with its position, and these are added modulo
    2^32, twice in different ways: sums of integers do not depend on the number of devices.
    It detects other weights; it is not cryptographic.

    Returns 16 hexadecimal digits. Cost: one pass over the weights, where they are.
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    digest = hashlib.sha256()
    for path, leaf in named:
        array = jnp.asarray(numbers_of(leaf))
        sums = np.asarray(_sums(array)).tolist()
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype}{array.shape} {sums};".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(array: Array) -> UInt[Array, " 2"]:
    """The two sums of all words, each hashed with its position."""
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
    if bits < 32:
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        array = array.astype(jnp.float32 if floating else jnp.uint32)
    words = lax.bitcast_convert_type(array, jnp.uint32)
    return [words] if bits <= 32 else [words[..., half] for half in range(bits // 32)]


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
