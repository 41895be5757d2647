"""A memory of fixed size, divided equally among the tasks so far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxcl.errors import check_size
from jaxcl.memory.base import blank_rows, check_rows, draw_marked, read_rows
from jaxcl.memory.episodic import best_examples
from jaxcl.memory.selection import Select, random_examples
from jaxcl.tree import at
from jaxcl.typing import Batch, Memory


class SharedState(NamedTuple):
    """Rows of all tasks, one task after another, each with equally many places."""

    kept: Batch  # leaves [m, ...]; empty places have weight 0
    tasks_seen: Int[Array, ""]  # tasks that have ended; int32


def shared_episodic(
    capacity: int,
    sample_size: int | None = None,
    *,
    select: Select = random_examples,
    replace: bool = True,
) -> Memory:
    """Store ``capacity // tasks`` rows of each task, divided again when a task ends.

    When task ``t`` (from 1) ends, each earlier one keeps its ``capacity // t`` rows of
    highest priority and the new one gets as many. The size of the memory is fixed, for up
    to ``capacity`` tasks. ``observe`` does nothing, so the current task is never in the
    memory.

    A sample is uniform over all stored rows; all rows if ``sample_size`` is absent.
    Other arguments as in :func:`episodic`. State: :class:`SharedState`; the end of a task
    copies the rows once.

    Reference: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725, algorithm 5.
    """
    check_size("shared_episodic", capacity=capacity)
    check_size("shared_episodic", optional=True, sample_size=sample_size)

    def init(_params, example):
        return SharedState(blank_rows(capacity, example), jnp.zeros((), jnp.int32))

    def sample(key, state):
        if sample_size is None:
            return state.kept
        rows, real = draw_marked(key, state.kept.weight > 0, sample_size, replace)
        return read_rows(state.kept, rows, real)

    def end_task(key, state, params, data):
        check_rows("shared_episodic", 1, state.kept, data)
        data = jax.tree.map(jnp.asarray, data)
        new = best_examples(key, select, params, data, capacity)
        tasks = state.tasks_seen + 1
        before = capacity // jnp.maximum(state.tasks_seen, 1)  # of each until now
        part = capacity // tasks
        place = jnp.arange(capacity)
        task, rank = place // jnp.maximum(part, 1), place % jnp.maximum(part, 1)
        is_new = task == state.tasks_seen
        old = at(jnp.minimum(task * before + rank, capacity - 1), state.kept)
        chosen = lambda leaf: jnp.expand_dims(is_new, range(1, leaf.ndim))
        pick = lambda own, old: jnp.where(chosen(own), own, old)
        rows = jax.tree.map(pick, at(rank, new), old)
        there = (task < tasks) & (part > 0)
        return SharedState(rows._replace(weight=rows.weight * there), tasks)

    return Memory(init, sample, end_task=end_task)
