"""From ``results.jsonl`` to tables, figures and one page.

``python -m experiments.finetune.report`` puts the tables of every folder under
``results/`` into the README beside this file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetune.config import TEXTS, Config
from jaxcl.report.heatmaps import accuracy_matrix
from jaxcl.report.page import Picture, Section
from jaxcl.report.records import Record, check, split
from jaxcl.report.statistics import holm, known_means, paired
from jaxcl.report.tables import (
    Column,
    Table,
    interval_table,
    show,
    table_of,
    to_markdown,
)
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill, made_on
from jaxcl.runs.reports import write_report

_CLAIM = (
    "What of the tasks is left when they were learned one after another: the form of "
    "the answers, the knowledge, and what the model could do before."
)
_TEXT = (
    "Exact match: the generated answer is the name of the class, letter by letter. Score: "
    "the same, but ROUGE-L for the tasks whose answers are texts. Choice: the name of the "
    "class is the most likely of all names of its task, over the tasks that have such. "
    "Lost: what was right when the task was just learned, less what is right at the end, "
    "over all tasks but the last."
)
_PAIRS = (
    "Differences in pairs of one order and seed, with 95 % t-intervals. One that contains "
    "zero shows no difference, which is not equality. Joint training has one order."
)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    records = read_records(folder)
    if not records:
        return
    check(records)
    tables = tables_of(records, config.general_rows)
    drawn = []
    if done := split(records)[0]:
        score = score_name(done).capitalize()
        alt = f"{score} on each task (columns) after learning each task (rows)."
        drawn = [Picture("exact-match", accuracy_matrix(done), alt)]
    write_report(
        folder,
        title="Tasks as instructions, one after another",
        claim=_CLAIM,
        verdict=verdict(records),
        sections=[Section("What is kept, and what is lost", _TEXT, drawn, tables)],
        records=records,
    )


def tables_of(records: Sequence[Record], general_rows: int) -> dict[str, Table]:
    """All tables that have rows; one question, as in tuning, tells nothing."""
    found = {"tasks": task_table(records), "differences": difference_table(records)}
    if general_rows > 1:
        found["general"] = general_table(records)
    return {name: table for name, table in found.items() if table.rows}


def verdict(records: Sequence[Record]) -> list[str]:
    """A statement for each arm."""
    table, score = task_table(records), score_name(records)
    names = [column.name for column in table.columns]
    place = {name: names.index(name) for name in names}
    said = [
        f"{', '.join(map(str, row[: place['runs']]))}: {score} "
        f"{_shown(table, row, f'{score} at the end, %')} % at the end, "
        f"{_shown(table, row, f'{score} lost, points')} points lost"
        for row in table.rows
        if row[place["runs"]]
    ]
    return said or ["No run has finished."]


def _shown(table: Table, row: Sequence[Any], name: str) -> str:
    """A cell of a row in words, with its interval if there is one."""
    pairs = zip(table.columns, row, strict=True)
    return next(show(cell, column) for column, cell in pairs if column.name == name)


def task_table(records: Sequence[Record]) -> Table:
    """A row per arm: means over tasks, with intervals over runs."""
    done = split(records)[0]
    numbers: dict[Column, list[Any]] = {}
    for field, name in {"matrix": score_name(done), "choice": "choice"}.items():
        learned = [np.diag(_matrix(r, field)) for r in done]
        final = [_matrix(r, field)[-1] for r in done]
        lost = [(a - b)[:-1] for a, b in zip(learned, final, strict=True)]
        # Joint training has one end, after which nothing can be lost.
        lost = [
            np.full(1, np.nan) if record["arm"] == "mtl" else points
            for record, points in zip(done, lost, strict=True)
        ]
        # A task with texts for answers has none to choose among.
        learned, final, lost = (
            [known_means(values[None]).item() for values in all_]
            for all_ in (learned, final, lost)
        )
        numbers[Column(f"{name} when learned, %", 1, 100.0)] = learned
        numbers[Column(f"{name} at the end, %", 1, 100.0)] = final
        numbers[Column(f"{name} lost, points", 1, 100.0)] = lost
    numbers[Column("minutes", 1, is_total=True)] = [r["seconds"] / 60 for r in done]
    return interval_table(done, numbers, ["{interval}; joint training has no order."])


def general_table(records: Sequence[Record]) -> Table:
    """A row per arm: accuracy on each set before and at the end."""
    done = split(records)[0]
    numbers: dict[Column, list[Any]] = {}
    for name in done[0]["general"] if done else ():
        for place, when in enumerate(("before", "at the end")):
            column = Column(f"{name} {when}, %", 1, 100.0)
            numbers[column] = [r["general"][name][place] for r in done]
    return interval_table(done, numbers, ["{interval}. By log-likelihood."])


def difference_table(
    records: Sequence[Record], baselines: Sequence[str] = ("seq", "er")
) -> Table:
    """Each arm's score at the end less a baseline's, in pairs of one order and seed."""
    done, name = split(records)[0], score_name(records)
    ends = {
        (r["arm"], r["setting"], r["seed"]): known_means(_matrix(r, "matrix")[-1:])
        for r in done
    }
    rows: list[dict[Column, Any]] = []
    for baseline in baselines:
        pairs: dict[str, list[Any]] = {}
        for (arm, *which), end in ends.items():
            if arm != baseline and (baseline, *which) in ends:
                pair = end.item(), ends[baseline, *which].item()
                pairs.setdefault(arm, []).append(pair)
        found = {arm: paired(*np.array(own).T) for arm, own in pairs.items()}
        p_values = holm(np.array([versus.p_t for versus in found.values()]))
        rows += [
            {
                Column("method"): arm,
                Column("against"): baseline,
                Column("pairs", 0): versus.difference.count,
                Column(f"{name} at the end, points", 1, 100.0): versus.difference,
                Column("p (t, Holm)", is_p_value=True): p,
            }
            for (arm, versus), p in zip(found.items(), p_values, strict=True)
        ]
    return table_of(rows, _PAIRS)


def score_name(records: Sequence[Record]) -> str:
    """What the score is: exact match, unless the answers of some tasks are texts."""
    names = {name for record in records for name in record["tasks"]}
    return "score" if names & {*TEXTS} else "exact match"


def _matrix(record: Mapping[str, Any], field: str) -> np.ndarray:
    """A matrix ``[T, T]``; NaN where nothing was measured."""
    return np.array(record[field], float)


def section(path: Path) -> str:
    """What the README says of one folder of results."""
    records, environment = read_records(path), read_json(path / "environment.json")
    asked = read_json(path / "config.json")["config"]["general_rows"]
    head = f"### {path.name}\n\n`{environment['command']}`: {made_on(environment)}.\n"
    return "\n".join([head, *map(to_markdown, tables_of(records, asked).values())])


if __name__ == "__main__":
    expect_no_words(__doc__)
    readme = Path(__file__).parent / "README.md"
    found = sorted(
        path.parent for path in readme.parent.glob("results/*/results.jsonl")
    )
    fill(readme, "\n".join(map(section, found)))
