"""The page of a run: what was learned and forgotten, in numbers and in answers."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.errors import MissingFileError
from jaxcl.finetune.config import config_of, replayed, run_settings
from jaxcl.finetune.curve import PLACE, curve_picture, curve_table, read_curve
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
from jaxcl.finetune.method import STRENGTHS, learning_rate, strength_of
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
    method, names = held["settings"]["method"], [task["name"] for task in held["tasks"]]
    try:
        found = learned.read(run)
    except MissingFileError as error:
        msg = f"nothing was measured in {run} so far; go on with the run first."
        raise MissingFileError(msg) from error
    together, alone = method == "mtl" and len(names) > 1, method == "one"
    total = 1 if together else len(names)
    # Of a run that has grown, what is learned so far.
    names = names[: len(found.tasks)] if found.tasks and not together else names
    answers = read_tests(run, ANSWERS, names, len(found.tasks))
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
        *_results_section(run, found, labels, alone=alone),
        *_general_section(run, held, general),
        *_answers_section(run, names, found, alone=alone),
        *_interpolation_section(run),
        Section("Within the tasks", "", [*learned.pictures_of_steps(found, labels)]),
    ]
    verdict = [
        *_averages(found, together=together, alone=alone),
        *_general_verdict(general, together=together, alone=alone),
    ]
    if found.status != "done" or found.ended < total:
        verdict += [f"Not finished: {found.ended} of {total} tasks so far."]
    elif held.get("answers", True) and not tests_at(run, found.ended):
        verdict += [f"Not tested after task {found.ended}; the same command does it."]
    claim = _TOGETHER if together else _ALONE if alone else _CLAIM
    about, config = learned.about(found), config_of(run)
    given = held["settings"] | {
        "learning_rate": learning_rate(config),
        "replay": replayed(config),
        "strength": strength_of(config) if method in STRENGTHS else None,
    }
    used = {n: value for n, value in given.items() if matters(config, n)}
    shown = {"command": command_of(config), **used, "model": held["model"]}
    return write_report(
        run,
        title=run.resolve().name,
        claim=claim.format(names=", ".join(names), method=method),
        verdict=verdict or ["Nothing was measured so far."],
        sections=sections,
        about={**about, "config": shown},
    )


def tests_at(run: Path, ended: int) -> list[Path]:
    """The files of tests of tasks after so many of them."""
    return [*(run / ANSWERS).glob(f"{ended:03d}-*.jsonl")]


def _averages(found: learned.Learned, *, together: bool, alone: bool) -> Iterator[str]:
    """The average of each metric over the tasks, and how much was forgotten."""
    main = {m: own for m, own in found.results.items() if m not in _ASIDE}
    if not together and not alone:
        yield from learned.averages(found._replace(results=main))
        return
    for _, name, matrix in learned.each(main):  # nothing that could be forgotten
        own = matrix[found.last] if together else np.diag(matrix[1:])
        how = "learned together" if together else "each task by its own model"
        if found.last and np.isfinite(own).any():
            yield f"Average {name} {np.nanmean(own):.3g}, {how}."


# ------------------------------------------------------------------------- the tasks


def _results_section(
    run: Path, found: learned.Learned, labels: Sequence[str], *, alone: bool
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
        "tasks": _task_table(run, found, shown, alone=alone),
        "further-metrics": _task_table(run, found, rest, alone=alone),
    }
    yield Section(
        "What was learned" if alone else "What was learned, and what is left",
        text,
        [Picture("results", drawn, alt)],
        {name: table for name, table in tables.items() if table.rows},
    )


def _task_table(
    run: Path, found: learned.Learned, results: Results, *, alone: bool
) -> Table:
    """A row per metric, learner and task: before, just learned, and at the end.

    Tasks that are learned alone have no end. Intervals are of what is a fraction of
    generated or chosen answers.
    """
    counted = not {*results}.isdisjoint(FRACTIONS)
    rows = [
        _task_row(run, found, (metric, learner, place), matrix, counted, alone)
        for metric, learners in results.items()
        for learner, matrix in learners.items()
        for place in range(len(found.tasks) + len(found.sets))
    ]
    which = "just learned" if alone else "the end"
    return table_of(rows, *counted * [_note("rows", which, changes=not alone)])


def _task_row(
    run: Path,
    found: learned.Learned,
    what: tuple[str, str, int],
    matrix: np.ndarray,
    counted: bool,
    alone: bool,
) -> Mapping[Column, Any]:
    """One task by one metric and learner; joint training never has it just learned."""
    metric, learner, place = what
    name, is_task = [*found.tasks, *found.sets][place], place < len(found.tasks)
    just = matrix[place + 1, place] if is_task else np.nan
    end = matrix[found.last, place]
    row = {
        Column("metric"): metric,
        Column("learner"): learner,
        Column("task"): name,
        Column("before", 3): matrix[0, place],
        Column("just learned", 3): just,
    }
    if not alone:
        row |= {
            Column("at the end", 3): end,
            Column("change since learned", 3): end - just,
        }
    if not counted:
        return row
    at = partial(file_of, run, ANSWERS, name=name, learner=learner)
    then = lines_of(at(ended=place + 1)) if is_task else []
    if alone:
        return row | _intervals("rows", metric, then)
    return row | _intervals("rows", metric, lines_of(at(ended=found.last)), then)


def _note(rows: str, which: str, *, changes: bool = True) -> str:
    """What the intervals of a table are of."""
    change = (
        f", change low and high of the change, in pairs of the same {rows} (Agresti and "
        "Min)"
    )
    return (
        f"Intervals of 95 % over the {rows}: from and to of {which} (Wilson)"
        f"{change * changes}."
    )


Lines = Sequence[Mapping[str, Any]]


def _lines_before(run: Path, kind: str, name: str, learners: Sequence[str]) -> Lines:
    """The test of the model itself, which is written once for all learners."""
    files = (lines_of(file_of(run, kind, 0, name, learner)) for learner in learners)
    return next(filter(None, files), [])


def _intervals(
    what: str, metric: str, after: Lines, before: Lines | None = None
) -> dict[Column, Any]:
    """Rows, interval of the fraction after, and of the change; None where unknown.

    Changes have none where other rows were asked before.
    """
    held = values_of(after) if metric in FRACTIONS else {}
    right, ends = held.get(metric, np.zeros(0)), ("change low", "change high")
    cells: dict[str, Any] = dict.fromkeys(("from", "to"))
    if count := len(right):
        cells["from"], cells["to"] = fraction_interval(float(right.mean()), count)
    if before is not None:
        cells |= dict.fromkeys(ends)
        asked = lambda lines: [one.get("prompt", one.get("question")) for one in lines]
        if count and asked(before) == asked(after):
            change = change_interval(values_of(before)[metric], right)
            cells |= dict(zip(ends, change, strict=True))
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
    text = (
        "Questions that are not of the tasks, by the most likely of the given answers: by "
        "the sum over an answer's tokens, and by that over its number of characters."
    )
    table = table_of(rows, _note("questions", "the accuracy"))
    yield Section("General ability", text, [], {"general": table})


def _general_rows(
    run: Path,
    name: str,
    metric: str,
    learner: str,
    means: np.ndarray,
    learners: Sequence[str],
) -> Iterator[Mapping[Column, Any]]:
    """One set before and along the run, by one metric and learner."""
    before = _lines_before(run, GENERAL, name, learners)
    for after in np.flatnonzero(np.isfinite(means)).tolist():
        lines = lines_of(file_of(run, GENERAL, after, name, learner))
        pair = (lines, before) if after else (before, [])
        yield {
            Column("set"): name,
            Column("metric"): metric,
            Column("learner"): learner,
            Column("after tasks", 0): after,
            Column("accuracy", 3): means[after],
            Column("change", 3): means[after] - means[0] if after else None,
            **_intervals("questions", metric, *pair),
        }


def _general_verdict(results: Results, *, together: bool, alone: bool) -> Iterator[str]:
    """The mean over the sets, before and at the end."""
    learners = results.get("choice_accuracy", {})
    for learner, matrix in learners.items():
        known = np.flatnonzero(np.isfinite(matrix).all(axis=1))
        if len(known) > 1 and known[0] == 0:
            before, after = matrix[0].mean(), matrix[known[-1]].mean()
            name = f", {learner}" if len(learners) > 1 else ""
            when = "after all tasks" if together else f"after task {known[-1]}"
            when = "by the model of the last task" if alone else when
            yield f"General ability{name}: {before:.3g} before, {after:.3g} {when}."


def _interpolation_section(run: Path) -> Iterator[Section]:
    """The curves of ``jaxcl interpolate``, if there are any."""
    homes = sorted(path for path in (run / PLACE).glob("*") if read_curve(path))
    if homes:
        pictures = [curve_picture(home) for home in homes]
        tables = {f"{PLACE}-{home.name}": curve_table(home) for home in homes}
        yield Section("Between before and after", "", pictures, tables)


# ------------------------------------------------------------------------------- answers


def _answers_section(
    run: Path, names: Sequence[str], found: learned.Learned, *, alone: bool
) -> Iterator[Section]:
    """Some answers of each task before, when it was just learned, and at the end."""
    learners = sorted({name for own in found.results.values() for name in own})
    tables: dict[str, Table] = {}
    for (place, name), learner in product(enumerate(names), learners):
        just = place + 1 if found.tasks else 1
        ends = {"just learned": just, "at the end": found.last}
        if alone:
            del ends["at the end"]
        tests = {
            when: lines_of(file_of(run, ANSWERS, ended, name, learner))
            for when, ended in ends.items()
        }
        if all(tests.values()):
            before = _lines_before(run, ANSWERS, name, learners)
            table = _answer_table(f"{name}, {learner}.", before, tests)
            tables[f"answers-{name}-{learner}"] = table
    if tables:
        lost = (
            " First those that were right when the task was just learned and are wrong at "
            "the end."
        )
        text = f"Generated answers to test rows.{'' if alone else lost}"
        yield Section("Answers before and after", text, [], tables)


def _answer_table(note: str, before: Lines, tests: Mapping[str, Lines]) -> Table:
    """The answers of one task by one learner: what was lost comes first."""
    held = list(tests.values())
    first, last = held[0], held[-1]
    lost = lambda row: first[row]["exact_match"] - last[row]["exact_match"]
    order = sorted(range(min(len(first), len(last))), key=lost, reverse=True)
    rows = [
        {
            Column("prompt"): _short(last[row]["prompt"]),
            Column("right answer"): _short(last[row]["answer"]),
            Column("before"): _short(before[row]["output"]) if before else "",
            **{
                Column(when): _short(held[row]["output"])
                for when, held in tests.items()
            },
        }
        for row in order[:_SHOWN]
    ]
    return table_of(rows, note)


def _short(text: str) -> str:
    """The end of a long text, where a prompt asks."""
    text = " ".join(text.split()) or "(empty)"
    return text if len(text) <= _LONGEST else f"... {text[-_LONGEST:]}"
