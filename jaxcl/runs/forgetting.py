"""What runs with an accuracy matrix say: a table, matrices, curves, and one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcl import metrics
from jaxcl.report import figures, page
from jaxcl.report.records import group, labels, split
from jaxcl.report.statistics import Interval, mean_interval
from jaxcl.report.tables import Column, Table, interval_note, to_csv, to_markdown
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill, made_on
from jaxcl.training.files import write_text

Record = dict[str, Any]

SO_FAR = "accuracy over the tasks so far"


def report_matrices(folder: RunFolder, *, title: str, claim: str) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html`` of whatever has finished."""
    records, path = read_records(folder), folder.path
    made = forgetting_table(records)
    write_text(path / "tables" / "forgetting.csv", to_csv(made))
    write_text(path / "tables" / "forgetting.md", to_markdown(made))
    done = [so_far(record) for record in split(records)[0]]
    pictures = []
    for name, (figure, words) in (drawings(done, title) if done else {}).items():
        figures.save(figure, path / "figures" / name)
        pictures.append(page.Picture(figure, words, words))
    said = verdict(made)
    html = page.render(
        title=title,
        claim=claim,
        verdict=said,
        sections=[page.Section("What is kept, and what is lost", "", pictures, [made])],
        records=records,
        config=read_json(path / "config.json"),
        environment=read_json(path / "environment.json"),
        status=read_json(path / "status.json"),
    )
    write_text(path / "report.html", html)
    print(f"{said}\nfigures and tables: {path / 'report.html'}")


def drawings(done: Sequence[Record], title: str) -> dict[str, tuple[Figure, str]]:
    """What is drawn of finished runs, by the names of the files, each with its caption."""
    several = max(map(len, group(done).values())) > 1
    return {
        "matrices": (
            figures.accuracy_matrix(done, title=title),
            "Accuracy on each task (columns) after learning each task (rows)"
            f"{', mean over seeds' if several else ''}.",
        ),
        "so-far": (
            figures.learning_curves(
                done, name=SO_FAR, label=f"{SO_FAR}, %", title=title
            ),
            "Mean accuracy over the tasks learned so far.",
        ),
        "loss": (
            figures.learning_curves(
                done, name="loss", label="training loss", scale=1.0, title=title
            ),
            "Mean training loss of each task.",
        ),
    }


def forgetting_table(records: Sequence[Record]) -> Table:
    """A row per arm: what its accuracy matrices say, as means over seeds."""
    done, lost = split(records)
    groups = group(done)
    shown = labels(list(groups))
    rows = tuple(
        (shown[key], len(runs), *summary(runs), sum(r["seconds"] for r in runs) / 60)
        for key, runs in groups.items()
    )
    columns = (
        Column("method"),
        Column("runs", 0),
        Column("average accuracy, %", 2, 100.0),
        Column("when just learned, %", 2, 100.0),
        Column("forgetting", 2, 100.0),
        Column("backward transfer", 2, 100.0),
        Column("minutes", 1),
    )
    said = interval_note(map(len, groups.values()))
    notes = (f"Over all tasks at the end; {said}.",)
    if lost:
        notes += (f"Diverged, never averaged in: {', '.join(r['run'] for r in lost)}.",)
    return Table(columns, rows, notes)


def write_readme(readme: Path) -> None:
    """Put the tables of all results beside a README between its two marks.

    The folder with the most runs comes first.
    """
    found = [path.parent for path in readme.parent.glob("results/*/results.jsonl")]
    runs = lambda path: len(read_records(path))
    folders = sorted(found, key=lambda path: (-runs(path), path.name))
    fill(readme, "\n".join(map(section, folders)))


def section(path: Path) -> str:
    """What a README says of one folder of results."""
    environment = read_json(path / "environment.json")
    shown = f"results/{path.name}/figures/matrices.png"
    return "\n".join(
        [
            f"### {path.name}\n",
            f"`{environment['command']}`: {made_on(environment)}.\n",
            to_markdown(forgetting_table(read_records(path))),
            f"![Accuracy on each task after each task]({shown})\n",
        ]
    )


def summary(runs: Sequence[Record]) -> list[Interval | None]:
    """The four numbers of some runs' matrices; None where one task has no answer."""
    matrices = np.array([run["matrix"] for run in runs])
    asked = [metrics.average_accuracy, metrics.learning_accuracy]
    if matrices.shape[-1] > 1:
        asked += [metrics.forgetting, metrics.backward_transfer]
    found: list[Interval | None] = [
        mean_interval(np.asarray(ask(matrices), np.float64)) for ask in asked
    ]
    return found + [None] * (4 - len(found))


def so_far(record: Record) -> Record:
    """With the mean accuracy over the tasks seen, after each of them."""
    matrix = np.array(record["matrix"])
    seen = [float(np.mean(matrix[t, : t + 1])) for t in range(len(matrix))]
    return {**record, "measures": {**record.get("measures", {}), SO_FAR: seen}}


def verdict(made: Table) -> str:
    """A line per arm."""
    if not made.rows:
        return "No run has finished."
    words = [
        f"{name}: {100 * average.mean:.1f} % over all tasks at the end"
        for name, _, average, *_ in made.rows
    ]
    return "; ".join(words) + "."


__all__ = ["forgetting_table", "report_matrices", "section", "so_far", "write_readme"]
