"""From ``results.jsonl`` to tables, figures and one page; nothing is typed by hand.

Whatever has finished is shown: settings and arms without a run are left out, diverged
runs are named, and where SGD has no finished run the tables compare nothing.

``python -m experiments.plasticity.report`` does it for the committed results, and puts
their numbers into the README beside this file.
"""

from collections import Counter
from pathlib import Path

from experiments.plasticity.causes import with_sgd
from experiments.plasticity.comparisons import (
    FRESH,
    PAPER_ARMS,
    accuracy_table,
    compare,
    counted,
    fresh_table,
    in_order,
    minus_fresh,
    part_of,
    slope_table,
    verdict,
)
from experiments.plasticity.config import PRESETS, Config
from experiments.plasticity.sections import SECTIONS
from jaxcl.report.records import settings_with, values_of
from jaxcl.report.tables import to_markdown
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill
from jaxcl.runs.reports import write_report

CLAIM = (
    "On streams of MNIST tasks, SAM and the gradient norm penalty keep a network no "
    "better able to learn than SGD does (arXiv:2409.17300)."
)
HERE = Path(__file__).parent
#: Whose figures and numbers stand in the README, each between marks of its own name.
COMMITTED = tuple(
    RunFolder(HERE / "results" / name, "plasticity", name, PRESETS[name])
    for name in ("paper", "cifar")
)
#: Groups whose runs are measured against a fresh start.
BESIDE_FRESH = ("paper", "neighbours", "adaptive")


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html`` of whatever has finished."""
    records = in_order(config, read_records(folder))
    there = [name for name in config.groups if name in values_of(records, "group")]
    chosen = {name: part_of(config, records, name) for name in there}
    if any(record["arm"] == FRESH for record in records):
        beside = [r for name in there if name in BESIDE_FRESH for r in chosen[name]]
        # SGD is in each of the groups, and counts once
        chosen["fresh"] = minus_fresh(list({r["run"]: r for r in beside}.values()))
    if "controls" in chosen:
        chosen["controls"] = with_sgd(chosen["controls"])
    write_report(
        folder,
        title="Plasticity and sharpness",
        claim=f"{CLAIM} Images here: {Path(config.data).name or 'not named'}.",
        verdict=verdict(chosen.get("paper", [])),
        sections=[SECTIONS[n](chosen[n]) for n in SECTIONS if n in chosen],
        records=records,
    )


def readme_text(folder: RunFolder) -> str:
    """What the README says of a run: how much is there, the figure, the tables."""
    records = read_records(folder)
    paper = part_of(folder.config, records, "paper")
    environment = read_json(folder.path / "environment.json")
    ended = read_json(folder.path / "status.json")["status"] in ("done", "diverged")
    counts = Counter(record["setting"] for record in paper)
    listed = ", ".join(f"{count} in {name}" for name, count in counts.items())
    place = f"results/{folder.path.name}"
    parts = [
        f"Figure and numbers are those of the {len(records)} runs committed in `{place}`, "
        f"of the paper's own arms {listed or 'none'}; all runs of the preset are "
        f"{'there' if ended else 'not there yet'}. {environment['cpu']}, JAX "
        f"{environment['versions']['jax']}."
    ]
    if complete := settings_with(paper, *PAPER_ARMS):
        parts += [
            f"![Accuracy on the task just learned]({place}/figures/accuracy.png)",
            f"*The settings in which SGD, SAM and GNP have all run: "
            f"{', '.join(complete)}.*",
        ]
    if paper:
        parts += [
            counted(compare(paper)),
            to_markdown(accuracy_table(paper)).strip(),
            "The same runs along the stream, slopes of accuracy compared:",
            to_markdown(slope_table(paper)).strip(),
        ]
    measured = minus_fresh([*paper, *(r for r in records if r["arm"] == FRESH)])
    if any(r["arm"] != FRESH for r in measured):
        parts += [
            "Plasticity: accuracy minus that of a fresh start on the same task:",
            f"![Accuracy minus a fresh start]({place}/figures/minus-fresh.png)",
            to_markdown(fresh_table(measured)).strip(),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    expect_no_words(__doc__)
    for made in COMMITTED:
        report(made.config, made)
        fill(HERE / "README.md", readme_text(made), made.preset)
