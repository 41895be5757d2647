"""The sections of the report, in order: what each draws and tabulates of its runs."""

from collections.abc import Iterable, Sequence

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
from jaxcl.report.page import Picture
from jaxcl.report.records import (
    Record,
    measure_names,
    settings_with,
    values_of,
    within,
)
from jaxcl.report.sections import Part, curves_of, measures_of
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


def _paper_text(records: Sequence[Record]) -> str:
    # the rates that have run, which may be others than the paper's
    found = {record["hyper"]["learning_rate"] for record in records}
    rates = ", ".join(f"{rate:g}" for rate in sorted(found, reverse=True))
    return (
        f"SGD, SAM and GNP at the rates {rates} (the paper's are 0.01 and 0.001). "
        "The comparison is paired by seed: "
        "the same start, the same tasks. Where every seed draws its own tasks (permuted), "
        "a slope below zero is lost plasticity; curves may rise first and fall later, so "
        "the slope of the second half stands beside that of the whole."
    )


def _fresh_drawn(measured: Sequence[Record]) -> list[Record]:
    """The paper's arms and the yardstick; nothing if the yardstick is alone."""
    drawn = [r for arm in (*PAPER_ARMS, FRESH) for r in measured if r["arm"] == arm]
    return drawn if any(r["arm"] != FRESH for r in drawn) else []


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


def _measured(*wanted: str):
    """A table of means over the stream of those measures that all runs have."""
    return lambda records: measure_table(
        records, measure_names(records, wanted), task=None
    )


def _controlled(records: Sequence[Record]) -> list[Record]:
    """Settings in which a controlled run has finished."""
    return within(records, settings_with(causes.on_sphere(records)))


def _controls_measured(records: Sequence[Record]) -> Table:
    made = _measured(*causes.CHECKED)(records)
    return made if len(made.columns) > 2 else made._replace(rows=())


def _beside_sgd(name: str, title: str, text: str) -> Part:
    """Curves, accuracy and slopes of a group that is compared with SGD."""
    alt = "Test accuracy on the task just learned against the number of tasks."
    tables = {name: accuracy_table, f"{name}-slope": slope_table}
    return Part(title, text, [curves_of(name, alt)], tables)


#: By the group of runs that a section is about; ``fresh`` is about those of three groups.
PARTS = {
    "paper": Part(
        "The paper's comparison",
        _paper_text,
        [
            curves_of(
                "accuracy",
                "Test accuracy on the task just learned against the number of tasks, in "
                "the settings in which SGD, SAM and GNP have all run.",
                arms=PAPER_ARMS,
            ),
            measures_of("measures", MEASURES),
        ],
        {
            "accuracy": accuracy_table,
            "slope": slope_table,
            "measures": _measured(*MEASURES),
        },
    ),
    "fresh": Part(
        "Plasticity: against a fresh start",
        "Plasticity measured: accuracy on a task minus that of plain SGD which starts the "
        "same task from the run's initial parameters, with the same batches. How hard a "
        "task is drops out, so this holds for pairs in a fixed order, too. For methods "
        "other than SGD the level also holds how fast they learn any task; the change "
        "along the stream does not. CReLU and LayerNorm are other networks than the "
        "fresh one.",
        [
            curves_of(
                "minus-fresh",
                "Accuracy on the task just learned minus that of SGD from a fresh start, "
                "at the same rate and seed. Above zero the past helps, below it hurts.",
                choose=_fresh_drawn,
                name=GAP,
                label="accuracy minus fresh, points",
            )
        ],
        {"minus-fresh": fresh_table},
    ),
    "neighbours": _beside_sgd(
        "neighbours",
        "Beside them: what preserves plasticity",
        "The arm fresh starts every task from the run's initial parameters: it has "
        "learned nothing before and so has lost nothing.",
    ),
    "sweep": Part(
        "Strengths the authors did not try",
        "Where alpha = lambda / r is 1, GNP is SAM; above 1 it extrapolates.",
        [_grids],
        {"sweep": accuracy_table},
    ),
    "adaptive": _beside_sgd(
        "adaptive",
        "Strengths that adapt",
        "SAM whose radius holds the rise of the loss, and SAM and GNP whose strength "
        "starts from zero at each task.",
    ),
    "controls": Part(
        "Is sharpness the cause?",
        causes.TEXT,
        [
            curves_of(
                "controls",
                "Accuracy on the task just learned, weight norm held, and plain SGD.",
                choose=_controlled,
            ),
            measures_of("controls", causes.CHECKED, choose=_controlled),
            causes.cause_pictures,
        ],
        {
            "controls": lambda records: accuracy_table(records, causes.BASELINE),
            "controls-slope": lambda records: slope_table(records, causes.BASELINE),
            "controls-measures": _controls_measured,
            "controls-relative": causes.relative_table,
            "matched": lambda records: matched_table(
                causes.on_sphere(records), causes.BASELINE
            ),
            "cause": causes.cause_table,
            "ahead": causes.ahead_table,
        },
    ),
}
