"""Results of a run of the host loop: ``{metric: {learner: [T + 1, E]}}``.

Row 0 is before the first task, row ``i`` after ``i`` tasks. Columns are the ``T`` tasks in
order, then the data sets for evaluation only. Entries not measured are NaN.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxcl.data.dataset import Task
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
    """Fill in the results of an earlier part of the run, by the number of each task.

    Args:
      results: of all tasks, filled in place; may have more tasks than the earlier part.
      notes: of its checkpoint, from :func:`notes_of`.
      sets: names of the data sets for evaluation only.
    """
    held = notes.get("results", {})
    tasks, earlier = len(notes.get("tasks", ())), list(notes.get("sets", ()))
    for metric, learner, matrix in walk(results):
        old = held.get(metric, {}).get(learner)
        if old is None:
            continue
        old, total = np.array(old, float), matrix.shape[0] - 1
        rows = len(old)
        matrix[:rows, :tasks] = old[:, :tasks]
        for place, name in enumerate(sets):
            if name in earlier:
                matrix[:rows, total + place] = old[:, tasks + earlier.index(name)]


def notes_of(
    results: Results, described: Sequence[Mapping[str, Any]], sets: Sequence[str]
) -> dict[str, Any]:
    """The notes of a checkpoint, for JSON: results, tasks and sets."""
    plain = lambda matrix: [
        [None if np.isnan(value) else float(value) for value in row] for row in matrix
    ]
    held = {
        metric: {name: plain(matrix) for name, matrix in learners.items()}
        for metric, learners in results.items()
    }
    return {"results": held, "tasks": list(described), "sets": list(sets)}


def walk(results: Results) -> Iterable[tuple[str, str, np.ndarray]]:
    """Every metric, learner and matrix."""
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            yield metric, learner, matrix


def describe(task: Task, options: Options) -> dict[str, Any]:
    """What identifies a task: name, number of rows, steps, and its first row."""
    row = take_rows(task.train, np.arange(1), size=1)
    return {
        "name": task.name,
        "train": task.train.count,
        "test": task.test.count,
        "steps": steps_of(task, options),
        "first row": fingerprint((row.x, row.y)),
    }


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
    "check_tasks_go_on",
    "describe",
    "empty_results",
    "notes_of",
    "recall",
    "walk",
    "warn_of_bad_scores",
]
