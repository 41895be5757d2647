"""Is sharpness the cause? Runs on one sphere of parameters that differ in it."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from experiments.plasticity.correlations import (
    ahead,
    cells,
    logarithm,
    measured_tasks,
    partial_correlation,
    permuted_methods,
    within_methods,
)
from jaxcl.report.page import Picture
from jaxcl.report.records import (
    Record,
    curves,
    group,
    labels,
    measure_names,
    rivals,
    settings_with,
    split,
    values_of,
    within,
)
from jaxcl.report.scatter import scatter
from jaxcl.report.statistics import known_means
from jaxcl.report.tables import Column, Table, interval_table, table_of

BASELINE = "sgd-sphere"
SPHERE = (BASELINE, "sam-sphere", "reverse-sphere", "noise-sphere")
#: Figures that the controls are meant to hold or to change, in this order.
CHECKED = (
    "weight_norm",
    "effective_rank",
    "top_eigenvalue",
    "sam_sharpness",
    "grad_norm",
    "loss",
)
#: How sharpness is measured, the one that is meant first.
SHARPNESS = ("top_eigenvalue", "sam_sharpness")

TEXT = """
Every run on the sphere is kept at the weight norm it started with; SAM and its reverse
then lower and raise the sharpness. All are compared with plain SGD on the sphere, paired by
seed; plain SGD off the sphere shows what holding the norm does by itself. Noise of SAM's
size in a random direction hardly changes the loss, unlike a step of that size along the
gradient: it is a control for perturbing at all, not a run of other sharpness, and its
columns of sharpness show that.

Did the controls do what they are for? The weight norm must be equal; ranks should be;
sharpness must differ. The tables give means over the whole stream. Nothing holds the rank
as a run goes, so another table keeps only the moments at which two runs of one seed have
the same rank, and asks how sharpness and accuracy differ there.

Does sharpness go with what is learned next? Sharpness is first of all the largest
eigenvalue of the Hessian after a task, related to the accuracy on the tasks up to the
next look. SAM's own measure stands beside it; it rises with the gradient norm, so that it
shows how well the last task was fitted. Correlations over runs only describe, for runs of
one method are not independent. The one test permutes whole methods, at all rates at once;
of four methods there are 24 orders, so it cannot fall below 0.04.

