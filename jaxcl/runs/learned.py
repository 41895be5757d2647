"""What the folder of one call of ``learn`` says: how far it is, and its results.

The notes beside the newest checkpoint have the results column by column; the lines of
``metrics.jsonl`` go on to the last report, also of a run that diverged after it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcl.errors import MissingFileError
from jaxcl.files import read_checked, read_lines
from jaxcl.metrics import summary
from jaxcl.report.curves import step_curves
from jaxcl.report.heatmaps import result_heatmaps
from jaxcl.report.page import Picture, Section
from jaxcl.report.style import MOST_NAMES, drawable
from jaxcl.report.tables import Column, Table, table_of
from jaxcl.runs.folder import CHECKPOINTS
from jaxcl.training.options import LOWER_IS_BETTER

Results = dict[str, dict[str, np.ndarray]]  # {metric: {learner: [T + 1, E]}}


class Learned(NamedTuple):
    """One call of ``learn`` as its folder holds it."""

    tasks: list[str]  # by name; unknown, hence none, before the first checkpoint
    ended: int  # how many of them
    sets: list[str]  # for evaluation only; all columns while the tasks are unknown
    results: Results  # row 0 before the first task
    last: int  # the last row in which anything was measured
    steps: list[dict[str, Any]]  # lines of steps
    within: list[dict[str, Any]]  # of evaluations within tasks
    settings: dict[str, Any]  # what identifies the run, as the checkpoint holds it
    spent: dict[str, Any]  # steps of each task, and their seconds
    ends: list[int]  # steps at which tasks ended
    status: str  # done, diverged, or unfinished: it runs still, or was stopped
    written: str  # when the last line was


def found_in(path: Path) -> dict[str, Any]:
    """Verdict, sections, settings and status of one call of ``learn``, for its page."""
    run = read(path)
    labels = drawable([*run.tasks, *run.sets])
    verdict, sections = [*averages(run), state(run)], []
    if run.tasks and run.results:
        verdict += [f"Measured after {run.last} of {len(run.tasks)} tasks."]
    if not run.results:
        verdict += ["No metric was measured."]
    else:
        alt = "Each metric on each data set (columns) after so many tasks (rows)."
        drawn = result_heatmaps(run.results, labels, lower_is_better=LOWER_IS_BETTER)
        pictures = [Picture("results", drawn, alt), *picture_of_averages(run)]
        tables = {"final": final_table(run)}
        sections += [Section("Results along the stream", "", pictures, tables)]
    sections += [Section("Within the tasks", "", [*pictures_of_steps(run, labels)])]
    return {"verdict": verdict, "sections": sections, "about": about(run)}


def averages(run: Learned) -> Iterator[str]:
    """The average of each metric over the tasks so far, and how much was forgotten."""
    if not (run.tasks and run.last):
        return
    at_end = run.last == len(run.tasks)
    when = "at the end" if at_end else f"after {run.last} of {len(run.tasks)} tasks"
    for metric, name, matrix in each(run.results):
        square = matrix[1 : run.last + 1, : run.last]
        found, lower = square[~np.isnan(square)], metric in LOWER_IS_BETTER
        if not lower and not np.all((found >= 0) & (found <= 1)):
            if np.isfinite(average := np.mean(square[-1])):
                yield f"Average {name} {average:.3g} {when}."
            continue
        values = summary(square, lower_is_better=lower)
        names = "average_accuracy", "forgetting", "forgetting_from_initial"
        average, lost, since = (values[key].value for key in names)
        forgotten = "" if lost is None else f", forgetting {lost:.3g}"
        if lost is None and since is not None:  # later tasks were not measured early
            changed = f"{since:.3g} lost" if since >= 0 else f"{-since:.3g} gained"
            forgotten = f", {changed} since learned"
        if average is not None:
            yield f"Average {name} {average:.3g} {when}{forgotten}."


def each(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Metric, what to call it where there are several learners, and its values."""
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            name = metric if len(learners) == 1 else f"{metric}, {learner}"
            yield metric, name, matrix


