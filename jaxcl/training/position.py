"""Where a run is: everything that is saved of it, and how it is found again."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcl.training.checkpoint import restore, steps
from jaxcl.training.options import Options
from jaxcl.training.parallel import Layout, whole
from jaxcl.training.program import Program
from jaxcl.typing import MethodState, Params


class Position(NamedTuple):
    """Everything that a run is: what is saved, and what it goes on from."""

    state: MethodState
    matrix: Float[np.ndarray, "T T"]  # score on task j after task i; NaN if not known
    task: int  # the task at hand
    step: int  # steps done of it
    num_bad: int  # steps so far that were not finite


def begin(program: Program, params: Params, num_tasks: int) -> Position:
    """The position before the first step."""
    matrix = np.full((num_tasks, num_tasks), np.nan, np.float32)
    return Position(program.start(params), matrix, 0, 0, 0)


def last_position(
    place: Path, start: Position, layout: Layout | None, about: Mapping[str, Any]
) -> Position:
    """Where the run in a folder of checkpoints had come to; ``start`` if nowhere."""
    if not steps(place):
        return start
    position = on_host(restore(place, on_devices(start, layout), about=about).tree)
    if position.task == len(position.matrix):
        warnings.warn(
            f"learn: the run in {place.parent} had finished; its result is returned "
            "and nothing is learned. For another run give another folder.",
            stacklevel=3,
        )
    return position


def on_devices(position: Position, layout: Layout | None) -> tuple:
    """What a checkpoint holds of a position: arrays, the same on all devices."""
    small = position.matrix, *(np.array(number, np.int32) for number in position[2:])
    if layout is None:
        return position.state, *map(jnp.asarray, small)
    put = lambda x: jax.make_array_from_process_local_data(whole(layout), x)
    return position.state, *map(put, small)


def on_host(saved: tuple) -> Position:
    """The position that a checkpoint held."""
    state, matrix, *numbers = saved
    return Position(state, np.array(matrix), *map(int, numbers))


def number_of(task: int, step: int, options: Options) -> int:
    """Every position has a number of its own, the end of a task's steps and its end too."""
    return task * (options.num_steps + 1) + step


__all__ = ["Position", "begin", "last_position", "number_of", "on_devices", "on_host"]
