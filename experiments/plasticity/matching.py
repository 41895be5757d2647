"""Runs matched on weight norm and feature rank that differ in sharpness."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from experiments.plasticity.correlations import ahead, logarithm, measured_tasks
from jaxcl.report.records import Record, curves, rivals, split
from jaxcl.report.tables import Column, Table, interval_note, interval_table

#: Moments are matched whose effective ranks lie within so much of each other.
WITHIN = 0.05


def pair(run: Record, rival: Record) -> pd.DataFrame:
    """A run beside its rival, a row per look that both can be compared at.

    Columns are ``matched``, the log ratios of the largest eigenvalues (``sharpness``)
    and of the effective ranks (``rank``), and the difference of ``accuracy`` on the tasks
    up to the next look.
    """
    both = [run, rival]
    measured = curves(both, "top_eigenvalue")  # a look may be unknown in one of them
    looks, (_, following) = measured_tasks(measured), ahead(measured, curves(both))
    ratio = lambda name: np.subtract(*logarithm(curves(both, name)[:, looks]))
    sharpness, rank = ratio("top_eigenvalue"), ratio("effective_rank")
    matched = np.isfinite(sharpness) & (np.abs(rank) <= np.log1p(WITHIN))
    accuracy = following[0] - following[1]
    found = {"matched": matched, "sharpness": sharpness, "rank": rank}
    return pd.DataFrame({**found, "accuracy": accuracy})


def matched_table(records: Sequence[Record], baseline: str) -> Table:
    """Sharpness and accuracy against ``baseline`` where norm and rank are the same."""
    needed = {"top_eigenvalue", "effective_rank"}
    known = [r for r in split(records)[0] if needed <= set(r.get("measures", {}))]
    rival = rivals(known, baseline)
    mine = [r for r in known if r["arm"] != baseline and r["run"] in rival]
    pairs = [pair(run, rival[run["run"]]) for run in mine]
    chosen = [one[one["matched"]] for one in pairs]
    matched, looks = list(map(len, chosen)), list(map(len, pairs))
    ratios = lambda name: [np.expm1(one[name]).mean() for one in chosen]
    next_tasks = [one["accuracy"].mean() for one in chosen]
    numbers = {
        Column("seeds", 0, is_total=True): np.array(matched) > 0,
        Column("moments matched", 0, is_total=True): matched,
        Column("of", 0, is_total=True): looks,
        Column("effective rank, %", 1, 100.0): ratios("rank"),
        Column("top eigenvalue, %", 1, 100.0): ratios("sharpness"),
        Column("accuracy on next tasks, points", 2, 100.0): next_tasks,
    }
    made = interval_table(mine, numbers, heads=("setting", "method"))
    said = interval_note(row[2] for row in made.rows)
    note = (
        f"Against {baseline} of the same rate and seed after the same task, at the moments "
        f"when effective ranks lie within {100 * WITHIN:g} % of each other; the weight "
        f"norm is equal at all. Means per seed first; {said}. "
        "Moments are chosen by what the methods did, so this describes, too."
    )
    return made._replace(notes=(note,))
