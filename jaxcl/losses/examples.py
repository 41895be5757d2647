"""Losses of single examples and of batches, their means, and the row law."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from jaxtyping import Key as Keys

from jaxcl.errors import require
from jaxcl.tree import at, by_chunks, check_batch, num_rows, weighted_mean
from jaxcl.typing import Batch, Key, Loss, Params


def per_example(loss: Callable[[Params, Batch, Key], Float[Array, ""]]) -> Loss:
    """Lift a loss of one example, whose leaves have no batch axis, by ``vmap``."""
    return jax.vmap(loss, in_axes=(None, 0, 0))


def of_one(loss: Loss) -> Callable[[Params, Batch, Key], Float[Array, ""]]:
    """The inverse of :func:`per_example`: a batch of one row for one example."""

    def alone(params, example, key):
        one = jax.tree.map(lambda leaf: leaf[None], (example, key))
        return _one_per_example(loss(params, *one), one[0])[0]

    return alone


def example_losses(
    loss: Loss,
    params: Params,
    batch: Batch,
    key: Key | Keys[Array, " b"],
    *,
    chunk_size: int | None = None,
) -> Float[Array, " b"]:
    """The loss of every example, each with its own key.

    Args:
      loss: ``(params, batch, keys [b]) -> [b]``.
      params: where to evaluate.
      batch: rows ``[b, ...]``.
      key: one for all rows, or ``[b]``, one for each.
      chunk_size: rows whose activations are held at once; all if absent. A gradient is
        accumulated chunk by chunk, each computed a second time for it: the memory of a
        small batch, for four thirds of the work.
    """
    check_batch("example_losses", batch)
    if num_rows(batch) == 0:  # without memory; many networks fail on zero rows
        return jnp.zeros_like(batch.weight)
    # A key per row: rows are then independent, whatever the chunks.
    one = key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)
    keys = jax.random.split(key, num_rows(batch)) if one else key

    def losses(batch, keys):
        return _one_per_example(loss(params, batch, keys), batch)

    return by_chunks(losses, (batch, keys), chunk_size, recompute=True)


def _one_per_example(losses, batch: Batch):
    """The losses, checked: a vector per example would be averaged wrongly."""
    wanted, came = list(batch.weight.shape), list(jnp.shape(losses))
    shapes = f"shape {wanted}, got {came}; lift a loss of one example by per_example"
    require(wanted == came, "loss", f"expected one number per example, {shapes}")
    return losses


def mean_loss(
    loss: Loss,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Weighted mean of :func:`example_losses`; zero for a batch of padding."""
    losses = example_losses(loss, params, batch, key, chunk_size=chunk_size)
    return weighted_mean(losses, batch.weight)


def check_rows_independent(loss: Loss, params: Params, batch: Batch, key: Key) -> None:
    """Refuse a loss whose rows depend on each other, by evaluating parts of a batch.

    For tests and notebooks; not traced. Every row is evaluated in the batch, and again
    in a batch of copies of itself.

    Raises:
      ValueError: naming the first row whose loss changes with the other rows by more than
        ``1e-4`` of the largest.
    """
    together, alone = _both_ways(loss, params, batch, key)
    away = np.abs(alone - together) > 1e-4 * np.abs(together).max()
    row = int(np.argmax(away))  # the first, where there is one
    came = f"{together[row]:.6g} in the batch and {alone[row]:.6g} among its copies"
    message = f"row {row} must depend on itself only, got {came}; use GroupNorm or "
    require(not away[row], "loss", f"{message}LayerNorm for batch statistics")


def _both_ways(loss: Loss, params: Params, batch: Batch, key: Key):
    """The loss of each row in the batch, and in a batch of copies of it."""
    keys, rows = jax.random.split(key, num_rows(batch)), range(num_rows(batch))
    # Copies keep the shapes: the compiled sums stay the same, and only other rows change.
    copies = (at(np.full(len(rows), row), (batch, keys)) for row in rows)
    alone = [loss(params, *same)[row] for row, same in zip(rows, copies, strict=True)]
    return np.asarray(loss(params, batch, keys)), np.asarray(alone)
