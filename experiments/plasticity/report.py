"""From ``results.jsonl`` to tables, figures and one page; nothing is typed by hand."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.harness import RunFolder, read_json, read_records, write_text
from experiments.plasticity.arms import trials
from experiments.plasticity.config import PRESETS, Config
from jaxcl.report import figures, page
from jaxcl.report.cells import heatmap
from jaxcl.report.lines import learning_curves, measure_curves
from jaxcl.report.records import curves, split
from jaxcl.report.summaries import Summary, grid, summarize
from jaxcl.report.tables import (
    Column,
    Table,
    measure_table,
    summary_table,
    to_csv,
    to_markdown,
)

Record = dict[str, Any]

CLAIM = (
    "Claim (arXiv:2409.17300): on streams of MNIST tasks, SAM and the gradient norm "
    "penalty keep a network no better able to learn than SGD does."
)
MEASURES = (
    "loss",
    "sam_sharpness",
    "top_eigenvalue",
    "effective_rank",
    "dormant_share",
    "weight_norm",
)


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/``, ``figures/`` and ``report.html`` of whatever has finished."""
    records = read_records(folder)
    parts = {group: part_of(config, records, group) for group in config.groups}
    parts = {
        group: part
        for group, part in parts.items()
        if any(record["group"] == group for record in part)
    }
    writers = {
        "paper": paper_section,
        "neighbours": neighbours_section,
        "sweep": sweep_section,
        "adaptive": adaptive_section,
        "controls": controls_section,
    }
    sections = [writers[group](part, folder.path) for group, part in parts.items()]
    path = folder.path
    html = page.render(
        title="Plasticity and sharpness",
        claim=CLAIM,
        verdict=verdict(parts.get("paper", [])),
        sections=sections,
        records=records,
        config=read_json(path / "config.json"),
        environment=read_json(path / "environment.json"),
        status=read_json(path / "status.json"),
    )
    write_text(path / "report.html", html)
    print(verdict(parts.get("paper", [])).replace("; ", "\n"))
    print(f"figures and tables: {path / 'report.html'}")


def part_of(config: Config, records: Sequence[Record], group: str) -> list[Record]:
    """The runs a group asks for, and SGD's as what they are compared with."""
    wanted = {
        (trial.arm, tuple(trial.hyper.items()), trial.seed)
        for trial in trials(config)
        if trial.group == group or (trial.arm == "sgd" and group != "controls")
    }
    return [
        record
        for record in records
        if (record["arm"], tuple(record["hyper"].items()), record["seed"]) in wanted
    ]


def verdict(records: Sequence[Record]) -> str:
    """What the paper's arms did against SGD, in a sentence per setting and arm."""
    if not records:
        return "The paper's own arms were not run."
    lines = []
    for summary in compare(records):
        if summary.versus is None or summary.mean is None:
            continue
        gap = summary.versus.difference
        lines.append(
            f"{summary.group.setting}, {summary.label}: {100 * summary.mean.mean:.1f} %, "
            f"{points(gap.mean)} points against SGD "
            f"[{points(gap.low)}, {points(gap.high)}], {summary.verdict}"
        )
    return "; ".join(lines) + "."


def points(share: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "\N{MINUS SIGN}")


def compare(records: Sequence[Record]) -> list[Summary]:
    """Every group against SGD at its own learning rate; settings without SGD stay out."""
    with_sgd = {r["setting"] for r in split(records)[0] if r["arm"] == "sgd"}
    return summarize([r for r in records if r["setting"] in with_sgd], baseline="sgd")


def paper_section(records: Sequence[Record], path: Path) -> page.Section:
    """Accuracy on the task just learned, the paper's figure, and what goes with it."""
    window = 5 if len(records[0]["accuracy"]) >= 25 else 1
    pictures = [
        picture(
            path,
            "accuracy",
            learning_curves(records, window=window),
            "Test accuracy on the task just learned against the number of tasks.",
            "Lines that fall lose plasticity. Bands are 95 % intervals over seeds.",
        )
    ]
    for setting in names(records, "setting"):
        here = [r for r in records if r["setting"] == setting]
        pictures.append(
            picture(
                path,
                f"measures-{setting}",
                measure_curves(here, MEASURES, window=window, title=setting),
                f"Measures of plasticity and sharpness along the {setting} stream.",
            )
        )
    tables = [
        table(path, "accuracy", summary_table(compare(records))),
        table(path, "slope", summary_table(slopes(records), quantity="slope")),
        table(path, "measures", measure_table(records, MEASURES[:2] + MEASURES[3:])),
    ]
    text = (
        "SGD, SAM and GNP at the paper's two rates. The comparison is paired by seed: "
        "the same start, the same tasks. A slope below zero is lost plasticity."
    )
    return page.Section("The paper's comparison", text, pictures, tables)


