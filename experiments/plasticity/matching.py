"""Runs matched on weight norm and feature rank that differ in sharpness."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.plasticity.correlations import ahead, logarithm, measured_tasks
from jaxcl.report.records import Record, curves, frame, rivals, split
from jaxcl.report.tables import Column, Table, interval_note, interval_table

#: Moments are matched whose effective ranks lie within so much of each other.
WITHIN = 0.05


class Pairs(NamedTuple):
    """Two runs of one seed and rate, measured_tasks at after the same tasks."""

    matched: Bool[np.ndarray, " k"]
    sharpness: Float[np.ndarray, " k"]  # log ratio of the largest eigenvalues
    rank: Float[np.ndarray, " k"]  # log ratio of the effective ranks
    accuracy: Float[np.ndarray, " k"]  # difference on the tasks up to the next look


def pair(run: Record, rival: Record) -> Pairs:
    """Compare a run with its rival at every look that both can be compared at."""
    both = [run, rival]
    measured = curves(both, "top_eigenvalue")  # a look may be unknown in one of them
    looks, (_, following) = measured_tasks(measured), ahead(measured, curves(both))
    ratio = lambda name: np.subtract(*logarithm(curves(both, name)[:, looks]))
    sharpness, rank = ratio("top_eigenvalue"), ratio("effective_rank")
    matched = np.isfinite(sharpness) & (np.abs(rank) <= np.log1p(WITHIN))
    return Pairs(matched, sharpness, rank, following[0] - following[1])


def matched_table(records: Sequence[Record], baseline: str) -> Table:
    """Sharpness and accuracy against ``baseline`` where norm and rank are the same."""
    needed = {"top_eigenvalue", "effective_rank"}
    known = [r for r in split(records)[0] if needed <= set(r.get("measures", {}))]
    rival = rivals(known, baseline)
    mine = [r for r in known if r["arm"] != baseline and r["run"] in rival]
    pairs = [pair(run, rival[run["run"]]) for run in mine]
    runs = frame(mine)
    runs["matched"] = [int(one.matched.sum()) for one in pairs]
    runs["looks"] = [one.matched.size for one in pairs]
    runs["seeds"] = runs["matched"] > 0
    runs["rank"] = [_mean(np.expm1(one.rank), one.matched) for one in pairs]
    runs["sharpness"] = [_mean(np.expm1(one.sharpness), one.matched) for one in pairs]
    runs["accuracy"] = [_mean(one.accuracy, one.matched) for one in pairs]
    columns = {
        "seeds": Column("seeds", 0, is_total=True),
        "matched": Column("moments matched", 0, is_total=True),
        "looks": Column("of", 0, is_total=True),
        "rank": Column("effective rank, %", 1, 100.0),
        "sharpness": Column("top eigenvalue, %", 1, 100.0),
        "accuracy": Column("accuracy on next tasks, points", 2, 100.0),
    }
    made = interval_table(runs, columns, heads=("setting", "method"))
    said = interval_note(row[2] for row in made.rows)
    note = (
        f"Against {baseline} of the same rate and seed after the same task, at the moments "
        f"when effective ranks lie within {100 * WITHIN:g} % of each other; the weight "
        f"norm is equal at all. Means per seed first; {said}. "
        "Moments are chosen by what the methods did, so this describes, too."
    )
    return made._replace(notes=(note,))


def _mean(values: np.ndarray, matched: np.ndarray) -> float:
    """Over the matched moments of one run; NaN if there are none."""
    return float(values[matched].mean()) if matched.any() else np.nan
