"""From ``results.jsonl`` to tables and a figure, and from ``results/`` to the README.

``python -m experiments.ewc_permuted.report`` writes the tables of every folder under
``results/`` into the README beside this file, between its two marks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ewc_permuted.config import LABELS, PUBLISHED, Config
from jaxcl.metrics import backward_transfer, learning_accuracy
from jaxcl.report.curves import measure_curves
from jaxcl.report.page import Picture
from jaxcl.report.records import Record, split
from jaxcl.report.sections import Part, assemble
from jaxcl.report.statistics import mean_interval
from jaxcl.report.tables import Column, Table, interval_note, to_markdown
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.forgetting import SO_FAR, so_far
from jaxcl.runs.readme import fill, made_on
from jaxcl.runs.reports import write_report
from jaxcl.training.files import plain

HERE = Path(__file__).parent


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html`` of whatever has finished."""
    records = read_records(folder)
    published = comparable(plain(config))
    part = Part(
        "Accuracy over all tasks",
        "The strength is the best on held-out rows, in runs of their own.",
        [pictures],
        {
            "accuracy": lambda records: result_table(records, published=published),
            "strength": search_table,
        },
    )
    made = assemble(part, records)
    write_report(
        folder,
        title="EWC on permuted images",
        claim="EWC keeps what was learned on permutations of one set of images.",
        verdict=verdict(result_table(records)),
        sections=[made],
        records=records,
    )


def pictures(records: Sequence[Record]) -> list[Picture]:
    """Accuracy over the tasks so far, of the reported runs."""
    done = [so_far(r) for r in split(records)[0] if r["setting"] == "test"]
    figure = lambda: measure_curves(done, (SO_FAR,), title="Permuted images")
    alt = "Mean accuracy over the tasks learned so far."
    return [Picture("accuracy", figure(), alt)] if done else []


def verdict(table: Table) -> list[str]:
    """A statement for each arm, beside the published number where there is one."""
    place = [column.name for column in table.columns].index("accuracy, %")
    said = [f"{row[0]}: {100 * row[place].mean:.2f} %" for row in table.rows]
    return said or ["No reported run has finished."]


def comparable(config: dict[str, Any]) -> bool:
    """Whether images, network and number of tasks are those of the paper."""
    theirs = plain(Config())
    same = all(config[name] == theirs[name] for name in ("hidden", "num_tasks"))
    return config["data"] != "digits" and same


def result_table(records: Sequence[Record], *, published: bool = True) -> Table:
    """Every arm, beside the published number where that is of use."""
    done, lost = split([r for r in records if r["setting"] == "test"])
    rows = []
    for arm, label in LABELS.items():
        runs = [r for r in done if r["arm"] == arm]
        if not runs:
            continue
        final = mean_interval(np.array([np.mean(r["final"]) for r in runs]))
        matrices = np.array([r["matrix"] for r in runs])
        theirs = PUBLISHED[arm] / 100 if published else None
        strength = runs[0]["hyper"].get("strength")
        rows.append(
            (
                label,
                strength if strength is None else f"{strength:g}",
                len(runs),
                final,
                theirs,
                None if theirs is None else final.mean - theirs,
                mean_interval(np.asarray(learning_accuracy(matrices))),
                _transfer(matrices),
                sum(r["seconds"] for r in runs) / len(runs) / 60,
            )
        )
    columns = (
        Column("method"),
        Column("strength"),
        Column("runs", 0),
        Column("accuracy, %", 2, 100.0),
        Column("published, %", 2, 100.0),
        Column("difference", 2, 100.0),
        Column("when just learned, %", 2, 100.0),
        Column("backward transfer", 2, 100.0),
        Column("minutes a run", 1),
    )
    notes: tuple[str, ...] = ()
    if rows:
        said = interval_note(row[2] for row in rows)
        notes = (f"{said.capitalize()}.",)
    if lost:
        notes += (f"Diverged, never averaged in: {', '.join(r['run'] for r in lost)}.",)
    return Table(columns, tuple(rows), notes)


def search_table(records: Sequence[Record]) -> Table:
    """Accuracy on the held-out rows at every strength of the grid."""
    runs = [r for r in records if r["setting"] == "search"]
    searched = [arm for arm in LABELS if any(r["arm"] == arm for r in runs)]
    found = {(r["hyper"]["strength"], r["arm"]): _held_out(r) for r in runs}
    rows = tuple(
        (f"{value:g}", *(found.get((value, arm)) for arm in searched))
        for value in sorted({value for value, _ in found})
    )
    accuracy = [
        Column(f"{LABELS[arm]} on held-out rows, %", 2, 100.0) for arm in searched
    ]
    notes = ()
    if runs:
        notes = (f"{len(runs[0]['final'])} tasks of {runs[0]['iterations']} steps.",)
    return Table((Column("strength"), *accuracy), rows, notes)


def _held_out(record: Record) -> float | str:
    return float(np.mean(record["final"])) if record["status"] == "done" else "diverged"


def section(path: Path) -> str:
    """What the README says of one folder of results."""
    held, status = read_json(path / "config.json"), read_json(path / "status.json")
    environment = read_json(path / "environment.json")
    config, records = held["config"], read_records(path)
    published = comparable(config)
    tables = [result_table(records, published=published), search_table(records)]
    finished = status["status"] in ("done", "diverged")
    facts = (
        f"`{environment['command']}`: {config['iterations']} steps per task, "
        f"{config['num_tasks']} tasks, {'-'.join(map(str, config['hidden']))} units, "
        f"learning rate {config['learning_rate']:g}, Fisher over "
        f"{config['fisher_examples'] or 'all'} training rows; "
        f"{made_on(environment)}."
    )
    if not finished:
        facts += " Not finished: what is there so far."
    shown = [to_markdown(table) for table in tables if table.rows]
    return "\n".join([f"### {path.name}\n", facts + "\n", *shown])


def write_readme(readme: Path = HERE / "README.md", results: Path = HERE / "results"):
    """Put the tables of all results between the marks of the README."""
    folders = sorted(path.parent for path in results.glob("*/results.jsonl"))
    fill(readme, "\n".join(map(section, folders)))


def _transfer(matrices: np.ndarray):
    if matrices.shape[-1] < 2:
        return None
    return mean_interval(np.asarray(backward_transfer(matrices)))


if __name__ == "__main__":
    expect_no_words(__doc__)
    write_readme()
