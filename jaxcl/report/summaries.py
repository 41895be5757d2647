"""Summaries of records: one per group of runs, and one grid per sweep."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcl.errors import InputError
from jaxcl.report.records import (
    Group,
    Record,
    check,
    curves,
    group,
    group_of,
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

#: Functions from curves to one number per run; a mean is over tasks with a known value.
QUANTITIES = {
    "mean": known_means,
    "last": tail_means,
    "slope": slopes,
    "late slope": lambda values: slopes(values[:, values.shape[1] // 2 :]),
}


#: Suffixes that quantities add to the name of a curve.
SUFFIXES = {
    "mean": "",
    "last": ", last tenth of the tasks",
    "slope": ", slope",
    "late slope": ", slope of the second half",
}


def quantity_of(who: str, quantity: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from curves [s, T] to numbers [s], by name; errors name ``who``.

    Raises:
      InputError: for a name that is not in :data:`QUANTITIES`.
    """
    if quantity not in QUANTITIES:
        msg = f"{who}: quantity must be one of {list(QUANTITIES)}, got {quantity!r}."
        raise InputError(msg)
    return QUANTITIES[quantity]


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
    late_slope: Interval | None = (
        None  # over the second half, for curves that rise, then fall
    )
    versus: Paired | None = None  # against the baseline, on common finished seeds
    p_t: float = (
        np.nan
    )  # corrected by Holm over the arms of the setting; NaN without baseline
    p_flip: float = np.nan
    p_equal: float = (
        np.nan
    )  # of equivalence within a margin, likewise; NaN without a margin
    verdict: str = ""  # see :func:`summarize`


class Grid(NamedTuple):
    """A sweep over two numbers; cells without a finished run are NaN."""

    row_name: str
    column_name: str
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    mean: np.ndarray  # [r, c]
    half_width: np.ndarray  # [r, c], of the 95 % interval; NaN with one run
    count: np.ndarray  # [r, c], finished runs
    diverged: np.ndarray  # [r, c], runs that diverged
    quantity: str


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
      InputError: for malformed records (see ``jaxcl.report.records.check``), an
        unknown quantity, or a baseline that did not run.
    """
    check(records)
    number = quantity_of("summarize", quantity)
    arms = values_of(records, "arm")
    if baseline is not None and baseline not in arms:
        msg = f"summarize: no run of the baseline {baseline!r}; the arms are {arms}."
        raise InputError(msg)
    groups = group(within(records, values_of(records, "setting")))
    named = labels(list(groups))
    rival = {} if baseline is None else rivals(records, baseline, match)
    found = []
    for key, runs in groups.items():
        summary = _summary(key, named[key], runs)
        pairs = [(r, rival[r["run"]]) for r in split(runs)[0] if r["run"] in rival]
        if pairs and key.arm != baseline:
            mine, theirs = (number(curves(side)) for side in zip(*pairs, strict=True))
            versus = paired(mine, theirs)
            p_equal = np.nan if margin is None else equivalence(mine, theirs, margin)
            summary = summary._replace(
                versus=versus, p_t=versus.p_t, p_flip=versus.p_flip, p_equal=p_equal
            )
        found.append(summary)
    return [s._replace(verdict=_verdict(s, baseline, level)) for s in _corrected(found)]


def grid(
    records: Sequence[Record],
    *,
    rows: str,
    columns: str,
    name: str = "accuracy",
    quantity: str = "mean",
) -> Grid:
    """A sweep over two numbers of ``hyper``, averaged over seeds.

    Args:
      records: runs of one setting and one arm.
      rows: name of the number that varies from row to row.
      columns: name of the one that varies from column to column.
      name: ``accuracy``, ``loss`` or a measure.
      quantity: ``mean``, ``last``, ``slope`` or ``late slope``.

    Raises:
      InputError: if the records mix settings or arms, lack one of the numbers, or vary
        in a third one; for an unknown quantity.
    """
    check(records)
    number = quantity_of("grid", quantity)
    if len({(r["setting"], r["arm"]) for r in records}) > 1:
        msg = "grid: expected one setting and one arm; choose the records first."
        raise InputError(msg)
    for record in records:
        if not {rows, columns} <= set(record["hyper"]):
            msg = f"grid: {record['run']} lacks {rows!r} or {columns!r} in its hyper."
            raise InputError(msg)
    if len(group(records)) > len({(_at(r, rows), _at(r, columns)) for r in records}):
        msg = f"grid: the runs differ in more than {rows!r} and {columns!r}."
        raise InputError(msg)
    down = _in_order({_at(r, rows) for r in records})
    across = _in_order({_at(r, columns) for r in records})
    shape = len(down), len(across)
    mean, half = np.full(shape, np.nan), np.full(shape, np.nan)
    count, diverged = np.zeros(shape, int), np.zeros(shape, int)
    for runs in group(records).values():
        place = down.index(_at(runs[0], rows)), across.index(_at(runs[0], columns))
        done, lost = split(runs)
        count[place], diverged[place] = len(done), len(lost)
        if done:
            interval = mean_interval(number(curves(done, name)))
            mean[place], half[place] = interval.mean, interval.high - interval.mean
    shown = name.replace("_", " ") + SUFFIXES[quantity]
    return Grid(rows, columns, down, across, mean, half, count, diverged, shown)


def _in_order(values: set) -> tuple:
    """Numbers by size, then other kinds of values, each among its own."""
    kind = lambda v: "" if isinstance(v, int | float) else type(v).__name__
    return tuple(sorted(values, key=lambda v: (kind(v), v)))


def _at(record: Record, name: str) -> Any:
    return dict(group_of(record).hyper)[name]


def _summary(key: Group, label: str, runs: list[Record]) -> Summary:
    """One group that is compared with nothing."""
    done, lost = split(runs)
    summary = Summary(key, label, len(runs), tuple(record["run"] for record in lost))
    if not done:
        return summary
    values = curves(done)
    levels = [mean_interval(number(values)) for number in QUANTITIES.values()]
    fields = ("mean", "last", "slope", "late_slope")
    return summary._replace(**dict(zip(fields, levels, strict=True)))


def _corrected(summaries: list[Summary]) -> list[Summary]:
    """With Holm's correction of the p-values within each setting."""
    tests = ["p_t", "p_flip", "p_equal"]
    raw = pd.DataFrame([[getattr(s, name) for name in tests] for s in summaries])
    settings = pd.Series([s.group.setting for s in summaries])
    for setting in settings.unique():
        here = raw.loc[settings == setting]
        raw.loc[settings == setting] = here.apply(lambda p: holm(p.to_numpy()))
    return [
        s._replace(**dict(zip(tests, row, strict=True)))
        for s, row in zip(summaries, raw.to_numpy().tolist(), strict=True)
    ]


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
