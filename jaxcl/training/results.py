"""Results of a run of the host loop, what they cost, and warnings about them.

Results are ``{metric: {learner: [T + 1, E]}}``: row 0 is before the first task, row ``i``
after ``i`` tasks. Columns are the ``T`` tasks in order, then the data sets for evaluation
only. Entries not measured are NaN.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcl.data.dataset import Task
from jaxcl.training.compiled import Policy
from jaxcl.training.files import plain
from jaxcl.training.run_state import RunState

#: ``{metric: {learner: [T + 1, E]}}``, float64 on the host.
Results = dict[str, dict[str, Float[np.ndarray, "rows E"]]]


class Spent(NamedTuple):
    """What went into training so far, each step counted once; filled in place."""

    loss: Float[np.ndarray, " T"]  # sum over the steps of a task, before each
    steps: Int[np.ndarray, " T"]  # done of each task
    first: Float[
        np.ndarray, " T"
    ]  # sum with penalty over the first steps, up to WINDOW
    last: Float[np.ndarray, " T"]  # mean with penalty over the last ones, up to WINDOW
    seconds: Float[np.ndarray, " 1"]  # of steps, without evaluations and checkpoints


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
    spent: Spent,
    max_tasks: int | None,
) -> dict[str, Any]:
    """What stands beside a checkpoint, for JSON: tasks, and results column by column.

    Args:
      results: as measured so far.
      described: the tasks.
      sets: names of the data sets for evaluation only.
      earlier: notes that the run began with; what they hold of other metrics, learners
        and sets stays.
      spent: on training so far.
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
    return {
        "results": held,
        "tasks": list(described),
        "spent": plain(spent._asdict()),
    } | room


def _columns(matrix: np.ndarray, sets: Sequence[str]) -> list[str]:
    """What columns are called beside a checkpoint: tasks by their numbers."""
    tasks = matrix.shape[0] - 1
    return [*map(str, range(tasks)), *sets]


def walk(results: Results) -> Iterable[tuple[str, str, np.ndarray]]:
    """Every metric, learner and matrix."""
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            yield metric, learner, matrix


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


WINDOW = 10  # steps by which the beginning and the end of a task are compared


def add_losses(
    spent: Spent, task: int, losses: Sequence[float], penalties: Sequence[float]
) -> None:
    """Count the next steps of a task."""
    early, totals = max(WINDOW - int(spent.steps[task]), 0), np.add(losses, penalties)
    spent.first[task] += np.sum(totals[:early])
    spent.last[task] = np.mean(totals[-WINDOW:])
    spent.loss[task] += sum(losses)
    spent.steps[task] += len(losses)


def spent_so_far(notes: Mapping[str, Any], num_tasks: int) -> Spent:
    """What the notes of a checkpoint have of it; zeros at the start."""
    zeros = lambda dtype=float: np.zeros(num_tasks, dtype)
    spent = Spent(zeros(), zeros(int), zeros(), zeros(), np.zeros(1))
    for name, values in notes.get("spent", {}).items():
        now = np.array(values, float)  # null becomes NaN
        getattr(spent, name)[: now.size] = now
    return spent


def warn_of_bad_steps(
    run_state: RunState, tasks: Sequence[Task], policy: Policy, *, diverged: bool
) -> None:
    """Warn of steps that were not finite, if there were any."""
    if not run_state.num_bad:
        return
    became = {
        "stop": "the run was stopped",
        "skip": "these were skipped",
        "continue": "the run went on all the same",
    }[policy]
    where = ""
    if diverged:
        where = f", the last by step {run_state.step} of {tasks[run_state.task].name!r}"
    warnings.warn(
        f"learn: {run_state.num_bad} steps were not finite{where}; {became}. Look for "
        "NaN among the rows and for labels or tasks beyond the outputs, or lower the "
        f"learning rate{_or_strength(run_state)}.",
        stacklevel=3,
    )


def _or_strength(run_state: RunState) -> str:
    """What else may be too large in a method with a regularizer."""
    if not jax.tree.leaves(run_state.state.regularizer):
        return ""
    return (
        " or the regularizer's strength (for EWC see "
        "jaxcl.regularizers.largest_stable_strength)"
    )


def warn_of_unlearned_tasks(
    run_state: RunState, spent: Spent, results: Results, names: Sequence[str]
) -> None:
    """Warn of tasks at whose end the model is no better than at the start of the run.

    Numbers may stay finite while a penalty that is too strong throws the parameters about.
    A task of at least ``5 WINDOW`` steps counts as not learned if the loss with penalty of
    its last steps is 5 % above those of its first and of the first of the run; or if it is
    not 5 % below that of the first of the run, and the accuracy on the task is not above
    that from before it was learned.
    """
    accuracy = next(iter(results.get("accuracy", {}).values()), None)
    begun = spent.first / WINDOW

    def unlearned(task: int) -> bool:
        last, seen = spent.last[task], (np.nan, np.nan)
        if accuracy is not None:
            seen = accuracy[task : task + 2, task]  # before and after
        worse = last > 1.05 * max(begun[task], begun[0])
        return bool(worse or (last >= 0.95 * begun[0] and seen[1] <= seen[0]))

    ended = [t for t in range(int(run_state.task)) if spent.steps[t] >= 5 * WINDOW]
    found = [t for t in ended if np.isfinite(spent.last[t]) and unlearned(t)]
    if found and not run_state.num_bad:
        worst = found[-1]
        warnings.warn(
            f"learn: {len(found)} of {len(ended)} tasks ended unstable or not learned, "
            f"the last of them {names[worst]!r}: loss and penalty were "
            f"{begun[worst]:.3g} at its first steps and {spent.last[worst]:.3g} at its "
            f"last, {begun[0]:.3g} at the first of the run. Lower the learning rate"
            f"{_or_strength(run_state)}.",
            stacklevel=3,
        )
