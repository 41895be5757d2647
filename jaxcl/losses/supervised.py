"""Losses and accuracies for labels, targets, tokens and stored outputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, ScalarLike, Shaped

from jaxcl.errors import check_number, check_size, is_zero, require
from jaxcl.losses.outputs import evaluated
from jaxcl.tree import by_chunks, weighted_mean
from jaxcl.typing import Batch, Loss, Outputs, Params


def cross_entropy(outputs: Outputs) -> Loss:
    """Negative log-likelihood of the label: ``logsumexp(z) - z[y]``.

    In nats, of ``outputs(params, batch, keys) -> logits [b, c]``; NaN for a label that is
    not a class, about 1e9 for a class that is masked (:data:`jaxcl.losses.MASKED`).
    """

    def loss(params, batch, keys):
        scores = evaluated(outputs, params, batch, keys)
        labels = class_labels("cross_entropy", scores, batch)
        # NaN for a label that is not a class; a negative index would count from the end.
        labels = jnp.where(labels < 0, scores.shape[-1], labels)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels)

    return loss


class LargestLogits(NamedTuple):
    """The ``k`` largest logits of each token or row, which a memory stores for DER.

    Zeros where the label is below zero.
    """

    values: Float[Array, "b *n k"]  # from the largest to the smallest
    tokens: Int[Array, "b *n k"]  # whose logits they are; int32


def largest_logits(
    outputs: Outputs, k: int = 64
) -> Callable[[Params, Batch], LargestLogits]:
    """What DER stores of a language model: the ``k`` largest logits of each token.

    For ``reservoir(..., store=largest_logits(outputs))``, whose rows
    :func:`dark_experience_loss` recognises. A memory takes ``8 m n k`` bytes for them
    (``6 m n k`` in bfloat16): 66 MB for ``m`` = 500 rows of ``n`` = 256 tokens and
    ``k`` = 64, where all logits at a vocabulary of 49,152 would take 25 GB.

    Args:
      outputs: ``(params, batch) -> logits [b, n, v]`` for labels ``[b, n]``, or ``[b, c]``
        for labels ``[b]``.
      k: how many, at most ``v``; with all of them it is DER with all logits.
    """
    check_size("largest_logits", k=k)

    def largest(params, batch):
        logits = evaluated(outputs, params, batch)
        count = logits.shape[-1]
        few = f"k must be at most the number of logits, {count}, got {k}; lower it"
        require(k <= count, "largest_logits", few)
        counts = class_labels("largest_logits", logits, batch)[..., None] >= 0
        found = jax.lax.top_k(logits, k)
        return LargestLogits(*(jnp.where(counts, part, 0) for part in found))

    return largest


def dark_experience_loss(
    outputs: Outputs, alpha: ScalarLike, beta: ScalarLike = 0.0
) -> Loss:
    r"""The replay loss of DER: the squared distance to the stored logits.

    .. math:: \alpha \, |z - f(x)|_2^2 + \beta \, \text{CE}(f(x), y)

    For ``make_method(..., replay_loss=)``, of rows whose ``stored`` is ``z``:
    ``reservoir(..., store=outputs)``. Of logits for each token it is a mean over the tokens
    with a label, as :func:`token_cross_entropy`; those of a row are stored at the width of
    the longest, 50 MB for 256 tokens at a vocabulary of 49,152. With
    ``store=largest_logits(outputs, k)`` the distance is that of the ``k`` logits which
    were largest when the row was stored, and no others are compared.

    Args:
      outputs: ``(params, batch, keys) -> logits [b, c]``, or ``[b, n, c]`` for tokens.
      alpha: per squared logit; the authors' code takes the mean over classes, so its alpha
        is ``c`` times this one.
      beta: 0 for DER, above 0 for DER++ (on the same rows; the paper draws others).

    Source: Buzzega et al. 2020, arXiv:2004.07211, equations 5 and 6.
    """
    check_number("dark_experience_loss", alpha=alpha, beta=beta)
    likely = label_cross_entropy(outputs)

    def loss(params, batch, keys):
        given, stored = evaluated(outputs, params, batch, keys), batch.stored
        if isinstance(stored, LargestLogits):
            given, stored = _same_logits(given, stored), stored.values
        squares = _squares("stored outputs (store=outputs)", given, stored)
        # alpha |z - f(x)|^2; DER++ adds beta CE(f(x), y).
        far = jnp.sum(squares, axis=-1)
        if far.ndim == 2 and getattr(batch.y, "shape", ()) == far.shape:
            far = _mean_of_last(far, batch.y >= 0)
        far = jnp.sum(far.reshape(len(given), -1), axis=1)
        kept = jnp.multiply(alpha, far)
        return kept if is_zero(beta) else kept + beta * likely(params, batch, keys)

    return loss


def _same_logits(logits: Array, stored: LargestLogits) -> Array:
    """The logits now of the tokens or classes that are stored, ``[b, *n, k]``."""
    shape, came = logits.shape[:-1], stored.tokens.shape[:-1]
    message = f"stored logits must be of {list(shape)} tokens, got {list(came)}"
    require(shape == came, "loss", f"{message}; give both the same outputs")
    return jnp.take_along_axis(logits, stored.tokens, axis=-1)


def label_cross_entropy(outputs: Outputs) -> Loss:
    """:func:`cross_entropy` for labels ``[b]``, :func:`token_cross_entropy` for [b, n]."""
    of_rows, of_tokens = cross_entropy(outputs), token_cross_entropy(outputs)

    def loss(params, batch, keys):
        of_labels = of_tokens if getattr(batch.y, "ndim", 1) == 2 else of_rows
        return of_labels(params, batch, keys)

    return loss


def _squares(name: str, outputs, other) -> Array:
    """``(outputs - other)^2``; other shapes, which would be broadcast, are refused."""
    shape, came = jnp.shape(outputs), getattr(other, "shape", "none")
    message = f"{name} must have the shape of the outputs, {shape}, got {came}"
    require(shape == came, "loss", message)
    return jnp.square(outputs - other)


def class_labels(who: str, scores, batch: Batch):
    """The classes of the examples, or a ValueError unless there is one for each."""
    labels = jnp.asarray(batch.y)
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    came = f"{labels.dtype}{list(labels.shape)} for outputs {list(scores.shape)}"
    message = f"labels must be integers [n], one class a row, got {came}"
    require(integer and labels.shape == scores.shape[:-1], who, message)
    return labels


def squared_error(outputs: Outputs) -> Loss:
    """Half the squared distance to the target: ``|outputs - y|^2 / 2``, of equal shapes."""

    def loss(params, batch, keys):
        squares = _squares(
            "targets y", evaluated(outputs, params, batch, keys), batch.y
        )
        return 0.5 * jnp.sum(squares, axis=tuple(range(1, squares.ndim)))

    return loss


def token_cross_entropy(outputs: Outputs) -> Loss:
    """The mean negative log-likelihood of a sequence's labels, in nats per token.

    Of ``outputs(params, batch, keys) -> logits [b, n, v]`` for token numbers ``y [b, n]``.
    Labels below zero are ignored (padding, or a prompt); a sequence of them has loss zero.
    All sequences have equal weight, independent of their length; for a mean over tokens
    give each example the number of its labels as its weight.
    """

    def loss(params, batch, keys):
        logits, counts = evaluated(outputs, params, batch, keys), batch.y >= 0
        labels = jnp.where(counts, batch.y, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return _mean_of_last(losses, counts)

    return loss


def token_accuracy(outputs: Outputs) -> Callable[[Params, Batch], Float[Array, " b"]]:
    """The fraction of each row's labels (those from zero) with the largest logit."""

    def hits(params, batch):
        right = jnp.argmax(evaluated(outputs, params, batch), axis=-1) == batch.y
        return _mean_of_last(right, batch.y >= 0)

    return hits


