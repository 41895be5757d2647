"""From ``results.jsonl`` to tables, figures and one page; nothing is typed by hand.

Whatever has finished is shown: settings and arms without a run are left out, diverged
runs are named, and where SGD has no finished run the tables compare nothing.

``python -m experiments.plasticity.report`` does it for the committed results, and puts
their numbers into the README beside this file.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.plasticity.arms import trials
from experiments.plasticity.comparisons import (
    FRESH,
    GAP,
    PAPER_ARMS,
    Record,
    accuracy_table,
    compare,
    counted,
    fresh_table,
    minus_fresh,
    names,
    part_of,
    settings_with,
    slope_table,
    verdict,
    within,
)
from experiments.plasticity.config import PRESETS, Config
from experiments.plasticity.report_controls import controls_section
from experiments.plasticity.report_parts import (
    known,
    measure_pictures,
    picture,
    table,
    window_of,
)
from jaxcl.report import page
from jaxcl.report.curves import learning_curves
from jaxcl.report.heatmaps import heatmap
from jaxcl.report.records import group, split
from jaxcl.report.summaries import grid
from jaxcl.report.tables import measure_table, to_markdown
from jaxcl.runs.experiment import expect_no_words
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill
from jaxcl.training.files import write_text

CLAIM = (
    "Claim (arXiv:2409.17300): on streams of MNIST tasks, SAM and the gradient norm "
    "penalty keep a network no better able to learn than SGD does."
)
HERE = Path(__file__).parent
#: Whose figures and numbers stand in the README, each between marks of its own name.
COMMITTED = tuple(
    RunFolder(HERE / "results" / name, "plasticity", name, PRESETS[name])
    for name in ("paper", "cifar")
)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html`` of whatever has finished."""
    records, path = in_order(config, read_records(folder)), folder.path
    writers = {
        "paper": paper_section,
        "neighbours": neighbours_section,
        "sweep": sweep_section,
        "adaptive": adaptive_section,
        "controls": controls_section,
    }
    found = {record["group"] for record in records}
    parts = {
        group: part_of(config, records, group)
        for group in config.groups
        if group in found
    }
    sections = {group: writers[group](part, path) for group, part in parts.items()}
    if any(record["arm"] == FRESH for record in records):
        sections = {"fresh": fresh_section(parts, path), **sections}
    order = ("paper", "fresh", "neighbours", "sweep", "adaptive", "controls")
    said = verdict(parts.get("paper", []))
    html = page.render(
        title="Plasticity and sharpness",
        claim=f"{CLAIM} Images here: {Path(config.data).name or 'not named'}.",
        verdict=said,
        sections=[sections[name] for name in order if name in sections],
        records=records,
        config=read_json(path / "config.json"),
        environment=read_json(path / "environment.json"),
        status=read_json(path / "status.json"),
    )
    write_text(path / "report.html", html)
    print(said.replace("; ", "\n").replace(". ", ".\n"))
    print(f"figures and tables: {path / 'report.html'}")


def paper_section(records: Sequence[Record], path: Path) -> page.Section:
    """Accuracy on the task just learned, the paper's figure, and what goes with it."""
    pictures = []
    if complete := settings_with(records, *PAPER_ARMS):
        pictures.append(
            accuracy_picture(
                path,
                "accuracy",
                within(records, complete),
                "Test accuracy on the task just learned against the number of tasks, in "
                "the settings in which SGD, SAM and GNP have all run.",
            )
        )
    pictures += measure_pictures(path, "measures", records, settings_with(records))
    tables = [
        table(path, "accuracy", accuracy_table(records)),
        table(path, "slope", slope_table(records)),
        table(path, "measures", measure_table(records, known(records), task=None)),
    ]
    found = {record["hyper"]["learning_rate"] for record in records}
    rates = ", ".join(f"{rate:g}" for rate in sorted(found, reverse=True))
    text = (
        f"SGD, SAM and GNP at the rates {rates} (the paper's are 0.01 and 0.001). "
        "The comparison is paired by seed: "
        "the same start, the same tasks. Where every seed draws its own tasks (permuted), "
        "a slope below zero is lost plasticity; curves may rise first and fall later, so "
        "the slope of the second half stands beside that of the whole."
    )
    return page.Section("The paper's comparison", text, pictures, tables)


def in_order(config: Config, records: Sequence[Record]) -> list[Record]:
    """As they are listed in the configuration, whichever worker was done first."""
    listed = {
        (trial.arm, *trial.hyper.items(), trial.seed): place
        for place, trial in reversed([*enumerate(trials(config))])
    }

    def place(record: Record):
        run = (record["arm"], *record["hyper"].items(), record["seed"])
        setting = record["setting"]
        known = setting in config.settings
        return (
            config.settings.index(setting) if known else len(config.settings),
            listed.get(run, len(listed)),
        )

    return sorted(records, key=place)


