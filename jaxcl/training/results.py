"""Results of a run of the host loop: ``{metric: {learner: [T + 1, E]}}``.

Row 0 is before the first task, row ``i`` after ``i`` tasks. Columns are the ``T`` tasks in
order, then the data sets for evaluation only. Entries not measured are NaN.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import InputError
from jaxcl.training.batches import some_places, take_rows
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.options import Options, steps_of
from jaxcl.typing import Batch

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
      sets: the data sets for evaluation only, see :func:`described_parts`.
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
    max_tasks: int | None,
) -> dict[str, Any]:
    """What stands beside a checkpoint, for JSON: tasks, and results column by column.

    Args:
      results: as measured so far.
      described: the tasks.
      sets: names of the data sets for evaluation only.
      earlier: notes that the run began with; what they hold of other metrics, learners
        and sets stays.
      max_tasks: how many the run has room for.
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
    room = {"max_tasks": max_tasks or earlier.get("max_tasks")}
    return {"results": held, "tasks": list(described), **room}


def check_room(notes: Mapping[str, Any], options: Options, place: Any) -> None:
    """Refuse more tasks than the run was begun with room for.

    Raises:
      ValueError: naming both numbers.
    """
    held, tasks = notes.get("max_tasks"), options.max_tasks
    if held is not None and tasks is not None and tasks > held:
        msg = (
            f"learn: {place} holds a run with room for {held} tasks (max_tasks), got "
            f"{tasks}; begin another one with start= and fresh= for the parts that are "
            "full."
        )
        raise InputError(msg)


def _columns(matrix: np.ndarray, sets: Sequence[str]) -> list[str]:
    """What columns are called beside a checkpoint: tasks by their numbers."""
    tasks = matrix.shape[0] - 1
    return [*map(str, range(tasks)), *sets]


def walk(results: Results) -> Iterable[tuple[str, str, np.ndarray]]:
    """Every metric, learner and matrix."""
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            yield metric, learner, matrix


class Described(NamedTuple):
    """What the notes of a checkpoint have of its data."""

    tasks: list[dict[str, Any]]
    sets: tuple[str, ...]  # for evaluation only: names that other rows would change


def described_parts(
    tasks: Sequence[Task], evaluation: Mapping[str, Dataset], options: Options
) -> Described:
    """Descriptions of tasks, and of data sets for evaluation only."""
    marks = {name: fingerprint(_some_rows(rows)) for name, rows in evaluation.items()}
    return Described(
        [describe(task, options) for task in tasks],
        tuple(f"set {name} {mark}" for name, mark in marks.items()),
    )


def describe(task: Task, options: Options) -> dict[str, Any]:
    """Name, numbers of rows and steps, task numbers, and a fingerprint of some rows."""
    parts = (task.train, task.test, *([task.valid] if task.valid else []))
    rows = [_some_rows(part) for part in parts]
    numbers = {int(row.task[0]) for part in rows for row in part}
    return {
        "name": task.name,
        "train": int(task.train.count),
        "test": int(task.test.count),
        "steps": int(steps_of(task, options)),
        "task numbers": sorted(numbers),
        "rows": fingerprint([(row.x, row.y) for part in rows for row in part]),
    }


def _some_rows(rows: Dataset) -> list[Batch]:
    """The first, middle and last row, one by one; none of an empty set."""
    return [take_rows(rows, np.array([at]), size=1) for at in some_places(rows)]


def check_tasks_go_on(
    held: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], place: Any
) -> None:
    """Refuse tasks that do not begin with those of the run, in order.

    Raises:
      ValueError: naming the first that differs, or the number that are missing.
    """
    for number, (old, new) in enumerate(zip(held, now, strict=False)):
        differing = [name for name in new if old.get(name) != new[name]]
        if differing:
            name = differing[0]
            msg = (
                f"learn: {place} holds a run whose task {number} has {name} "
                f"{old.get(name)!r}, got {new[name]!r}; the tasks of a run stay, and new "
                "ones come after them: give another folder for another stream."
            )
            raise InputError(msg)
    if len(held) > len(now):
        msg = (
            f"learn: {place} holds a run of {len(held)} tasks, got {len(now)}; give all "
            "of them, or another folder."
        )
        raise InputError(msg)


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
    "check_room",
    "check_tasks_go_on",
    "described_parts",
    "empty_results",
    "notes_of",
    "recall",
    "walk",
    "warn_of_bad_scores",
]
