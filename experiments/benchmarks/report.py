"""From ``results.jsonl`` to tables: seconds, targets, and this folder's README."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.config import Config
from jaxcl.report.records import Record, split
from jaxcl.report.tables import Column, Table, table_of, to_markdown
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill
from jaxcl.training.files import write_text

#: ``{(job, system): records by round}``.
Done = dict[tuple[str, str], list[Record]]

README = Path(__file__).parent / "README.md"

LABELS = {
    "jaxcl": "jaxcl",
    "baseline": "baseline",
    "jax": "JAX by hand",
    "torch": "PyTorch by hand",
    "avalanche": "Avalanche",
    "avalanche-own-stream": "Avalanche, its PermutedMNIST",
}
NAMES = {
    "naive": "SGD",
    "sam": "SAM",
    "gnp": "GNP",
    "looksam": "LookSAM, k = 5",
    "looksam_reset": "LookSAM, restarted by task",
    "c_flat": "C-Flat",
    "ewc": "EWC",
    "er": "experience replay",
    "agem": "A-GEM",
}


class Target(NamedTuple):
    """A promise about a number taken in every round."""

    what: str
    bound: float
    at_least: bool
    values: list[float]  # one per round
    unit: str = "x"


#: At least so many times faster than another system: what, bound, job, system, field.
FASTER = (
    ("SGD against Avalanche", 3.0, "naive", "avalanche", "train_cpu"),
    ("EWC against Avalanche", 4.5, "ewc", "avalanche", "train_cpu"),
    ("experience replay against Avalanche", 2.0, "er", "avalanche", "train_cpu"),
    ("A-GEM against Avalanche", 2.0, "agem", "avalanche", "train_cpu"),
    ("evaluation against Avalanche", 4.0, "naive", "avalanche", "eval_cpu"),
    ("SGD against PyTorch by hand", 1.3, "naive", "torch", "train_cpu"),
)
#: A step at most so many times as dear as the plain one: what, bound, job.
DEARER = (
    ("SAM's step against the plain one", 2.1, "sam"),
    ("LookSAM's step, k = 5", 1.35, "looksam"),
    ("C-Flat's step", 4.2, "c_flat"),
)


def report(config: Config, folder: RunFolder) -> None:
    """Write and print the tables; fill the README, if these are the committed results."""
    name = folder.path.name
    committed = README.parent in folder.path.resolve().parents
    mark = "results" if name == "speed" else name
    text = section(config, folder) if committed else ""
    publish(folder, tables(config, folder), text, mark)


def publish(folder: RunFolder, made: dict[str, str], text: str, mark: str) -> None:
    """Write and print tables; fill a text, if there is one, between marks of the README."""
    for name, table in made.items():
        write_text(folder.path / "tables" / f"{name}.md", table)
    if text:
        fill(README, text, mark)
    print(*made.values(), sep="\n")


def markdown(made: dict[str, Table]) -> dict[str, str]:
    """Tables by name, in Markdown; those without a row are left out."""
    return {name: to_markdown(table) for name, table in made.items() if table.rows}


def tables(config: Config, folder: RunFolder) -> dict[str, str]:
    """All tables by name, in Markdown."""
    done = by_job(read_records(folder))
    made = {
        "targets": targets_table(targets(config, done), RATIOS),
        "seconds": seconds_table(config, done),
        "ewc": ewc_table(done),
    }
    return markdown(made)


def section(config: Config, folder: RunFolder) -> str:
    """What the README says of a folder of results: of all but ``speed``, the seconds."""
    records, made = read_records(folder), tables(config, folder)
    words = surroundings(folder, by_job(records))
    if lost := split(records)[1]:
        names = ", ".join(record["run"] for record in lost)
        words += f" Diverged, and counted nowhere: {names}."
    if folder.path.name != "speed":
        made = {"seconds": made["seconds"]}
    return "\n".join([f"{words}\n", *made.values()])


def by_job(records: Sequence[Record]) -> Done:
    """The finished turns of each system at each job, in the order of rounds."""
    done: Done = {}
    for record in sorted(split(records)[0], key=lambda record: record["round"]):
        done.setdefault((record["job"], record["system"]), []).append(record)
    return done


def targets(config: Config, done: Done) -> list[Target]:
    """Every promise whose systems were run."""
    ours, plain = lambda job: (job, "jaxcl"), ("naive", "jaxcl")
    rounds = lambda job: done.get(ours(job), [])

    def seeds(how: str, field: str) -> Target:
        """Runs in one program against the same runs, each in its own."""
        values = [turn[field] / sum(turn["alone_cpu"]) for turn in rounds("seeds")]
        what = f"{config.num_seeds} seeds in one program, {how}, against one by one"
        return Target(what, 0.75, False, values)

    last, quarter = config.long_tasks, max(1, config.long_tasks // 4)
    late = f"EWC, tasks {last - quarter + 1} to {last} against tasks 2 to 5 of {last}"
    growing = [growth(turn["train_cpu"]) for turn in rounds("ewc-long")]
    costs = [row[0]["compile_cpu"] for row in done.values() if "compile_cpu" in row[0]]
    compiling = [max(costs)] if costs else []
    listed = [
        *(
            Target(what, bound, True, ratios(done, (job, system), ours(job), field))
            for what, bound, job, system, field in FASTER
        ),
        *(
            Target(what, bound, False, ratios(done, ours(job), plain))
            for what, bound, job in DEARER
        ),
        seeds("vmapped", "together_cpu"),
        seeds("in turn", "in_turn_cpu"),
        Target(late, 1.1, False, growing),
        Target("compilation of the slowest method", 5.0, False, compiling, "CPU s"),
    ]
    return [target for target in listed if target.values]


def ratios(
    done: Done,
    above: tuple[str, str],
    below: tuple[str, str],
    field: str = "train_cpu",
) -> list[float]:
    """Cost over cost, each within one round; rounds that lack one of them are left out."""
    there = {turn["round"]: sum(turn[field]) for turn in done.get(below, [])}
    return [
        sum(turn[field]) / there[turn["round"]]
        for turn in done.get(above, [])
        if turn["round"] in there
    ]


def growth(seconds: Sequence[float]) -> float:
    """The last quarter of a stream against tasks 2 to 5; the first task warms up."""
    return fmean(seconds[-max(1, len(seconds) // 4) :]) / fmean(seconds[1:5])


RATIOS = "Ratios of CPU seconds within a round; evaluation and compilation apart."


def targets_table(listed: Sequence[Target], *notes: str) -> Table:
    """What was promised, and what came: the median round decides."""

    def row(target: Target) -> dict[Column, Any]:
        middle, bound = median(target.values), target.bound
        met = middle >= bound if target.at_least else middle <= bound
        sign = "≥" if target.at_least else "≤"
        return {
            Column("target"): target.what,
            Column("asked"): f"{sign} {bound:g} {target.unit}",
            Column("median round", 2): middle,
            Column("all rounds"): spread(target.values),
            Column("verdict"): "met" if met else "missed",
        }

    return table_of(map(row, listed), *notes)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The least and the largest, in words."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def seconds_table(config: Config, done: Done) -> Table:
    """CPU seconds of whole streams, median and least."""
    note = (
        "CPU seconds of one stream: medians, and the least for training. Accuracy is a "
        "mean over the tasks: each when it was just learned, which shows that all did "
        "the same job, and all at the end, which shows what was forgotten of it. "
        "Nothing is tuned."
    )
    if held := any(system == "baseline" for _, system in done):
        note += (
            " x baseline: training against that of an earlier commit in the same round, "
            "the median round and all of them."
        )
    rows = []
    for job in [job for job in config.jobs if job in NAMES]:
        for system in [system for system in LABELS if (job, system) in done]:
            turns = done[job, system]
            train = [sum(turn["train_cpu"]) for turn in turns]
            test = median(sum(turn["eval_cpu"]) for turn in turns)
            images, matrix = config.num_tasks * config.num_train, turns[-1]["accuracy"]
            row = {
                Column("method"): NAMES[job],
                Column("system"): LABELS[system],
                Column("train, s", 2): median(train),
                Column("least", 2): min(train),
                Column("thousand images/s", 1): images / median(train) / 1000,
                Column("evaluate, s", 3): test,
                Column("thousand images/s", 0): (
                    config.num_tasks**2 * config.num_test / test / 1000
                ),
                Column("compile, s", 2): turns[0].get("compile_cpu"),
                Column("just learned, %", 1, 100.0): fmean(np.diag(matrix)),
                Column("at the end, %", 1, 100.0): fmean(matrix[-1]),
            }
            if held:
                here, before = (job, "jaxcl"), (job, "baseline")
                found = ratios(done, here, before) if system == "jaxcl" else []
                words = f"{median(found):.2f} ({spread(found)})" if found else None
                row[Column("x baseline")] = words
            rows.append(row)
    return table_of(rows, note)


def ewc_table(done: Done) -> Table:
    """Seconds of each task: whose penalty grows with the past."""

    def row(system: str, turns: list[Record]) -> dict[Column, Any]:
        middle = np.median([turn["train_cpu"] for turn in turns], axis=0)
        last = len(middle)
        shown = sorted({*range(1, 6), *range(5, last, 5), last} & {*range(1, last + 1)})
        cells = ", ".join(f"{task}: {middle[task - 1]:.2f}" for task in shown)
        return {Column("EWC"): LABELS[system], Column("seconds of task"): cells}

    followed = [key for key in done if key[0] in ("ewc", "ewc-long")]
    note = "Median CPU seconds of training, Fisher included."
    return table_of((row(key[1], done[key]) for key in followed), note)


def surroundings(folder: RunFolder, done: Done) -> str:
    """Versions and machine, in a sentence or two."""
    here = read_json(folder.path / "environment.json")
    versions = {name: here["versions"][name] for name in ("python", "jax", "optax")}
    for turns in done.values():
        versions |= turns[0].get("versions", {})
    loads = [turn["load"] for turns in done.values() for turn in turns]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{max(map(len, done.values()))} rounds on one thread of {here['cpu']}; "
        f"{listed}. Load average {spread(loads, 1)} while measuring."
    )
