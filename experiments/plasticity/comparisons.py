"""What is compared with what: SGD as the baseline, a fresh start as the yardstick."""

from collections.abc import Sequence

import pandas as pd

from experiments.plasticity.arms import trials
from experiments.plasticity.config import Config
from experiments.plasticity.settings import IN_ONE_ORDER
from jaxcl.report.records import Record, curves, rivals, values_of, within
from jaxcl.report.statistics import known_means, slopes, tail_means
from jaxcl.report.summaries import QUANTITIES, Summary, summarize
from jaxcl.report.tables import Column, Table, interval_table, summary_table

PAPER_ARMS = ("sgd", "sam", "gnp")
#: Mean accuracies that differ by less than this share, one point, count as equal: the
#: standard error of one task's accuracy on 2,000 test images is 0.7 points at 88 %.
MARGIN = 0.01
FRESH, GAP = "fresh", "minus_fresh"


def in_order(config: Config, records: Sequence[Record]) -> list[Record]:
    """As they are listed in the configuration, whichever worker was done first."""
    # of a run that is listed twice the first place counts, so it is entered last
    listed = {
        _identity(trial._asdict()): place
        for place, trial in reversed([*enumerate(trials(config))])
    }
    ordered = sorted(records, key=lambda r: listed.get(_identity(r), len(listed)))
    others = [s for s in values_of(records, "setting") if s not in config.settings]
    return within(ordered, [*config.settings, *others])


def part_of(config: Config, records: Sequence[Record], group: str) -> list[Record]:
    """The runs a group asks for, and SGD's as what they are compared with.

    Of all groups but the paper's, settings with runs of SGD alone are left out.
    """
    wanted = {
        _identity(trial._asdict())
        for trial in trials(config)
        if trial.group == group or trial.arm == "sgd"
    }
    found = [record for record in records if _identity(record) in wanted]
    if group == "paper":
        return found
    # a setting of SGD alone has nothing to compare
    others = [record for record in found if record["arm"] != "sgd"]
    return within(found, values_of(others, "setting"))


def _identity(run: dict) -> tuple:
    """What a trial and its runs in all settings have in common."""
    return (run["arm"], *run["hyper"].items(), run["seed"])


def compare(
    records: Sequence[Record], quantity: str = "mean", baseline: str = "sgd"
) -> list[Summary]:
    """Every group against the baseline at its own learning rate, where that has run.

    Mean accuracies are also tested for equality, within :data:`MARGIN`.
    """
    there = any(record["arm"] == baseline for record in records)
    return summarize(
        records,
        baseline=baseline if there else None,
        quantity=quantity,
        margin=MARGIN if quantity == "mean" else None,
    )


def accuracy_table(records: Sequence[Record], baseline: str = "sgd") -> Table:
    """Mean accuracy, compared."""
    return summary_table(compare(records, baseline=baseline), margin=MARGIN)


def slope_table(records: Sequence[Record], baseline: str = "sgd") -> Table:
    """Slopes of accuracy, compared; it says which of them are no loss of plasticity."""
    made = summary_table(compare(records, "slope", baseline), quantity="slope")
    ordered = [name for name in values_of(records, "setting") if name in IN_ONE_ORDER]
    if not ordered:
        return made
    note = (
        f"In {' and '.join(ordered)} all seeds meet the pairs in one order: a slope there "
        "is first of all that of the pairs' difficulty. Read the differences only."
    )
    return made._replace(notes=(*made.notes, note))


def verdict(records: Sequence[Record]) -> list[str]:
    """What the paper's arms did against SGD: a sentence, counts, a line for each."""
    if not records:
        return ["The paper's own arms were not run."]
    found = compare(records)
    lines = []
    for setting in values_of(records, "setting"):
        here = [s for s in found if s.group.setting == setting]
        lines += [
            line(s) for s in here if s.group.arm != "sgd" or len(s.diverged) == s.runs
        ]
        if all(s.group.arm == "sgd" for s in here) and any(s.mean for s in here):
            lines.append(f"{setting}: only SGD has finished, nothing to compare")
    compared = any(s.versus for s in found)
    return [*([concluded(found), counted(found)] if compared else []), *lines]