def neighbours_section(records: Sequence[Record], path: Path) -> page.Section:
    """What else is known to preserve plasticity, beside SGD."""
    curve = picture(
        path,
        "neighbours",
        learning_curves(records, window=5 if len(records[0]["accuracy"]) >= 25 else 1),
        "Accuracy on the task just learned under methods that preserve plasticity.",
    )
    tables = [
        table(path, "neighbours", summary_table(compare(records))),
        table(
            path,
            "neighbours-slope",
            summary_table(slopes(records), quantity="slope"),
        ),
    ]
    return page.Section("Beside them: what preserves plasticity", "", [curve], tables)


def sweep_section(records: Sequence[Record], path: Path) -> page.Section:
    """The grids over rho and over lambda x r that the authors did not run."""
    pictures = []
    for setting in names(records, "setting"):
        here = [r for r in records if r["setting"] == setting]
        sams = [r for r in here if r["arm"] == "sam"]
        pictures.append(
            picture(
                path,
                f"sweep-sam-{setting}",
                heatmap(
                    grid(sams, rows="learning_rate", columns="rho"),
                    title=f"SAM, {setting}",
                ),
                f"Mean accuracy of SAM over rho and learning rate, {setting}.",
            )
        )
        for rate in names([r["hyper"] for r in here], "learning_rate"):
            gnps = [
                r
                for r in here
                if r["arm"] == "gnp" and r["hyper"]["learning_rate"] == rate
            ]
            pictures.append(
                picture(
                    path,
                    f"sweep-gnp-{setting}-{rate:g}",
                    heatmap(
                        grid(gnps, rows="r", columns="penalty"),
                        title=f"GNP, {setting}, rate {rate:g}",
                    ),
                    f"Mean accuracy of GNP over r and lambda at {rate:g}, {setting}.",
                )
            )
    tables = [table(path, "sweep", summary_table(compare(records)))]
    text = "Where alpha = lambda / r is 1, GNP is SAM; above 1 it extrapolates."
    return page.Section("Strengths the authors did not try", text, pictures, tables)


def adaptive_section(records: Sequence[Record], path: Path) -> page.Section:
    """Strengths that follow the measured sharpness or the age of the task."""
    tables = [table(path, "adaptive", summary_table(compare(records)))]
    text = (
        "SAM whose radius holds the rise of the loss, and SAM and GNP whose strength "
        "starts from zero at each task."
    )
    return page.Section("Strengths that adapt", text, [], tables)


def controls_section(records: Sequence[Record], path: Path) -> page.Section:
    """Is sharpness the cause? Runs on one sphere that differ in it."""
    pictures = [
        picture(
            path,
            f"cause-{setting}",
            figures.scatter(
                [r for r in records if r["setting"] == setting],
                "sam_sharpness",
                title=f"{setting}: weight norm held",
            ),
            f"Accuracy against sharpness at equal weight norm, {setting}.",
        )
        for setting in names(records, "setting")
    ]
    tables = [
        table(path, "cause", partial_table(records)),
        table(
            path, "controls", measure_table(records, ("weight_norm", *MEASURES[1:5:2]))
        ),
    ]
    text = (
        "Every run is kept at the weight norm it started with; SAM, its reverse and "
        "noise of equal size then pull sharpness apart. The table asks whether sharpness "
        "still goes with accuracy once rank, the learning rate and the seed are accounted "
        "for: correlation of what is left of both after a linear fit."
    )
    return page.Section("Is sharpness the cause?", text, pictures, tables)


