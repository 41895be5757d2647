"""The loss of answers: logits are computed of labelled tokens alone.

Of a row most tokens are those of a prompt, which have no label, and the output layer has as
many columns as the vocabulary: a fifth of the work of a small model, most of its memory.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxcl import adapters, losses
from jaxcl.models.decoder import logits
from jaxcl.typing import Loss, Model, Params


def answer_loss(model: Model, frozen: Params, most: int | None = None) -> Loss:
    """Cross-entropy over the labels of each row, as of :func:`token_cross_entropy`.

    Args:
      model: a decoder.
      frozen: those of its weights that are not trained.
      most: labels that a row has at most; a row with more would lose its last ones. None:
        logits of all tokens.
    """
    apply = adapters.with_frozen(model.apply, frozen)

    def loss(params, batch, keys):
        at = places(batch.y, most)
        scores = apply(params, batch.x, keys, at=at)
        return _of_scores(scores, params, batch, keys, at)

    return loss


def hidden_states(
    model: Model, frozen: Params, most: int | None = None, *, last: bool
) -> tuple[Callable, Callable]:
    """The states of a decoder's layers, and the same with the losses of tokens.

    Returns:
      ``(params, x, keys=None) -> states`` and ``(params, batch, keys) -> (losses [b],
      states)``: those of the last layer, or of all.
    """
    every = adapters.with_frozen(model.hidden, frozen)
    logits_of = adapters.with_frozen(logits, frozen)
    seen = lambda states: states[-1] if last else states

    def with_hidden(params, batch, keys):
        states, at = every(params, batch.x, keys), places(batch.y, most)
        asked = states[-1]
        if at is not None:
            asked = jnp.take_along_axis(asked, at[..., None], axis=1)
        scores = logits_of(params, asked, keys)
        return _of_scores(scores, params, batch, keys, at), seen(states)

    return lambda *given: seen(every(*given)), with_hidden


def places(labels: Int[Array, "b n"], most: int | None) -> Int[Array, "b k"] | None:
    """The positions of the labels of each row, and then others; None for all.

    Where labels may fill half of a row, choosing them would cost what it saves.
    """
    if most is None or 2 * most > labels.shape[1]:
        return None
    return jnp.argsort(labels < 0, axis=1, stable=True)[:, :most]


def _of_scores(scores, params, batch, keys, at):
    labels = batch.y if at is None else jnp.take_along_axis(batch.y, at, axis=1)
    loss = losses.token_cross_entropy(lambda *_: scores)
    return loss(params, batch._replace(y=labels), keys)
