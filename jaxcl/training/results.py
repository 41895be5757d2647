"""Results of a run of the host loop, what they cost, their notes, and warnings.

Results are ``{metric: {learner: [T + 1, E]}}``: row 0 is before the first task, row ``i``
after ``i`` tasks. Columns are the ``T`` tasks in order, then the data sets for evaluation
only. Entries not measured are NaN. The notes of a checkpoint hold them column by column,
with descriptions of the tasks: a run may resume with more tasks, metrics and sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcl.data.dataset import Dataset, Task
from jaxcl.data.numbering import some_places
from jaxcl.errors import InputError, require, warn
from jaxcl.files import differing, plain
from jaxcl.training.batches import take_rows
from jaxcl.training.compiled import Policy, Program
from jaxcl.training.run_state import RunState, fingerprint
from jaxcl.typing import Batch

#: ``{metric: {learner: [T + 1, E]}}``, float64 on the host.
Results = dict[str, dict[str, Float[np.ndarray, "rows E"]]]


class Records(NamedTuple):
    """What a run measures, and what its checkpoints note besides; filled in place."""

    results: Results
    spent: "Spent"
    measured: Bool[np.ndarray, "rows E"]  # by this process
    described: list[dict[str, Any]]  # the tasks
    sets: list[str]  # columns for evaluation only, see describe_sets
    earlier: Mapping[str, Any]  # the notes that this process began with
    max_tasks: int | None  # how many the run has room for


def begin_records(
    program: Program,
    tasks: Sequence[Task],
    evaluation: Mapping[str, Dataset],
    notes: Mapping[str, Any],
    max_tasks: int | None,
) -> tuple[Records, bool]:
    """Records with what an earlier part of the run measured; and whether that is complete.

    There may be more tasks, metrics, learners and sets than in the ``notes`` of that part.
    """
    shape = len(tasks) + 1, len(tasks) + len(evaluation)
    results = {
        metric: {name: np.full(shape, np.nan) for name in program.parts.names}
        for metric in program.metric_names
    }
    sets, held, complete = describe_sets(evaluation), notes.get("results", {}), True
    for metric, learner, name, column in _entries(results, sets):
        values = held.get(metric, {}).get(learner, {}).get(name)
        complete &= values is not None
        known = np.array(values or (), float)[: len(column)]  # null becomes NaN
        column[: known.size] = known
    measured, described = np.zeros(shape, bool), [describe(task) for task in tasks]
    spent = spent_so_far(notes, len(tasks))
    records = Records(results, spent, measured, described, sets, notes, max_tasks)
    return records, complete


def _entries(
    results: Results, sets: Sequence[str]
) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Metric, learner, name and view of every column; notes name tasks by their number."""
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            columns = [*map(str, range(len(matrix) - 1)), *sets]
            for name, column in zip(columns, matrix.T, strict=True):
                yield metric, learner, name, column


def notes_of(records: Records) -> dict[str, Any]:
    """What stands beside a checkpoint, for JSON: tasks, and results column by column.

    What earlier notes hold of other metrics, learners and sets stays.
    """
    earlier = records.earlier
    held = {
        metric: {name: dict(columns) for name, columns in learners.items()}
        for metric, learners in earlier.get("results", {}).items()
    }
    for metric, learner, name, column in _entries(records.results, records.sets):
        held.setdefault(metric, {}).setdefault(learner, {})[name] = plain(column)
    return {
        "results": held,
        "tasks": records.described,
        "spent": plain(records.spent._asdict()),
        "max_tasks": records.max_tasks or earlier.get("max_tasks"),
    }


def describe(task: Task) -> dict[str, Any]:
    """Name, numbers of rows and steps, task numbers, and a fingerprint of some rows."""
    parts = (task.train, task.test, *([task.valid] if task.valid else []))
    rows = [row for part in parts for row in _some_rows(part)]
    return {
        "name": task.name,
        "train": int(task.train.count),
        "test": int(task.test.count),
        "steps": task.num_steps,
        "task numbers": sorted({int(row.task[0]) for row in rows}),
        "rows": fingerprint([(row.x, row.y) for row in rows]),
    } | ({} if task.shuffle else {"shuffle": False})


def describe_sets(evaluation: Mapping[str, Dataset]) -> list[str]:
    """The columns of sets for evaluation only, with names that other rows would change."""
    mark = lambda rows: fingerprint(_some_rows(rows))
    return [f"set {name} {mark(rows)}" for name, rows in evaluation.items()]


