"""Sequences of several widths in one batch: padding, and labels that do not count."""

import operator
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

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
