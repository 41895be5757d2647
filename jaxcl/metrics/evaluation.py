"""Metrics on data: values per example, and functions of their means.

A :class:`RowMetric` is exact under padding, in chunks and on many devices: only weighted
sums over examples are added. A :class:`TaskMetric` gets a full data set on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxcl.errors import check_kind, require, shown
from jaxcl.losses import cross_entropy, squared_error
from jaxcl.losses.outputs import evaluated
from jaxcl.losses.supervised import are_classes, class_labels
from jaxcl.tree import by_chunks, safe_divide
from jaxcl.typing import Batch, Key, Outputs

#: ``{name: value}``; a value is a scalar, or an array for ``finish`` to reduce.
Values = Mapping[str, Any]

_NO_KEYS: Any = None  # a loss is deterministic here


class RowMetric(NamedTuple):
    """Values per example, and a function of their weighted means.

    Attributes:
      rows: ``(params, frozen, batch) -> {name: [b, ...]}``; ``params`` are those of a
        learner, ``frozen`` the argument of :func:`jaxcl.training.learn`.
      finish: ``({name: mean [...]}) -> {name: scalar}``; the means if absent.
    """

    rows: Callable[[PyTree, PyTree, Batch], Values]
    finish: Callable[[Values], Values] = lambda means: means


class TaskMetric(NamedTuple):
    """Values of a data set, computed on the host; for the host loop only."""

    names: tuple[str, ...]  # of the values
    #: ``(key, params, frozen, dataset) -> {name: float}``
    of_data: Callable[[Key, PyTree, PyTree, Any], Mapping[str, float]]


_Metric = TypeVar("_Metric", RowMetric, TaskMetric)


def evaluate(
    metrics: RowMetric | Sequence[RowMetric],
    params: PyTree,
    batch: Batch,
    *,
    frozen: PyTree = (),
    chunk_size: int | None = None,
) -> dict[str, Float[Array, ""]]:
    """All metrics on a batch of any size, by name; NaN if all weights are zero.

    May be traced. ``frozen`` is passed to the metrics; ``chunk_size`` rows are held at
    once, all if absent.
    """
    found: dict[str, Array] = {}
    total = jnp.sum(batch.weight)
    # sum w v / sum w over all rows: padding has no effect, nor have chunks.
    mean = lambda leaf: jnp.where(total > 0, leaf / total, jnp.nan)
    for metric in listed("evaluate", metrics):
        part: Any = metric  # a TaskMetric has no rows
        of_rows = lambda rows, part=part: part.rows(params, frozen, rows)
        rows = by_chunks(of_rows, (batch,), chunk_size)
        values = finished(part, jax.tree.map(mean, weighted_sums(rows, batch)))
        check_names("evaluate", [*found, *values])
        found |= values
    return found


def with_frozen(build: Callable[[PyTree], _Metric]) -> _Metric:
    """A metric of outputs that need frozen weights too, such as those below an adapter.

    ::

        def build_metric(frozen):
            apply = adapters.with_frozen(model.apply, frozen)
            return metrics.tokens(single_head(apply))

        learn(..., frozen=frozen, metrics=metrics.with_frozen(build_metric))

    Args:
      build: ``(frozen) -> metric``, of either kind. For a :class:`RowMetric` it is called
        while tracing, so that the weights are an argument of the program; and once with
        ``()``, for the metric's ``finish`` or ``names``.
    """
    made: Any = build  # of either kind
    plain = made(())
    if isinstance(plain, TaskMetric):
        return TaskMetric(plain.names, _of_data(made))  # pyright: ignore
    rows = lambda params, frozen, batch: made(frozen).rows(params, (), batch)
    return RowMetric(rows, plain.finish)  # pyright: ignore


def _of_data(build: Callable[[PyTree], Any]) -> Callable:
    """``of_data`` of the metric for the frozen weights, built once while they are same."""
    last: list[Any] = []

    def of_data(key, params, frozen, dataset):
        if not last or last[0] is not frozen:
            last[:] = frozen, build(frozen)
        return last[1].of_data(key, params, (), dataset)

    return of_data


def listed(who: str, metrics: Any) -> tuple[RowMetric | TaskMetric, ...]:
    """One metric or several as a tuple; a ValueError for anything else."""
    kinds = RowMetric | TaskMetric
    found = (metrics,) if isinstance(metrics, kinds) else metrics
    fits = isinstance(found, Sequence) and all(isinstance(m, kinds) for m in found)
    wanted = f"a RowMetric, a TaskMetric or a list of them, got {shown(metrics)}"
    require(fits, who, f"metrics must be {wanted}")
    for metric in found:
        if isinstance(metric, TaskMetric):  # of a string, each letter would be a name
            check_kind(who, tuple, "such as ('rouge',)", names=metric.names)
    return tuple(found)


def finished(metric: RowMetric, means: Values) -> dict[str, Any]:
    """The values of a metric: ``finish`` of the means, or a ValueError for another type."""
    values = metric.finish(means)
    for name, value in values.items():
        came = f"shape {list(jnp.shape(value))} for {name!r}; reduce it"
        message = f"finish must return one number per name, got {came}"
        require(jnp.shape(value) == (), "metrics", message)
    return dict(values)


def values_of_task(metric: TaskMetric, *given: Any) -> dict[str, float]:
    """The values of a data set by their names, or a ValueError if they are others."""
    values = dict(metric.of_data(*given))
    wanted = f"a number for each of {list(metric.names)}, got {sorted(values)}"
    message = f"of_data must return {wanted}; name the same in both"
    require(set(values) == set(metric.names), "metrics", message)
    return {name: float(values[name]) for name in metric.names}


def check_names(who: str, names: Sequence[str]) -> None:
    """Refuse two values of one name, of which one would be lost."""
    twice = min((name for name in names if names.count(name) > 1), default=None)
    message = f"metrics must have different names, got {twice!r} twice"
    require(twice is None, who, message)


def weighted_sums(rows: Any, batch: Batch) -> dict[str, Array]:
    """``sum_i w_i v_i`` of every value ``[b, ...]``, or a ValueError for another type."""

    def total(name, values):
        fits = values.shape[:1] == batch.weight.shape and not jnp.iscomplexobj(values)
        came = f"{values.dtype}{list(values.shape)} for {name!r}"
        message = f"rows must return real numbers per example, got {came}"
        require(fits, "metrics", message)
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        return jnp.tensordot(batch.weight, values, 1, precision="highest")

    return {name: total(name, values) for name, values in rows.items()}


def classification(outputs: Outputs) -> RowMetric:
    """``accuracy`` in [0, 1] and ``loss``, the mean negative log-likelihood in nats.

    Of ``outputs(params, batch) -> logits [b, c]`` for integers ``[b]``. Both are NaN if a
    logit is, or if a label is not a class.
    """
    likely = cross_entropy(lambda params, batch, keys: outputs(params, batch))

    def rows(params, frozen, batch):
        del frozen
        logits = evaluated(outputs, params, batch)
        labels = class_labels("classification", logits, batch)
        known = are_classes(labels, logits, batch) & ~jnp.isnan(logits).any(axis=-1)
        right = jnp.where(known, jnp.argmax(logits, axis=-1) == labels, jnp.nan)
        return {"accuracy": right, "loss": likely(params, batch, _NO_KEYS)}

    return RowMetric(rows)


def macro_f1(outputs: Outputs, num_classes: int) -> RowMetric:
    r"""``macro_f1`` in [0, 1]: the mean over classes of ``2 tp / (2 tp + fp + fn)``.

    Of ``outputs(params, batch) -> logits [b, num_classes]``. The mean is over classes that
    are a label or an answer, as in scikit-learn, so that a task with some of them only can
    reach 1.
    """

    def rows(params, frozen, batch):
        del frozen
        logits = evaluated(outputs, params, batch)
        wanted = f"{logits.shape[-1]}, as the outputs have, got {num_classes}"
        fits = logits.shape[-1] == num_classes
        require(fits, "macro_f1", f"num_classes must be {wanted}")
        class_labels("macro_f1", logits, batch)
        answer = jnp.argmax(logits, axis=-1)
        said, true = (jax.nn.one_hot(y, num_classes) for y in (answer, batch.y))
        return {"hits": said * true, "said": said, "true": true}

    def finish(means):
        # 2 tp / (2 tp + fp + fn), where said = tp + fp and true = tp + fn.
        there = means["said"] + means["true"]
        scores = safe_divide(2 * means["hits"], there)
        return {"macro_f1": jnp.sum(scores) / jnp.sum(there > 0)}

    return RowMetric(rows, finish)


def tokens(outputs: Outputs, *, weighted_by_labels: bool = False) -> RowMetric:
    """``loss`` in nats a token, ``perplexity``, and ``token_accuracy`` in [0, 1].

    The means are over the tokens of all examples, and perplexity is ``exp`` of that mean
    loss, not a mean of perplexities.

    Args:
      outputs: ``(params, batch) -> logits [b, n, v]``; labels ``[b, n]`` below zero are
        ignored.
      weighted_by_labels: whether the weight of an example is the number of its labels, as
        for a mean over tokens by :func:`jaxcl.losses.token_cross_entropy`. It is then not
        applied again to each token, which would count long examples twice. Otherwise each
        token has the weight of its example, usually 1.
    """

    def rows(params, frozen, batch):
        del frozen
        logits, counts = evaluated(outputs, params, batch), batch.y >= 0
        labels = jnp.where(counts, batch.y, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = jnp.argmax(logits, axis=-1) == labels
        kept = lambda values: jnp.where(counts, values, 0)
        add = lambda values: jnp.sum(kept(values), axis=-1, dtype=jnp.float32)
        sums = {"loss": add(losses), "right": add(right), "tokens": add(1.0)}
        if weighted_by_labels:
            number = jnp.maximum(sums["tokens"], 1)
            return {name: total / number for name, total in sums.items()}
        return sums

    def finish(means):
        # Means of sums: the number of examples cancels, and every token counts alike.
        loss = means["loss"] / means["tokens"]
        right = means["right"] / means["tokens"]
        return {"loss": loss, "perplexity": jnp.exp(loss), "token_accuracy": right}

    return RowMetric(rows, finish)


def regression(outputs: Outputs, *, center: ArrayLike = 0.0) -> RowMetric:
    r"""``mse``, ``rmse``, ``mae`` per entry of the target, and ``r2``.

    :math:`R^2 = 1 - \sum (f - y)^2 / \sum (y - \bar y)^2`, over all entries, with one mean
    per output; NaN where the targets are constant.

    Args:
      outputs: ``(params, batch) -> [b, ...]``, in the shape of the target.
      center: about the mean of the targets, a number or one for each output. Needed for
        ``r2`` where the mean is over a hundred times the spread, for which float32 is too
        coarse.
    """
    shapes = squared_error(lambda params, batch, keys: outputs(params, batch))

    def rows(params, frozen, batch):
        del frozen
        half = shapes(params, batch, _NO_KEYS)  # checks the shape of targets
        entries = max(batch.y.size // max(len(batch.y), 1), 1)
        away = jnp.abs(outputs(params, batch) - batch.y).reshape(len(batch.y), -1)
        target = (batch.y - center).reshape(len(batch.y), -1).astype(away.dtype)
        return {
            "mse": 2 * half / entries,
            "mae": jnp.mean(away, axis=-1),
            "target": target,
            "square": jnp.square(target),
        }

    def finish(means):
        # By operators: on the host the sums are float64, which jnp would round.
        # Var y = E y^2 - (E y)^2, per output.
        spread = (means["square"] - means["target"] ** 2).mean()
        mse = means["mse"]
        explained = jnp.where(spread > 0, 1 - mse / spread, jnp.nan)
        return {"mse": mse, "rmse": mse**0.5, "mae": means["mae"], "r2": explained}

    return RowMetric(rows, finish)
