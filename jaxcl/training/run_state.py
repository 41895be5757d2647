"""The state of a run: what a checkpoint holds, how it is found, and where it starts."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.data.dataset import Task
from jaxcl.errors import InputError, shown
from jaxcl.sharding import ShardingPlan, replicated
from jaxcl.training.checkpoint import Leaves, read_leaves, restore
from jaxcl.training.checkpoint_files import all_steps, is_preserved, steps
from jaxcl.training.files import as_folder
from jaxcl.training.options import Options, steps_of
from jaxcl.typing import MethodState


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
        Any  # [] int32: ends of tasks that are evaluated, the start counts as one
    )
    best: Best | tuple[()] = ()  # with early stopping


def begin(state: MethodState, options: Options) -> RunState:
    """Before the first step."""
    best = new_best(state) if options.early_stopping else ()
    zero = np.int32(0)
    return RunState(state, zero, zero, zero, zero, best)


def new_best(state: MethodState) -> Best:
    """The best of a task before its first evaluation."""
    copy = jax.tree.map(jnp.copy, state)
    return Best(np.float32(np.nan), np.int32(0), copy)


class Found(NamedTuple):
    """What the latest checkpoint of a folder holds."""

    run_state: RunState
    notes: Mapping[str, Any]  # results and tasks, from JSON; empty at the start


def latest_run_state(
    place: Path,
    start: RunState,
    sharding: ShardingPlan | None,
    metadata: Mapping[str, Any],
) -> Found:
    """The latest state of the run in a folder of checkpoints; ``start`` if there is none.

    Raises:
      InputError: for the checkpoint of another run, and if all are damaged.
    """
    if not all_steps(place):
        return Found(start, {})
    restored = restore(place, on_devices(start, sharding), metadata=metadata)
    return Found(on_host(restored.tree), restored.notes)


def on_devices(run_state: RunState, sharding: ShardingPlan | None) -> RunState:
    """The state as arrays for a checkpoint, with scalars replicated on all devices."""
    if sharding is None:
        put = jnp.asarray
    else:
        same = replicated(sharding)
        put = lambda x: jax.make_array_from_process_local_data(same, np.asarray(x))
    return _with_numbers(run_state, put)


def on_host(run_state: RunState) -> RunState:
    """The same with its numbers on the host."""
    return _with_numbers(run_state, lambda number: np.asarray(number)[()])


def _with_numbers(run_state: RunState, convert) -> RunState:
    numbers = {
        name: convert(getattr(run_state, name))
        for name in ("task", "step", "num_bad", "evaluated")
    }
    best = run_state.best
    if isinstance(best, Best):
        best = best._replace(value=convert(best.value), stale=convert(best.stale))
    return run_state._replace(**numbers, best=best)


def number_of(run_state: RunState, tasks: Sequence[Task], options: Options) -> int:
    """A unique number per position; a task's last step and its end are different ones."""
    return position(int(run_state.task), int(run_state.step), tasks, options)


def position(task: int, step: int, tasks: Sequence[Task], options: Options) -> int:
    """Likewise, of a task and a step of it."""
    return sum(steps_of(past, options) + 1 for past in tasks[:task]) + step


def evaluation_due(run_state: RunState) -> bool:
    """Whether the evaluation at the last task's end, or at the start, is still to do."""
    return bool(run_state.step == 0 and run_state.evaluated <= run_state.task)


def is_finished(run_state: RunState, tasks: Sequence[Task]) -> bool:
    """Whether nothing is left to do."""
    return bool(run_state.task == len(tasks)) and not evaluation_due(run_state)


def warn_if_finished(home: Path | None) -> None:
    """Warn that the run had finished before."""
    warnings.warn(
        f"learn: the run in {home} had finished; its result is returned and nothing "
        "is learned. For another run give another folder, for a longer one more tasks.",
        stacklevel=3,
    )


def started_from(
    start: str | Path,
    state: MethodState,
    fresh: Sequence[str],
) -> MethodState:
    """The state of a checkpoint, with some parts initialised instead.

    Args:
      start: folder of a run, or one of its checkpoints.
      state: the method's initial state; the parts in ``fresh`` are taken from it.
      fresh: fields of the state.

    Raises:
      ValueError: for an unknown field, a folder without checkpoints, or a part with
        another structure, by the path of its first leaf that differs.
    """
    wrong = [name for name in fresh if name not in MethodState._fields]
    if wrong or isinstance(fresh, str):
        msg = (
            f"learn: fresh must name parts of the state, such as ('memory',), got "
            f"{shown(fresh)}; there are {', '.join(MethodState._fields)}."
        )
        raise InputError(msg)
    place = _checkpoint_of(as_folder("learn", start, "start"))
    held = read_leaves(place)
    if int(held.get(".step", 0)):
        msg = (
            f"learn: start must be the end of a task, got {place}, which is step "
            f"{int(held['.step'])} of one; give one of a task's end, or finish that run."
        )
        raise InputError(msg)
    parts = {
        name: part if name in fresh else _part(name, part, held, start)
        for name, part in state._asdict().items()
    }
    return MethodState(**parts)


def _checkpoint_of(place: Path) -> Path:
    """The latest checkpoint of a run's folder, or the one that is named."""
    for folder in (place / "checkpoints", place):
        if folder.is_dir() and (found := steps(folder)):
            ends = [step for step in found if is_preserved(folder / str(step))]
            return folder / str((ends or found)[-1])
    if place.with_suffix(".json").is_file():
        return place
    msg = (
        f"learn: start must be the folder of a run or FOLDER/checkpoints/NUMBER, got "
        f"{place}, where no checkpoint is."
    )
    raise InputError(msg)


def _part(name: str, part, held: Leaves, start):
    """One field of the state, with the leaves of the checkpoint."""
    prefix = f".state.{name}"
    wanted = {
        prefix + jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    }
    there = {
        key
        for key in held
        if key == prefix or key.startswith((f"{prefix}.", f"{prefix}["))
    }
    spec = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    for key in sorted(wanted.keys() | there):
        old = spec(held[key]) if key in held else "absent"
        new = spec(wanted[key]) if key in wanted else "absent"
        if old != new:
            msg = (
                f"learn: the state in {start} has {key.removeprefix('.state.')} {old}, "
                f"the method {new}; build the same parts, or begin with new ones: "
                f"fresh=({name!r},)."
            )
            raise InputError(msg)
    leaves = [jax.device_put(held[key], leaf.sharding) for key, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(part), leaves)
