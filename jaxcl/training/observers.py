"""Observers for the device loop: accuracies and any other metric of each task."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxcl.data.subsets import random_rows
from jaxcl.errors import check_kind, check_size
from jaxcl.losses import accuracy
from jaxcl.metrics.evaluation import RowMetric, listed
from jaxcl.metrics.evaluation import evaluate as evaluate_rows
from jaxcl.training.device import Callback
from jaxcl.training.evaluate import EVAL_SEED
from jaxcl.tree import num_tasks
from jaxcl.typing import Batch, Method, MethodState, Outputs, Params, Stream


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

        if every == 1:
            return evaluate(snapshot.params)
        due = ((snapshot.index + 1) % every == 0) | (snapshot.index == total - 1)
        skip = lambda _: jnp.full(total, jnp.nan)
        return jax.lax.cond(due, evaluate, skip, snapshot.params)

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
        if every == 1:
            return evaluate(learners)
        due = ((snapshot.index + 1) % every == 0) | (snapshot.index == total - 1)
        blank = jax.eval_shape(evaluate, learners)
        skip = lambda _: jax.tree.map(
            lambda row: jnp.full(row.shape, jnp.nan, row.dtype), blank
        )
        return jax.lax.cond(due, evaluate, skip, learners)

    return observe


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


__all__ = ["accuracies", "accuracy_row", "current_accuracy", "first_row", "metric_row"]
