"""Reports on disk: of a paper's runs, and of any run folder there is."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.errors import MissingFileError
from jaxcl.files import read_checked, write_text
from jaxcl.report import figures, page
from jaxcl.report.heatmaps import result_heatmaps
from jaxcl.report.page import Picture, Section
from jaxcl.report.records import (
    Record,
    check,
    split,
    values_of,
    within,
)
from jaxcl.report.sections import curve_pictures, measure_pictures
from jaxcl.report.summaries import summarize
from jaxcl.report.tables import (
    Column,
    Table,
    measure_table,
    show,
    summary_table,
    table_of,
    to_csv,
    to_markdown,
)
from jaxcl.runs import forgetting
from jaxcl.runs.folder import CHECKPOINTS, RunFolder, read_json, read_records

ABOUT = ("config", "environment", "status")


def write_report(
    folder: RunFolder | Path,
    *,
    title: str,
    claim: str = "",
    verdict: str | Sequence[str] = "",
    sections: Sequence[Section],
    records: Sequence[Record] = (),
) -> Path:
    """Write ``tables/``, ``figures/`` and ``report.html``, and print the verdict.

    Args:
      folder: of the run; settings, environment and status are read from it.
      title: of the page.
      claim: what was to be tested, in one sentence.
      verdict: what was found: a statement, or a list of them.
      sections: in order; tables without a row are left out, and what is then empty.
      records: those that diverged are named on the page.

    Returns:
      The page.
    """
    path = folder.path if isinstance(folder, RunFolder) else folder
    full = lambda tables: {name: table for name, table in tables.items() if table.rows}
    sections = [s._replace(tables=full(s.tables)) for s in sections]
    for section in sections:
        for name, table in section.tables.items():
            write_text(path / "tables" / f"{name}.csv", to_csv(table))
            write_text(path / "tables" / f"{name}.md", to_markdown(table))
        for picture in section.pictures:
            figures.save(picture.figure, path / "figures" / picture.name)
    html = page.render(
        title=title,
        claim=claim,
        verdict=verdict,
        sections=[s for s in sections if s.text or s.pictures or s.tables],
        records=records,
        **{name: read_json(path / f"{name}.json", default={}) for name in ABOUT},
    )
    write_text(path / "report.html", html)
    print(verdict if isinstance(verdict, str) else "\n".join(verdict))
    print(f"figures and tables: {path / 'report.html'}")
    return path / "report.html"


def page_of_run(
    folder: RunFolder | str | Path, *, title: str = "", claim: str = ""
) -> Path:
    """Write and print the report of a run folder, whichever experiment it is of.

    A folder with ``results.jsonl`` is reported by its accuracy matrices or, where runs have
    none, by its curves of accuracy. A folder of one call of ``learn`` is reported by the
    results beside its newest checkpoint. A report that is there already is replaced.

    Args:
      folder: of the run.
      title: of the page; the name of the experiment if empty, or of the folder.
      claim: what was to be tested, if anything.

    Returns:
      The page.

    Raises:
      MissingFileError: if the folder holds neither.
      InputError: for lines that are not records of accuracies, see
        ``jaxcl.report.records.check``.
    """
    path = folder.path if isinstance(folder, RunFolder) else Path(folder)
    held = read_json(path / "config.json", default={}, experiment=str)
    experiment = held.get("experiment")
    title = title or experiment or path.resolve().name
    records = read_records(path)
    if not records and experiment is None:
        return write_report(path, title=title, claim=claim, **_of_learn(path))
    if records:
        check(records)
    records = within(records, values_of(records, "setting"))
    kept = all(r.get("matrix") is not None for r in split(records)[0])
    found = _of_matrices(records, title) if kept else _of_curves(records)
    return write_report(path, title=title, claim=claim, records=records, **found)


def _of_matrices(records: Sequence[Record], title: str) -> dict[str, Any]:
    """Verdict and section of runs with accuracy matrices."""
    tables = {"forgetting": forgetting.forgetting_table(records)}
    drawn = [*forgetting.pictures(records, title)]
    section = Section("What is kept, and what is lost", "", drawn, tables)
    return {"verdict": forgetting.statements(records), "sections": [section]}


def _of_curves(records: Sequence[Record]) -> dict[str, Any]:
    """Verdict and sections of runs that have only curves of accuracy."""
    summaries, percent = summarize(records, baseline=None), Column("", 1, 100.0)
    verdict = [
        f"{s.group.setting}, {s.label}: {show(s.mean, percent)} %"
        for s in summaries
        if s.mean is not None
    ]
    accuracy = "Accuracy on the task just learned"
    tables = {
        "accuracy": summary_table(summaries),
        "measures": measure_table(records),
    }
    drawn = [*curve_pictures(records, "accuracy", f"{accuracy}.")]
    measured = [*measure_pictures(records, "measures")]
    sections = [
        Section(accuracy, "", drawn, tables),
        Section("Measures along the stream", "", measured),
    ]
    return {"verdict": verdict, "sections": sections}


def _of_learn(path: Path) -> dict[str, Any]:
    """Verdict and sections of one call of ``learn``, from beside its newest checkpoint."""
    notes = _newest_notes(path)
    tasks = [task["name"] for task in notes.get("tasks", ())]
    if not notes["results"]:
        return {"verdict": "No metric was measured.", "sections": []}
    # Columns are called by the numbers of tasks, and "set NAME FINGERPRINT". Each metric
    # has its own, in the order in which they were asked for.
    measured = [
        column
        for learners in notes["results"].values()
        for columns in learners.values()
        for column in columns
    ]
    sets = [name for name in dict.fromkeys(measured) if not name.isdigit()]
    every = [*map(str, range(len(tasks))), *sets]
    results = {
        metric: {
            learner: _matrix([columns.get(name, ()) for name in every], len(tasks) + 1)
            for learner, columns in learners.items()
        }
        for metric, learners in notes["results"].items()
    }
    names = [*tasks, *(name[4:].rpartition(" ")[0] for name in sets)]
    alt = "Each metric on each data set (columns) after so many tasks (rows)."
    picture = Picture("results", result_heatmaps(results, names), alt)
    known = np.isfinite([m for found in results.values() for m in found.values()])
    last = int(np.flatnonzero(known.any(axis=(0, 2))).max(initial=0))
    tables = {"final": _final_table(results, names, len(tasks), last)}
    return {
        "verdict": f"Measured after {last} of {len(tasks)} tasks.",
        "sections": [Section("Results along the stream", "", [picture], tables)],
    }


def _newest_notes(path: Path) -> dict[str, Any]:
    """The notes of the newest checkpoint that has readable ones."""
    files = [f for f in (path / CHECKPOINTS).glob("*.json") if f.stem.isdecimal()]
    for file in sorted(files, key=lambda file: int(file.stem), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):
            notes = read_checked(file)["notes"]
            if isinstance(notes["results"], dict):
                return notes
    msg = (
        f"report: {path} has neither runs in results.jsonl nor checkpoints with results; "
        "give the folder of a run."
    )
    raise MissingFileError(msg)


def _matrix(columns: Iterable[Sequence[float | None]], length: int) -> np.ndarray:
    """Columns of results; where the stream was shorter, the last rows are not known."""
    unknown = [None] * length
    padded = [[*column, *unknown][:length] for column in columns]
    return np.array(padded, float).T


def _final_table(
    results: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    num_tasks: int,
    last: int,
) -> Table:
    """A row per data set: each metric when the task was just learned, and at the end.

    Args:
      results: of one call of ``learn``, as it returns them.
      names: of the columns: the tasks, then sets for evaluation only.
      num_tasks: how many of them are tasks.
      last: the last row of the results in which anything was measured.
    """
    rows: list[dict[Column, Any]] = [{Column("data set"): name} for name in names]
    for metric, learners in results.items():
        for learner, matrix in learners.items():
            name = metric if len(learners) == 1 else f"{metric}, {learner}"
            for place, row in enumerate(rows):
                learned = matrix[place + 1, place] if place < num_tasks else None
                row[Column(f"{name}, just learned", 4)] = learned
                row[Column(f"{name}, at the end", 4)] = matrix[last, place]
    return table_of(rows, "One run.")
