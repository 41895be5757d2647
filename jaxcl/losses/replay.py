"""The loss of a step: on a batch, and on rows replayed from memory."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, ScalarLike

from jaxcl.errors import is_zero, require
from jaxcl.losses.examples import example_losses
from jaxcl.sharding import split_rows
from jaxcl.tree import num_rows, safe_divide
from jaxcl.typing import Batch, Loss, Params, Progress

#: ``(batch, replay, progress) -> scalar``: the weight of the replay relative to the batch.
ReplayWeight = Callable[[Batch, Batch, Progress], Float[ArrayLike, ""]]


def by_rows(batch: Batch, replay: Batch, progress: Progress) -> Float[Array, ""]:
    """Equal weight for every row, replayed or new; zero for a batch of padding."""
    del progress
    return safe_divide(jnp.sum(replay.weight), jnp.sum(batch.weight))


def by_tasks(batch: Batch, replay: Batch, progress: Progress) -> Float[Array, ""]:
    """Equal weight for every task: that of the replay is the number of past tasks.

    As in van de Ven and Tolias 2018, arXiv:1809.10635, where the current task has weight
    ``1 / t``.
    """
    del batch, replay
    return progress.task.astype(jnp.float32)


class FromAverage(NamedTuple):
    """A loss of replayed rows that depends on the averaged parameters of a method, too.

    It stands for the loss of these rows in the mean over new and replayed ones, while a
    plain ``replay_loss`` is added. What it computes of the average has no gradient.

    Attributes:
      build: ``(average) -> loss``.
    """

    build: Callable[[Params], Loss]


def step_loss(
    loss: Loss,
    replay_loss: Loss | FromAverage | None,
    replay_weight: ScalarLike | ReplayWeight,
    chunk_size: int | None,
) -> Callable[..., Any]:
    """``(params, batch, keys, replay, replay_keys, progress, average) -> (L, losses [b])``.

    See :func:`jaxcl.method.make_method` for the arguments and the formula.
    """
    losses_of = partial(example_losses, chunk_size=chunk_size)
    given: Any = replay_weight

    def data(params, batch, keys, replay, replay_keys, progress, average):
        shares, size = _shares(batch), num_rows(batch)
        if not num_rows(replay) or is_zero(given):
            losses = losses_of(loss, params, batch, keys)
            return jnp.sum(shares * losses), losses
        # w is zero while the memory is empty: L is then the loss of the batch alone.
        weight: Any = given
        if callable(given):
            weight = given(batch, replay, progress)
        came = f"shape {list(jnp.shape(weight))}; sum or average over the rows"
        message = f"replay_weight must return one number, got {came}"
        require(jnp.shape(weight) == (), "make_method", message)
        weight = jnp.any(replay.weight > 0) * weight
        past_shares = weight * _shares(replay)
        if replay_loss is None and not jax.tree.leaves(batch.stored):
            replay = replay._replace(stored=batch.stored)
        if replay_loss is None and _alike(batch, replay):
            # In one pass: two passes cost half as much again.
            join = lambda a, b: jnp.concatenate([a, b])
            both = jax.tree.map(join, (batch, keys), (replay, replay_keys))
            both = split_rows(both[0]), both[1]
            shares = join(shares, past_shares) / (1 + weight)
            losses = losses_of(loss, params, *both)
            return jnp.sum(shares * losses), losses[:size]
        losses = losses_of(loss, params, batch, keys)
        own = past_loss(replay_loss or loss, average)
        past = losses_of(own, params, replay, replay_keys)
        # L = loss + w replay_loss, or a mean, (loss + w loss of the replay) / (1 + w).
        total = jnp.sum(shares * losses) + jnp.sum(past_shares * past)
        added = replay_loss is not None and not isinstance(replay_loss, FromAverage)
        return total if added else total / (1 + weight), losses

    return data


def _alike(batch: Batch, replay: Batch) -> bool:
    """Whether rows of both have one structure, and the same shapes and dtypes."""
    kind = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return jax.tree.map(kind, batch) == jax.tree.map(kind, replay)


def past_loss(loss: Loss | FromAverage, average: Params) -> Loss:
    """The loss of replayed rows, beside averaged parameters."""
    return loss.build(average) if isinstance(loss, FromAverage) else loss


def replayed_loss(
    loss: Loss | FromAverage, chunk_size: int | None
) -> Callable[..., Any]:
    """``(params, replay, keys, average) -> scalar``: the weighted mean over the rows."""

    def replayed(params, replay, keys, average):
        own = past_loss(loss, average)
        losses = example_losses(own, params, replay, keys, chunk_size=chunk_size)
        return jnp.sum(_shares(replay) * losses)

    return replayed


def _shares(batch: Batch):
    """The normalised weights of rows; zeros for a batch of padding."""
    return safe_divide(batch.weight, jnp.sum(batch.weight))
