"""The empty memory, and functions that all memories use."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from jaxcl.errors import InputError
from jaxcl.typing import Batch, Memory


def no_memory() -> Memory:
    """Store nothing: samples have zero rows, so every mean over them is zero.

    The neutral element of memories. XLA removes whatever is computed from zero rows.
    """
    return Memory(
        init=lambda params, example: blank_rows(0, example),
        sample=lambda key, state: state,
    )


def after(results: PyTree, batch: Batch) -> Batch:
    """``batch`` unchanged, with a data dependency on ``results``.

    A step reads the memory and then writes to it. If what is written does not depend on
    what was read, XLA does not know this order and copies the full memory at every step,
    twice on CPU. Where ``results`` (updated parameters, a loss, ...) are computed from
    the sample, this writes in place::

        replay = memory.sample(key_sample, state)
        params, loss = ...  # computed from batch and replay
        step = StepRecord(..., batch=after((params, loss), batch), ...)
        state = memory.observe(key_observe, state, step, params)

    Args:
      results: numeric leaves; everything computed from the sample, or other uses of it
        may still cost a copy.
      batch: rows to be observed.

    Returns:
      The batch with a zero added to its weights. The zero is bit 1 of a square, which is
      never set; the compiler does not simplify it.
    """
    # By index: raveling would gather a leaf that is split over devices.
    firsts = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(results) if leaf.size]
    none = jnp.zeros((), jnp.float32)  # 32 bits also where float64 is on
    token = sum((first.astype(jnp.float32) for first in firsts), none)
    bits = jax.lax.bitcast_convert_type(token, jnp.uint32)
    zero = (bits * bits & 2).astype(batch.weight.dtype)
    return batch._replace(weight=batch.weight + zero)


def blank_rows(num_rows: int | tuple[int, ...], example: Batch) -> Batch:
    """Copies of the first row of ``example``, of weight zero.

    Outputs are computed for rows of weight zero too, and zero times NaN is NaN: rows of
    zeros would give NaN in a network that divides by the norm of its input.

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
      replace: whether a number may be drawn twice. If not, every set of ``b`` numbers is
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
    drawn = draw(jnp.maximum(last + 1, 1))

    def body(i, ranks):
        fresh = jnp.where(jnp.any(ranks == drawn[i]), last[i], drawn[i])
        return ranks.at[i].set(jnp.where(last[i] < 0, -1, fresh))

    ranks = jax.lax.fori_loop(0, sample_size, body, jnp.full_like(last, -1))
    return jnp.maximum(ranks, 0), ranks >= 0


def draw_marked(
    key: PRNGKeyArray, marked: Bool[Array, " m"], sample_size: int, replace: bool
) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Uniform numbers of marked places, and which are real; see :func:`draw_ranks`."""
    ends = jnp.cumsum(marked, dtype=jnp.int32)
    ranks, real = draw_ranks(key, ends[-1], sample_size, replace)
    places = jnp.searchsorted(ends, ranks + 1)
    return jnp.minimum(places, len(marked) - 1), real


def later_rows_win(slot: Int[Array, " b"], capacity: int) -> Int[Array, " b"]:
    """Slots in which the last row of each slot stays, and the others are out of range.

    A scatter with ``mode="drop"`` then writes each slot once, as if rows had been inserted
    in order. Costs ``b^2`` integer comparisons.
    """
    replaced = jnp.any(jnp.triu(slot[:, None] == slot, k=1), axis=1)
    return jnp.where(replaced, capacity, slot)


def check_rows(who: str, lead: int, kept: Batch, batch: Batch) -> None:
    """Raise a ValueError unless the rows of ``batch`` match the stored ones.

    Structure, shapes and dtypes are compared.

    Args:
      who: the memory, for the message.
      lead: how many leading axes of the stored leaves are not part of a row.
      kept: leaves ``[m, ...]`` or ``[T, m, ...]``.
      batch: leaves ``[b, ...]``.
    """
    spec = lambda axes, rows: jax.tree.map(
        lambda leaf: f"{jax.dtypes.canonicalize_dtype(leaf.dtype)}{leaf.shape[axes:]}",
        rows._replace(stored=()),  # the memory's own
    )
    expected, came = spec(lead, kept), spec(1, batch)
    if expected != came:
        wanted = f"like the example given to init, {expected}, got {came}"
        msg = f"{who}: rows must have structure, shapes and dtypes {wanted}."
        raise InputError(msg)
