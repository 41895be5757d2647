"""Where a run is: everything that is saved of it, and how it is found again."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcl.data.dataset import Task
from jaxcl.sharding import ShardingPlan, replicated
from jaxcl.training.checkpoint import restore, steps
from jaxcl.training.compiled import Policy, Program
from jaxcl.training.options import Options
from jaxcl.typing import MethodState, Params


class RunState(NamedTuple):
    """Everything that a run is: what is saved, and what it goes on from."""

    state: MethodState
    matrix: Float[np.ndarray, "T T"]  # score on task j after task i; NaN if not known
    task: int  # the task at hand
    step: int  # steps done of it
    num_bad: int  # steps so far that were not finite


def begin(program: Program, params: Params, num_tasks: int) -> RunState:
    """The position before the first step."""
    matrix = np.full((num_tasks, num_tasks), np.nan, np.float32)
    return RunState(program.start(params), matrix, 0, 0, 0)


def latest_run_state(
    place: Path,
    start: RunState,
    sharding: ShardingPlan | None,
    metadata: Mapping[str, Any],
) -> RunState:
    """Where the run in a folder of checkpoints had come to; ``start`` if nowhere.

    Raises:
      ValueError: for the checkpoint of another run, and for checkpoints whose notes are
        lost: to start anew would remove them.
    """
    if not steps(place):
        bare = [entry.name for entry in place.glob("*") if entry.name.isdigit()]
        if len(bare) > 1:  # a kill can leave one, in the first save
            msg = (
                f"learn: {place} has {len(bare)} checkpoints and none of their notes, "
                f"such as {bare[0]}.json; bring these back, or give another folder."
            )
            raise ValueError(msg)
        return start
    run_state = on_host(
        restore(place, on_devices(start, sharding), metadata=metadata).tree
    )
    if run_state.task == len(run_state.matrix):
        warnings.warn(
            f"learn: the run in {place.parent} had finished; its result is returned "
            "and nothing is learned. For another run give another folder.",
            stacklevel=3,
        )
    return run_state


def on_devices(run_state: RunState, sharding: ShardingPlan | None) -> tuple:
    """What a checkpoint holds of a position: arrays, the same on all devices."""
    small = run_state.matrix, *(np.array(number, np.int32) for number in run_state[2:])
    if sharding is None:
        return run_state.state, *map(jnp.asarray, small)
    put = lambda x: jax.make_array_from_process_local_data(replicated(sharding), x)
    return run_state.state, *map(put, small)


def on_host(saved: tuple) -> RunState:
    """The position that a checkpoint held."""
    state, matrix, *numbers = saved
    return RunState(state, np.array(matrix), *map(int, numbers))


def untested(run_state: RunState, *, scored: bool) -> bool:
    """Whether a signal came between the end of a task and its tests."""
    task, step = run_state.task, run_state.step
    over = scored and task > 0 and step == 0
    return over and bool(np.isnan(run_state.matrix[task - 1]).all())


def warn_of_bad_steps(
    run_state: RunState, tasks: Sequence[Task], policy: Policy, *, diverged: bool
) -> None:
    """Say what became of steps that were not finite, if there were any."""
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


def warn_of_bad_scores(run_state: RunState, tasks: Sequence[Task]) -> None:
    """Name the tasks whose score was not finite after some task, if there are any."""
    columns = zip(tasks, run_state.matrix[: run_state.task].T, strict=True)
    bad = [task.name for task, scores in columns if not np.isfinite(scores).all()]
    if bad:
        warnings.warn(
            f"learn: the score on the test rows of {', '.join(map(repr, bad))} was not "
            "finite. Look for NaN among these rows, or in what score returns.",
            stacklevel=3,
        )


def number_of(task: int, step: int, options: Options) -> int:
    """Every position has a number of its own, the end of a task's steps and its end too."""
    return task * (options.num_steps + 1) + step


__all__ = [
    "RunState",
    "begin",
    "latest_run_state",
    "number_of",
    "on_devices",
    "on_host",
    "untested",
    "warn_of_bad_scores",
    "warn_of_bad_steps",
]