def _some_rows(rows: Dataset) -> list[Batch]:
    """The first, middle and last row, one by one; none of an empty set."""
    return [take_rows(rows, np.array([at]), size=1) for at in some_places(rows)]


def check_tasks_go_on(records: Records, place: Any) -> None:
    """Refuse tasks that do not begin with those of the run, or that it has no room for."""
    held, described = records.earlier.get("tasks", ()), records.described
    for number, (old, new) in enumerate(zip(held, described, strict=False)):
        for name in differing(new, old):
            msg = (
                f"learn: {place} holds a run whose task {number} has {name} "
                f"{old.get(name)!r}, got {new.get(name)!r}; the tasks of a run stay, and "
                "new ones come after them: give another folder for another stream."
            )
            raise InputError(msg)
    require(
        len(held) <= len(described),
        "learn",
        f"{place} holds a run of {len(held)} tasks, got {len(described)}; give all of "
        "them, or another folder",
    )
    room = records.earlier.get("max_tasks") or records.max_tasks
    wanted = max(len(described), records.max_tasks or 0)
    require(
        room is None or wanted <= room,
        "learn",
        f"the run has room for {room} tasks (max_tasks), got {wanted}; begin another one "
        "with start= and fresh= for the parts that are full",
    )


# ----------------------------------------------------------------------------------- costs

WINDOW = 10  # steps by which the beginning and the end of a task are compared


class Spent(NamedTuple):
    """What went into training so far, each step counted once; filled in place."""

    loss: Float[np.ndarray, " T"]  # sum over the steps of a task, before each
    steps: Int[np.ndarray, " T"]  # done of each task
    first: Float[np.ndarray, " T"]  # sum with penalty over up to WINDOW first steps
    last: Float[np.ndarray, " T"]  # mean with penalty over up to WINDOW last steps
    seconds: Float[np.ndarray, " 1"]  # of steps, without evaluations and checkpoints


def spent_so_far(notes: Mapping[str, Any], num_tasks: int) -> Spent:
    """What the notes of a checkpoint have of it; zeros at the start."""
    zeros = lambda dtype=float: np.zeros(num_tasks, dtype)
    spent = Spent(zeros(), zeros(int), zeros(), zeros(), np.zeros(1))
    for name, values in notes.get("spent", {}).items():
        held = getattr(spent, name)
        now = np.array(values, float)[: held.size]  # null becomes NaN
        held[: now.size] = now
    return spent


def add_losses(
    spent: Spent,
    task: int,
    losses: Sequence[float],
    penalties: Sequence[float],
    seconds: float = 0.0,
) -> None:
    """Count the next steps of a task."""
    spent.seconds[...] += seconds
    early, totals = max(WINDOW - int(spent.steps[task]), 0), np.add(losses, penalties)
    spent.first[task] += np.sum(totals[:early])
    spent.last[task] = np.mean(totals[-WINDOW:])
    spent.loss[task] += sum(losses)
    spent.steps[task] += len(losses)


# -------------------------------------------------------------------------------- warnings


def warn_of_bad_scores(records: Records, names: Sequence[str]) -> None:
    """Warn of columns that this process measured and that were not finite, if any."""
    results = records.results.values()
    found = [matrix for learners in results for matrix in learners.values()]
    bad = np.any(records.measured & ~np.isfinite(found).all(axis=0), axis=0)
    if bad.any():
        which = ", ".join(
            repr(names[column]) for column in np.flatnonzero(bad).tolist()
        )
        warn(
            f"learn: what was measured on the test rows of {which} was not finite. Look "
            "for NaN among these rows, or in what the metrics return."
        )


def warn_of_bad_steps(
    run_state: RunState,
    tasks: Sequence[Task],
    policy: Policy,
    *,
    diverged: bool,
    place: Any,
) -> None:
    """Warn of steps that were not finite, if there were any.

    With the folder, if any: Python shows a text once for all runs of a line.
    """
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
    warn(
        f"learn: {run_state.num_bad} steps were not finite{where}; {became}. Look for "
        "NaN among the rows and for labels or tasks beyond the outputs, or lower the "
        f"learning rate{_or_strength(run_state)}."
        + (f" The run is in {place}." if place is not None else "")
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
    """Warn of tasks at whose end the model is not better than at the start of the run.

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
        warn(
            f"learn: {len(found)} of {len(ended)} tasks ended unstable or not learned, "
            f"the last of them {names[worst]!r}: loss and penalty were "
            f"{begun[worst]:.3g} at its first steps and {spent.last[worst]:.3g} at its "
            f"last, {begun[0]:.3g} at the first of the run. Lower the learning rate"
            f"{_or_strength(run_state)}."
        )
