"""From ``results.jsonl`` to tables and a figure, and from ``results/`` to the README.

``python -m experiments.ewc_permuted.report`` writes the tables of every folder under
``results/`` into the README beside this file, between its two marks.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ewc_permuted.config import LABELS, PUBLISHED, Config
from jaxcl.files import plain
from jaxcl.metrics import backward_transfer, learning_accuracy
from jaxcl.report.curves import measure_curves
from jaxcl.report.page import Picture, Section
from jaxcl.report.records import Record, split, values_of
from jaxcl.report.statistics import mean_interval
from jaxcl.report.tables import Column, Table, interval_note, table_of, to_markdown
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.forgetting import SO_FAR, so_far
from jaxcl.runs.readme import fill, made_on
from jaxcl.runs.reports import write_report

HERE = Path(__file__).parent


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html`` of whatever has finished."""
    records = read_records(folder)
    section = Section(
        "Accuracy over all tasks",
        "The strength is the best on held-out rows, in runs of their own.",
        [*pictures(records)],
        {
            "accuracy": result_table(records, published=comparable(plain(config))),
            "strength": search_table(records),
        },
    )
    write_report(
        folder,
        title="EWC on permuted images",
        claim="EWC keeps what was learned on permutations of one set of images.",
        verdict=verdict(result_table(records)),
        sections=[section],
        records=records,
    )


def pictures(records: Sequence[Record]) -> Iterator[Picture]:
    """Accuracy over the tasks so far, of the reported runs."""
    if done := [so_far(r) for r in split(records)[0] if r["setting"] == "test"]:
        figure = measure_curves(done, (SO_FAR,), title="Permuted images")
        yield Picture(
            "accuracy", figure, "Mean accuracy over the tasks learned so far."
        )


def verdict(table: Table) -> list[str]:
    """A statement for each arm that has a finished run."""
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, row, strict=True)) for row in table.rows]
    said = [f"{r['method']}: {100 * r['accuracy, %'].mean:.2f} %" for r in rows]
    return said or ["No reported run has finished."]


def comparable(config: dict[str, Any]) -> bool:
    """Whether images, network and number of tasks are those of the paper."""
    theirs = plain(Config())
    same = all(config[name] == theirs[name] for name in ("hidden", "num_tasks"))
    return config["data"] != "digits" and same


def result_table(records: Sequence[Record], *, published: bool = True) -> Table:
    """Every arm, beside the published number where that is of use."""
    done, lost = split([r for r in records if r["setting"] == "test"])
    arms = [arm for arm in LABELS if arm in values_of(done, "arm")]
    rows = [
        _row(arm, [r for r in done if r["arm"] == arm], published=published)
        for arm in arms
    ]
    notes = []
    if rows:
        notes.append(f"{interval_note(r[RUNS] for r in rows).capitalize()}.")
    if lost:
        notes.append(
            f"Diverged, never averaged in: {', '.join(r['run'] for r in lost)}."
        )
    return table_of(rows, *notes)


RUNS = Column("runs", 0)


def _row(arm: str, runs: Sequence[Record], *, published: bool) -> dict[Column, Any]:
    """One arm: means over its seeds."""
    final = mean_interval(np.array([np.mean(r["final"]) for r in runs]))
    matrices = np.array([r["matrix"] for r in runs])
    over = lambda metric: mean_interval(np.asarray(metric(matrices)))
    theirs = PUBLISHED[arm] / 100 if published else None
    strength = runs[0]["hyper"].get("strength")
    return {
        Column("method"): LABELS[arm],
        Column("strength"): None if strength is None else f"{strength:g}",
        RUNS: len(runs),
        Column("accuracy, %", 2, 100.0): final,
        Column("published, %", 2, 100.0): theirs,
        Column("difference", 2, 100.0): theirs and final.mean - theirs,
        Column("when just learned, %", 2, 100.0): over(learning_accuracy),
        Column("backward transfer", 2, 100.0): (
            over(backward_transfer) if matrices.shape[-1] > 1 else None
        ),
        Column("minutes a run", 1): sum(r["seconds"] for r in runs) / len(runs) / 60,
    }


def search_table(records: Sequence[Record]) -> Table:
    """Accuracy on the held-out rows at every strength of the grid."""
    runs = [r for r in records if r["setting"] == "search"]
    arms = [arm for arm in LABELS if arm in values_of(runs, "arm")]
    found = {(r["hyper"]["strength"], r["arm"]): _held_out(r) for r in runs}
    heads = {
        arm: Column(f"{LABELS[arm]} on held-out rows, %", 2, 100.0) for arm in arms
    }
    rows = [
        {
            Column("strength"): f"{value:g}",
            **{heads[arm]: found.get((value, arm)) for arm in arms},
        }
        for value in sorted({value for value, _ in found})
    ]
    notes = [f"{len(r['final'])} tasks of {r['iterations']} steps." for r in runs[:1]]
    return table_of(rows, *notes)


def _held_out(record: Record) -> float | str:
    return float(np.mean(record["final"])) if record["status"] == "done" else "diverged"


def section(path: Path) -> str:
    """What the README says of one folder of results."""
    config = read_json(path / "config.json")["config"]
    status, environment = (
        read_json(path / f"{n}.json") for n in ("status", "environment")
    )
    records, published = read_records(path), comparable(config)
    tables = [result_table(records, published=published), search_table(records)]
    facts = (
        f"`{environment['command']}`: {config['iterations']} steps per task, "
        f"{config['num_tasks']} tasks, {'-'.join(map(str, config['hidden']))} units, "
        f"learning rate {config['learning_rate']:g}, Fisher over "
        f"{config['fisher_examples'] or 'all'} training rows; "
        f"{made_on(environment)}."
    )
    if status["status"] not in ("done", "diverged"):
        facts += " Not finished: what is there so far."
    shown = [to_markdown(table) for table in tables if table.rows]
    return "\n".join([f"### {path.name}\n", facts + "\n", *shown])


def write_readme(readme: Path = HERE / "README.md", results: Path = HERE / "results"):
    """Put the tables of all results between the marks of the README."""
    folders = sorted(path.parent for path in results.glob("*/results.jsonl"))
    fill(readme, "\n".join(map(section, folders)))


if __name__ == "__main__":
    expect_no_words(__doc__)
    write_readme()
