"""Tables from records: the same rows as CSV, as Markdown and for the page."""

import csv
import io
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcl.report.records import Record, curves, frame, measure_names
from jaxcl.report.statistics import Interval, known_means, mean_interval
from jaxcl.report.summaries import Summary, check_quantity


class Column(NamedTuple):
    """The name and number format of one column.

    Numbers are multiplied by ``scale`` before rounding (100 for per cent).
    """

    name: str
    digits: int = 2
    scale: float = 1.0
    is_p_value: bool = False
    is_total: bool = False  # in an interval table: a sum over runs, no interval


#: The name of a difference between two arms, by what is compared.
COMPARED = {
    "mean": "difference, points",
    "last": "difference at the end, points",
    "slope": "difference of slopes",
    "late slope": "difference of second-half slopes",
}


class Table(NamedTuple):
    """Rows of raw values; a value is text, a number, an Interval, or None."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...] = ()


def table_of(rows: Iterable[Mapping[Column, Any]], *notes: str) -> Table:
    """A table of rows that have the same columns; without a row it has none."""
    listed = list(rows)
    columns = tuple(listed[0]) if listed else ()
    return Table(columns, tuple(tuple(row.values()) for row in listed), notes)


def summary_table(
    summaries: Sequence[Summary],
    *,
    quantity: str = "mean",
    margin: float | None = None,
) -> Table:
    """The main table: mean and final accuracy, or slopes, and the comparison.

    Args:
      summaries: from :func:`jaxcl.report.summarize`.
      quantity: what was compared there; the columns show it and the related one.
      margin: of the test of equivalence made there; no column for it if None.
    """
    check_quantity("summary_table", quantity)
    per_task = "slope" in quantity
    scale = 1e4 if per_task else 100.0
    levels = {"mean": "accuracy, %", "last": "last tenth, %"}
    if per_task:
        levels = {"slope": "slope", "late_slope": "second-half slope"}
    tests = {"p_t": "p (t, Holm)", "p_flip": "p (sign flip, Holm)"}
    if margin:
        tests["p_equal"] = f"p (equal within {margin * scale:g}, Holm)"
    rows = [
        {
            Column("setting"): s.group.setting,
            Column("method"): s.label,
            Column("runs", 0): s.mean.count if s.mean else 0,
            Column("diverged", 0): len(s.diverged),
            **{Column(levels[n], 2, scale): getattr(s, n) for n in levels},
            Column(COMPARED[quantity], 2, scale): s.versus and s.versus.difference,
            **{Column(tests[n], is_p_value=True): getattr(s, n) for n in tests},
            Column("verdict"): s.verdict,
        }
        for s in summaries
    ]
    counts = [s.mean.count for s in summaries if s.mean]
    said = interval_note(counts, "; tests are paired by seed")
    notes = [f"{said.capitalize()}."]
    seeds = [s.versus.difference.count for s in summaries if s.versus]
    if fewest := min((count for count in seeds if count > 1), default=0):
        notes.append(
            f"With {fewest} seeds the sign-flip test cannot fall below "
            f"{2.0 ** (1 - fewest):.2g}; Holm's correction multiplies that."
        )
    if per_task:
        notes.append("Slopes are in points per 100 tasks.")
    lost = [
        f"{s.label}, {s.group.setting} ({len(s.diverged)} of {s.runs})"
        for s in summaries
        if s.diverged
    ]
    if lost:
        notes.append(f"Diverged, never averaged in: {'; '.join(lost)}.")
    return table_of(rows, *notes)


def interval_table(
    records: Sequence[Record],
    numbers: Mapping[Column, Collection[Any]],
    notes: Sequence[str] = (),
    *,
    heads: Sequence[str] = ("setting", "method", "runs"),
    also: str = "",
) -> Table:
    """A row per group of runs, with mean and interval over them of each number.

    Args:
      records: runs of any number of settings and arms.
      numbers: a value for each run, by columns. NaN is left out: an interval is over the
        runs that have the number, and None if none has.
      notes: below the table; ``{interval}`` becomes the note on the intervals.
      heads: what stands first; ``runs`` counts those that finished.
      also: a further note on the intervals, see ``interval_note``.
    """
    runs = frame(records)
    rows, counts = [], []
    for places in runs.groupby("group").indices.values():
        group = runs.iloc[places]
        counts.append(int(np.count_nonzero(group["status"] == "done")))
        first = {**group.iloc[0].to_dict(), "runs": counts[-1]}
        cells = (_over_runs(np.asarray(v)[places], c) for c, v in numbers.items())
        rows.append((*(first[name] for name in heads), *cells))
    said = interval_note(counts, also)
    shown = tuple(note.replace("{interval}", said) for note in notes)
    begin = (Column(name, 0 if name == "runs" else 2) for name in heads)
    return Table((*begin, *numbers), tuple(rows), shown)


def _over_runs(values: np.ndarray, column: Column) -> Any:
    """The total, or the interval of those that are known; None if none is."""
    if column.is_total:
        return values.sum().item()
    values = np.asarray(values, float)  # None becomes NaN
    known = values[~np.isnan(values)]
    return mean_interval(known) if known.size else None


def measure_table(
    records: Sequence[Record], names: Sequence[str] | None = None
) -> Table:
    """Measures of every group, mean and interval over seeds of the mean over tasks.

    Args:
      records: runs of any number of settings and arms.
      names: which measures; all that every finished run has, if absent. A mean is over
        the tasks after which a run has the measure.
    """
    names = measure_names(records) if names is None else names
    mean = lambda record, name: (
        known_means(curves([record], name)).item()
        if record["status"] == "done"
        else np.nan
    )
    made = interval_table(
        records,
        {Column(n.replace("_", " ")): [mean(r, n) for r in records] for n in names},
        ["Mean over the stream; {interval}, diverged runs left out."],
        heads=("setting", "method"),
    )
    columns = (
        column._replace(digits=_digits([row[place] for row in made.rows]))
        for place, column in enumerate(made.columns)
    )
    return made._replace(columns=tuple(columns))


def interval_note(counts: Iterable[int], also: str = "") -> str:
    """A note on the intervals of a table, of so many runs each, and ``also`` another."""
    if max(counts, default=0) == 1:
        return "one run each: no interval"
    return f"mean and 95 % t-interval over seeds{also}"


def show(value: Any, column: Column) -> str:
    """One value as text: ``91.23 ± 0.41``, ``< 0.001``, or a dash for the unknown."""
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, Interval):
        middle = show(value.mean, column)
        half = (value.high - value.mean) * column.scale
        return middle if math.isnan(half) else f"{middle} ± {half:.{column.digits}f}"
    if value is None or math.isnan(value):
        return "–"
    if column.is_p_value:
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    text = f"{value * column.scale:.{column.digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def to_markdown(table: Table) -> str:
    """A GitHub table, padded to align as plain text."""
    padded = []
    for place, column in enumerate(table.columns):
        shown = [show(row[place], column).replace("|", "\\|") for row in table.rows]
        cells = [column.name, *shown]
        width = max(3, *map(len, cells))
        is_text = is_text_column(table, place)
        rule = "-" * width if is_text else "-" * (width - 1) + ":"
        head, *rest = (c.ljust(width) if is_text else c.rjust(width) for c in cells)
        padded.append([head, rule, *rest])
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*padded, strict=True)]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def to_csv(table: Table) -> str:
    """Unrounded values as CSV; an interval takes four columns."""
    columns: list[tuple] = []
    for place, column in enumerate(table.columns):
        parts = [_parts(row[place], column.scale) for row in table.rows]
        names = [column.name + part for part in ("", " low", " high", " runs")]
        shown = names[: max(map(len, parts), default=1)]
        columns += itertools.zip_longest(shown, *parts, fillvalue="")
    with io.StringIO() as stream:
        rows = zip(*columns, strict=True)
        csv.writer(stream, lineterminator="\n").writerows(rows)
        return stream.getvalue()


def _parts(value: Any, scale: float) -> tuple:
    """The cells of a value: mean, low, high and count of an interval, else one."""
    if isinstance(value, Interval):
        return (*(_exact(number * scale) for number in value[:3]), value.count)
    is_text = isinstance(value, str | bool)
    return (value if is_text or value is None else _exact(value * scale),)


def _exact(number: float) -> str:
    if isinstance(number, int | np.integer):
        return str(number)
    return "" if math.isnan(number) else f"{number:.10g}"


def is_text_column(table: Table, index: int) -> bool:
    """Whether a column holds text, to be aligned left."""
    values = [row[index] for row in table.rows]
    return bool(values) and all(isinstance(v, str | None) for v in values)


def _digits(intervals: Sequence[Any]) -> int:
    """Decimals such that the largest mean has about four digits."""
    means = [abs(i.mean) for i in intervals if isinstance(i, Interval)]
    return min(6, max(0, 3 - math.floor(math.log10(max(means, default=1) or 1))))
