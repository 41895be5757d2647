"""Results of a run of the host loop: ``{metric: {learner: [T + 1, E]}}``.

Row 0 is before the first task, row ``i`` after ``i`` tasks. Columns are the ``T`` tasks in
order, then the data sets for evaluation only. Entries not measured are NaN.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxcl.data.dataset import Dataset, Task
from jaxcl.training.batches import take_rows
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.options import Options, steps_of

#: ``{metric: {learner: [T + 1, E]}}``, float64 on the host.
Results = dict[str, dict[str, Float[np.ndarray, "rows E"]]]


def empty_results(
    metrics: Iterable[str], learners: Iterable[str], num_tasks: int, num_sets: int
) -> Results:
    """Results with all entries NaN."""
    learners = tuple(learners)
    blank = lambda: np.full((num_tasks + 1, num_tasks + num_sets), np.nan)
    return {metric: {name: blank() for name in learners} for metric in metrics}


def recall(results: Results, notes: Mapping[str, Any], sets: Sequence[str]) -> None:
    """Fill in what an earlier part of the run measured.

    Args:
      results: of all tasks, filled in place; may have more tasks than the earlier part.
      notes: of its checkpoint, from :func:`notes_of`.
      sets: names of the data sets for evaluation only.
    """
    for metric, learner, matrix in walk(results):
        held = notes.get("results", {}).get(metric, {}).get(learner, {})
        for place, name in enumerate(_columns(matrix, sets)):
            values = np.array(held.get(name, ()), float)
            matrix[: len(values), place] = values


def are_new(results: Results, notes: Mapping[str, Any], sets: Sequence[str]) -> bool:
    """Whether metrics, learners, tasks or sets are asked for that notes do not have."""
    held = notes.get("results", {})
    return any(
        name not in held.get(metric, {}).get(learner, {})
        for metric, learner, matrix in walk(results)
        for name in _columns(matrix, sets)
    )


def notes_of(
    results: Results,
    described: Sequence[Mapping[str, Any]],
    sets: Sequence[str],
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """What stands beside a checkpoint, for JSON: tasks, and results column by column.

    Args:
      results: as measured so far.
      described: the tasks.
      sets: names of the data sets for evaluation only.
      earlier: notes that the run began with; what they hold of other metrics, learners
        and sets stays.
    """
    held = {
        metric: {name: dict(columns) for name, columns in learners.items()}
        for metric, learners in earlier.get("results", {}).items()
    }
    for metric, learner, matrix in walk(results):
        columns = held.setdefault(metric, {}).setdefault(learner, {})
        for place, name in enumerate(_columns(matrix, sets)):
            values = matrix[:, place]
            columns[name] = [None if np.isnan(v) else float(v) for v in values]
    return {"results": held, "tasks": list(described)}


def _columns(matrix: np.ndarray, sets: Sequence[str]) -> list[str]:
    """What columns are called beside a checkpoint: tasks by their numbers."""
    tasks = matrix.shape[0] - 1
    return [*map(str, range(tasks)), *(f"set {name}" for name in sets)]


def walk(results: Results) -> Iterable[tuple[str, str, np.ndarray]]:
    """Every metric, learner and matrix."""
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            yield metric, learner, matrix


def describe(task: Task, options: Options) -> dict[str, Any]:
    """What tells a task from another: name, numbers of rows and steps, and some rows."""
    parts = (task.train, task.test, *([task.valid] if task.valid else []))
    return {
        "name": task.name,
        "train": int(task.train.count),
        "test": int(task.test.count),
        "steps": int(steps_of(task, options)),
        "rows": fingerprint([_some_rows(part) for part in parts]),
    }


def _some_rows(rows: Dataset) -> list:
    """The first, middle and last row, one by one; none of an empty set."""
    places = sorted({0, rows.count // 2, rows.count - 1}) if rows.count else []
    found = [take_rows(rows, np.array([place]), size=1) for place in places]
    return [(row.x, row.y) for row in found]


def check_tasks_go_on(
    held: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], place: Any
) -> None:
    """Refuse tasks that do not begin with those of the run, in order.

    Raises:
      ValueError: naming the first that differs, or the number that are missing.
    """
    for number, (old, new) in enumerate(zip(held, now, strict=False)):
        apart = [name for name in new if old.get(name) != new[name]]
        if apart:
            name = apart[0]
            msg = (
                f"learn: {place} holds a run whose task {number} has {name} "
                f"{old.get(name)!r}, got {new[name]!r}; the tasks of a run stay, and new "
                "ones come after them: give another folder for another stream."
            )
            raise ValueError(msg)
    if len(held) > len(now):
        msg = (
            f"learn: {place} holds a run of {len(held)} tasks, got {len(now)}; give all "
            "of them, or another folder."
        )
        raise ValueError(msg)


def warn_of_bad_scores(
    results: Results, names: Sequence[str], measured: Bool[np.ndarray, "rows E"]
) -> None:
    """Warn of columns that were measured and not finite, if there are any.

    Args:
      results: of the run.
      names: of the columns.
      measured: what this process has measured.
    """
    bad = np.zeros(len(names), bool)
    for _, _, matrix in walk(results):
        bad |= (measured & ~np.isfinite(matrix)).any(axis=0)
    if bad.any():
        which = ", ".join(repr(name) for name, b in zip(names, bad, strict=True) if b)
        warnings.warn(
            f"learn: what was measured on the test rows of {which} was not finite. Look "
            "for NaN among these rows, or in what the metrics return.",
            stacklevel=3,
        )


__all__ = [
    "Results",
    "are_new",
    "check_tasks_go_on",
    "describe",
    "empty_results",
    "notes_of",
    "recall",
    "walk",
    "warn_of_bad_scores",
]
