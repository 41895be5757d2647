"""Rules for which rows of a finished task are stored."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxcl.typing import Batch, Key, Params

#: ``(key, params, task, capacity) -> priority [n]``: the ``capacity`` real rows of highest
#: priority are stored. Rows of weight zero are ignored; a row with priority -inf or NaN
#: is never stored.
Select = Callable[[Key, Params, Batch, int], Float[Array, " n"]]


def random_examples(
    key: PRNGKeyArray, params: Params, task: Batch, capacity: int
) -> Float[Array, " n"]:
    """Every set of ``capacity`` rows is equally likely; a :data:`Select`."""
    del params, capacity
    return jax.random.uniform(key, task.weight.shape, jnp.float32)


def class_balanced_examples(
    key: PRNGKeyArray, params: Params, task: Batch, capacity: int
) -> Float[Array, " n"]:
    """Equally many rows of each label; a :data:`Select`.

    Rows are chosen round-robin over labels, in random order within a label; a label
    without further rows is skipped. So the numbers stored differ by at most one between
    labels that still have rows. Costs a sort of the ``n`` rows.

    Labels must be integers ``[n]``.
    """
    del params, capacity
    key_order, key_turn = jax.random.split(key)
    # Padding goes last.
    labels = jnp.where(task.weight > 0, task.y, jnp.iinfo(task.y.dtype).max)
    lots = jax.random.uniform(key_order, labels.shape, jnp.float32)
    order = jnp.lexsort((lots, labels))
    ordered, position = labels[order], jnp.arange(labels.shape[0])
    is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    turn = position - jax.lax.cummax(jnp.where(is_first, position, 0))
    turn = jnp.zeros_like(turn).at[order].set(turn)
    return jax.random.uniform(key_turn, turn.shape, jnp.float32) - turn
