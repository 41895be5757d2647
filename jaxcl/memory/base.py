"""The empty memory, and functions that all memories use."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from jaxcl.errors import require
from jaxcl.sequences import widen
from jaxcl.tree import at
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
    twice on CPU. With ``batch=after((params, loss), batch)`` in the
    :class:`~jaxcl.typing.StepRecord` it writes in place.

    Args:
      results: numeric leaves; everything computed from the sample, or other uses of it
        may still cost a copy.
      batch: rows to be observed.
    """
    # A zero is added to the weights: bit 1 of a square, which is never set; the compiler
    # does not simplify it. By index: raveling would gather a leaf split over devices.
    firsts = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(results) if leaf.size]
    none = jnp.zeros((), jnp.float32)  # 32 bits also where float64 is on
    token = sum((first.astype(jnp.float32) for first in firsts), none)
    bits = jax.lax.bitcast_convert_type(token, jnp.uint32)
    zero = (bits * bits & 2).astype(batch.weight.dtype)
    return batch._replace(weight=batch.weight + zero)


def blank_rows(num_rows: int | tuple[int, ...], example: Batch) -> Batch:
    """Copies of the first row of ``example``, of weight zero: so many, or leading axes.

    Rows of zeros would give NaN in a network that divides by the norm of its input, and
    zero times NaN is NaN.
    """
    lead = num_rows if isinstance(num_rows, tuple) else (num_rows,)

    def copies(leaf):
        row = jnp.asarray(leaf)[0]
        return jnp.broadcast_to(row, (*lead, *row.shape))

    rows = jax.tree.map(copies, example)
    return rows._replace(weight=jnp.zeros_like(rows.weight))


#: Numbers of rows, and which of them are real.
Ranks = tuple[Int[Array, " b"], Bool[Array, " b"]]


def draw_ranks(key, count: Int[Array, ""], sample_size: int, replace: bool) -> Ranks:
    """Uniform numbers below ``count``, and which of them are real.

    None is real where ``count`` is zero. With ``replace=False`` only ``count`` of them
    are real where fewer rows exist than are to be drawn, and every set of ``b`` numbers
    is equally likely (Floyd's algorithm: Bentley and Floyd 1987, CACM 30(9)), at the cost
    of a loop of ``b`` short steps.
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
    key, marked: Bool[Array, " m"], sample_size: int, replace: bool
) -> Ranks:
    """Uniform numbers of marked places, and which are real; see :func:`draw_ranks`."""
    ends = jnp.cumsum(marked, dtype=jnp.int32)
    ranks, real = draw_ranks(key, ends[-1], sample_size, replace)
    places = jnp.searchsorted(ends, ranks + 1)
    return jnp.minimum(places, len(marked) - 1), real


def read_rows(kept: Batch, rows, real: Bool[Array, " ..."]) -> Batch:
    """The stored rows of these numbers, of weight zero where they are not real."""
    drawn = at(rows, kept)
    return drawn._replace(weight=drawn.weight * real)


def write_rows(kept: Batch, slot: Int[Array, " b"], batch: PyTree) -> Batch:
    """The stored rows with those of ``batch`` in their slots, if these are in range."""
    write = lambda leaf, rows: leaf.at[slot].set(rows, mode="drop")
    return jax.tree.map(write, kept, batch)


def later_rows_win(slot: Int[Array, " b"], capacity: int) -> Int[Array, " b"]:
    """Slots in which the last row of each slot stays, and the others are out of range.

    :func:`write_rows` then writes each slot once, as if rows had been inserted in order.
    Costs ``b^2`` integer comparisons.
    """
    replaced = jnp.any(jnp.triu(slot[:, None] == slot, k=1), axis=1)
    return jnp.where(replaced, capacity, slot)


def as_stored(who: str, kept: Batch, batch: Batch) -> Batch:
    """Rows of a step as they are stored: shorter sequences are padded at their ends."""
    batch = widen(batch, kept)
    check_rows(who, 1, kept, batch)
    return batch


def check_rows(who: str, lead: int, kept: Batch, batch: Batch) -> None:
    """Refuse rows unlike the stored ones, which have ``lead`` axes in front of a row."""
    # They would be cast or broadcast.
    spec = lambda axes, rows: jax.tree.map(
        lambda leaf: f"{jax.dtypes.canonicalize_dtype(leaf.dtype)}{leaf.shape[axes:]}",
        rows._replace(stored=()),  # the memory's own
    )
    expected, came = spec(lead, kept), spec(1, batch)
    wanted = f"like the example given to init, {expected}, got {came}"
    message = f"rows must have structure, shapes and dtypes {wanted}"
    require(expected == came, who, message)
