"""Reservoir sampling: every past example is stored with the same probability."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from jaxcl.errors import check_number, check_size
from jaxcl.memory.base import (
    as_stored,
    blank_rows,
    draw_marked,
    draw_ranks,
    later_rows_win,
    read_rows,
    write_rows,
)
from jaxcl.sequences import widen
from jaxcl.typing import Batch, Memory, Params


class ReservoirState(NamedTuple):
    """The stored rows, and how many were seen."""

    kept: Batch  # leaves [m, ...]; rows beyond `seen` have weight 0
    seen: Int[Array, ""]  # real rows offered so far, may exceed m; int32
    past: Bool[Array, " m"] | tuple[()] = ()  # rows of ended tasks, with `past_only`


def reservoir(
    capacity: int,
    sample_size: int,
    *,
    replace: bool = True,
    past_only: bool = False,
    store: Callable[[Params, Batch], PyTree] | None = None,
) -> Memory:
    """Store a uniform sample of all rows seen; task boundaries are not needed.

    After ``n`` real rows each of them is stored with probability ``min(1, capacity / n)``,
    independent of its position. Row ``i`` (from 0) goes to slot ``i`` while there is room,
    then to a slot drawn from ``0 .. i``, and is dropped if that slot does not exist. A
    batch is inserted at once, with the result of inserting its rows in order. Rows of
    weight zero are not stored and not counted.

    Inside ``scan`` the cost of a step does not depend on the capacity, provided that XLA
    knows that reading comes first: see :func:`jaxcl.memory.after`. Finding the rows of a
    batch that drew one slot takes ``b^2`` integer comparisons. The count is an int32:
    beyond 2^31 - 1 rows it is not defined.

    Args:
      capacity: ``m``, how many rows are kept.
      sample_size: rows per sample, at most ``capacity``; all of weight zero while the
        memory is empty.
      replace: as in :func:`episodic`.
      past_only: sample rows of ended tasks only, not of the current one; a step then
        costs a pass over ``m`` booleans.
      store: ``(params, batch) -> [b, ...]``, kept with each row as ``stored``, such as
        the logits of DER. It is evaluated at the parameters before the step, and costs one
        more forward pass per step. Of shorter sequences it is padded with zeros.

    Reference: Vitter 1985, "Random sampling with a reservoir", algorithm R; as replay
    memory: Chaudhry et al. 2019, arXiv:1902.10486.
    """
    check_size("reservoir", capacity=capacity, sample_size=sample_size)
    check_number("reservoir", least=1, most=capacity, sample_size=sample_size)

    def keep(params, batch):
        return batch._replace(stored=store(params, batch)) if store else batch

    def init(params, example):
        kept = blank_rows(capacity, keep(params, example))
        past = jnp.zeros(capacity, bool) if past_only else ()
        return ReservoirState(kept, jnp.zeros((), jnp.int32), past)

    def sample(key, state):
        if past_only:
            rows, real = draw_marked(key, state.past, sample_size, replace)
        else:
            filled = jnp.minimum(state.seen, capacity)
            rows, real = draw_ranks(key, filled, sample_size, replace)
        return read_rows(state.kept, rows, real)

    def observe(key, state, step, _params):
        batch = as_stored("reservoir", state.kept, step.batch)
        real = batch.weight > 0
        arrival = state.seen + jnp.cumsum(real, dtype=jnp.int32) - real
        drawn = jax.random.randint(key, arrival.shape, 0, arrival + 1, jnp.int32)
        slot = jnp.where(arrival < capacity, arrival, drawn)
        slot = later_rows_win(jnp.where(real, slot, capacity), capacity)
        # Computed at the width of the batch, which may be less than that of the memory.
        rows = widen(keep(step.params, step.batch), state.kept) if store else batch
        kept = write_rows(state.kept, slot, rows)
        past = state.past.at[slot].set(False, mode="drop") if past_only else ()
        return ReservoirState(kept, state.seen + jnp.sum(real, dtype=jnp.int32), past)

    def end_task(_key, state, _params, _data):
        if not past_only:
            return state
        return state._replace(past=jnp.arange(capacity) < state.seen)

    return Memory(init, sample, observe, end_task)
