"""Sequences of several widths in one batch: padding, and labels that do not count."""

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from jaxcl.lockstep import any_run
from jaxcl.typing import Batch

#: A label that counts nowhere, as in PyTorch and in Hugging Face's data collators.
IGNORED = -100


def sequence_width(batch: Batch) -> int:
    """Positions of sequences with a mask; 0 for other rows."""
    masked = isinstance(batch.x, Mapping) and "mask" in batch.x
    return batch.x["mask"].shape[-1] if masked else 0


def widen(batch: Batch, like: Batch) -> Batch:
    """Sequences padded at their ends to the width of others.

    Of batches whose ``x`` is a dict with a ``mask``; others, and those that are wider or of
    another structure, are returned as they are. Padding is 0, also in the mask and in what
    is stored, and :data:`IGNORED` in integer labels.
    """
    rows, wide = ((part.x, part.y) for part in (batch, like))
    if sequence_width(batch) == 0 or not _fits_into(rows, wide):
        return batch

    def pad(value, leaf, other):
        missing = [w - n for n, w in zip(leaf.shape[1:], other.shape[1:], strict=True)]
        if not any(missing):
            return leaf
        numpy = np if isinstance(leaf, np.ndarray) else jnp
        sides = [(0, 0), *((0, more) for more in missing)]
        return numpy.pad(leaf, sides, constant_values=value)

    integer = all(
        jnp.issubdtype(y.dtype, jnp.integer) for y in jax.tree.leaves(batch.y)
    )
    padded = batch._replace(
        x=jax.tree.map(partial(pad, 0), batch.x, like.x),
        y=jax.tree.map(partial(pad, IGNORED if integer else 0), batch.y, like.y),
    )
    if not _fits_into(batch.stored, like.stored):
        return padded
    stored = jax.tree.map(partial(pad, 0), batch.stored, like.stored)
    return padded._replace(stored=stored)


def _fits_into(rows: PyTree, like: PyTree) -> bool:
    """Whether trees of rows are alike, and no axis is longer than that of the other."""
    if jax.tree.structure(rows) != jax.tree.structure(like):
        return False
    leaves = zip(jax.tree.leaves(rows), jax.tree.leaves(like), strict=True)
    shapes = [(leaf.shape[1:], other.shape[1:]) for leaf, other in leaves]
    shorter = lambda own, its: len(own) == len(its) and all(map(operator.le, own, its))
    return all(shorter(*pair) for pair in shapes)


# ------------------------------------------------- the width that wide rows need


def at_needed_width(
    function: Callable[[Batch], PyTree], rows: Batch, like: Batch
) -> PyTree:
    """``function(rows)``, with sequences cut on the right to a width that holds them.

    The rows of a memory are as wide as the longest sequence of a stream. Those that are
    drawn are cut to the smallest of at most four widths, from that of ``like`` to their
    own, that holds the last real position (``mask``) and the last label (from 0) of each.
    Rows without a weight need not fit. What is left out is padding: it must not change the
    result, whose shapes must not depend on the width.

    Rows are as they came, and the program as it was, where nothing can be cut: without a
    ``mask``, where ``like`` is as wide or differs in more than its width, for labels of
    tokens that are not integers, and where it is not clear which of the axes of ``stored``
    are positions.

    Args:
      function: computed for the width that is needed only, also under ``vmap``: at the
        largest that any of the runs needs. It is compiled for each width.
      rows: leaves ``[r, ...]`` or ``[T, m, ...]``.
      like: rows ``[b, ...]`` of the same kind, of any width.
    """
    cuts = _cuts(rows, like)
    if cuts is None or not _reads(function, rows, cuts):
        return function(rows)
    need, widths = _needed_width(rows, cuts), _widths(rows, like)
    # A sum of flags, each the same for all runs: one branch is then taken, not all.
    place = sum(any_run(need > width).astype(jnp.int32) for width in widths[:-1])
    at = lambda width: lambda rows: function(_cut(rows, cuts, width))
    return jax.lax.switch(place, [at(width) for width in widths], rows)


def _cuts(rows: Batch, like: Batch) -> Batch | None:
    """For each leaf whether it is cut; None if rows have to stay as they are."""
    narrow, wide, lead = sequence_width(like), sequence_width(rows), rows.weight.ndim
    if not 0 < narrow < wide or not rows.weight.size:
        return None
    ours, its = ((part.x, part.y) for part in (rows, like))
    if jax.tree.structure(ours) != jax.tree.structure(its):
        return None

    def differs(leaf, other):
        """Whether a leaf has another width; None if it is otherwise different, too."""
        own, its = leaf.shape[lead:], other.shape[1:]
        wider = its[:1] == (narrow,) and own == (wide, *its[1:])
        return True if wider else False if own == its else None

    x, y = jax.tree.map(differs, ours, its)
    if None in jax.tree.leaves((x, y), is_leaf=lambda leaf: leaf is None):
        return None
    labels = _chosen(rows.y, y)
    if not all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in labels):
        return None
    # Stored beside labels of tokens it is of tokens, too; other numbers may be as many.
    stored = jax.tree.map(lambda leaf: wide in leaf.shape[lead:], rows.stored)
    known = lambda leaf: labels and leaf.shape[lead] == wide
    if not all(map(known, _chosen(rows.stored, stored))):
        return None
    return Batch(x, y, False, False, stored)


def _reads(function: Callable[[Batch], PyTree], rows: Batch, cuts: Batch) -> bool:
    """Whether a function computes anything from the leaves that are cut."""
    traced = jax.make_jaxpr(function)(rows).jaxpr
    given = {id(variable) for variable in _chosen(traced.invars, cuts)}
    used = (variable for equation in traced.eqns for variable in equation.invars)
    return any(id(variable) in given for variable in used)


def _chosen(tree: PyTree, chosen: PyTree) -> list[Any]:
    """The leaves that are chosen."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(chosen), strict=True)
    return [leaf for leaf, it_is in pairs if it_is]


def _widths(rows: Batch, like: Batch) -> list[int]:
    """At most four widths, from that of ``like`` to that of ``rows``.

    They double, or grow by a larger power of two where these would be more. One that is
    nearly the last would save less than it costs to compile.
    """
    narrow, wide, factor = sequence_width(like), sequence_width(rows), 2
    while narrow * factor**3 < wide:
        factor *= 2
    between = (narrow * factor**k for k in (1, 2))
    return [narrow, *(width for width in between if 4 * width <= 3 * wide), wide]


def _needed_width(rows: Batch, cuts: Batch) -> Int[Array, ""]:
    """The end of the last real position, or label, of all rows that have a weight."""
    lead, real = rows.weight.ndim, rows.x["mask"] > 0
    # Others need one position: attention to none may be NaN, and zero times NaN is NaN.
    first = jnp.argmax(real, axis=-1) + 1
    for labels in _chosen(rows.y, cuts.y):
        real |= jnp.any(labels >= 0, axis=tuple(range(lead + 1, labels.ndim)))
    ends = jnp.max(jnp.where(real, jnp.arange(1, real.shape[-1] + 1), 0), axis=-1)
    return jnp.max(jnp.where(rows.weight > 0, ends, first))


def _cut(rows: Batch, cuts: Batch, width: int) -> Batch:
    """The first positions of the leaves that are cut."""
    first = lambda leaf: jax.lax.slice_in_dim(leaf, 0, width, axis=rows.weight.ndim)
    return jax.tree.map(lambda leaf, own: first(leaf) if own else leaf, rows, cuts)
