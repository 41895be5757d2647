"""Reports on disk: of a paper's runs, and of any run folder there is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcl.files import write_text
from jaxcl.report import figures, page
from jaxcl.report.page import Section
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
    measure_table,
    show,
    summary_table,
    to_csv,
    to_markdown,
)
from jaxcl.runs import forgetting, learned
from jaxcl.runs.folder import RunFolder, read_json, read_records

ABOUT = ("config", "environment", "status")


def write_report(
    folder: RunFolder | Path,
    *,
    title: str,
    claim: str = "",
    verdict: str | Sequence[str] = "",
    sections: Sequence[Section],
    records: Sequence[Record] = (),
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``tables/``, ``figures/`` and ``report.html``, and print the verdict.

    Args:
      folder: of the run; settings, environment and status are read from it.
      title: of the page.
      claim: what was to be tested, in one sentence.
      verdict: what was found: a statement, or a list of them.
      sections: in order; tables without a row are left out, and what is then empty.
      records: those that diverged are named on the page.
      about: ``config``, ``environment`` and ``status`` in place of the files.

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
    held = {name: read_json(path / f"{name}.json", default={}) for name in ABOUT}
    html = page.render(
        title=title,
        claim=claim,
        verdict=verdict,
        sections=[s for s in sections if s.text or s.pictures or s.tables],
        records=records,
        **held | dict(about or {}),
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
    none, by its curves of accuracy. A folder of one call of ``learn`` is reported by its
    lines of metrics and the results beside its newest checkpoint, also while it runs. A
    report that is there already is replaced.

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
        return write_report(path, title=title, claim=claim, **learned.found_in(path))
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
