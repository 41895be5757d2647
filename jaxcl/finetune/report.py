"""The page of a run: what was learned and forgotten, in numbers and in answers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jaxcl.finetune.config import config_of, run_settings
from jaxcl.finetune.curve import PLACE, curve_picture, curve_table
from jaxcl.finetune.measure import (
    ANSWERS,
    GENERAL,
    Results,
    file_of,
    lines_of,
    read_tests,
)
from jaxcl.finetune.words import command_of, matters
from jaxcl.report.heatmaps import result_heatmaps
from jaxcl.report.page import Picture, Section
from jaxcl.report.style import drawable
from jaxcl.report.tables import Column, Table, table_of
from jaxcl.runs import learned
from jaxcl.runs.reports import write_report
from jaxcl.training.options import LOWER_IS_BETTER

_ASIDE = "rouge_l", "perplexity"  # in a table of their own only
_FRACTIONS = "exact_match", "choice_accuracy"  # of test rows
_NOTE = "From and to: 95 % interval of Wilson at the end, over the rows."
_SHOWN = 6  # answers of a task
_LONGEST = 300  # letters of a text in a table
_CLAIM = "Fine-tuned on {names}, one after another, by {method}."
_TOGETHER = "Fine-tuned on {names} together."
_ALONE = "Fine-tuned on {names}, each by itself from the model before."


def write_page(run: Path) -> Path:
    """Write ``report.html``, figures and tables of a run; what is there is replaced.

    Raises:
      MissingFileError: for a folder that holds no run of ``jaxcl finetune``, or one in
        which nothing was measured so far.
    """
    held = run_settings(run)
    found, names = learned.read(run), [task["name"] for task in held["tasks"]]
    answers = read_tests(run, ANSWERS, names, len(found.tasks))
    together = held["settings"]["method"] == "mtl" and len(names) > 1
    if together:  # one task, whose parts are measured as sets
        results = {
            metric: {learner: matrix[:, 1:] for learner, matrix in learners.items()}
            for metric, learners in found.results.items()
        }
        found = found._replace(tasks=[], sets=names, results={**answers, **results})
    else:
        found = found._replace(results={**answers, **found.results})
    labels = drawable([*found.tasks, *found.sets])
    sections = [
        *_results_section(run, found, labels),
        *_general_section(run, held, len(found.ends)),
        *_answers_section(run, held, found),
        *_interpolation_section(run),
        Section("Within the tasks", "", [*learned.pictures_of_steps(found, labels)]),
    ]
    main = {m: own for m, own in found.results.items() if m not in _ASIDE}
    alone = held["settings"]["method"] == "one"
    said = (
        _each_alone(main) if alone else learned.averages(found._replace(results=main))
    )
    verdict = [*said, *_general_verdict(run, held, len(found.ends))]
    claim = (_TOGETHER if together else _ALONE if alone else _CLAIM).format(
        names=", ".join(names), method=held["settings"]["method"]
    )
    if found.status != "done":
        verdict += [f"Not finished: {found.ended} of {len(found.tasks)} tasks so far."]
    about, config = learned.about(found), config_of(run)
    used = {n: value for n, value in held["settings"].items() if matters(config, n)}
    shown = {"command": command_of(config), **used, "model": held["model"]}
    return write_report(
        run,
        title=run.resolve().name,
        claim=claim,
        verdict=verdict or ["Nothing was measured so far."],
        sections=sections,
        about={**about, "config": shown},
    )


def _each_alone(results: Results) -> Iterator[str]:
    """The average over tasks of what each one's own model reaches; none forgets."""
    for _, name, matrix in learned.each(results):
        own = np.diag(matrix[1:])
        if np.isfinite(own).any():
            yield f"Average {name} {np.nanmean(own):.3g}, each task by its own model."


# ------------------------------------------------------------------------- the tasks


def _results_section(
    run: Path, found: learned.Learned, labels: Sequence[str]
) -> Iterator[Section]:
    """All metrics of all learners after each task, and tables of what was lost."""
    if not found.results:
        return
    shown = {m: v for m, v in found.results.items() if m not in (*_ASIDE, "loss")}
    drawn = result_heatmaps(shown, labels, lower_is_better=LOWER_IS_BETTER)
    alt = "Each metric on each task (columns) after so many tasks (rows)."
    text = (
        "Exact match: generated answers that are the right one, letter by letter. Choice "
        "accuracy: the right one is the most likely of all answers that the task has. "
        "A model may still know an answer that it no longer gives in the right form."
    )
    rest = {m: own for m, own in found.results.items() if m not in shown}
    tables = {
        "tasks": _lost_table(run, found, shown),
        "further-metrics": _lost_table(run, found, rest),
    }
    yield Section(
        "What was learned, and what is left",
        text,
        [Picture("results", drawn, alt)],
        {name: table for name, table in tables.items() if table.rows},
    )


def _lost_table(run: Path, found: learned.Learned, results: Results) -> Table:
    """A row per metric, learner and task: before, just learned, and at the end.

    Intervals are of what is a fraction of generated or chosen answers.
    """
    rows: list[Mapping[Column, Any]] = []
    names, num_tasks = [*found.tasks, *found.sets], len(found.tasks)
    counted = not {*results}.isdisjoint(_FRACTIONS)
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            for place, name in enumerate(names):
                just = matrix[place + 1, place] if place < num_tasks else np.nan
                end = matrix[found.last, place]
                row = {
                    Column("metric"): metric,
                    Column("learner"): learner,
                    Column("task"): name,
                    Column("before", 3): matrix[0, place],
                    Column("just learned", 3): just,
                    Column("at the end", 3): end,
                    Column("change since learned", 3): end - just,
                }
                if counted:
                    file = file_of(run, ANSWERS, found.last, name, learner)
                    own = metric in _FRACTIONS
                    row |= _with_interval(end, len(lines_of(file)) if own else 0)
                rows.append(row)
    return table_of(rows, *counted * [_NOTE])


