"""Which rows come when, and how they get to the devices."""

import jax
import numpy as np
from jaxtyping import Int

from jaxcl.streams.rows import Rows
from jaxcl.training.order import batch_order
from jaxcl.training.parallel import Layout, own_rows, place_rows
from jaxcl.typing import Batch, Key


def take_rows(
    rows: Rows, numbers: np.ndarray, *, size: int, layout: Layout | None = None
) -> Batch:
    """A batch of ``size`` rows; those that are missing repeat the first with weight 0.

    Args:
      rows: where from.
      numbers: which, at most ``size``.
      size: rows of the batch, of all processes together.
      layout: where to put them; each process then reads its own part only.
    """
    missing = size - len(numbers)
    filled = np.concatenate([numbers, np.repeat(numbers[:1], missing)])
    real = np.arange(size) < len(numbers)
    if layout is None:
        return _weighted(rows.read(filled), real)
    mine = own_rows(layout, np.arange(size))
    return place_rows(layout, _weighted(rows.read(filled[mine]), real[mine]))


def _weighted(batch: Batch, real: np.ndarray) -> Batch:
    if real.all():
        return batch
    return batch._replace(weight=batch.weight * real.astype(np.float32))


def training_order(
    key: Key, rows: Rows, *, num_steps: int, batch_size: int
) -> Int[np.ndarray, "steps b"]:
    """Row numbers of all batches of a task, as the compiled loop draws them."""
    weight = np.ones(rows.count, np.float32)
    return np.asarray(_order(key, weight, num_steps=num_steps, batch_size=batch_size))


# Jitted once and for all: on its own, the loop inside compiles anew at every call.
_order = jax.jit(batch_order, static_argnames=("num_steps", "batch_size"))


def first_learned(
    order: Int[np.ndarray, "steps b"], count: int
) -> Int[np.ndarray, " k"]:
    """The first ``count`` different rows that were learned from, ascending."""
    _, first = np.unique(order.ravel(), return_index=True)
    return np.sort(order.ravel()[np.sort(first)[:count]])


__all__ = ["first_learned", "take_rows", "training_order"]