def picture_of_averages(run: Learned) -> Iterator[Picture]:
    """The averages over the tasks so far, where tasks are too many for numbers."""
    if run.last <= MOST_NAMES:
        return
    curves: dict[str, dict[str, Any]] = {metric: {} for metric in run.results}
    for metric, name, matrix in each(run.results):
        means = np.array([matrix[i, :i].mean() for i in range(1, run.last + 1)])
        (known,) = np.nonzero(np.isfinite(means))  # not where evaluated more rarely
        curves[metric][name] = (1 + known).tolist(), means[known].tolist()
    alt = "Average of each metric over the tasks learned so far."
    yield Picture("averages", step_curves(curves, label="tasks learned"), alt)


def about(run: Learned) -> dict[str, Any]:
    """Settings and status, as the page shows them at its end."""
    known = {"tasks ended": f"{run.ended} of {len(run.tasks)}"} if run.tasks else {}
    if run.spent:
        seconds = round(run.spent["seconds"][0], 1)
        known |= {"steps": sum(run.spent["steps"]), "seconds of steps": seconds}
    settings = {name: v for name, v in run.settings.items() if v is not None}
    return {"config": settings, "status": {"status": run.status, **known}}


def pictures_of_steps(run: Learned, labels: Sequence[str]) -> Iterator[Picture]:
    """The loss, and what was evaluated within tasks, against the steps of all tasks.

    ``labels`` are of the tasks, then of the sets.
    """
    tasks = labels[: len(run.tasks)]
    sets = dict(zip(run.sets, labels[len(run.tasks) :], strict=True))
    curves: dict[str, dict[str, Any]] = {}
    for line in run.steps:
        _add(curves, "training loss", "", line, line["loss"])
    for line in run.within:
        for _, name, values in each(line["results"]):
            _add_tasks(curves, tasks, name, line, values)
        for column, found in line.get("sets", {}).items():
            for _, name, value in each(found):
                _add(curves, name, sets.get(column) or column, line, value)
    if curves:
        also = ", and what was evaluated within tasks" if run.within else ""
        alt = f"Training loss{also}, against the steps; tasks end at vertical lines."
        yield Picture("steps", step_curves(curves, ends=run.ends), alt)


def _add_tasks(
    curves: dict, tasks: Sequence[str], name: str, line: dict, values: list
) -> None:
    """A point of each task so far, or their mean where tasks are many."""
    if len(tasks) > MOST_NAMES:
        known = [np.nan if value is None else value for value in values]
        _add(curves, name, "tasks so far", line, np.mean(known))
        return
    for place, value in enumerate(values):
        task = tasks[place] if place < len(tasks) else f"task {place + 1}"
        _add(curves, name, task, line, value)


def _add(curves: dict, panel: str, name: str, line: dict, value: Any) -> None:
    """A point of a line; ``at`` counts the ends of tasks before it, too."""
    steps, values = curves.setdefault(panel, {}).setdefault(name, ([], []))
    steps.append(line["at"] - line["task"])
    values.append(value)


def read(path: Path) -> Learned:
    """The run in a folder.

    Raises:
      MissingFileError: if it has neither a checkpoint nor a line of metrics; of the
        folder of a batch, with the name of a run in it.
      InputError: if a line of metrics is damaged.
    """
    file = path / "metrics.jsonl"
    lines = read_lines(file) if file.is_file() else []
    lines = [line for line in lines if {"at", "task"} <= {*line}]
    position, held = _newest(path)
    if not (held or lines):
        runs = sorted(path.glob("*/status.json"))
        if (path / "runs.csv").exists() or runs:
            which = f" {runs[0].parent}" if runs else " one of them"
            msg = (
                f"report: {path} is the folder of a batch, see runs.csv; report{which}."
            )
            raise MissingFileError(msg)
        msg = (
            f"report: {path} has neither runs in results.jsonl nor checkpoints with "
            "results nor lines in metrics.jsonl; give the folder of a run."
        )
        raise MissingFileError(msg)
    notes: dict[str, Any] = held.get("notes") or {"results": _first_results(lines)}
    described = notes.get("tasks", [])
    # A checkpoint's number counts the steps and the ends of tasks before it.
    ends = np.cumsum([1 + int(task["steps"] or 0) for task in described])
    written = [line["task"] + 1 for line in lines if line.get("ended")]
    ended = max([int(np.sum(ends <= position)), *written])
    sets, results = _results(notes["results"], len(described))
    known = np.isfinite([m for found in results.values() for m in found.values()])
    last = int(np.flatnonzero(known.any(axis=(0, 2))).max(initial=0)) if results else 0
    bad = lines and lines[-1].get("not_finite")
    policy = held.get("metadata", {}).get("on_non_finite", "stop")
    status = "done" if described and ended >= len(described) else "unfinished"
    if bad and policy == "stop":
        status = "diverged"
    when = datetime.fromtimestamp(file.stat().st_mtime, UTC) if lines else ""
    return Learned(
        tasks=[task["name"] for task in described],
        ended=ended,
        sets=sets,
        results=results,
        last=last,
        steps=[line for line in lines if "loss" in line],
        within=[x for x in lines if "results" in x and "ended" not in x],
        settings=held.get("metadata", {}),
        spent=notes.get("spent", {}),
        ends=(ends - np.arange(1, len(ends) + 1))[:ended].tolist(),
        status=status,
        written=f"{when:%Y-%m-%d %H:%M} UTC" if when else "",
    )


