"""Scores of parameters on tasks whose test rows are read batch by batch."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxcl.streams.rows import Rows, Task
from jaxcl.training.feed import feed
from jaxcl.typing import Array, Batch


def mean_scores(
    total: Callable[[Batch], tuple[Array, Array]],
    tasks: Sequence[Task],
    *,
    batch_size: int,
    num_rows: int | None = None,
) -> list[float]:
    """The weighted mean of a score over the test rows of each task.

    Args:
      total: ``(batch) -> (sum of weight * score, sum of weight)``, jitted. All batches
        have ``batch_size`` rows, the last of a task filled up with weight 0.
      tasks: what to evaluate on.
      batch_size: rows held at once.
      num_rows: the first so many test rows of each task; all if absent.
    """
    return [_mean_score(total, task.test, batch_size, num_rows) for task in tasks]


def _mean_score(total, rows: Rows, size: int, num_rows: int | None) -> float:
    count = min(rows.count, num_rows or rows.count)

    def read(first):
        return padded_rows(rows, np.arange(first, min(first + size, count)), size)

    sums = [total(batch) for batch in feed(read, range(0, count, size))]
    score, weight = np.sum(jax.device_get(sums), axis=0)
    return float(score / weight)


def padded_rows(rows: Rows, numbers: np.ndarray, size: int) -> Batch:
    """A batch of ``size`` rows; those that are missing repeat the first with weight 0."""
    missing = size - len(numbers)
    if missing <= 0:
        return rows.read(numbers)
    batch = rows.read(np.concatenate([numbers, np.repeat(numbers[:1], missing)]))
    weight = np.array(batch.weight)
    weight[len(numbers) :] = 0.0
    return batch._replace(weight=weight)


__all__ = ["mean_scores", "padded_rows"]
