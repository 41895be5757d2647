"""A compiled stream in segments, with checkpoints and exact resume."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxcl.errors import InputError, check_size
from jaxcl.training.checkpoint import restore, save, steps


class StreamResult(NamedTuple):
    """The final state of a stream, and its record."""

    state: PyTree
    record: PyTree  # of all tasks, on the host
    seconds: float  # of all processes that took part, up to their last checkpoint


def in_segments(
    advance: Callable[[PyTree, Int[Array, " size"]], tuple[PyTree, PyTree]],
    state: PyTree,
    *,
    num_tasks: int,
    size: int,
    folder: str | Path,
    save_every: float = 60.0,
    task_axis: int = 0,
    note: Callable[[int], None] | None = None,
) -> StreamResult:
    """Run a stream in segments of equal length, from its last checkpoint if it has one.

    The checkpoint holds the state and the record so far, so a run that was killed at any
    moment and started again ends with the same bits as one that is not interrupted.

    Args:
      advance: ``(state, numbers of tasks) -> (state, record)``, jitted; the record's
        leaves have one entry per task along ``task_axis``. It may donate the state.
      state: initial state.
      num_tasks: tasks of the stream.
      size: tasks per segment, a divisor of ``num_tasks``: one program serves all.
      folder: of the checkpoints; remove it when the results are stored.
      save_every: least seconds between two checkpoints.
      task_axis: 0 for one run, 1 for stacked runs.
      note: called with the number of the next task before each segment.

    Raises:
      ValueError: if ``size`` does not divide ``num_tasks``, or the checkpoint is that of
        another state.
    """
    if size < 1 or num_tasks % size:
        msg = (
            f"in_segments: size must divide the {num_tasks} tasks, got {size}; "
            "see segment_size."
        )
        raise InputError(msg)
    walk = lambda state, first: advance(state, first + jnp.arange(size))

    def whole(leaf):
        shape = list(leaf.shape)
        shape[task_axis] = num_tasks
        return np.zeros(shape, leaf.dtype)

    record = jax.tree.map(whole, jax.eval_shape(lambda s: walk(s, 0)[1], state))
    done, spent = 0, np.zeros(1, np.float32)
    if steps(folder):
        done, (state, record, spent), _ = restore(folder, (state, record, spent))
        record = jax.tree.map(np.array, record)
        if done % size:
            msg = (
                f"in_segments: the checkpoint in {folder} stands at task {done}, where no "
                f"segment of {size} tasks begins; go on with the size it was made with."
            )
            raise InputError(msg)
    began = saved = time.perf_counter()
    seconds = lambda: float(np.asarray(spent)[0]) + time.perf_counter() - began
    for first in range(done, num_tasks, size):
        if note is not None:
            note(first)
        state, part = walk(state, first)
        where = (*(slice(None),) * task_axis, slice(first, first + size))
        for leaf, new in zip(
            jax.tree.leaves(record), jax.tree.leaves(part), strict=True
        ):
            leaf[where] = np.asarray(new)
        if time.perf_counter() - saved > save_every:
            now = np.array([seconds()], np.float32)
            save(folder, first + size, (state, record, now))
            saved = time.perf_counter()
    return StreamResult(state, record, seconds())


def segment_size(num_tasks: int, wanted: int) -> int:
    """The largest divisor of ``num_tasks`` up to ``wanted``: segments of equal length."""
    check_size("segment_size", num_tasks=num_tasks, wanted=wanted)
    return max(k for k in range(1, wanted + 1) if num_tasks % k == 0)


__all__ = ["StreamResult", "in_segments", "segment_size"]
