"""Runs matched on weight norm and feature rank that differ in sharpness."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.plasticity.comparisons import Record, shared
from experiments.plasticity.correlations import ahead, logarithm, looked
from jaxcl.report.records import curves, group, labels, split
from jaxcl.report.statistics import Interval, mean_interval
from jaxcl.report.tables import Column, Table, interval_note

#: Moments are matched whose effective ranks lie within so much of each other.
WITHIN = 0.05


class Pairs(NamedTuple):
    """Two runs of one seed and rate, looked at after the same tasks."""

    matched: Bool[np.ndarray, " k"]
    sharpness: Float[np.ndarray, " k"]  # log ratio of the largest eigenvalues
    rank: Float[np.ndarray, " k"]  # log ratio of the effective ranks
    accuracy: Float[np.ndarray, " k"]  # difference on the tasks up to the next look


def pair(run: Record, rival: Record) -> Pairs:
    """Compare a run with its rival at every look that both can be compared at."""
    both = [run, rival]
    measured = curves(both, "top_eigenvalue")  # a look may be unknown in one of them
    looks, (_, following) = looked(measured), ahead(measured, curves(both))
    ratio = lambda name: np.subtract(*logarithm(curves(both, name)[:, looks]))
    sharpness, rank = ratio("top_eigenvalue"), ratio("effective_rank")
    matched = np.isfinite(sharpness) & (np.abs(rank) <= np.log1p(WITHIN))
    return Pairs(matched, sharpness, rank, following[0] - following[1])


def matched_table(records: Sequence[Record], baseline: str) -> Table:
    """Sharpness and accuracy against ``baseline`` where norm and rank are the same."""
    needed = {"top_eigenvalue", "effective_rank"}
    known = [r for r in split(records)[0] if needed <= set(r.get("measures", {}))]
    rivals = {shared(r): r for r in known if r["arm"] == baseline}
    groups = group([r for r in known if r["arm"] != baseline and shared(r) in rivals])
    shown = labels(list(groups))
    rows = []
    for where, runs in groups.items():
        pairs = [pair(run, rivals[shared(run)]) for run in runs]
        counts = [int(np.sum(one.matched)) for one in pairs]
        looks = sum(one.matched.size for one in pairs)
        head = where.setting, shown[where], np.count_nonzero(counts), sum(counts), looks
        found = (
            over_seeds(pairs, lambda one: np.expm1(one.rank)),
            over_seeds(pairs, lambda one: np.expm1(one.sharpness)),
            over_seeds(pairs, lambda one: one.accuracy),
        )
        rows.append(head + found)
    columns = (
        Column("setting"),
        Column("method"),
        Column("seeds", 0),
        Column("moments matched", 0),
        Column("of", 0),
        Column("effective rank, %", 1, 100.0),
        Column("top eigenvalue, %", 1, 100.0),
        Column("accuracy on next tasks, points", 2, 100.0),
    )
    said = interval_note(row[2] for row in rows)
    note = (
        f"Against {baseline} of the same rate and seed after the same task, at the moments "
        f"when effective ranks lie within {100 * WITHIN:g} % of each other; the weight "
        f"norm is equal at all. Means per seed first; {said}. "
        "Moments are chosen by what the methods did, so this describes, too."
    )
    return Table(columns, tuple(rows), (note,))


def over_seeds(
    pairs: Sequence[Pairs], quantity: Callable[[Pairs], np.ndarray]
) -> Interval | None:
    """Mean over the matched moments of each seed, then over the seeds that have any."""
    means = [quantity(one)[one.matched].mean() for one in pairs if one.matched.any()]
    return mean_interval(np.array(means)) if means else None


__all__ = ["WITHIN", "Pairs", "matched_table", "pair"]
