"""Is sharpness the cause? Runs on one sphere of parameters that differ in it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from experiments.plasticity.comparisons import (
    Record,
    accuracy_table,
    by_setting,
    names,
    settings_with,
    shared,
    slope_table,
    within,
)
from experiments.plasticity.correlations import (
    ahead,
    cells,
    logarithm,
    looked,
    partial_correlation,
    permuted_methods,
    within_methods,
)
from experiments.plasticity.matching import matched_table
from experiments.plasticity.report_parts import (
    known,
    measure_pictures,
    picture,
    table,
    window_of,
)
from jaxcl.report import figures, page
from jaxcl.report.curves import learning_curves
from jaxcl.report.records import curves, group, labels, split
from jaxcl.report.statistics import known_means, mean_interval
from jaxcl.report.tables import Column, Table, interval_note, measure_table

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


def controls_section(records: Sequence[Record], path: Path) -> page.Section:
    """Comparison on the sphere, a check of the manipulation, and what goes with what."""
    sphere = by_setting([r for arm in SPHERE for r in records if r["arm"] == arm])
    settings = names(sphere, "setting")
    beside = within([r for r in records if r["arm"] == "sgd"], settings)
    every, finished = by_setting([*sphere, *beside]), settings_with(sphere)
    pictures = []
    if finished:
        shown = within(every, finished)
        drawn = learning_curves(shown, window=window_of(shown))
        alt = "Accuracy on the task just learned, weight norm held, and plain SGD."
        pictures.append(picture(path, "controls", drawn, alt))
    pictures += measure_pictures(path, "controls", every, finished, CHECKED)
    pictures += cause_pictures(path, sphere, finished)
    tables = [
        table(path, "controls", accuracy_table(every, BASELINE)),
        table(path, "controls-slope", slope_table(every, BASELINE)),
    ]
    if checked := known(every, CHECKED):
        made = measure_table(every, checked, task=None)
        tables.append(table(path, "controls-measures", made))
        made = relative_table(every, checked)
        tables.append(table(path, "controls-relative", made))
    related = {
        "matched": matched_table(sphere, BASELINE),
        "cause": cause_table(sphere),
        "ahead": ahead_table(sphere),
    }
    tables += [table(path, name, made) for name, made in related.items() if made.rows]
    return page.Section("Is sharpness the cause?", TEXT, pictures, tables)


def cause_pictures(
    path: Path, sphere: Sequence[Record], settings: Sequence[str]
) -> list[page.Picture]:
    """Accuracy against the largest eigenvalue, a point per run."""
    pictures = []
    for setting in settings:
        here = within(sphere, [setting])
        done = split(here)[0]
        if SHARPNESS[0] not in known(here):
            continue
        if np.isfinite(known_means(curves(done, SHARPNESS[0]))).sum() >= 3:
            drawn = figures.scatter(
                here, SHARPNESS[0], title=f"{setting}: weight norm held"
            )
            alt = f"Accuracy against the largest eigenvalue at equal norm, {setting}."
            caption = (
                f"{alt} Line and correlation are over all rates together, and mostly tell "
                "rates apart; a table below takes the rate out."
            )
            pictures.append(picture(path, f"cause-{setting}", drawn, alt, caption))
    return pictures


def relative_table(records: Sequence[Record], checked: Sequence[str]) -> Table:
    """The check of the manipulation: measures relative to SGD on the sphere."""
    done = split(records)[0]
    rivals = {shared(r): r for r in done if r["arm"] == BASELINE}
    groups = group([r for r in done if r["arm"] != BASELINE and shared(r) in rivals])
    shown = labels(list(groups))

    def relative(runs, name):
        mine = known_means(curves(runs, name))
        theirs = known_means(curves([rivals[shared(r)] for r in runs], name))
        usable = (mine > 0) & (theirs > 0)
        return mean_interval(mine[usable] / theirs[usable] - 1) if any(usable) else None

    rows = tuple(
        (where.setting, shown[where], len(runs), *(relative(runs, n) for n in checked))
        for where, runs in groups.items()
    )
    columns = (
        Column("setting"),
        Column("method"),
        Column("runs", 0),
        *(Column(f"{name.replace('_', ' ')}, %", 1, 100.0) for name in checked),
    )
    said = interval_note(map(len, groups.values()), ", not corrected for their number")
    note = (
        f"Means over the stream relative to {BASELINE}, paired by seed, in per cent more; "
        f"{said}."
    )
    return Table(columns, rows, (note,))


def cause_table(records: Sequence[Record]) -> Table:
    """Log sharpness and accuracy on the next tasks over runs, and over whole methods."""
    rows = []
    for setting in settings_with(records):
        done = split(within(records, [setting]))[0]
        for name in known(done, SHARPNESS):
            measured = curves(done, name)
            x, y = ahead(measured, curves(done))
            if not x.size:
                continue
            sharpness, accuracy = logarithm(known_means(x)), y.mean(axis=1)
            usable = np.isfinite(sharpness)
            some = [r for r, use in zip(done, usable, strict=True) if use]
            found = correlations(
                some, sharpness[usable], accuracy[usable], looked(measured)
            )
            left_out = int(np.sum(~usable))
            rows.append((setting, name.replace("_", " "), len(some), left_out, *found))
    columns = (
        Column("setting"),
        Column("sharpness"),
        Column("runs", 0),
        Column("no logarithm", 0),
        Column("r"),
        Column("r, seed and rate out"),
        Column("r, rank out too"),
        Column("r, gradient norm out too"),
        Column("with gradient norm"),
        Column("r of methods"),
        Column("p (methods permuted)", is_p_value=True),
    )
    notes = (
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
    return Table(columns, tuple(rows), notes)


def correlations(
    runs: Sequence[Record],
    sharpness: Float[np.ndarray, " s"],
    accuracy: Float[np.ndarray, " s"],
    looks: np.ndarray,
) -> list[float | None]:
    """The last seven columns of :func:`cause_table`; rank and norm are taken at looks."""
    if not runs:
        return [None] * 7
    rates = np.log([r["hyper"]["learning_rate"] for r in runs])
    seeds = np.array([r["seed"] for r in runs])
    seen = np.column_stack([seeds[:, None] == np.unique(seeds), rates]).astype(float)
    mean = lambda name: (
        known_means(curves(runs, name)[:, looks])
        if name in known(runs, CHECKED)
        else np.full(len(runs), np.nan)
    )
    ranked = np.column_stack([seen, mean("effective_rank")])
    steepness = logarithm(mean("grad_norm"))
    fitted = np.column_stack([ranked, steepness])
    found = [
        partial_correlation(sharpness, accuracy, np.ones((len(runs), 1))),
        partial_correlation(sharpness, accuracy, seen),
        partial_correlation(sharpness, accuracy, ranked),
        partial_correlation(sharpness, accuracy, fitted),
        partial_correlation(sharpness, steepness, seen),
        *permuted_methods(*cells(runs, sharpness, accuracy)),
    ]
    return [None if np.isnan(value) else value for value in found]


def ahead_table(records: Sequence[Record]) -> Table:
    """The eigenvalue after a task and accuracy, among the seeds of one method and rate."""
    groups = group(split(records)[0])
    shown = labels(list(groups))
    rows = []
    for where, runs in groups.items():
        if SHARPNESS[0] not in known(runs):
            continue
        measured, accuracy = curves(runs, SHARPNESS[0]), curves(runs)
        looks = looked(measured)
        x, after = ahead(measured, accuracy)
        x = logarithm(x)
        usable = np.isfinite(x).all(axis=1)
        same = accuracy[:, looks]
        found = [
            within_methods(x[usable], y[usable]) if x.size else np.nan
            for y in (same, after)
        ]
        rows.append(
            (
                where.setting,
                shown[where],
                int(usable.sum()),
                int(np.sum(~usable)),
                len(looks),
                *(None if np.isnan(value) else value for value in found),
            )
        )
    columns = (
        Column("setting"),
        Column("method"),
        Column("runs", 0),
        Column("no logarithm", 0),
        Column("looks", 0),
        Column("r, task just learned"),
        Column("r, next tasks"),
    )
    note = (
        "Correlation of the log of the largest eigenvalue after a task with accuracy on "
        "that task, and on the tasks up to the next look. What a run has in all tasks and "
        "what a task has in all runs is taken out first. Description, no test."
    )
    return Table(columns, tuple(rows), (note,))


__all__ = ["ahead_table", "cause_table", "controls_section", "relative_table"]
