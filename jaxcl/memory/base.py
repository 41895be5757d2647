"""The memory that keeps nothing, and what all memories share."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from jaxcl.typing import Batch, Memory


def no_memory() -> Memory:
    """Keep nothing: samples have zero rows, so every mean over them is zero.

    The neutral element of memories. XLA removes whatever is computed from zero rows.
    """
    return Memory(
        init=lambda params, example: blank_rows(0, example),
        sample=lambda key, state: state,
    )


def after(results: PyTree, batch: Batch) -> Batch:
    """``batch``, value for value, but not before ``results`` have been computed.

    A step reads the memory and then writes to it. Nothing tells XLA so if what is written
    does not depend on what was read, and to be safe it then copies the whole store at
    every step, twice on CPU. Where ``results`` (updated parameters, a loss, ...) are made
    from the sample, this writes in place::

        replay = memory.sample(key_sample, state)
        params, loss = ...  # made from batch and replay
        step = StepRecord(..., batch=after((params, loss), batch), ...)
        state = memory.observe(key_observe, state, step, params)

    Args:
      results: numeric leaves; all that the sample went into, or its use elsewhere may
        still cost a copy.
      batch: rows to be observed.

    Returns:
      The batch with a zero added to its weights: bit 1 of a square, which is never set,
      but the compiler does not know.
    """
    # By index: a leaf that is split over devices would be gathered to be raveled.
    firsts = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(results) if leaf.size]
    none = jnp.zeros((), jnp.float32)  # 32 bits also where float64 is on
    token = sum((first.astype(jnp.float32) for first in firsts), none)
    bits = jax.lax.bitcast_convert_type(token, jnp.uint32)
    zero = (bits * bits & 2).astype(batch.weight.dtype)
    return batch._replace(weight=batch.weight + zero)


def blank_rows(num_rows: int | tuple[int, ...], example: Batch) -> Batch:
    """Copies of the first row of ``example``, of weight zero.

    They are computed with, whatever their weight, and zero times NaN is NaN: what a
    network makes of zeros would be a NaN if it divides by the norm of its input.

    Args:
      num_rows: how many, or the leading axes.
      example: leaves ``[1, ...]``, or more rows of which the first is taken.
    """
    lead = num_rows if isinstance(num_rows, tuple) else (num_rows,)

    def copies(leaf):
        row = jnp.asarray(leaf)[0]
        return jnp.broadcast_to(row, (*lead, *row.shape))

    rows = jax.tree.map(copies, example)
    return rows._replace(weight=jnp.zeros_like(rows.weight))


def draw_ranks(
    key: PRNGKeyArray, count: Int[Array, ""], sample_size: int, replace: bool
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Uniform numbers below ``count``.

    Args:
      key: randomness.
      count: how many rows there are; may be zero.
      sample_size: ``b``, how many to draw.
      replace: whether a number may come twice. If not, every set of ``b`` numbers is
        equally likely (Floyd's algorithm: Bentley and Floyd 1987, CACM 30(9)), at the
        cost of a loop of ``b`` short steps.

    Returns:
      The numbers, and which of them are real: none where ``count`` is zero, and only
      ``count`` of them where fewer rows exist than are to be drawn without replacement.
    """
    draw = partial(jax.random.randint, key, (sample_size,), 0, dtype=jnp.int32)
    if replace:
        ranks = draw(jnp.maximum(count, 1))
        return ranks, jnp.broadcast_to(count > 0, ranks.shape)

    # Draw i is from 0 .. last[i].
    last = count - sample_size + jnp.arange(sample_size, dtype=jnp.int32)
    lottery = draw(jnp.maximum(last + 1, 1))

    def body(i, ranks):
        fresh = jnp.where(jnp.any(ranks == lottery[i]), last[i], lottery[i])
        return ranks.at[i].set(jnp.where(last[i] < 0, -1, fresh))

    ranks = jax.lax.fori_loop(0, sample_size, body, jnp.full_like(last, -1))
    return jnp.maximum(ranks, 0), ranks >= 0


def check_rows(who: str, lead: int, kept: Batch, batch: Batch) -> None:
    """Raise a ValueError unless the rows of ``batch`` look like the kept ones.

    Args:
      who: the memory that asks.
      lead: how many leading axes of the kept leaves are not part of a row.
      kept: leaves ``[m, ...]`` or ``[T, m, ...]``.
      batch: leaves ``[b, ...]``.
    """
    look = lambda axes, rows: jax.tree.map(
        lambda leaf: f"{jax.dtypes.canonicalize_dtype(leaf.dtype)}{leaf.shape[axes:]}",
        rows._replace(stored=()),  # the memory's own
    )
    expected, came = look(lead, kept), look(1, batch)
    if expected != came:
        msg = (
            f"{who}: rows must look like the example given to init, {expected}, "
            f"got {came}; use the same structure, shapes and dtypes."
        )
        raise ValueError(msg)


__all__ = ["after", "blank_rows", "check_rows", "draw_ranks", "no_memory"]
