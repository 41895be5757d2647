"""Scores of parameters on tasks whose test rows are read batch by batch."""

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from jaxcl.data.dataset import Dataset, Task
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import take_rows
from jaxcl.training.prefetch import prefetch
from jaxcl.typing import Array, Batch


def mean_scores(
    total: Callable[[Batch], tuple[Array, Array]],
    tasks: Sequence[Task],
    *,
    batch_size: int,
    num_rows: int | None = None,
    sharding: ShardingPlan | None = None,
) -> Iterator[float]:
    """Yield the weighted mean of a score over the test rows of each task.

    Args:
      total: ``(batch) -> (sum of weight * score, sum of weight)``, jitted. All batches
        have ``batch_size`` rows, the last of a task filled up with weight 0.
      tasks: what to evaluate on.
      batch_size: rows held at once.
      num_rows: the first so many test rows of each task; all if absent.
      sharding: where batches are put.
    """

    def mean(rows: Dataset) -> float:
        count = min(rows.count, num_rows or rows.count)

        def read(first):
            numbers = np.arange(first, min(first + batch_size, count))
            return take_rows(rows, numbers, size=batch_size, sharding=sharding)

        sums = [total(batch) for batch in prefetch(read, range(0, count, batch_size))]
        score, weight = np.sum(jax.device_get(sums), axis=0)
        return float(score / weight)

    return (mean(task.test) for task in tasks)


__all__ = ["mean_scores"]
