"""The page of a run: what was learned and forgotten, in numbers and in answers."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.finetune.config import config_of, run_settings
from jaxcl.finetune.curve import PLACE, curve_picture, curve_table
from jaxcl.finetune.measure import (
    ANSWERS,
    FRACTIONS,
    GENERAL,
    Results,
    file_of,
    lines_of,
    read_tests,
    values_of,
)
from jaxcl.finetune.words import command_of, matters
from jaxcl.report.heatmaps import result_heatmaps
from jaxcl.report.page import Picture, Section
from jaxcl.report.statistics import change_interval, fraction_interval
from jaxcl.report.style import drawable
from jaxcl.report.tables import Column, Table, table_of
from jaxcl.runs import learned
from jaxcl.runs.reports import write_report
from jaxcl.training.options import LOWER_IS_BETTER

_ASIDE = "rouge_l", "perplexity"  # in a table of their own only
_NOTE = (
    "Intervals of 95 % over the {rows}: from and to of {which} (Wilson), change low and "
    "high of the change, in pairs of the same {rows} (Agresti and Min)."
)
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
    general = _general_results(run, held, len(found.ends))
    sections = [
        *_results_section(run, found, labels),
        *_general_section(run, held, general),
        *_answers_section(run, held, found),
        *_interpolation_section(run),
        Section("Within the tasks", "", [*learned.pictures_of_steps(found, labels)]),
    ]
    main = {m: own for m, own in found.results.items() if m not in _ASIDE}
    alone = held["settings"]["method"] == "one"
    said = (
        _each_alone(main) if alone else learned.averages(found._replace(results=main))
    )
    verdict = [*said, *_general_verdict(general)]
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
    counted = not {*results}.isdisjoint(FRACTIONS)
    rows = [
        _lost_row(run, found, metric, learner, matrix, place, counted=counted)
        for metric, learners in results.items()
        for learner, matrix in learners.items()
        for place in range(len(found.tasks) + len(found.sets))
    ]
    return table_of(rows, *counted * [_NOTE.format(rows="rows", which="the end")])


def _lost_row(
    run: Path,
    found: learned.Learned,
    metric: str,
    learner: str,
    matrix: np.ndarray,
    place: int,
    *,
    counted: bool,
) -> Mapping[Column, Any]:
    """One task by one metric and learner; joint training never has it just learned."""
    name, is_task = [*found.tasks, *found.sets][place], place < len(found.tasks)
    just, end = (
        matrix[place + 1, place] if is_task else np.nan,
        matrix[found.last, place],
    )
    row = {
        Column("metric"): metric,
        Column("learner"): learner,
        Column("task"): name,
        Column("before", 3): matrix[0, place],
        Column("just learned", 3): just,
        Column("at the end", 3): end,
        Column("change since learned", 3): end - just,
    }
    if not counted:
        return row
    at = partial(file_of, run, ANSWERS, name=name, learner=learner)
    then = lines_of(at(ended=place + 1)) if is_task else []
    now = lines_of(at(ended=found.last))
    return row | _intervals("rows", _right(then, metric), _right(now, metric))


def _lines_before(
    run: Path, kind: str, name: str, learners: Sequence[str]
) -> list[dict[str, Any]]:
    """The test of the model itself, which is written once for all learners."""
    files = (lines_of(file_of(run, kind, 0, name, learner)) for learner in learners)
    return next(filter(None, files), [])


def _right(lines: Sequence[Mapping[str, Any]], metric: str) -> np.ndarray:
    """Which rows of a test were right; none of a metric that is not a fraction of them."""
    held = values_of(lines) if metric in FRACTIONS else {}
    return held.get(metric, np.zeros(0))


def _intervals(what: str, before: np.ndarray, after: np.ndarray) -> dict[Column, Any]:
    """Rows, interval of the fraction after, and of the change; None where unknown."""
    count, paired = len(after), len(before) == len(after) > 0
    cells: dict[str, Any] = dict.fromkeys(("from", "to", "change low", "change high"))
    if count:
        cells["from"], cells["to"] = fraction_interval(float(after.mean()), count)
    if paired:
        cells["change low"], cells["change high"] = change_interval(before, after)
    return {
        Column(what, 0): count or None,
        **{Column(n, 3): v for n, v in cells.items()},
    }


# ----------------------------------------------------------------------- general ability


def _general_results(run: Path, held: Mapping[str, Any], ended: int) -> Results:
    names = [one["name"] for one in held["general"]]
    return read_tests(run, GENERAL, names, ended) if names else {}


def _general_section(
    run: Path, held: Mapping[str, Any], results: Results
) -> Iterator[Section]:
    """Accuracy on each set of questions along the run, with intervals."""
    rows = [
        row
        for metric, learners in results.items()
        for learner, matrix in learners.items()
        for place, one in enumerate(held["general"])
        for row in _general_rows(
            run, one["name"], metric, learner, matrix[:, place], [*learners]
        )
    ]
    if not rows:
        return
    note = _NOTE.format(rows="questions", which="the accuracy")
    text = (
        "Questions that are not of the tasks, by the most likely of the given answers: by "
        "the sum over an answer's tokens, and by that over its number of characters."
    )
    yield Section("General ability", text, [], {"general": table_of(rows, note)})


def _general_rows(
    run: Path,
    name: str,
    metric: str,
    learner: str,
    means: np.ndarray,
    learners: Sequence[str],
) -> Iterator[Mapping[Column, Any]]:
    """One set before and along the run, by one metric and learner."""
    before = _right(_lines_before(run, GENERAL, name, learners), metric)
    for after in np.flatnonzero(np.isfinite(means)).tolist():
        lines = lines_of(file_of(run, GENERAL, after, name, learner))
        pair = (before, _right(lines, metric)) if after else (before[:0], before)
        yield {
            Column("set"): name,
            Column("metric"): metric,
            Column("learner"): learner,
            Column("after tasks", 0): after,
            Column("accuracy", 3): means[after],
            Column("change", 3): means[after] - means[0] if after else None,
            **_intervals("questions", *pair),
        }


def _general_verdict(results: Results) -> Iterator[str]:
    """The mean over the sets, before and at the end."""
    learners = results.get("choice_accuracy", {})
    for learner, matrix in learners.items():
        known = np.flatnonzero(np.isfinite(matrix).all(axis=1))
        if len(known) > 1 and known[0] == 0:
            before, after = matrix[0].mean(), matrix[known[-1]].mean()
            name = f", {learner}" if len(learners) > 1 else ""
            yield (
                f"General ability{name}: {before:.3g} before, {after:.3g} after "
                f"{known[-1]} tasks."
            )


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
            before = _lines_before(run, ANSWERS, task["name"], learners)
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
