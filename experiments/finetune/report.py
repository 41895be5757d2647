"""From ``results.jsonl`` to tables, figures and one page.

``python -m experiments.finetune.report`` puts the tables of every folder under
``results/`` into the README beside this file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.finetune.config import TEXTS, Config
from jaxcl.report.heatmaps import accuracy_matrix
from jaxcl.report.page import Picture, Section
from jaxcl.report.records import Record, check, split
from jaxcl.report.statistics import Interval, holm, known_means, mean_interval, paired
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
from jaxcl.runs.forgetting import write_readme
from jaxcl.runs.readme import made_on
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
    "Differences at the end, in pairs of one order and seed, with 95 % t-intervals. One "
    "that contains zero shows no difference, which is not equality. Holm's correction is "
    "over all rows. Pairs of the two orders share the seeds of adapter and rows."
)
_GENERAL = (
    "By log-likelihood. Changes since before the first task are means over runs; their "
    "95 % t-intervals are over the questions, for these runs."
)
#: What is compared with what: all with learning plainly, replay and more with replay.
_AGAINST = {
    "seq": ("wise-ft", "er", "ewc", "ilora, fast", "ilora, slow", "sam-er"),
    "er": ("ilora, fast", "ilora, slow", "sam-er"),
}


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html``."""
    del config
    records = read_records(folder)
    if not records:
        return
    check(records)
    write_report(
        folder,
        title="Tasks as instructions, one after another",
        claim=_CLAIM,
        verdict=verdict(records),
        sections=[
            Section(
                "What is kept, and what is lost",
                _TEXT,
                [*pictures(records)],
                tables_of(records),
            )
        ],
        records=records,
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Exact match and choice after each task; joint training has no such course."""
    done = [r for r in split(records)[0] if r["arm"] != "mtl"]
    fields = {"matrix": score_name(records), "choice": "choice"}
    for field, name in fields.items() if done else ():
        drawn = [{**record, "matrix": record[field]} for record in done]
        title = name.capitalize()
        alt = f"{title} on each task (columns) after learning each task (rows)."
        figure = accuracy_matrix(drawn, title=title)
        yield Picture(name.replace(" ", "-"), figure, alt)


def tables_of(records: Sequence[Record]) -> dict[str, Table]:
    """All tables that have rows."""
    found = {
        "tasks": task_table(records),
        "differences": difference_table(records),
        "general": general_table(records),
    }
    return {name: table for name, table in found.items() if table.rows}


def verdict(records: Sequence[Record]) -> list[str]:
    """What held and what did not, by the intervals of the differences."""
    table = difference_table(records)
    score = table.columns[3] if table.rows else Column("")
    said = []
    for arm, against, pairs, versus, p, _ in table.rows:
        points = f"{show(versus, score)} points over {against} at the end"
        known = f"{pairs} {'pairs' if pairs > 1 else 'pair'}"
        if not np.isfinite(versus.low):
            shown = "one pair shows nothing"
        elif versus.low > 0:
            shown = "better"
        else:
            shown = "worse" if versus.high < 0 else "no difference is shown"
        known += f", p {show(p, table.columns[4])} by Holm" if pairs > 1 else ""
        said.append(f"{arm}: {points} ({known}): {shown}.")
    return said or ["No two arms can be compared so far."]


def task_table(records: Sequence[Record]) -> Table:
    """A row per arm: means over tasks, with intervals over the runs of all orders."""
    done = [{**record, "setting": ""} for record in split(records)[0]]
    numbers: dict[Column, list[Any]] = {}
    notes = ["{interval}."]
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
        before = {"matrix": "before", "choice": "choice_before"}[field]
        start = 100 * known_means(np.array([r[before] for r in done], float)).mean()
        notes.append(f"Before the first task: {name} {start:.1f} %.")
    also = " of all orders"
    return interval_table(done, numbers, notes, heads=("method", "runs"), also=also)


def general_table(records: Sequence[Record]) -> Table:
    """A row per arm and set: accuracy before and at the end, and the change."""
    arms: dict[str, list[Record]] = {}
    for record in split(records)[0]:
        arms.setdefault(record["arm"], []).append(record)
    rows = [
        {
            Column("method"): arm,
            Column("set"): name,
            Column("runs", 0): len(runs),
            Column("before, %", 1, 100.0): _mean_of(runs, name, 0),
            Column("at the end, %", 1, 100.0): _mean_of(runs, name, 1),
            Column("change, points", 1, 100.0): change_of(runs, name),
        }
        for arm, runs in arms.items()
        for name in runs[0]["general"]
        if any(len(r.get("general_right", {}).get(name, [""])[0]) > 1 for r in runs)
    ]
    return table_of(rows, _GENERAL)


def _mean_of(runs: Sequence[Record], name: str, place: int) -> float:
    return float(np.mean([record["general"][name][place] for record in runs]))


def change_of(runs: Sequence[Record], name: str) -> Interval:
    """The mean change of a set of questions over runs, with an interval over questions."""
    bits = lambda text: np.array([*map(int, text)], float)
    held = [r["general_right"][name] for r in runs if "general_right" in r]
    changes = [bits(end) - bits(before) for before, end in held]
    return mean_interval(np.mean(changes, axis=0))


def difference_table(records: Sequence[Record]) -> Table:
    """Each arm's score at the end less a baseline's, in pairs of one order and seed."""
    done, name = split(records)[0], score_name(records)
    ends: dict[str, dict[Any, list[float]]] = {}
    for record in done:
        means = (
            known_means(_matrix(record, f)[-1:]).item() for f in ("matrix", "choice")
        )
        ends.setdefault(record["arm"], {})[record["setting"], record["seed"]] = [*means]
    rows: list[dict[Column, Any]] = []
    p = Column("p (t, Holm)", is_p_value=True)
    for baseline, arms in _AGAINST.items():
        for arm in (arm for arm in arms if arm in ends):
            both = [key for key in ends[arm] if key in ends.get(baseline, {})]
            if not both:
                continue
            mine, theirs = (
                np.array([ends[a][k] for k in both]) for a in (arm, baseline)
            )
            score, choice = (paired(mine[:, i], theirs[:, i]) for i in range(2))
            rows.append(
                {
                    Column("method"): arm,
                    Column("against"): baseline,
                    Column("pairs", 0): len(both),
                    Column(f"{name}, points", 1, 100.0): score.difference,
                    p: score.p_t,
                    Column("choice, points", 1, 100.0): choice.difference,
                }
            )
    adjusted = holm(np.array([row[p] for row in rows])) if rows else ()
    return table_of(
        [{**row, p: own} for row, own in zip(rows, adjusted, strict=True)], _PAIRS
    )


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
    head = f"### {path.name}\n\n`{environment['command']}`: {made_on(environment)}.\n"
    parts = [head, *map(to_markdown, tables_of(records).values())]
    lost = [record["run"] for record in split(records)[1]]
    parts += [f"Diverged, never averaged in: {', '.join(lost)}.\n"] * bool(lost)
    for picture in sorted(path.glob("figures/*.png")):
        alt = f"{picture.stem.replace('-', ' ')} on each task after each task".capitalize()
        parts.append(f"![{alt}](results/{path.name}/figures/{picture.name})\n")
    return "\n".join(parts)


if __name__ == "__main__":
    expect_no_words(__doc__)
    write_readme(Path(__file__).parent / "README.md", section)
