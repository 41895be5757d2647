"""Losses of one example, and what a batch makes of them."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Shaped
from jaxtyping import Key as Keys

from jaxcl.errors import check_kind, check_size
from jaxcl.tree import check_batch, num_rows, weighted_mean
from jaxcl.typing import Batch, ExampleLoss, Key, Params

#: ``(params, example) -> logits [c]`` of one example.
Logits = Callable[[Params, Batch], Float[Array, " c"]]


class RowLosses(NamedTuple):
    """The loss of one example that is also known for many rows at once, and faster so.

    It is an :data:`~jaxcl.typing.ExampleLoss` like any other: called, it is ``example``,
    and what is taken example by example (a Fisher) is taken of that. Where the loss of
    a batch is wanted, ``rows`` is computed instead of a ``vmap``.

    Attributes:
      example: ``(params, example, key) -> scalar``.
      rows: ``(params, batch, keys [b]) -> [b]``: the same numbers.
    """

    example: ExampleLoss
    rows: Callable[[Params, Batch, Keys[Array, " b"]], Float[Array, " b"]]

    def __call__(self, params: Params, example: Batch, key: Key) -> Float[Array, ""]:
        """The loss of one example."""
        return self.example(params, example, key)


def single_head(apply: Callable) -> Logits:
    """All outputs are the classes, whatever the task.

    Args:
      apply: ``(params, x) -> logits [c]`` of one input.
    """
    check_kind("single_head", Callable, "give model.apply", apply=apply)
    return lambda params, example: apply(params, example.x)


def multi_head(apply: Callable, num_classes: int) -> Logits:
    """Each task reads its own ``num_classes`` outputs: ``logits[task * c : task * c + c]``.

    This is the task-incremental setting: an example knows its task, and the outputs of
    other tasks get no gradient. The network must have ``num_tasks * num_classes`` outputs;
    for a task without outputs the logits are NaN.
    """
    check_kind("multi_head", Callable, "give model.apply", apply=apply)
    check_size("multi_head", num_classes=num_classes)

    def logits(params, example):
        heads = _heads("multi_head", apply(params, example.x), num_classes)
        known = (example.task >= 0) & (example.task < heads.shape[0])
        return jnp.where(known, heads[example.task], jnp.nan)

    return logits


def past_heads(apply: Callable, num_classes: int) -> Logits:
    """The outputs of all tasks before the example's own, for distillation.

    Returns:
      ``(params, example) -> [T, c]``: row ``t`` holds the outputs of task ``t``, and zeros,
      which no parameter moves, from the example's own task on. What
      :func:`jaxcl.regularizers.distill` makes of it is a mean over all ``T`` rows: give
      ``T`` times the strength for a sum over the past tasks.
    """
    check_kind("past_heads", Callable, "give model.apply", apply=apply)
    check_size("past_heads", num_classes=num_classes)

    def logits(params, example):
        heads = _heads("past_heads", apply(params, example.x), num_classes)
        past = jnp.arange(heads.shape[0]) < example.task
        return jnp.where(past[:, None], heads, 0.0)

    return logits


def _heads(who: str, outputs, num_classes: int):
    """The outputs of each task, [T, c]."""
    if outputs.shape[-1] % num_classes:
        msg = (
            f"{who}: outputs must be a multiple of num_classes={num_classes}, got "
            f"{outputs.shape[-1]}; give the model num_tasks * num_classes outputs."
        )
        raise ValueError(msg)
    return outputs.reshape(-1, num_classes)


def cross_entropy(logits: Logits) -> ExampleLoss:
    """Negative log-likelihood of the label: ``logsumexp(z) - z[y]``.

    Args:
      logits: ``(params, example) -> [c]``; see :func:`single_head`, :func:`multi_head`.

    Returns:
      ``(params, example, key) -> scalar`` in nats, NaN for a label that is no class. The
      key is not used.
    """
    check_kind(
        "cross_entropy", Callable, "give single_head(model.apply)", logits=logits
    )

    def example_loss(params, example, key):
        del key
        scores = logits(params, example)
        label = _label("cross_entropy", scores, example)
        # NaN for a label that is no class: from the end is no way to count them.
        label = jnp.where(label < 0, scores.shape[-1], label)
        return optax.softmax_cross_entropy_with_integer_labels(scores, label)

    return example_loss


def _label(who: str, scores, example: Batch):
    """The class of one example, or a ValueError where there is no one number."""
    label = jnp.asarray(example.y)
    integer = jnp.issubdtype(label.dtype, jnp.integer)
    if not integer or label.shape != scores.shape[:-1]:
        msg = (
            f"{who}: labels must be integers [n], one class number a row, got "
            f"{label.dtype}{list(label.shape)} for one row."
        )
        raise ValueError(msg)
    return label


def squared_error(apply: Callable) -> ExampleLoss:
    """Half the squared distance to the target: ``|apply(params, x) - y|^2 / 2``.

    Args:
      apply: ``(params, x) -> output`` of one input; the target ``y`` has its shape, and
        neither is broadcast.
    """
    check_kind("squared_error", Callable, "give model.apply", apply=apply)

    def example_loss(params, example, key):
        del key
        output, target = apply(params, example.x), example.y
        if jnp.shape(output) != jnp.shape(target):
            msg = (
                "squared_error: output and target of an example must agree in shape, got "
                f"{jnp.shape(output)} and {jnp.shape(target)}; reshape y, or the output."
            )
            raise ValueError(msg)
        return 0.5 * jnp.sum(jnp.square(output - target))

    return example_loss


def token_cross_entropy(apply: Callable, apply_rows: Callable) -> RowLosses:
    """The mean negative log-likelihood of a sequence's labels, in nats per token.

    Args:
      apply: ``(params, x [n]) -> logits [n, v]`` of one sequence.
      apply_rows: ``(params, x [b, n]) -> logits [b, n, v]`` of many.

    Returns:
      A loss of examples whose ``y [n]`` are token numbers; a label below zero counts
      nowhere (padding, or a prompt that is only read), and a sequence of such labels has
      loss zero. Sequences count alike, whatever their length: a batch's loss is the
      mean over its rows of each row's mean.
    """
    check_kind("token_cross_entropy", Callable, "give model.apply", apply=apply)
    check_kind(
        "token_cross_entropy", Callable, "give model.apply_rows", apply_rows=apply_rows
    )

    def mean(logits, labels):
        counts = labels >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.where(counts, labels, 0)
        )
        return _mean_of_last(losses, counts)

    return RowLosses(
        lambda params, example, key: mean(apply(params, example.x), example.y),
        lambda params, batch, keys: mean(apply_rows(params, batch.x), batch.y),
    )


def token_accuracy(
    apply_rows: Callable,
) -> Callable[[Params, Batch], Float[Array, " b"]]:
    """The share of each row's labels that score highest, in [0, 1].

    Returns:
      ``(params, batch) -> [b]``; labels below zero count nowhere.
    """
    check_kind(
        "token_accuracy", Callable, "give model.apply_rows", apply_rows=apply_rows
    )

    def hits(params, batch):
        right = jnp.argmax(apply_rows(params, batch.x), axis=-1) == batch.y
        return _mean_of_last(right, batch.y >= 0)

    return hits


def _mean_of_last(
    values: Shaped[Array, "*b n"], counts: Bool[Array, "*b n"]
) -> Float[Array, "*b"]:
    """The mean over the last axis of what counts; zero where nothing does."""
    total = jnp.sum(jnp.where(counts, values, 0), axis=-1, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(counts, axis=-1), 1)


def row_losses(
    example_loss: ExampleLoss,
    params: Params,
    batch: Batch,
    key: Key | Keys[Array, " b"],
    *,
    chunk_size: int | None = None,
) -> Float[Array, " b"]:
    """The loss of every row; each row draws from its own key.

    Args:
      example_loss: ``(params, example, key) -> scalar``.
      params: where.
      batch: rows ``[b, ...]``.
      key: of all rows, or ``[b]``, one for each.
      chunk_size: rows whose activations are held at once; all if absent. A gradient then
        accumulates chunk by chunk, each of which is computed a second time for it: the
        memory of a small batch, for four thirds of the work.
    """
    check_size("row_losses", optional=True, chunk_size=chunk_size)
    check_batch("row_losses", batch)
    keys = key if key.ndim else jax.random.split(key, num_rows(batch))
    one = jax.vmap(partial(_one_number, example_loss), in_axes=(None, 0, 0))
    rows = example_loss.rows if isinstance(example_loss, RowLosses) else one
    if chunk_size is None or chunk_size >= num_rows(batch):
        return rows(params, batch, keys)
    return _by_chunks(rows, params, (batch, keys), chunk_size)


def _one_number(example_loss, params, example, key):
    """The loss of an example; a vector would be averaged into something else."""
    loss = example_loss(params, example, key)
    if jnp.shape(loss) != ():
        msg = (
            "row_losses: example_loss must return one number for one example, got shape "
            f"{list(jnp.shape(loss))}; sum or average what it returns."
        )
        raise ValueError(msg)
    return loss


def _by_chunks(rows, params, parts, size):
    """The losses of ``size`` rows at a time, then of what is left."""
    chunk = jax.checkpoint(lambda part: rows(params, *part))
    total = num_rows(parts[0])
    whole = total - total % size
    stack = lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:])
    losses = jax.lax.map(chunk, jax.tree.map(stack, parts)).reshape(-1)
    if whole == total:
        return losses
    rest = chunk(jax.tree.map(lambda leaf: leaf[whole:], parts))
    return jnp.concatenate([losses, rest])


def mean_loss(
    example_loss: ExampleLoss,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    chunk_size: int | None = None,
) -> Float[Array, ""]:
    """Weighted mean of :func:`row_losses`; zero for a batch of padding."""
    losses = row_losses(example_loss, params, batch, key, chunk_size=chunk_size)
    return weighted_mean(losses, batch.weight)


def accuracy(
    logits: Logits, params: Params, batch: Batch, *, chunk_size: int | None = None
) -> Float[Array, ""]:
    """Weighted share of rows whose largest logit is the label, in [0, 1].

    Args:
      logits: ``(params, example) -> [c]``.
      params: what to evaluate.
      batch: rows ``[n, ...]``.
      chunk_size: rows held at once, for large sets; all if absent. One that divides ``n``
        compiles the body once instead of twice.

    Returns:
      [] float32, NaN without a row that counts. Where a logit is NaN the row counts as
      the class of its first NaN, so check finiteness apart.
    """
    check_size("accuracy", optional=True, chunk_size=chunk_size)
    check_kind("accuracy", Callable, "give single_head(model.apply)", logits=logits)
    check_batch("accuracy", batch)

    def hit(example):
        scores = logits(params, example)
        label = _label("accuracy", scores, example)
        return (jnp.argmax(scores, axis=-1) == label).astype(jnp.float32)

    rows = num_rows(batch)
    chunk_size = min(chunk_size or rows, rows)
    hits = (
        jax.vmap(hit)(batch)
        if chunk_size == rows
        else jax.lax.map(hit, batch, batch_size=chunk_size)
    )
    some = jnp.sum(batch.weight) > 0
    return jnp.where(some, weighted_mean(hits, batch.weight), jnp.nan)


__all__ = [
    "Logits",
    "RowLosses",
    "accuracy",
    "cross_entropy",
    "mean_loss",
    "multi_head",
    "past_heads",
    "row_losses",
    "single_head",
    "squared_error",
    "token_accuracy",
    "token_cross_entropy",
]
