"""Metrics of learners on data sets that are read batch by batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcl.data.dataset import Dataset
from jaxcl.data.subsets import random_row_numbers
from jaxcl.metrics.evaluation import (
    RowMetric,
    TaskMetric,
    finished,
    values_of_task,
)
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import take_rows
from jaxcl.training.compiled import Program
from jaxcl.training.prefetch import prefetch
from jaxcl.typing import Key

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


__all__ = ["EVAL_SEED", "Measured", "chosen_rows", "measure", "subset_of"]
