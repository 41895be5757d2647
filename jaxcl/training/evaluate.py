"""Metrics of learners: on data sets read batch by batch, and inside a compiled stream."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcl.data.dataset import Dataset, subset
from jaxcl.data.subsets import random_row_numbers, random_rows
from jaxcl.errors import check_size
from jaxcl.losses import accuracy
from jaxcl.metrics.evaluation import RowMetric, finished, listed, values_of_task
from jaxcl.metrics.evaluation import evaluate as evaluate_rows
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import prefetch, take_rows
from jaxcl.training.compiled import Program
from jaxcl.training.device import Callback
from jaxcl.tree import num_tasks
from jaxcl.typing import Batch, Key, Method, MethodState, Outputs, Params, Stream

#: ``{metric: {learner: value}}`` on one data set.
Measured = dict[str, dict[str, float]]

#: Draws the rows of a large test set, the same ones in every run.
EVAL_SEED = 0

# ---------------------------------------------------------------------- on the host


def measure(
    key: Key,
    program: Program,
    learners: Mapping[str, PyTree],
    rows: Dataset,
    *,
    batch_size: int,
    num_rows: int | None = None,
    sharding: ShardingPlan | None = None,
) -> Measured:
    """All metrics of all learners on one data set, or on ``num_rows`` random rows of it.

    The key is that of task metrics. All batches have ``batch_size`` rows, the last one
    padded with weight 0.
    """
    numbers = np.arange(rows.count)
    if num_rows is not None and num_rows < rows.count:
        numbers = random_row_numbers(jax.random.key(EVAL_SEED), rows.count, num_rows)
    if rows.groups is not None:  # batches of similar widths
        numbers = numbers[np.argsort(rows.groups[numbers], kind="stable")]
    found: Measured = {name: {} for name in program.metric_names}

    def note(learner, values):
        for name, value in values.items():
            found[name][learner] = float(value)

    row_metrics = [m for m in program.metrics if isinstance(m, RowMetric)]
    if row_metrics:
        sums = _sums(program, learners, rows, numbers, batch_size, sharding)
        for learner, (totals, weight) in sums.items():
            for metric, total in zip(row_metrics, totals, strict=True):
                with np.errstate(invalid="ignore"):  # NaN if all weights are zero
                    means = {name: value / weight for name, value in total.items()}
                note(learner, finished(metric, means))
    part = subset(rows, numbers)
    for place, metric in enumerate(program.metrics):
        if not isinstance(metric, RowMetric):
            own = jax.random.fold_in(key, place)
            for learner, params in learners.items():
                values = values_of_task(metric, own, params, program.frozen, part)
                note(learner, values)
    return found


def _sums(program, learners, rows, numbers, batch_size, sharding) -> dict[str, Any]:
    """``{learner: (weighted sums of each row metric, weight)}``, in float64 on the host.

    So sums of many batches round once.
    """

    def read(first):
        here = numbers[first : first + batch_size]
        return take_rows(rows, here, size=batch_size, sharding=sharding)

    parts: dict[str, list[Any]] = {name: [] for name in learners}
    for batch in prefetch(read, range(0, len(numbers), batch_size)):
        for name, params in learners.items():
            parts[name].append(program.total(params, batch))
    add = lambda *leaves: np.sum(np.asarray(leaves, np.float64), axis=0)
    return {
        name: jax.tree.map(add, *jax.device_get(sums)) for name, sums in parts.items()
    }


# ------------------------------------------------------------ inside a compiled stream


def current_accuracy(
    outputs: Outputs, stream: Stream, *, chunk_size: int | None = None
) -> Callback:
    """Observe the test accuracy on the current task: plasticity if taken after it.

    Args:
      outputs: ``(params, batch) -> logits [b, c]``.
      stream: where the test sets come from.
      chunk_size: rows held at once.
    """

    def observe(snapshot):
        test = stream.test(stream.pool, snapshot.plan)
        return accuracy(outputs, snapshot.params, test, chunk_size=chunk_size)

    return observe


def accuracy_row(
    outputs: Outputs,
    stream: Stream,
    *,
    every: int = 1,
    num_examples: int | None = None,
    chunk_size: int | None = None,
) -> Callback:
    """Observe one row of the accuracy matrix: the test accuracy on every task.

    A full matrix costs ``T^2`` evaluations. There are two ways to reduce this: ``every=k``
    evaluates after every ``k``-th task of the stream and after its last one, and leaves
    other rows NaN (a run over some ``tasks`` may include none of these); ``num_examples``
    rows of each test set are drawn at random, the same ones in every run.

    Args:
      outputs: ``(params, batch) -> logits [b, c]``.
      stream: all tasks of its plan are evaluated, seen and unseen ones.
      every: distance between evaluated rows.
      num_examples: test rows per task; all if absent.
      chunk_size: rows held at once.

    Returns:
      An observer that gives [T] float32.
    """
    sizes = {"num_examples": num_examples, "chunk_size": chunk_size}
    observe = lambda snapshot: accuracies(outputs, snapshot.params, stream, **sizes)
    return _when_due("accuracy_row", every, stream, observe)


def accuracies(
    outputs: Outputs,
    params: Params,
    stream: Stream,
    *,
    num_examples: int | None = None,
    chunk_size: int | None = None,
) -> Float[Array, " T"]:
    """Test accuracy on every task of a stream, one task in memory at a time.

    ``num_examples`` rows of each test set are drawn by a fixed key; all if absent.
    """
    on_test = lambda test: accuracy(outputs, params, test, chunk_size=chunk_size)
    return _on_tests(stream, num_examples, on_test)


def metric_row(
    metrics: RowMetric | Sequence[RowMetric],
    stream: Stream,
    *,
    every: int = 1,
    num_examples: int | None = None,
    chunk_size: int | None = None,
) -> Callback:
    """Observe one row of the results of all metrics and learners: on every task.

    Args:
      metrics: such as :func:`jaxcl.metrics.classification`.
      stream: all tasks of its plan are evaluated.
      every: as for :func:`accuracy_row`.
      num_examples: as for :func:`accuracy_row`.
      chunk_size: rows held at once.

    Returns:
      A callback that gives ``{metric: {learner: [T]}}``.
    """
    listed("metric_row", metrics)
    sizes = num_examples, chunk_size
    observe = lambda snapshot: _results_row(metrics, stream, snapshot.learners, *sizes)
    return _when_due("metric_row", every, stream, observe)


def first_row(
    metrics: RowMetric | Sequence[RowMetric],
    stream: Stream,
    method: Method,
    state: MethodState,
    *,
    num_examples: int | None = None,
    chunk_size: int | None = None,
) -> dict[str, dict[str, Float[Array, " T"]]]:
    """The row before the first task, ``{metric: {learner: [T]}}``: zero-shot.

    With the rows of ``run_stream(..., after=metric_row(...))`` it makes the results
    ``[T + 1, T]`` of the host loop: ``jnp.vstack`` of this row and those.
    """
    learners = method.learners(state)
    return _results_row(metrics, stream, learners, num_examples, chunk_size)


def _results_row(metrics, stream, learners, num_examples, chunk_size):
    """``{metric: {learner: [T]}}``."""
    each = lambda test: {
        name: evaluate_rows(metrics, params, test, chunk_size=chunk_size)
        for name, params in learners.items()
    }
    found = _on_tests(stream, num_examples, each)
    return {
        metric: {learner: values[metric] for learner, values in found.items()}
        for metric in next(iter(found.values()))
    }


def _on_tests(stream: Stream, num_examples: int | None, evaluate: Callable) -> Any:
    """Evaluate on the test set of every task, or on some rows of it."""

    def on_task(plan) -> Any:
        test: Batch = stream.test(stream.pool, plan)
        if num_examples is not None:
            test = random_rows(jax.random.key(EVAL_SEED), test, num_examples)
        return evaluate(test)

    return jax.lax.map(on_task, stream.plan)


def _when_due(who: str, every: int, stream: Stream, observe: Callback) -> Callback:
    """Observe after every ``every``-th task and the last one; NaN after the others."""
    check_size(who, every=every)
    total = num_tasks(stream.plan)

    def sometimes(snapshot):
        seen = lambda: observe(snapshot)
        nan = lambda row: jnp.full(row.shape, jnp.nan, row.dtype)
        due = ((snapshot.index + 1) % every == 0) | (snapshot.index == total - 1)
        blank = jax.eval_shape(seen)
        return jax.lax.cond(due, seen, lambda: jax.tree.map(nan, blank))

    return observe if every == 1 else sometimes
