"""What all sections of the report share: measures, and pictures and tables on disk."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.plasticity.comparisons import Record, within
from jaxcl.report import figures, page
from jaxcl.report.curves import measure_curves
from jaxcl.report.records import measure_names, split
from jaxcl.report.tables import Table, to_csv, to_markdown
from jaxcl.training.files import write_text

MEASURES = (
    "loss",
    "sam_sharpness",
    "top_eigenvalue",
    "effective_rank",
    "dormant_fraction",
    "weight_norm",
)


def known(records: Sequence[Record], wanted: Sequence[str] = MEASURES) -> list[str]:
    """Those of the wanted measures that every finished run has."""
    there = measure_names(records)
    return [name for name in wanted if name in there]


def window_of(records: Sequence[Record]) -> int:
    """Tasks that a point of a curve is the mean of: few, and none on short streams."""
    done = split(records)[0]
    shortest = min((len(record["accuracy"]) for record in done), default=1)
    return 5 if shortest >= 25 else 1


def measure_pictures(
    path: Path,
    name: str,
    records: Sequence[Record],
    settings: Sequence[str],
    wanted: Sequence[str] = MEASURES,
) -> list[page.Picture]:
    """Measures along the stream, a figure per setting."""
    pictures = []
    for setting in settings:
        here = within(records, [setting])
        if shown := known(here, wanted):
            drawn = measure_curves(here, shown, window=window_of(here), title=setting)
            alt = f"Measures of plasticity and sharpness along the {setting} stream."
            pictures.append(picture(path, f"{name}-{setting}", drawn, alt))
    return pictures


def picture(
    path: Path, name: str, figure: Figure, alt: str, caption: str = ""
) -> page.Picture:
    """Save a figure and hand it on to the page."""
    figures.save(figure, path / "figures" / name)
    return page.Picture(figure, alt, caption or alt)


def table(path: Path, name: str, made: Table) -> Table:
    """Save a table and hand it on to the page."""
    write_text(path / "tables" / f"{name}.csv", to_csv(made))
    write_text(path / "tables" / f"{name}.md", to_markdown(made))
    return made


__all__ = [
    "MEASURES",
    "known",
    "measure_pictures",
    "picture",
    "table",
    "window_of",
]