def partial_table(records: Sequence[Record]) -> Table:
    """Correlation of sharpness and accuracy, plain and with others accounted for."""
    rows = []
    for setting in names(records, "setting"):
        done = [r for r in split(records)[0] if r["setting"] == setting]
        per_run = lambda name, done=done: np.nanmean(curves(done, name), axis=1)
        sharpness, accuracy = per_run("sam_sharpness"), per_run("accuracy")
        rates = np.log([r["hyper"]["learning_rate"] for r in done])
        seeds = np.eye(1 + max(r["seed"] for r in done))[[r["seed"] for r in done]]
        known = np.column_stack([seeds, rates, per_run("effective_rank")])
        for label, others in (
            ("nothing", np.ones((len(done), 1))),
            ("seed and rate", known[:, :-1]),
            ("seed, rate and rank", known),
        ):
            left = len(done) - np.linalg.matrix_rank(others) - 2
            value = partial_correlation(np.log(sharpness), accuracy, others)
            if left < 1 or np.isnan(value):
                rows.append((setting, label, None, None, len(done)))
                continue
            t = value * np.sqrt(left / max(1 - value**2, 1e-12))
            rows.append(
                (setting, label, value, 2 * stats.t.sf(abs(t), left), len(done))
            )
    columns = (
        Column("setting"),
        Column("accounted for"),
        Column("correlation"),
        Column("p", is_p_value=True),
        Column("runs", 0),
    )
    note = (
        "Log of SAM's sharpness and accuracy, means over the stream, one point per run."
    )
    return Table(columns, tuple(rows), (note,))


def partial_correlation(x, y, others) -> float:
    """Pearson's correlation of what a linear fit on ``others`` leaves of x and y."""
    rest = lambda v: v - others @ np.linalg.lstsq(others, v, rcond=None)[0]
    x, y = rest(x), rest(y)
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def slopes(records: Sequence[Record]) -> list[Summary]:
    """Like :func:`compare`, for the slope of accuracy over the stream."""
    with_sgd = {r["setting"] for r in split(records)[0] if r["arm"] == "sgd"}
    here = [r for r in records if r["setting"] in with_sgd]
    return summarize(here, baseline="sgd", quantity="slope")


def names(rows: Sequence[dict], field: str) -> list:
    """The values of a field in order of appearance."""
    return list(dict.fromkeys(row[field] for row in rows))


def picture(path: Path, name: str, figure, alt: str, caption: str = "") -> page.Picture:
    """Save a figure and hand it on to the page."""
    figures.save(figure, path / "figures" / name)
    return page.Picture(figure, alt, caption or alt)


def table(path: Path, name: str, made: Table) -> Table:
    """Save a table and hand it on to the page."""
    write_text(path / "tables" / f"{name}.csv", to_csv(made))
    write_text(path / "tables" / f"{name}.md", to_markdown(made))
    return made


def fill_readme(folder: RunFolder, readme: Path) -> None:
    """Put the tables of a run between the markers of this folder's README."""
    records = read_records(folder)
    paper = part_of(folder.config, records, "paper")
    environment = read_json(folder.path / "environment.json")
    status = read_json(folder.path / "status.json")
    finished = status["status"] in ("done", "diverged")
    done = Counter(record["setting"] for record in paper)
    counts = ", ".join(f"{count} in {name}" for name, count in done.items())
    text = "\n\n".join(
        [
            f"{len(records)} runs have finished, of the paper's own arms {counts}; "
            f"all runs of the preset are {'there' if finished else 'not there yet'}. "
            f"{environment['cpu']}, JAX {environment['versions']['jax']}.",
            "![Accuracy on the task just learned](results/paper/figures/accuracy.png)",
            (folder.path / "tables" / "accuracy.md").read_text().strip(),
            "Does accuracy fall along the stream? The same runs, slopes compared:",
            (folder.path / "tables" / "slope.md").read_text().strip(),
        ]
    )
    before, rest = readme.read_text().split(START)
    _, after = rest.split(END)
    write_text(readme, f"{before}{START}\n\n{text}\n\n{END}{after}")


START, END = "<!-- results: first -->", "<!-- results: last -->"


if __name__ == "__main__":
    here = Path(__file__).parent
    paper = RunFolder(
        here / "results" / "paper", "plasticity", "paper", PRESETS["paper"]
    )
    report(paper.config, paper)
    fill_readme(paper, here / "README.md")


__all__ = ["fill_readme", "partial_correlation", "partial_table", "report"]
