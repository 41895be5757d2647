"""The sections of the report, in order: what each draws and tabulates of its runs."""

from collections.abc import Callable, Iterable, Sequence

from experiments.plasticity import causes
from experiments.plasticity.comparisons import (
    FRESH,
    GAP,
    PAPER_ARMS,
    accuracy_table,
    fresh_table,
    slope_table,
)
from experiments.plasticity.matching import matched_table
from jaxcl.report.heatmaps import heatmap
from jaxcl.report.page import Picture, Section
from jaxcl.report.records import (
    Record,
    measure_names,
    settings_with,
    values_of,
    within,
)
from jaxcl.report.sections import curve_pictures, measure_pictures
from jaxcl.report.summaries import grid
from jaxcl.report.tables import Table, measure_table

MEASURES = (
    "loss",
    "sam_sharpness",
    "top_eigenvalue",
    "effective_rank",
    "dormant_fraction",
    "weight_norm",
)


def paper(records: Sequence[Record]) -> Section:
    """The comparison that the paper makes."""
    # the rates that have run, which may be others than the paper's
    found = {record["hyper"]["learning_rate"] for record in records}
    rates = ", ".join(f"{rate:g}" for rate in sorted(found, reverse=True))
    alt = (
        "Test accuracy on the task just learned against the number of tasks, in "
        "the settings in which SGD, SAM and GNP have all run."
    )
    return Section(
        "The paper's comparison",
        f"SGD, SAM and GNP at the rates {rates} (the paper's are 0.01 and 0.001). "
        "The comparison is paired by seed: "
        "the same start, the same tasks. Where every seed draws its own tasks (permuted), "
        "a slope below zero is lost plasticity; curves may rise first and fall later, so "
        "the slope of the second half stands beside that of the whole.",
        [
            *curve_pictures(records, "accuracy", alt, arms=PAPER_ARMS),
            *measure_pictures(records, "measures", MEASURES),
        ],
        {
            "accuracy": accuracy_table(records),
            "slope": slope_table(records),
            "measures": _measured(records, MEASURES),
        },
    )


def _measured(records: Sequence[Record], wanted: Sequence[str]) -> Table:
    """Means over the stream of those measures that all runs have."""
    return measure_table(records, measure_names(records, wanted))


def fresh(measured: Sequence[Record]) -> Section:
    """What a past does: accuracy less that of a fresh start."""
    drawn = [r for arm in (*PAPER_ARMS, FRESH) for r in measured if r["arm"] == arm]
    if all(r["arm"] == FRESH for r in drawn):
        drawn = []  # the yardstick alone says nothing
    alt = (
        "Accuracy on the task just learned minus that of SGD from a fresh start, "
        "at the same rate and seed. Above zero the past helps, below it hurts."
    )
    label = "accuracy minus fresh, points"
    curves = curve_pictures(drawn, "minus-fresh", alt, name=GAP, label=label)
    return Section(
        "Plasticity: against a fresh start",
        "Plasticity measured: accuracy on a task minus that of plain SGD which starts the "
        "same task from the run's initial parameters, with the same batches. How hard a "
        "task is drops out, so this holds for pairs in a fixed order, too. For methods "
        "other than SGD the level also holds how fast they learn any task; the change "
        "along the stream does not. CReLU and LayerNorm are other networks than the "
        "fresh one.",
        [*curves],
        {"minus-fresh": fresh_table(measured)},
    )


def sweep(records: Sequence[Record]) -> Section:
    """SAM and GNP at other strengths."""
    return Section(
        "Strengths the authors did not try",
        "Where alpha = lambda / r is 1, GNP is SAM; above 1 it extrapolates.",
        [*_grids(records)],
        {"sweep": accuracy_table(records)},
    )


def _grids(records: Sequence[Record]) -> Iterable[Picture]:
    """SAM over rho and rate, and at each rate GNP over r and lambda, by setting."""
    for setting in values_of(records, "setting"):
        here = within(records, [setting])
        if sams := [r for r in here if r["arm"] == "sam"]:
            made = grid(sams, rows="learning_rate", columns="rho")
            drawn = heatmap(made, title=f"SAM, {setting}")
            alt = f"Mean accuracy of SAM over rho and learning rate, {setting}."
            yield Picture(f"sweep-sam-{setting}", drawn, alt)
        gnps = [r for r in here if r["arm"] == "gnp"]
        for rate in values_of([r["hyper"] for r in gnps], "learning_rate"):
            some = [r for r in gnps if r["hyper"]["learning_rate"] == rate]
            made = grid(some, rows="r", columns="penalty")
            drawn = heatmap(made, title=f"GNP, {setting}, rate {rate:g}")
            alt = f"Mean accuracy of GNP over r and lambda at {rate:g}, {setting}."
            yield Picture(f"sweep-gnp-{setting}-{rate:g}", drawn, alt)


def _beside_sgd(name: str, title: str, text: str) -> Callable[..., Section]:
    """Curves, accuracy and slopes of a group that is compared with SGD."""
    alt = "Test accuracy on the task just learned against the number of tasks."
    return lambda records: Section(
        title,
        text,
        [*curve_pictures(records, name, alt)],
        {name: accuracy_table(records), f"{name}-slope": slope_table(records)},
    )


def controls(records: Sequence[Record]) -> Section:
    """Runs on one sphere, and plain SGD off it."""
    sphere = causes.on_sphere(records)
    ended = within(
        records, settings_with(sphere)
    )  # where a controlled run has finished
    alt = "Accuracy on the task just learned, weight norm held, and plain SGD."
    names = measure_names(records, causes.CHECKED)
    measured = {"controls-measures": _measured(records, names)} if names else {}
    return Section(
        "Is sharpness the cause?",
        causes.TEXT,
        [
            *curve_pictures(ended, "controls", alt),
            *measure_pictures(ended, "controls", causes.CHECKED),
            *causes.cause_pictures(records),
        ],
        {
            "controls": accuracy_table(records, causes.BASELINE),
            "controls-slope": slope_table(records, causes.BASELINE),
            **measured,
            "controls-relative": causes.relative_table(records),
            "matched": matched_table(sphere, causes.BASELINE),
            "cause": causes.cause_table(records),
            "ahead": causes.ahead_table(records),
        },
    )


#: By the group of runs that a section is about; ``fresh`` is about those of three groups.
SECTIONS: dict[str, Callable[[Sequence[Record]], Section]] = {
    "paper": paper,
    "fresh": fresh,
    "neighbours": _beside_sgd(
        "neighbours",
        "Beside them: what preserves plasticity",
        "The arm fresh starts every task from the run's initial parameters: it has "
        "learned nothing before and so has lost nothing.",
    ),
    "sweep": sweep,
    "adaptive": _beside_sgd(
        "adaptive",
        "Strengths that adapt",
        "SAM whose radius holds the rise of the loss, and SAM and GNP whose strength "
        "starts from zero at each task.",
    ),
    "controls": controls,
}