def _mean_of_last(
    values: Shaped[Array, "*b n"], counts: Bool[Array, "*b n"]
) -> Float[Array, "*b"]:
    """The mean over the last axis of the entries that count; zero if none does."""
    # In float32: bfloat16 cannot count beyond 256.
    total = jnp.sum(jnp.where(counts, values, 0), axis=-1, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def accuracy(
    outputs: Outputs, params: Params, batch: Batch, *, chunk_size: int | None = None
) -> Float[Array, ""]:
    """Weighted fraction of rows whose largest logit is the label, in [0, 1].

    Of ``outputs(params, batch) -> logits [b, c]``; ``chunk_size`` rows are held at once,
    all if absent. NaN if all weights are zero, or if a label of a row with a weight is not
    a class. Where a logit is NaN the prediction is the class of the first NaN, so check
    finiteness separately.
    """

    def hits(batch):
        scores = evaluated(outputs, params, batch)
        labels = class_labels("accuracy", scores, batch)
        # A label outside the classes would count as a miss, and hide the mistake.
        hit = (jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32)
        return jnp.where(are_classes(labels, scores, batch), hit, jnp.nan)

    found = by_chunks(hits, (batch,), chunk_size)
    some = jnp.sum(batch.weight) > 0
    return jnp.where(some, weighted_mean(found, batch.weight), jnp.nan)


def are_classes(labels: Array, logits: Array, batch: Batch) -> Bool[Array, " b"]:
    """Where labels are those of a class; true for padding."""
    inside = (labels >= 0) & (labels < logits.shape[-1])
    return inside | (batch.weight == 0)