def _with_interval(value: float, count: int) -> dict[Column, Any]:
    """How many rows a fraction is of, and its interval; nothing where it is unknown."""
    known = count and np.isfinite(value)
    low, high = interval(value, count) if known else (None, None)
    cells = {"rows": count or None, "from": low, "to": high}
    return {Column(name, 0 if name == "rows" else 3): v for name, v in cells.items()}


# ----------------------------------------------------------------------- general ability


def _general_results(run: Path, held: Mapping[str, Any], ended: int) -> Results:
    names = [one["name"] for one in held["general"]]
    return read_tests(run, GENERAL, names, ended) if names else {}


def _general_section(
    run: Path, held: Mapping[str, Any], ended: int
) -> Iterator[Section]:
    """Accuracy on each set of questions along the run, with intervals."""
    results = _general_results(run, held, ended)
    if not results:
        return
    rows: list[Mapping[Column, Any]] = []
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            for place, one in enumerate(held["general"]):
                for after in np.flatnonzero(np.isfinite(matrix[:, place])).tolist():
                    file = file_of(run, GENERAL, after, one["name"], learner)
                    count = len(lines_of(file)) or one["questions"]
                    value = matrix[after, place]
                    low, high = interval(value, count)
                    rows.append(
                        {
                            Column("set"): one["name"],
                            Column("metric"): metric,
                            Column("learner"): learner,
                            Column("after tasks", 0): after,
                            Column("questions", 0): count,
                            Column("accuracy", 3): value,
                            Column("from", 3): low,
                            Column("to", 3): high,
                        }
                    )
    note = "From and to: 95 % interval of Wilson over the questions."
    text = (
        "Questions that are not of the tasks, by the most likely of the given answers: by "
        "the sum over an answer's tokens, and by that over its number of characters."
    )
    yield Section("General ability", text, [], {"general": table_of(rows, note)})


def _general_verdict(run: Path, held: Mapping[str, Any], ended: int) -> Iterator[str]:
    """The mean over the sets, before and at the end."""
    learners = _general_results(run, held, ended).get("choice_accuracy", {})
    for learner, matrix in learners.items():
        known = np.flatnonzero(np.isfinite(matrix).all(axis=1))
        if len(known) > 1 and known[0] == 0:
            before, after = matrix[0].mean(), matrix[known[-1]].mean()
            name = f", {learner}" if len(learners) > 1 else ""
            yield (
                f"General ability{name}: {before:.3g} before, {after:.3g} after "
                f"{known[-1]} tasks."
            )


def interval(value: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a fraction of ``count`` questions, by Wilson's formula."""
    test = binomtest(round(value * count), count)
    found = test.proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _interpolation_section(run: Path) -> Iterator[Section]:
    """The curves of ``jaxcl interpolate``, if there are any."""
    homes = sorted(path for path in (run / PLACE).glob("*") if path.is_dir())
    if homes:
        pictures = [curve_picture(home) for home in homes]
        tables = {f"{PLACE}-{home.name}": curve_table(home) for home in homes}
        yield Section("Between before and after", "", pictures, tables)


# ------------------------------------------------------------------------------- answers


def _answers_section(
    run: Path, held: Mapping[str, Any], found: learned.Learned
) -> Iterator[Section]:
    """Some answers of each task before, when it was just learned, and at the end."""
    learners = sorted({name for own in found.results.values() for name in own})
    tables: dict[str, Table] = {}
    for place, task in enumerate(held["tasks"]):
        learned_at = place + 1 if found.tasks else 1
        for learner in learners:
            first = (
                lines_of(file_of(run, ANSWERS, 0, task["name"], n)) for n in learners
            )
            before = next(filter(None, first), [])  # all learners are the model itself
            ends = learned_at, found.last
            table = _answer_table(run, task["name"], learner, before, *ends)
            if table.rows:
                tables[f"answers-{task['name']}-{learner}"] = table
    if tables:
        text = (
            "Generated answers to test rows. First those that were right when the task "
            "was just learned and are wrong at the end."
        )
        yield Section("Answers before and after", text, [], tables)


def _answer_table(
    run: Path, name: str, learner: str, before: list[Any], just: int, last: int
) -> Table:
    """The answers of one task by one learner."""
    at = lambda ended: lines_of(file_of(run, ANSWERS, ended, name, learner))
    middle, end = at(just), at(last)
    if not middle or not end:
        return table_of([])
    lost = lambda row: middle[row]["exact_match"] - end[row]["exact_match"]
    order = sorted(range(min(len(middle), len(end))), key=lost, reverse=True)
    rows = []
    for row in order[:_SHOWN]:
        shown = {
            Column("prompt"): _short(end[row]["prompt"]),
            Column("right answer"): _short(end[row]["answer"]),
            Column("before"): _short(before[row]["output"]) if before else "",
            Column("just learned"): _short(middle[row]["output"]),
            Column("at the end"): _short(end[row]["output"]),
        }
        rows.append(shown)
    return table_of(rows, f"{name}, {learner}.")


def _short(text: str) -> str:
    """The end of a long text, where a prompt asks."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"... {text[-_LONGEST:]}"