def fresh_section(parts: dict[str, list[Record]], path: Path) -> page.Section:
    """What a network has lost by what it learned before: accuracy minus a fresh start."""
    listed = ("paper", "neighbours", "adaptive")
    every = {r["run"]: r for group in listed for r in parts.get(group, [])}
    measured = minus_fresh(list(every.values()))
    arms = (*PAPER_ARMS, FRESH)
    drawn = [r for arm in arms for r in measured if r["arm"] == arm]
    pictures, tables = [], []
    if any(r["arm"] != FRESH for r in drawn):
        curves = learning_curves(
            drawn,
            name=GAP,
            label="accuracy minus fresh, points",
            window=window_of(drawn),
        )
        alt = (
            "Accuracy on the task just learned minus that of SGD from a fresh start, at "
            "the same rate and seed. Above zero the past helps, below it hurts."
        )
        pictures.append(picture(path, "minus-fresh", curves, alt))
    if any(r["arm"] != FRESH for r in measured):
        tables.append(table(path, "minus-fresh", fresh_table(measured)))
    text = (
        "Plasticity measured: accuracy on a task minus that of plain SGD which starts the "
        "same task from the run's initial parameters, with the same batches. How hard a "
        "task is drops out, so this holds for pairs in a fixed order, too. For methods "
        "other than SGD the level also holds how fast they learn any task; the change "
        "along the stream does not. CReLU and LayerNorm are other networks than the "
        "fresh one."
    )
    return page.Section("Plasticity: against a fresh start", text, pictures, tables)


def neighbours_section(records: Sequence[Record], path: Path) -> page.Section:
    """What else is known to preserve plasticity, beside SGD."""
    text = (
        "The arm fresh starts every task from the run's initial parameters: it has "
        "learned nothing before and so has lost nothing."
    )
    title = "Beside them: what preserves plasticity"
    return compared_section(title, text, "neighbours", records, path)


def adaptive_section(records: Sequence[Record], path: Path) -> page.Section:
    """Strengths that follow the measured sharpness or the age of the task."""
    text = (
        "SAM whose radius holds the rise of the loss, and SAM and GNP whose strength "
        "starts from zero at each task."
    )
    return compared_section("Strengths that adapt", text, "adaptive", records, path)


def compared_section(
    title: str, text: str, name: str, records: Sequence[Record], path: Path
) -> page.Section:
    """Curves, accuracy and slopes of a group that is compared with SGD."""
    others = [record for record in records if record["arm"] != "sgd"]
    records = within(records, names(others, "setting"))
    pictures = []
    if finished := settings_with(records):
        alt = "Test accuracy on the task just learned against the number of tasks."
        pictures.append(accuracy_picture(path, name, within(records, finished), alt))
    tables = [
        table(path, name, accuracy_table(records)),
        table(path, f"{name}-slope", slope_table(records)),
    ]
    return page.Section(title, text, pictures, tables)


def sweep_section(records: Sequence[Record], path: Path) -> page.Section:
    """The grids over rho and over lambda x r that the authors did not run."""
    others = [record for record in records if record["arm"] != "sgd"]
    records = within(records, names(others, "setting"))
    pictures = []
    for setting in names(others, "setting"):
        here = within(others, [setting])
        if sams := [r for r in here if r["arm"] == "sam"]:
            made = grid(sams, rows="learning_rate", columns="rho")
            pictures.append(
                picture(
                    path,
                    f"sweep-sam-{setting}",
                    heatmap(made, title=f"SAM, {setting}"),
                    f"Mean accuracy of SAM over rho and learning rate, {setting}.",
                )
            )
        gnps = [r for r in here if r["arm"] == "gnp"]
        for rate in names([r["hyper"] for r in gnps], "learning_rate"):
            some = [r for r in gnps if r["hyper"]["learning_rate"] == rate]
            made = grid(some, rows="r", columns="penalty")
            pictures.append(
                picture(
                    path,
                    f"sweep-gnp-{setting}-{rate:g}",
                    heatmap(made, title=f"GNP, {setting}, rate {rate:g}"),
                    f"Mean accuracy of GNP over r and lambda at {rate:g}, {setting}.",
                )
            )
    tables = [table(path, "sweep", accuracy_table(records))]
    text = "Where alpha = lambda / r is 1, GNP is SAM; above 1 it extrapolates."
    return page.Section("Strengths the authors did not try", text, pictures, tables)


def accuracy_picture(
    path: Path, name: str, records: Sequence[Record], alt: str
) -> page.Picture:
    """Learning curves, saved."""
    drawn = learning_curves(records, window=window_of(records))
    several = max(map(len, group(split(records)[0]).values())) > 1
    caption = f"{alt} Bands are 95 % intervals over seeds." if several else alt
    return picture(path, name, drawn, alt, caption)


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


__all__ = ["COMMITTED", "readme_text", "report"]
