"""Summaries of records: one per group of runs, and one grid per sweep."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcl.errors import require
from jaxcl.report.records import (
    Group,
    Record,
    check,
    curves,
    group,
    labels,
    rivals,
    split,
    values_of,
    within,
)
from jaxcl.report.statistics import (
    Interval,
    Paired,
    equivalence,
    holm,
    known_means,
    mean_interval,
    paired,
    slopes,
    tail_means,
)

#: How a curve of accuracies becomes one number, from [s, T] to [s].
QUANTITIES = {
    "mean": known_means,
    "last": tail_means,
    "slope": slopes,
    "late slope": lambda values: slopes(values[:, values.shape[1] // 2 :]),
}


def check_quantity(who: str, name: str) -> None:
    """Refuse an unknown quantity."""
    known = f"quantity must be one of {list(QUANTITIES)}, got {name!r}"
    require(name in QUANTITIES, who, known)


class Summary(NamedTuple):
    """Results of the runs of one group; accuracies are fractions, slopes are per task.

    If a group has no finished run, the four quantities are None; if it has no baseline
    (it is the baseline, or none ran), so are the comparisons.
    """

    group: Group
    label: str
    runs: int  # finished or not
    diverged: tuple[str, ...]  # names of runs that are left out below
    mean: Interval | None = None  # accuracy over all tasks
    last: Interval | None = None  # over the last tenth of the tasks
    slope: Interval | None = None  # of accuracy against the task number
    late_slope: Interval | None = None  # of the second half: curves may rise, then fall
    versus: Paired | None = None  # against the baseline, on common finished seeds
    p_t: float = np.nan  # p-values are corrected by Holm over the arms of the setting
    p_flip: float = np.nan
    p_equal: float = np.nan  # of equivalence within a margin; NaN without a margin
    verdict: str = ""  # see :func:`summarize`


class Grid(NamedTuple):
    """Mean accuracies over two numbers; cells without a finished run are NaN."""

    row_name: str
    column_name: str
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    mean: np.ndarray  # [r, c]
    half_width: np.ndarray  # [r, c], of the 95 % interval; NaN with one run
    count: np.ndarray  # [r, c], finished runs
    diverged: np.ndarray  # [r, c], runs that diverged


def summarize(
    records: Sequence[Record],
    *,
    baseline: str | None,
    match: Sequence[str] = ("learning_rate",),
    quantity: str = "mean",
    level: float = 0.05,
    margin: float | None = None,
) -> list[Summary]:
    """Summaries of all groups, each compared with its baseline.

    The verdict is one of: *baseline*; *better* or *worse* (by the paired t-test);
    *no difference shown*, which is not equality; *equal within the margin* (by the test of
    equivalence; with a significant difference as well, *better* or *worse* by less than
    the margin); *diverged* (no run finished); *no baseline*; *one seed*.

    Args:
      records: runs of any number of settings and arms.
      baseline: the arm the others are compared with; no comparison if None.
      match: numbers in which a group and its baseline must agree; a name that either of
        them lacks is ignored.
      quantity: what is compared: ``mean`` over all tasks, ``last`` tenth, ``slope``, or
        ``late slope``, that of the second half.
      level: of the tests after correction, for the verdict.
      margin: in the unit of the quantity: arms that differ by less count as equal. No
        test of equivalence if None.

    Raises:
      InputError: for malformed records, see ``jaxcl.report.records.check``.
    """
    check(records)
    check_quantity("summarize", quantity)
    arms = values_of(records, "arm")
    unknown = f"no run of the baseline {baseline!r}; the arms are {arms}"
    require(baseline is None or baseline in arms, "summarize", unknown)
    groups = group(within(records, values_of(records, "setting")))
    named = labels(list(groups))
    rival = {} if baseline is None else rivals(records, baseline, match)
    found = []
    for key, runs in groups.items():
        done, lost = split(runs)
        summary = Summary(key, named[key], len(runs), tuple(r["run"] for r in lost))
        if done:
            levels = {
                name.replace(" ", "_"): mean_interval(number(curves(done)))
                for name, number in QUANTITIES.items()
            }
            summary = summary._replace(**levels)
        pairs = [(r, rival[r["run"]]) for r in done if r["run"] in rival]
        if pairs and key.arm != baseline:
            mine, theirs = (
                QUANTITIES[quantity](curves(side)) for side in zip(*pairs, strict=True)
            )
            versus = paired(mine, theirs)
            p_equal = np.nan if margin is None else equivalence(mine, theirs, margin)
            summary = summary._replace(
                versus=versus, p_t=versus.p_t, p_flip=versus.p_flip, p_equal=p_equal
            )
        found.append(summary)
    return [s._replace(verdict=_verdict(s, baseline, level)) for s in _corrected(found)]


def grid(records: Sequence[Record], *, rows: str, columns: str) -> Grid:
    """Mean accuracy of a sweep over two numbers of ``hyper``, averaged over seeds.

    Args:
      records: runs of one setting and one arm that differ in these numbers only.
      rows: name of the number that varies from row to row.
      columns: name of the one that varies from column to column.
    """
    check(records)
    single = len({(r["setting"], r["arm"]) for r in records}) == 1
    wanted = "expected one setting and one arm; choose the records first"
    require(single, "grid", wanted)
    for record in records:
        fault = f"{record['run']} lacks {rows!r} or {columns!r} in its hyper"
        require({rows, columns} <= set(record["hyper"]), "grid", fault)
    groups = group(records)
    place_of = lambda key: tuple(dict(key.hyper)[name] for name in (rows, columns))
    cells = {place_of(key): runs for key, runs in groups.items()}
    fault = f"the runs differ in more than {rows!r} and {columns!r}"
    require(len(groups) == len(cells), "grid", fault)

    down, across = (_in_order(set(side)) for side in zip(*cells, strict=True))
    shape = len(down), len(across)
    mean, half = np.full((2, *shape), np.nan)
    count, diverged = np.zeros((2, *shape), int)
    for (row, column), runs in cells.items():
        at = down.index(row), across.index(column)
        done, lost = split(runs)
        count[at], diverged[at] = len(done), len(lost)
        if done:
            interval = mean_interval(known_means(curves(done)))
            mean[at], half[at] = interval.mean, interval.high - interval.mean
    return Grid(rows, columns, down, across, mean, half, count, diverged)


def _in_order(values: set) -> tuple:
    """Numbers by size, then other kinds of values, each among its own."""
    kind = lambda v: "" if isinstance(v, int | float) else type(v).__name__
    return tuple(sorted(values, key=lambda v: (kind(v), v)))


def _corrected(summaries: list[Summary]) -> list[Summary]:
    """With Holm's correction of the p-values within each setting."""
    tests = ["p_t", "p_flip", "p_equal"]
    raw = pd.DataFrame(summaries, columns=Summary._fields)[tests]
    settings = pd.Series([s.group.setting for s in summaries])
    adjusted = raw.groupby(settings).transform(lambda p: holm(p.to_numpy()))
    rows = adjusted.to_dict("records")
    return [s._replace(**row) for s, row in zip(summaries, rows, strict=True)]


def _verdict(summary: Summary, baseline: str | None, level: float) -> str:
    if summary.mean is None:
        return "diverged"
    if summary.versus is None:
        return "baseline" if summary.group.arm == baseline else "no baseline"
    if np.isnan(summary.p_t):
        return "one seed"
    close = summary.p_equal < level
    if summary.p_t >= level:
        return "equal within the margin" if close else "no difference shown"
    side = "better" if summary.versus.difference.mean > 0 else "worse"
    return f"{side} by less than the margin" if close else side
