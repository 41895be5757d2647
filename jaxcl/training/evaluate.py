"""Metrics of learners: on data sets read batch by batch, and inside a compiled stream."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxcl.data.dataset import Dataset
from jaxcl.data.subsets import random_row_numbers, random_rows
from jaxcl.errors import check_kind, check_size
from jaxcl.losses import accuracy
from jaxcl.metrics.evaluation import (
    RowMetric,
    TaskMetric,
    finished,
    listed,
    values_of_task,
)
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
    """All metrics of all learners on one data set.

    Args:
      key: of task metrics.
      program: has the metrics.
      learners: what is evaluated, by name.
      rows: the data set; all batches have ``batch_size`` rows, the last one padded with
        weight 0.
      batch_size: rows held at once.
      num_rows: how many rows to draw at random; all if absent.
      sharding: of batches.
    """
    numbers = chosen_rows(rows, num_rows)
    found: Measured = {name: {} for name in program.metric_names}
    if any(isinstance(metric, RowMetric) for metric in program.metrics):
        for learner, values in _row_values(
            program, learners, rows, numbers, batch_size, sharding
        ).items():
            for name, value in values.items():
                found[name][learner] = value
    for place, metric in enumerate(program.metrics):
        if isinstance(metric, TaskMetric):
            own = jax.random.fold_in(key, place)
            part = subset_of(rows, numbers)
            for learner, params in learners.items():
                values = values_of_task(metric, own, params, program.frozen, part)
                for name, value in values.items():
                    found[name][learner] = value
    return found


def chosen_rows(rows: Dataset, num_rows: int | None) -> np.ndarray:
    """Numbers of the rows to evaluate on."""
    if num_rows is None or num_rows >= rows.count:
        return np.arange(rows.count)
    return random_row_numbers(jax.random.key(EVAL_SEED), rows.count, num_rows)


def subset_of(rows: Dataset, numbers: np.ndarray) -> Dataset:
    """A data set of some rows of another."""
    return Dataset(len(numbers), lambda index: rows.read(numbers[index]))


def _row_values(
    program, learners, rows, numbers, batch_size, sharding
) -> dict[str, dict[str, float]]:
    """``{learner: {metric: value}}`` of the row metrics."""

    def read(first):
        here = numbers[first : first + batch_size]
        return take_rows(rows, here, size=batch_size, sharding=sharding)

    sums: dict[str, list[Any]] = {name: [] for name in learners}
    for batch in prefetch(read, range(0, len(numbers), batch_size)):
        for name, params in learners.items():
            sums[name].append(program.total(params, batch))

    def finish(parts: Sequence[Any]) -> dict[str, float]:
        # In float64 on the host: sums of many batches round once.
        add = lambda *leaves: np.sum(np.asarray(leaves, np.float64), axis=0)
        totals, weight = jax.tree.map(add, *jax.device_get(parts))
        values: dict[str, float] = {}
        row_metrics = [m for m in program.metrics if isinstance(m, RowMetric)]
        for metric, total in zip(row_metrics, totals, strict=True):
            with np.errstate(invalid="ignore"):  # NaN if all weights are zero
                means = {name: value / weight for name, value in total.items()}
            for name, value in finished(metric, means).items():
                values[name] = float(value)
        return values

    return {name: finish(parts) for name, parts in sums.items()}


def current_accuracy(
    outputs: Outputs, stream: Stream, *, chunk_size: int | None = None
) -> Callback:
    """Observe the test accuracy on the current task: plasticity if taken after it.

    Args:
      outputs: ``(params, batch) -> logits [b, c]``.
      stream: where the test sets come from.
      chunk_size: rows held at once.
    """
    check_kind("current_accuracy", Stream, stream=stream)

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
    check_kind("accuracy_row", Stream, stream=stream)
    total = num_tasks(stream.plan)
    check_size("accuracy_row", every=every)

    def observe(snapshot):
        def evaluate(params):
            return accuracies(
                outputs,
                params,
                stream,
                num_examples=num_examples,
                chunk_size=chunk_size,
            )

        return _when_due(every, total, snapshot.index, evaluate, snapshot.params)

    return observe


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
    check_size("accuracies", optional=True, num_examples=num_examples)
    check_kind("accuracies", Stream, stream=stream)

    def evaluate(plan):
        test = stream.test(stream.pool, plan)
        test = _some_rows(test, num_examples)
        return accuracy(outputs, params, test, chunk_size=chunk_size)

    return jax.lax.map(evaluate, stream.plan)


def metric_row(
    metrics: RowMetric | Sequence[RowMetric],
    stream: Stream,
    *,
    every: int = 1,
    seen_only: bool = False,
    num_examples: int | None = None,
    chunk_size: int | None = None,
) -> Callback:
    """Observe one row of the results of all metrics and learners: on every task.

    Args:
      metrics: such as :func:`jaxcl.metrics.classification`.
      stream: all tasks of its plan are evaluated.
      every: as for :func:`accuracy_row`.
      seen_only: leave tasks that have not been learned NaN.
      num_examples: as for :func:`accuracy_row`.
      chunk_size: rows held at once.

    Returns:
      A callback that gives ``{metric: {learner: [T]}}``.
    """
    check_kind("metric_row", Stream, stream=stream)
    listed("metric_row", metrics)
    check_size("metric_row", every=every)
    total = num_tasks(stream.plan)

    def observe(snapshot):
        def evaluate(learners):
            found = _on_all_tasks(metrics, stream, learners, num_examples, chunk_size)
            if not seen_only:
                return found
            seen = jnp.arange(total) <= snapshot.index
            return jax.tree.map(lambda row: jnp.where(seen, row, jnp.nan), found)

        learners = dict(snapshot.learners)
        return _when_due(every, total, snapshot.index, evaluate, learners)

    return observe


def _when_due(every: int, total: int, index, evaluate: Callable, learners: PyTree):
    """Evaluate after every ``every``-th task and the last one; NaN after the others."""
    if every == 1:
        return evaluate(learners)
    due = ((index + 1) % every == 0) | (index == total - 1)
    blank = jax.eval_shape(evaluate, learners)
    nan = lambda row: jnp.full(row.shape, jnp.nan, row.dtype)
    return jax.lax.cond(due, evaluate, lambda _: jax.tree.map(nan, blank), learners)


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
    learners = dict(method.learners(state))
    return _on_all_tasks(metrics, stream, learners, num_examples, chunk_size)


def _on_all_tasks(
    metrics, stream, learners: dict[str, PyTree], num_examples, chunk_size
):
    def on_task(plan):
        test = _some_rows(stream.test(stream.pool, plan), num_examples)
        return {
            name: evaluate_rows(metrics, params, test, chunk_size=chunk_size)
            for name, params in learners.items()
        }

    found = jax.lax.map(on_task, stream.plan)
    names = next(iter(found.values()))
    return {
        metric: {learner: values[metric] for learner, values in found.items()}
        for metric in names
    }


def _some_rows(test: Batch, count: int | None) -> Batch:
    return (
        test if count is None else random_rows(jax.random.key(EVAL_SEED), test, count)
    )