def concluded(summaries: Sequence[Summary]) -> str:
    """Whether the claim held here, judged by mean accuracy, in a sentence."""
    verdicts = [s.verdict for s in summaries if s.versus is not None]
    total, point = len(verdicts), f"{100 * MARGIN:g} point"
    held = sum(v == "worse" or v.endswith("the margin") for v in verdicts)
    if better := verdicts.count("better"):
        where = f"in {better} of {total} comparisons"
        return f"The claim did not hold here: SAM or GNP is better than SGD {where}."
    if held == total:
        return f"The claim held here: neither SAM nor GNP beats SGD by {point}."
    return (
        f"Too few seeds to tell whether the claim held here: in {total - held} of {total} "
        f"comparisons SAM or GNP may be better than SGD by {point} or more."
    )


def counted(summaries: Sequence[Summary]) -> str:
    """How many comparisons support the two halves of the claim: no better, and close."""
    verdicts = pd.Series([s.verdict for s in summaries if s.versus], dtype=str)
    better, worse = (verdicts.str.startswith(v).sum() for v in ("better", "worse"))
    close = verdicts.str.endswith("the margin").sum()
    return (
        f"{len(verdicts)} comparisons of SAM and GNP with SGD at the same rate, by mean "
        f"accuracy: {better} better, {worse} worse, {len(verdicts) - better - worse} "
        f"neither. {close} are shown to lie within {100 * MARGIN:g} point of SGD, "
        f"{close + (verdicts == 'worse').sum()} not to be better by as much."
    )


def line(summary: Summary) -> str:
    """One arm in one setting, in words."""
    name = f"{summary.group.setting}, {summary.label}"
    lost = len(summary.diverged)
    if summary.mean is None:
        return f"{name}: all {summary.runs} runs diverged"
    words = f"{name}: {100 * summary.mean.mean:.1f} %"
    words += f" ({lost} of {summary.runs} runs diverged)" if lost else ""
    if summary.versus is None:
        return f"{words}, no finished run of SGD to compare with"
    gap = summary.versus.difference
    interval = f" [{points(gap.low)}, {points(gap.high)}]" if gap.count > 1 else ""
    return (
        f"{words}, {points(gap.mean)} points against SGD{interval}, {summary.verdict}"
    )


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "\N{MINUS SIGN}")


def minus_fresh(records: Sequence[Record]) -> list[Record]:
    """Finished runs that have a fresh run beside them, with accuracy less its accuracy.

    The two have setting, learning rate and seed in common, hence start, tasks and
    batches; the difference is taken task by task and is the measure ``minus_fresh``.
    """
    rival = rivals(records, FRESH)
    gap = lambda r: (curves([r])[0] - curves([rival[r["run"]]])[0]).tolist()
    return [
        r | {"measures": r.get("measures", {}) | {GAP: gap(r)}}
        for r in within(records, values_of(records, "setting"))
        if r["run"] in rival
    ]


def fresh_table(measured: Sequence[Record]) -> Table:
    """Accuracy minus that of a fresh start: its level, its ends and its slopes."""
    others = [r for r in measured if r["arm"] != FRESH]
    taken = {
        Column("minus fresh, points", 2, 100.0): known_means,
        Column("first tenth", 2, 100.0): lambda gap: tail_means(gap[:, ::-1]),
        Column("last tenth", 2, 100.0): tail_means,
        Column("slope", 2, 1e4): slopes,
        Column("second-half slope", 2, 1e4): QUANTITIES["late slope"],
    }
    gaps = [curves([r], GAP) for r in others]
    numbers = {
        c: [float(number(gap)[0]) for gap in gaps] for c, number in taken.items()
    }
    notes = (
        "Paired by seed and task with SGD that starts every task from the run's initial "
        "parameters; {interval}.",
        "Slopes are in points per 100 tasks: the tasks' difficulty has dropped out.",
    )
    return interval_table(
        others, numbers, notes, also=", not corrected for their number"
    )
