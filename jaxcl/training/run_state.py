"""The state of a run: what a checkpoint holds, and how it is found."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.data.dataset import Task
from jaxcl.errors import InputError
from jaxcl.sharding import ShardingPlan, replicated
from jaxcl.training.checkpoint import restore, steps
from jaxcl.training.compiled import Policy
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
      ValueError: for the checkpoint of another run, and for checkpoints whose notes are
        missing: starting from the beginning would remove them.
    """
    if not steps(place):
        bare = [entry.name for entry in place.glob("*") if entry.name.isdigit()]
        if len(bare) > 1:  # one can remain of a first save that was interrupted
            msg = (
                f"learn: {place} has {len(bare)} checkpoints and none of their notes, "
                f"such as {bare[0]}.json; bring these back, or give another folder."
            )
            raise InputError(msg)
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


def warn_if_finished(
    run_state: RunState, tasks: Sequence[Task], home: Path | None
) -> None:
    """Warn that the run had finished before."""
    if run_state.task == len(tasks) and not evaluation_due(run_state):
        warnings.warn(
            f"learn: the run in {home} had finished; its result is returned and nothing "
            "is learned. For another run give another folder, for a longer one more tasks.",
            stacklevel=3,
        )


def warn_of_bad_steps(
    run_state: RunState, tasks: Sequence[Task], policy: Policy, *, diverged: bool
) -> None:
    """Warn of steps that were not finite, if there were any."""
    if not run_state.num_bad:
        return
    became = {
        "stop": "the run was stopped",
        "skip": "these were skipped",
        "continue": "the run went on all the same",
    }[policy]
    where = ""
    if diverged:
        where = f", the last by step {run_state.step} of {tasks[run_state.task].name!r}"
    warnings.warn(
        f"learn: {run_state.num_bad} steps were not finite{where}; {became}. Look for "
        "NaN among the rows and for labels or tasks beyond the outputs, or lower the "
        "learning rate.",
        stacklevel=3,
    )


__all__ = [
    "Best",
    "Found",
    "RunState",
    "begin",
    "evaluation_due",
    "latest_run_state",
    "new_best",
    "number_of",
    "on_devices",
    "on_host",
    "position",
    "warn_if_finished",
    "warn_of_bad_steps",
]
