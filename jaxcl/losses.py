"""Losses per example of a batch, and the outputs that they are made of.

A *loss* is ``(params, batch, keys [b]) -> [b]``: batch-first, one number per example.
*Outputs* are ``(params, batch, keys=None) -> [b, ...]``: they choose what of a network's
answer belongs to an example (:func:`single_head`, :func:`heads`), and losses, metrics,
Fishers and distillation are built from them.

The row law: row ``i`` of a loss or of outputs depends on row ``i`` of the batch only. It is
what lets a batch be split into chunks, padded, joined with a replay, or taken example by
example for a Fisher. Batch statistics and in-batch negatives break it;
:func:`check_rows_independent` tells.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, ScalarLike, Shaped
from jaxtyping import Key as Keys

from jaxcl.errors import (
    check_kind,
    check_number,
    check_size,
    is_whole,
    is_zero,
    shown,
)
from jaxcl.tree import by_chunks, check_batch, num_rows, weighted_mean
from jaxcl.typing import Batch, Key, Loss, Outputs, Params

#: What stands for the logit of a class that an example cannot have: large, negative and
#: finite, so that it has probability zero and differences of two of them are no NaN.
MASKED = -1e9


def single_head(apply: Callable) -> Outputs:
    """All outputs of the network are the classes, whatever the task.

    Args:
      apply: ``(params, x [b, ...], keys=None) -> logits [b, c]``.
    """
    check_kind("single_head", Callable, "give model.apply", apply=apply)
    return lambda params, batch, keys=None: apply(params, batch.x, keys)


def heads(apply: Callable, sizes: int | list[int] | tuple[int, ...]) -> Outputs:
    """Each example reads the outputs of its own task: task-incremental learning.

    Outputs of other tasks get no gradient. The network needs as many outputs as all heads
    together; for a task without a head the logits are NaN.

    Args:
      apply: ``(params, x [b, ...], keys=None) -> [b, outputs]``.
      sizes: classes of every task, or a list of the classes of each. Heads of unequal
        width are filled up to the widest with :data:`MASKED`.

    Returns:
      Outputs ``[b, max(sizes)]``.

    Raises:
      ValueError: for sizes below one; when applied, if the outputs are not those of all
        heads together.
    """
    check_kind("heads", Callable, "give model.apply", apply=apply)
    _check_sizes("heads", sizes)

    def outputs(params, batch, keys=None):
        every = _by_task("heads", apply(params, batch.x, keys), sizes)
        known = (batch.task >= 0) & (batch.task < every.shape[1])
        own = jnp.take_along_axis(every, batch.task[:, None, None], axis=1)[:, 0]
        return jnp.where(known[:, None], own, jnp.nan)

    return outputs


def past_heads(apply: Callable, sizes: int | list[int] | tuple[int, ...]) -> Outputs:
    """The outputs of all tasks before each example's own, for distillation.

    Args:
      apply: as for :func:`heads`.
      sizes: likewise.

    Returns:
      Outputs ``[b, T, c]``: row ``t`` holds those of task ``t``, and zeros, which no
      parameter moves, from the example's own task on. What
      :func:`jaxcl.regularizers.distill` makes of it is a mean over all ``T`` rows: give
      ``T`` times the strength for a sum over the past tasks.
    """
    check_kind("past_heads", Callable, "give model.apply", apply=apply)
    _check_sizes("past_heads", sizes)

    def outputs(params, batch, keys=None):
        every = _by_task("past_heads", apply(params, batch.x, keys), sizes)
        past = jnp.arange(every.shape[1]) < batch.task[:, None]
        return jnp.where(past[:, :, None], every, 0.0)

    return outputs


def _check_sizes(who: str, sizes) -> None:
    many = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
    if not many or not all(is_whole(size) and int(size) > 0 for size in many):
        msg = (
            f"{who}: sizes must be the classes of every task, or a list of those of each, "
            f"got {shown(sizes)}."
        )
        raise ValueError(msg)


def _by_task(who: str, scores: Array, sizes) -> Float[Array, "b T c"]:
    """The outputs of each task, those of narrow heads filled up with MASKED."""
    total = scores.shape[-1]
    if is_whole(sizes):
        if total % sizes:
            msg = (
                f"{who}: outputs must be a multiple of the {sizes} classes of a task, got "
                f"{total}; give the model num_tasks * {sizes} outputs."
            )
            raise ValueError(msg)
        return scores.reshape(len(scores), -1, sizes)
    if total != sum(sizes):
        msg = (
            f"{who}: outputs must be those of all heads, {sum(sizes)}, got {total}; give "
            f"the model {sum(sizes)} outputs."
        )
        raise ValueError(msg)
    if len(set(sizes)) == 1:  # nothing to fill up
        return scores.reshape(len(scores), -1, sizes[0])
    parts = jnp.split(scores, np.cumsum(sizes)[:-1], axis=-1)
    fill = lambda part: jnp.pad(
        part, [(0, 0), (0, max(sizes) - part.shape[-1])], constant_values=MASKED
    )
    return jnp.stack([fill(part) for part in parts], axis=1)


def per_example(
    loss: Callable[[Params, Batch, Key], Float[Array, ""]],
) -> Loss:
    """Lift a loss of one example to a batch, by ``vmap``.

    Args:
      loss: ``(params, example, key) -> scalar``, where no leaf of the example has a batch
        axis.
    """
    check_kind("per_example", Callable, loss=loss)
    return jax.vmap(loss, in_axes=(None, 0, 0))


def of_one(loss: Loss) -> Callable[[Params, Batch, Key], Float[Array, ""]]:
    """The inverse of :func:`per_example`: a batch of one row for one example."""

    def alone(params, example, key):
        one = jax.tree.map(lambda leaf: leaf[None], (example, key))
        return _one_per_example(loss(params, *one), one[0])[0]

    return alone


def cross_entropy(outputs: Outputs) -> Loss:
    """Negative log-likelihood of the label: ``logsumexp(z) - z[y]``.

    Args:
      outputs: ``(params, batch, keys) -> logits [b, c]``; see :func:`single_head`,
        :func:`heads`.

    Returns:
      A loss in nats, NaN for a label that is no class.
    """
    check_kind(
        "cross_entropy", Callable, "give single_head(model.apply)", outputs=outputs
    )

    def loss(params, batch, keys):
        scores = outputs(params, batch, keys)
        labels = _labels("cross_entropy", scores, batch)
        # NaN for a label that is no class: from the end is no way to count them.
        labels = jnp.where(labels < 0, scores.shape[-1], labels)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels)

    return loss


def dark_experience_loss(
    outputs: Outputs, alpha: ScalarLike, beta: ScalarLike = 0.0
) -> Loss:
    r"""The loss of replayed rows in DER: stay near the outputs stored with them.

    .. math:: \alpha \, |z - f(x)|_2^2 + \beta \, \text{CE}(f(x), y)

    Args:
      outputs: ``(params, batch, keys) -> logits [b, c]``.
      alpha: per squared logit; the authors' code takes the mean over classes, so its alpha
        is ``c`` times this one.
      beta: 0 for DER, above for DER++ (on the same rows; the paper draws others).

    Returns:
      A loss for ``make_method(..., replay_loss=)``, of rows whose ``stored`` are ``z``:
      ``reservoir(..., store=outputs)``.

    Source: Buzzega et al. 2020, arXiv:2004.07211, equations 5 and 6.
    """
    check_number("dark_experience_loss", alpha=alpha, beta=beta)
    likely = cross_entropy(outputs)

    def loss(params, batch, keys):
        given = outputs(params, batch, keys)
        came = getattr(batch.stored, "shape", None)
        if jnp.shape(given) != came:
            msg = (
                "dark_experience_loss: rows must have their outputs stored, shape "
                f"{list(jnp.shape(given))}, got "
                f"{'none' if came is None else list(came)}; build the memory with "
                "store=outputs."
            )
            raise ValueError(msg)
        squares = jnp.square(given - batch.stored)
        far = jnp.sum(squares, axis=tuple(range(1, squares.ndim)))
        kept = jnp.asarray(alpha * far)
        return kept if is_zero(beta) else kept + beta * likely(params, batch, keys)

    return loss


def _labels(who: str, scores, batch: Batch):
    """The classes of the examples, or a ValueError where there is not one each."""
    labels = jnp.asarray(batch.y)
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if not integer or labels.shape != scores.shape[:-1]:
        msg = (
            f"{who}: labels must be integers [n], one class number a row, got "
            f"{labels.dtype}{list(labels.shape)} for outputs {list(scores.shape)}."
        )
        raise ValueError(msg)
    return labels


def squared_error(outputs: Outputs) -> Loss:
    """Half the squared distance to the target: ``|outputs - y|^2 / 2``.

    Args:
      outputs: ``(params, batch, keys) -> [b, ...]``, such as ``single_head(model.apply)``;
        the target ``y`` has its shape, and neither is broadcast.
    """
    check_kind(
        "squared_error", Callable, "give single_head(model.apply)", outputs=outputs
    )

    def loss(params, batch, keys):
        given, target = outputs(params, batch, keys), batch.y
        if jnp.shape(given) != jnp.shape(target):
            msg = (
                "squared_error: outputs and targets must agree in shape, got "
                f"{jnp.shape(given)} and {jnp.shape(target)}; reshape y, or the outputs."
            )
            raise ValueError(msg)
        squares = jnp.square(given - target)
        return 0.5 * jnp.sum(squares, axis=tuple(range(1, squares.ndim)))

    return loss


def token_cross_entropy(outputs: Outputs) -> Loss:
    """The mean negative log-likelihood of a sequence's labels, in nats per token.

    Args:
      outputs: ``(params, batch, keys) -> logits [b, n, v]``.

    Returns:
      A loss of examples whose ``y [n]`` are token numbers; a label below zero counts
      nowhere (padding, or a prompt that is only read), and a sequence of such labels has
      loss zero. Sequences count alike, whatever their length; for a mean over tokens give
      each example the number of its labels as its weight.
    """
    check_kind(
        "token_cross_entropy",
        Callable,
        "give single_head(model.apply)",
        outputs=outputs,
    )

    def loss(params, batch, keys):
        logits, counts = outputs(params, batch, keys), batch.y >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.where(counts, batch.y, 0)
        )
        return _mean_of_last(losses, counts)

    return loss


def token_accuracy(outputs: Outputs) -> Callable[[Params, Batch], Float[Array, " b"]]:
    """The fraction of each row's labels that score highest, in [0, 1].

    Returns:
      ``(params, batch) -> [b]``; labels below zero count nowhere.
    """
    check_kind(
        "token_accuracy", Callable, "give single_head(model.apply)", outputs=outputs
    )

    def hits(params, batch):
        right = jnp.argmax(outputs(params, batch), axis=-1) == batch.y
        return _mean_of_last(right, batch.y >= 0)

    return hits


def _mean_of_last(
    values: Shaped[Array, "*b n"], counts: Bool[Array, "*b n"]
) -> Float[Array, "*b"]:
    """The mean over the last axis of what counts; zero where nothing does."""
    total = jnp.sum(jnp.where(counts, values, 0), axis=-1, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def example_losses(
    loss: Loss,
    params: Params,
    batch: Batch,
    key: Key | Keys[Array, " b"],
    *,
    chunk_size: int | None = None,
) -> Float[Array, " b"]:
    """The loss of every example; each draws from its own key.

    Args:
      loss: ``(params, batch, keys [b]) -> [b]``.
      params: where.
      batch: rows ``[b, ...]``.
      key: of all rows, or ``[b]``, one for each.
      chunk_size: rows whose activations are held at once; all if absent. A gradient then
        accumulates chunk by chunk, each of which is computed a second time for it: the
        memory of a small batch, for four thirds of the work.
    """
    check_size("example_losses", optional=True, chunk_size=chunk_size)
    check_batch("example_losses", batch)
    if num_rows(batch) == 0:  # no memory: many networks cannot read nothing
        return jnp.zeros_like(batch.weight)
    one = key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)
    keys = jax.random.split(key, num_rows(batch)) if one else key

    def losses(batch, keys):
        return _one_per_example(loss(params, batch, keys), batch)

    return by_chunks(losses, (batch, keys), chunk_size, recompute=True)


def _one_per_example(losses, batch: Batch):
    """The losses; a vector per example would be averaged into something else."""
    if jnp.shape(losses) != batch.weight.shape:
        msg = (
            "loss: expected one number per example, shape "
            f"{list(batch.weight.shape)}, got {list(jnp.shape(losses))}; sum or average "
            "over the other axes, and lift a loss of one example by per_example."
        )
        raise ValueError(msg)
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


def accuracy(
    outputs: Outputs, params: Params, batch: Batch, *, chunk_size: int | None = None
) -> Float[Array, ""]:
    """Weighted fraction of rows whose largest logit is the label, in [0, 1].

    Args:
      outputs: ``(params, batch) -> logits [b, c]``.
      params: what to evaluate.
      batch: rows ``[n, ...]``.
      chunk_size: rows held at once, for large sets; all if absent. One that divides ``n``
        compiles the body once instead of twice.

    Returns:
      [] float32, NaN without a row that counts. Where a logit is NaN the row counts as
      the class of its first NaN, so check finiteness apart.
    """
    check_size("accuracy", optional=True, chunk_size=chunk_size)
    check_kind("accuracy", Callable, "give single_head(model.apply)", outputs=outputs)
    check_batch("accuracy", batch)

    def hits(batch):
        scores = outputs(params, batch)
        labels = _labels("accuracy", scores, batch)
        return (jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32)

    found = by_chunks(hits, (batch,), chunk_size)
    some = jnp.sum(batch.weight) > 0
    return jnp.where(some, weighted_mean(found, batch.weight), jnp.nan)


def check_rows_independent(loss: Loss, params: Params, batch: Batch, key: Key) -> None:
    """Refuse a loss whose rows depend on each other, by trying it on parts of a batch.

    For tests and notebooks; not traced. Every row is computed in the batch, and again
    beside copies of itself.

    Args:
      loss: ``(params, batch, keys) -> [b]``.
      params: where.
      batch: at least two different rows.
      key: of all rows.

    Raises:
      ValueError: naming the first row whose loss changes with its neighbours by more than
        ``1e-4`` of the largest.
    """
    keys = jax.random.split(key, num_rows(batch))
    together = np.asarray(loss(params, batch, keys))
    for row in range(num_rows(batch)):
        same = np.full(num_rows(batch), row)
        copies = jax.tree.map(lambda leaf, same=same: leaf[same], (batch, keys))
        alone = np.asarray(loss(params, *copies))[row]
        if abs(alone - together[row]) > 1e-4 * np.abs(together).max():
            msg = (
                f"loss: row {row} must depend on itself only, got {together[row]:.6g} in "
                f"the batch and {alone:.6g} beside copies of itself; replace batch "
                "statistics by GroupNorm or LayerNorm."
            )
            raise ValueError(msg)


__all__ = [
    "MASKED",
    "Outputs",
    "accuracy",
    "check_rows_independent",
    "cross_entropy",
    "dark_experience_loss",
    "example_losses",
    "heads",
    "mean_loss",
    "of_one",
    "past_heads",
    "per_example",
    "single_head",
    "squared_error",
    "token_accuracy",
    "token_cross_entropy",
]
