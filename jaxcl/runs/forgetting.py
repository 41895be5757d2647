"""What runs with an accuracy matrix say: a table, matrices, curves, and one page."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxcl import metrics
from jaxcl.report.curves import learning_curves
from jaxcl.report.heatmaps import accuracy_matrix
from jaxcl.report.page import Picture
from jaxcl.report.records import Record, group, split, values_of
from jaxcl.report.tables import Column, Table, interval_table, to_markdown
from jaxcl.runs.folder import read_json, read_records
from jaxcl.runs.readme import fill, made_on

SO_FAR = "accuracy over the tasks so far"

#: What a matrix becomes in the table of a run, and the tasks that it needs.
_METRICS = {
    "average accuracy, %": (metrics.average_accuracy, 1),
    "when just learned, %": (metrics.learning_accuracy, 1),
    "forgetting": (metrics.forgetting, 2),
    "backward transfer": (metrics.backward_transfer, 2),
}


def pictures(records: Sequence[Record], title: str = "") -> Iterable[Picture]:
    """What is drawn of finished runs: matrices, and curves."""
    done = [so_far(record) for record in split(records)[0]]
    if not done:
        return
    several = max(map(len, group(done).values())) > 1
    alt = "Accuracy on each task (columns) after learning each task (rows)"
    alt += f"{', mean over seeds' if several else ''}."
    yield Picture("matrices", accuracy_matrix(done, title=title), alt)
    drawn = learning_curves(done, name=SO_FAR, label=f"{SO_FAR}, %", title=title)
    yield Picture("so-far", drawn, "Mean accuracy over the tasks learned so far.")
    if all(record.get("loss") is not None for record in done):
        label = {"label": "training loss", "scale": 1.0, "title": title}
        drawn = learning_curves(done, name="loss", **label)
        yield Picture("loss", drawn, "Mean training loss of each task.")


def forgetting_table(records: Sequence[Record]) -> Table:
    """A row per arm: what its accuracy matrices say, as means over seeds."""
    done, lost = split(records)
    matrices = [np.array(record["matrix"], float) for record in done]
    numbers = {
        Column(name, 2, 100.0): [
            float(metric(matrix)) if len(matrix) >= needed else np.nan
            for matrix in matrices
        ]
        for name, (metric, needed) in _METRICS.items()
    }
    minutes = [record.get("seconds", np.nan) / 60 for record in done]
    numbers[Column("minutes", 1, is_total=True)] = minutes
    notes = ["Over all tasks at the end; {interval}."]
    if lost:
        names = ", ".join(record["run"] for record in lost)
        notes.append(f"Diverged, never averaged in: {names}.")
    several = len(values_of(done, "setting")) > 1
    heads = ("setting", "method", "runs") if several else ("method", "runs")
    return interval_table(done, numbers, notes, heads=heads)


def statements(records: Sequence[Record]) -> list[str]:
    """The verdict: a statement for each arm that has a finished run."""
    made = forgetting_table(records)
    place = [column.name for column in made.columns].index("average accuracy, %")
    words = [
        f"{', '.join(row[: place - 1])}: {100 * row[place].mean:.1f} % over all tasks at "
        "the end"
        for row in made.rows
    ]
    return words or ["No run has finished."]


def so_far(record: Record) -> Record:
    """With the mean accuracy over the tasks seen, after each of them."""
    matrix = np.array(record["matrix"], float)
    seen = [float(np.mean(matrix[t, : t + 1])) for t in range(len(matrix))]
    return {**record, "measures": {**record.get("measures", {}), SO_FAR: seen}}


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


def write_readme(readme: Path, section: Callable[[Path], str] = section) -> None:
    """Put a section for each folder of results beside a README between its two marks.

    The folder with the most runs comes first.
    """
    found = [path.parent for path in readme.parent.glob("results/*/results.jsonl")]
    runs = lambda path: len(read_records(path))
    folders = sorted(found, key=lambda path: (-runs(path), path.name))
    fill(readme, "\n".join(map(section, folders)))
