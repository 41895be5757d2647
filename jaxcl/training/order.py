"""The random keys of a task, and the order of its rows.

Both training loops use these, so that they learn from the same rows in the same order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcl.typing import Key


class FitKeys(NamedTuple):
    """The keys of the order of a task's rows, of its steps (by number), and its end."""

    order: Key
    steps: Key
    end: Key


def fit_keys(key: Key) -> FitKeys:
    """The keys of one task from the key of its fit; the host loop uses the same."""
    return FitKeys(*jax.random.split(key, 3))


class TaskKeys(NamedTuple):
    """The keys of a task's fit and of its observers."""

    fit: Key
    before: Key
    after: Key


def task_keys(key: Key, index) -> TaskKeys:
    """The keys of task ``index``, from the key of the run alone."""
    return TaskKeys(*jax.random.split(jax.random.fold_in(key, index), 3))


def batch_order(
    key: Key, weight: Float[Array, " n"], *, num_steps: int, batch_size: int
) -> Int[Array, "steps b"]:
    """Row numbers of ``num_steps`` batches, drawn without replacement.

    Each pass over the task is a new random order of its real rows, and padding at the end
    does not change the order. A batch may span two passes, so that all batches are full.
    A padded task with fewer real rows than a batch has each of them once in every batch,
    which is filled up with a row of weight zero; these appear nowhere else.

    Args:
      key: draws the orders.
      weight: [n], zero for padding.
      num_steps: how many batches.
      batch_size: rows of each, at most ``n``.
    """
    n, total = weight.shape[0], num_steps * batch_size
    last = jnp.where(weight > 0, 0.0, 2.0)  # padding comes after all draws
    real = jnp.maximum(jnp.sum(weight > 0).astype(jnp.int32), 1)

    def add(number, rows):
        draws = jax.random.uniform(jax.random.fold_in(key, number), (n,), jnp.float32)
        order = jnp.argsort(draws + last).astype(jnp.int32)
        # The padding of this pass is overwritten by the next one.
        return jax.lax.dynamic_update_slice(rows, order, (number * real,))

    drawn = jnp.where(real < n, jnp.minimum(real, batch_size), batch_size)  # a batch
    passes = (num_steps * drawn + real - 1) // real
    rows = jax.lax.fori_loop(0, passes, add, jnp.zeros(total + n, jnp.int32))
    column = jnp.arange(batch_size, dtype=jnp.int32)
    place = jnp.arange(num_steps, dtype=jnp.int32)[:, None] * drawn + column
    padding = jnp.argmin(weight > 0).astype(jnp.int32)
    return jnp.where(column < drawn, rows[place], padding)


__all__ = ["FitKeys", "TaskKeys", "batch_order", "fit_keys", "task_keys"]
