"""A memory with a fixed number of rows per task, chosen when the task ends."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxcl.errors import check_size, require
from jaxcl.memory.base import blank_rows, check_rows, draw_ranks, read_rows
from jaxcl.memory.selection import Select, random_examples
from jaxcl.tree import at, num_rows
from jaxcl.typing import Batch, Memory


class EpisodicState(NamedTuple):
    """One slot of rows per task, and which of them are filled."""

    kept: Batch  # leaves [T, m, ...]; in each slot the stored rows come first
    filled: Int[Array, " T"]  # stored rows of each slot
    tasks_seen: Int[Array, ""]  # tasks that have ended


def episodic(
    num_tasks: int,
    capacity_per_task: int,
    sample_size: int | None = None,
    *,
    select: Select = random_examples,
    grouped: bool = False,
    replace: bool = True,
) -> Memory:
    """Store ``capacity_per_task`` rows of each finished task.

    ``end_task`` stores rows of the task that ends in slot ``tasks_seen % num_tasks``:
    after ``num_tasks`` tasks the oldest slot is overwritten. Rows keep their ``task``
    index. A task with fewer real rows than a slot holds stores all of them, and the
    rest of the slot has weight zero. ``observe`` does nothing, so the current task is
    never in the memory and a step costs only the sample.

    Samples are uniform over all stored rows of all past tasks; grouped ones keep tasks
    separate, as GEM needs. Rows of empty slots have weight zero.

    ====================  ==================  ==================================
    ``sample_size``       leaves              grouped
    ====================  ==================  ==================================
    ``b``                 ``[b, ...]``        ``[T, b, ...]``, ``b`` of each task
    ``None`` (all rows)   ``[T * m, ...]``    ``[T, m, ...]``
    ====================  ==================  ==================================

    Args:
      num_tasks: ``T``, slots.
      capacity_per_task: ``m``, rows of a slot; the memory holds ``T * m``.
      sample_size: rows per sample, or per task when grouped; all rows if absent.
      select: which rows of a task to store; see :data:`jaxcl.memory.Select`.
      grouped: whether samples keep tasks separate.
      replace: whether a sample may hold a row twice. If not, rows that cannot be filled
        have weight zero, and drawing loops over the sample.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, section 3 (equal parts of the
    memory per task); Chaudhry et al. 2019, arXiv:1812.00420, section 4 (A-GEM's sample
    over all of them).
    """
    check_size("episodic", num_tasks=num_tasks, capacity_per_task=capacity_per_task)
    check_size("episodic", optional=True, sample_size=sample_size)

    def init(_params, example):
        kept = blank_rows((num_tasks, capacity_per_task), example)
        filled = jnp.zeros(num_tasks, jnp.int32)
        return EpisodicState(kept, filled, jnp.zeros((), jnp.int32))

    def sample(key, state):
        if sample_size is None:
            join = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
            return state.kept if grouped else jax.tree.map(join, state.kept)
        draw = partial(draw_ranks, sample_size=sample_size, replace=replace)
        if grouped:
            rows, real = jax.vmap(draw)(jax.random.split(key, num_tasks), state.filled)
            slots = jnp.arange(num_tasks)[:, None]
        else:
            ends = jnp.cumsum(state.filled, dtype=jnp.int32)
            ranks, real = draw(key, ends[-1])
            slots = jnp.searchsorted(ends, ranks, side="right")
            slots = jnp.minimum(slots, num_tasks - 1)  # only where nothing is stored
            rows = ranks - (ends - state.filled)[slots]
        return read_rows(state.kept, (slots, rows), real)

    def end_task(key, state, params, data):
        check_rows("episodic", 2, state.kept, data)
        data = jax.tree.map(jnp.asarray, data)
        chosen = best_examples(key, select, params, data, capacity_per_task)
        slot = state.tasks_seen % num_tasks
        write = lambda leaf, rows: leaf.at[slot].set(rows)
        kept = jax.tree.map(write, state.kept, chosen)
        filled = write(state.filled, jnp.sum(chosen.weight > 0, dtype=jnp.int32))
        return EpisodicState(kept, filled, state.tasks_seen + 1)

    return Memory(init, sample, end_task=end_task)


def best_examples(key, select: Select, params, task: Batch, capacity: int) -> Batch:
    """The real rows of highest priority, best first; then copies of weight zero."""
    priority = select(key, params, task, capacity)
    shape, came = task.weight.shape, jnp.shape(priority)
    message = f"select must return one priority per row, shape {shape}, got {came}"
    require(came == shape, "episodic", message)
    allowed = (task.weight > 0) & ~jnp.isnan(priority)
    width = min(capacity, num_rows(task))
    best, rows = jax.lax.top_k(jnp.where(allowed, priority, -jnp.inf), width)
    best = jnp.pad(best, (0, capacity - width), constant_values=-jnp.inf)
    rows = jnp.where(best > -jnp.inf, jnp.pad(rows, (0, capacity - width)), rows[0])
    chosen = at(rows, task)
    return chosen._replace(weight=chosen.weight * (best > -jnp.inf))
