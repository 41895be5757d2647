"""Sequences of several widths in one batch: padding, and labels that do not count."""

import operator
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

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
    another structure, are returned as they are. Padding is 0, also in the mask, and
    :data:`IGNORED` in integer labels.
    """
    rows, wide = ((part.x, part.y) for part in (batch, like))
    leaves, wider = jax.tree.leaves(rows), jax.tree.leaves(wide)
    if sequence_width(batch) == 0:
        return batch
    if jax.tree.structure(rows) != jax.tree.structure(wide):
        return batch
    shapes = [
        (leaf.shape[1:], other.shape[1:])
        for leaf, other in zip(leaves, wider, strict=True)
    ]
    fits = lambda own, other: (
        len(own) == len(other) and all(map(operator.le, own, other))
    )
    if not all(fits(*pair) for pair in shapes):
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
    return batch._replace(
        x=jax.tree.map(partial(pad, 0), batch.x, like.x),
        y=jax.tree.map(partial(pad, IGNORED if integer else 0), batch.y, like.y),
    )