What remains confounded: the eigenvalue, too, goes with how well the last task was fitted,
on the paper's own arms hardly less than SAM's measure (a column shows how closely here,
and another takes the gradient norm out); the sphere holds the norm of all layers
together, not of each; methods differ in more than sharpness, and four methods are few.
Within one method and rate, where seeds are compared at the same task, neither the method
nor the rate nor a common trend can make a correlation; the rank and the fit of the last
task can.
"""


def on_sphere(records: Sequence[Record]) -> list[Record]:
    """The controlled runs by setting, plain SGD on the sphere first."""
    found = [r for arm in SPHERE for r in records if r["arm"] == arm]
    return within(found, values_of(found, "setting"))


def with_sgd(records: Sequence[Record]) -> list[Record]:
    """The controlled runs, and beside them plain SGD in the same settings."""
    sphere = on_sphere(records)
    beside = [r for r in records if r["arm"] == "sgd"]
    return within([*sphere, *beside], values_of(sphere, "setting"))


def cause_pictures(records: Sequence[Record]) -> Iterable[Picture]:
    """Accuracy against the largest eigenvalue, a point per run, a figure per setting."""
    sphere = on_sphere(records)
    for setting in settings_with(sphere):
        here = within(sphere, [setting])
        done = split(here)[0]
        if SHARPNESS[0] not in measure_names(here):
            continue
        if np.isfinite(known_means(curves(done, SHARPNESS[0]))).sum() >= 3:
            drawn = scatter(here, SHARPNESS[0], title=f"{setting}: weight norm held")
            alt = f"Accuracy against the largest eigenvalue at equal norm, {setting}."
            caption = (
                f"{alt} Line and correlation are over all rates together, and mostly tell "
                "rates apart; a table below takes the rate out."
            )
            yield Picture(f"cause-{setting}", drawn, alt, caption)


def relative_table(records: Sequence[Record]) -> Table:
    """The check of the manipulation: measures relative to SGD on the sphere."""
    rival = rivals(records, BASELINE)
    done = [r for r in records if r["run"] in rival and r["arm"] != BASELINE]
    theirs = [rival[r["run"]] for r in done]
    means = lambda runs, name: np.array(
        [known_means(curves([r], name))[0] for r in runs]
    )
    numbers = {}
    for name in measure_names(records, CHECKED):
        mine, base = means(done, name), means(theirs, name)
        # a ratio of numbers that are not positive says nothing
        usable = (mine > 0) & (base > 0)
        shown = Column(f"{name.replace('_', ' ')}, %", 1, 100.0)
        numbers[shown] = np.where(
            usable, mine / np.where(usable, base, 1.0) - 1, np.nan
        )
    note = (
        f"Means over the stream relative to {BASELINE}, paired by seed, in per cent more; "
        "{interval}."
    )
    also = ", not corrected for their number"
    return interval_table(done, numbers, [note], also=also)


def cause_table(records: Sequence[Record]) -> Table:
    """Log sharpness and accuracy on the next tasks over runs, and over whole methods."""
    rows, sphere = [], on_sphere(records)
    for setting in settings_with(sphere):
        done = split(within(sphere, [setting]))[0]
        for name in measure_names(done, SHARPNESS):
            measured = curves(done, name)
            x, y = ahead(measured, curves(done))
            if not x.size:
                continue
            # the log of the mean, for a mean of logs lacks every look below zero
            sharpness, accuracy = logarithm(known_means(x)), y.mean(axis=1)
            usable = np.isfinite(sharpness)
            some = list(itertools.compress(done, usable))
            looks = measured_tasks(measured)
            rows.append(
                {
                    Column("setting"): setting,
                    Column("sharpness"): name.replace("_", " "),
                    Column("runs", 0): len(some),
                    Column("no logarithm", 0): int(np.sum(~usable)),
                    **correlations(some, sharpness[usable], accuracy[usable], looks),
                }
            )
    return table_of(
        rows,
        "Correlation r of the log of sharpness, mean over the stream, with the mean "
        "accuracy on the tasks that follow each measurement: one point per run; then of "
        "what a linear fit on others leaves of both. Description, no test.",
        "With gradient norm: of the logs of sharpness and gradient norm, seed and rate "
        "out. Where it is near 1, sharpness shows how well the last task was fitted.",
        "Runs whose sharpness has no logarithm (zero, negative or unknown) are counted and "
        "left out.",
        "r of methods: over the means of method x rate, rates centred; p by permuting "
        "whole methods.",
    )


CORRELATIONS = (
    Column("r"),
    Column("r, seed and rate out"),
    Column("r, rank out too"),
    Column("r, gradient norm out too"),
    Column("with gradient norm"),
    Column("r of methods"),
    Column("p (methods permuted)", is_p_value=True),
)


def correlations(
    runs: Sequence[Record],
    sharpness: Float[np.ndarray, " s"],
    accuracy: Float[np.ndarray, " s"],
    tasks: np.ndarray,
) -> dict[Column, float | None]:
    """The last columns of :func:`cause_table`; rank and norm are means over ``tasks``."""
    if not runs:
        return dict.fromkeys(CORRELATIONS)
    known = measure_names(runs, CHECKED)
    mean = lambda name: (
        known_means(curves(runs, name)[:, tasks])
        if name in known
        else np.full(len(runs), np.nan)
    )
    # the rate enters by its log, for rates differ by factors
    rates = np.log([r["hyper"]["learning_rate"] for r in runs])
    seeds = np.array([r["seed"] for r in runs])
    steepness = logarithm(mean("grad_norm"))
    # what is taken out, each with all before it; the seeds hold the intercept
    seen = np.column_stack([seeds[:, None] == np.unique(seeds), rates]).astype(float)
    ranked = np.column_stack([seen, mean("effective_rank")])
    steep = np.column_stack([ranked, steepness])
    taken_out = (np.ones((len(runs), 1)), seen, ranked, steep)
    found = [
        *(partial_correlation(sharpness, accuracy, others) for others in taken_out),
        partial_correlation(sharpness, steepness, seen),
        *permuted_methods(*cells(runs, sharpness, accuracy)),
    ]
    return dict(zip(CORRELATIONS, map(_known, found), strict=True))


def ahead_table(records: Sequence[Record]) -> Table:
    """The eigenvalue after a task and accuracy, among the seeds of one method and rate."""
    groups = group(split(on_sphere(records))[0])
    shown = labels(list(groups))
    rows = []
    for where, runs in groups.items():
        if SHARPNESS[0] not in measure_names(runs):
            continue
        measured, accuracy = curves(runs, SHARPNESS[0]), curves(runs)
        tasks = measured_tasks(measured)
        x, after = ahead(measured, accuracy)
        x = logarithm(x)
        # within_methods takes means over all looks, so a run needs all of them
        usable = np.isfinite(x).all(axis=1)
        just, following = (
            within_methods(x[usable], y[usable]) if x.size else np.nan
            for y in (accuracy[:, tasks], after)
        )
        rows.append(
            {
                Column("setting"): where.setting,
                Column("method"): shown[where],
                Column("runs", 0): int(usable.sum()),
                Column("no logarithm", 0): int(np.sum(~usable)),
                Column("looks", 0): len(tasks),
                Column("r, task just learned"): _known(just),
                Column("r, next tasks"): _known(following),
            }
        )
    return table_of(
        rows,
        "Correlation of the log of the largest eigenvalue after a task with accuracy on "
        "that task, and on the tasks up to the next look. What a run has in all tasks and "
        "what a task has in all runs is taken out first. Description, no test.",
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
