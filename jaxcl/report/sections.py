"""Pictures of whatever records there are: what has no finished run is left out.

A section of a report is a function of the records::

    def accuracy(records):
        drawn = curve_pictures(records, "accuracy", "Accuracy on the task just learned.")
        tables = {"measures": measure_table(records)}
        return Section("Accuracy", "Permuted images.", [*drawn], tables)
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxcl.report.curves import learning_curves, measure_curves
from jaxcl.report.page import Picture
from jaxcl.report.records import (
    Record,
    group,
    measure_names,
    settings_with,
    split,
    within,
)


def curve_pictures(
    records: Sequence[Record],
    file: str,
    alt: str,
    *,
    arms: Sequence[str] = (),
    **options: Any,
) -> Iterator[Picture]:
    """Learning curves of the settings that have a finished run.

    Args:
      records: runs of any number of settings, also none.
      file: its name.
      alt: what is drawn, in words; the caption adds what the bands are.
      arms: only settings in which each of these has a finished run are drawn.
      options: of :func:`jaxcl.report.curves.learning_curves`.
    """
    if shown := within(records, settings_with(records, *arms)):
        figure = learning_curves(shown, window=window_of(shown), **options)
        several = max(map(len, group(split(shown)[0]).values())) > 1
        bands = " Bands are 95 % intervals over seeds." if several else ""
        yield Picture(file, figure, alt, alt + bands)


def measure_pictures(
    records: Sequence[Record], file: str, wanted: Sequence[str] | None = None
) -> Iterator[Picture]:
    """Measures along the stream: a figure ``<file>-<setting>`` for each setting.

    Those of the wanted measures are drawn that every finished run has; all if absent.
    """
    for setting in settings_with(records):
        here = within(records, [setting])
        if shown := measure_names(here, wanted):
            figure = measure_curves(here, shown, window=window_of(here), title=setting)
            alt = f"Measures along the {setting} stream."
            yield Picture(f"{file}-{setting}", figure, alt)


def window_of(records: Sequence[Record]) -> int:
    """Tasks that a point of a curve is the mean of: 5, and 1 on streams below 25 tasks."""
    done = split(records)[0]
    shortest = min((len(record["accuracy"]) for record in done), default=1)
    return 5 if shortest >= 25 else 1