def state(run: Learned) -> str:
    """How the run ended or how far it is, and how many steps were not finite."""
    bad = sum(line.get("not_finite", 0) for line in run.steps)
    total = len(run.tasks)
    ended = f"{run.ended} of {total} tasks ended" if total else "no task ended"
    where = ""
    if run.steps:
        task, step = run.steps[-1]["task"], run.steps[-1]["step"]
        name = repr(run.tasks[task]) if task < total else f"task {task + 1}"
        where = f"step {step} of {name}"
    if run.status == "diverged":
        return f"Diverged by {where}: {bad} steps were not finite; {ended}."
    lost = f" {bad} steps were not finite." if bad else ""
    if run.status == "done":
        return f"All tasks ended.{lost}"
    until = f", the last report is {where}, {run.written}" if where else ""
    return f"Not finished, it runs still or was stopped: {ended}{until}.{lost}"


def _newest(path: Path) -> tuple[int, dict[str, Any]]:
    """Position and file of the newest checkpoint with readable notes; 0 and none."""
    files = [f for f in (path / CHECKPOINTS).glob("*.json") if f.stem.isdecimal()]
    for file in sorted(files, key=lambda file: int(file.stem), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):
            held = read_checked(file)
            if isinstance(held["notes"]["results"], dict):
                return int(file.stem), held
    return 0, {}


def _first_results(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The evaluation before the first task, column by column like notes of sets."""
    line = next((line for line in lines if line.get("ended")), {"results": {}})
    return {
        metric: {
            learner: {
                f"set {name} -": [value]
                for name, value in zip(line["columns"], values, strict=True)
            }
            for learner, values in learners.items()
        }
        for metric, learners in line["results"].items()
    }


def _results(
    noted: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]],
    num_tasks: int,
) -> tuple[list[str], Results]:
    """The names of sets for evaluation only, and the results from notes.

    Columns are called by the numbers of tasks, and "set NAME FINGERPRINT". Each metric has
    its own, in the order in which they were asked for.
    """
    measured = [
        column
        for learners in noted.values()
        for columns in learners.values()
        for column in columns
    ]
    sets = [name for name in dict.fromkeys(measured) if not name.isdigit()]
    every = [*map(str, range(num_tasks)), *sets]
    results = {
        metric: {
            learner: _matrix([columns.get(name, ()) for name in every], num_tasks + 1)
            for learner, columns in learners.items()
        }
        for metric, learners in noted.items()
    }
    return [name[4:].rpartition(" ")[0] for name in sets], results


def _matrix(columns: Iterable[Sequence[float | None]], length: int) -> np.ndarray:
    """Columns of results; where the stream was shorter, the last rows are not known."""
    unknown = [None] * length
    padded = [[*column, *unknown][:length] for column in columns]
    return np.array(padded, float).T


def final_table(run: Learned) -> Table:
    """A row per data set: each metric when the task was just learned, and at the end."""
    names, num_tasks = [*run.tasks, *run.sets], len(run.tasks)
    end = "at the end" if num_tasks and run.last == num_tasks else "last measured"
    rows: list[dict[Column, Any]] = [{Column("data set"): name} for name in names]
    for _, name, matrix in each(run.results):
        for place, row in enumerate(rows):
            learned = matrix[place + 1, place] if place < num_tasks else None
            row[Column(f"{name}, just learned", 4)] = learned
            row[Column(f"{name}, {end}", 4)] = matrix[run.last, place]
    return table_of(rows, "One run.")
