"""A report as a list of parts: what is drawn and tabulated of whatever records there are.

A part is a title, a text, and functions of the records that draw and tabulate; the list of
parts is the report. What has no finished run is left out::

    parts = [
        Part(
            "Accuracy",
            "Permuted images.",
            [curves_of("accuracy", "Accuracy on the task just learned.")],
            {"measures": measure_table},
        )
    ]
    sections = [assemble(part, records) for part in parts]
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxcl.report.curves import learning_curves, measure_curves
from jaxcl.report.page import Picture, Section
from jaxcl.report.records import (
    Record,
    group,
    measure_names,
    settings_with,
    split,
    within,
)
from jaxcl.report.tables import Table

Records = Sequence[Record]
Choose = Callable[[Records], Records]
#: Draws what the records allow: any number of pictures.
Draw = Callable[[Records], Iterable[Picture]]
Tabulate = Callable[[Records], Table]


class Part(NamedTuple):
    """A section before there are records; tables by the names of their files."""

    title: str
    text: str | Callable[[Records], str] = ""
    pictures: Sequence[Draw] = ()
    tables: Mapping[str, Tabulate] = {}


def assemble(part: Part, records: Records) -> Section:
    """The section of a part; tables without a row are left out."""
    text = part.text if isinstance(part.text, str) else part.text(records)
    pictures = [picture for draw in part.pictures for picture in draw(records)]
    made = {name: tabulate(records) for name, tabulate in part.tables.items()}
    tables = {name: table for name, table in made.items() if table.rows}
    return Section(part.title, text, pictures, tables)


def curves_of(
    file: str,
    alt: str,
    *,
    arms: Sequence[str] = (),
    choose: Choose = list,
    **options: Any,
) -> Draw:
    """Learning curves of the settings that have a finished run.

    Args:
      file: its name.
      alt: what is drawn, in words; the caption adds what the bands are.
      arms: only settings in which each of these has a finished run are drawn.
      choose: which records are drawn, of those that are given.
      options: of :func:`jaxcl.report.curves.learning_curves`.
    """

    def draw(records: Records) -> Iterable[Picture]:
        chosen = choose(records)
        if shown := within(chosen, settings_with(chosen, *arms)):
            figure = learning_curves(shown, window=window_of(shown), **options)
            several = max(map(len, group(split(shown)[0]).values())) > 1
            bands = " Bands are 95 % intervals over seeds." if several else ""
            yield Picture(file, figure, alt, alt + bands)

    return draw


def measures_of(
    file: str, wanted: Sequence[str] | None = None, *, choose: Choose = list
) -> Draw:
    """Measures along the stream: figures ``<file>-<setting>`` of the chosen records.

    Those of the wanted measures are drawn that every finished run has; all if absent.
    """

    def draw(records: Records) -> Iterable[Picture]:
        chosen = choose(records)
        for setting in settings_with(chosen):
            here = within(chosen, [setting])
            if shown := measure_names(here, wanted):
                window = window_of(here)
                figure = measure_curves(here, shown, window=window, title=setting)
                alt = f"Measures along the {setting} stream."
                yield Picture(f"{file}-{setting}", figure, alt)

    return draw


def window_of(records: Records) -> int:
    """Tasks that a point of a curve is the mean of: 5, and 1 on streams below 25 tasks."""
    done = split(records)[0]
    shortest = min((len(record["accuracy"]) for record in done), default=1)
    return 5 if shortest >= 25 else 1
