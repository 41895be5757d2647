"""From ``results.jsonl`` to tables: seconds, targets, and this folder's README."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from experiments.benchmarks.config import Config
from jaxcl.report.records import Record, split
from jaxcl.report.tables import Column, Table, to_markdown
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


def report(config: Config, folder: RunFolder) -> None:
    """Write and print the tables; fill the README, if these are the committed results."""
    made = tables(config, folder)
    for name, text in made.items():
        write_text(folder.path / "tables" / f"{name}.md", text)
    if README.parent in folder.path.resolve().parents:
        name = folder.path.name
        fill(README, section(config, folder), "results" if name == "speed" else name)
    print(*made.values(), sep="\n")


def tables(config: Config, folder: RunFolder) -> dict[str, str]:
    """All tables by name, in Markdown."""
    done = by_job(read_records(folder))
    made = {
        "targets": targets_table(targets(config, done)),
        "seconds": seconds_table(config, done),
        "ewc": ewc_table(done),
    }
    return {name: to_markdown(table) for name, table in made.items()}


def section(config: Config, folder: RunFolder) -> str:
    """What the README says of a folder of results: of all but ``speed``, the seconds."""
    records, made = read_records(folder), tables(config, folder)
    if folder.path.name != "speed":
        made = {"seconds": made["seconds"]}
    words = surroundings(folder, by_job(records))
    if lost := split(records)[1]:
        names = ", ".join(record["run"] for record in lost)
        words += f" Diverged, and counted nowhere: {names}."
    return "\n".join([f"{words}\n", *made.values()])


def by_job(records: Sequence[Record]) -> Done:
    """The finished turns of each system at each job, in the order of rounds."""
    done: Done = {}
    for record in sorted(split(records)[0], key=lambda record: record["round"]):
        done.setdefault((record["job"], record["system"]), []).append(record)
    return done


def targets(config: Config, done: Done) -> list[Target]:
    """Every promise whose systems were run."""
    train = lambda record: sum(record["train_cpu"])
    test = lambda record: sum(record["eval_cpu"])
    ours = lambda job: (job, "jaxcl")

    def times(what, bound, job, system, cost=train):
        """At least so many times faster than another system."""
        values = ratios(done, (job, system), ours(job), cost)
        return Target(what, bound, True, values)

    def step(what, bound, job):
        """A step at most so many times as dear as the plain one."""
        return Target(what, bound, False, ratios(done, ours(job), ours("naive"), train))

    def seeds(how, cost):
        """Runs in one program against the same runs, each in its own."""
        records = done.get(ours("seeds"), [])
        values = [record[cost] / sum(record["alone_cpu"]) for record in records]
        what = f"{config.num_seeds} seeds in one program, {how}, against one by one"
        return Target(what, 0.75, False, values)

    costs = [row[0]["compile_cpu"] for row in done.values() if "compile_cpu" in row[0]]
    compiling = [max(costs)] if costs else []
    listed = [
        times("SGD against Avalanche", 3.0, "naive", "avalanche"),
        times("EWC against Avalanche", 4.5, "ewc", "avalanche"),
        times("experience replay against Avalanche", 2.0, "er", "avalanche"),
        times("A-GEM against Avalanche", 2.0, "agem", "avalanche"),
        times("evaluation against Avalanche", 4.0, "naive", "avalanche", test),
        times("SGD against PyTorch by hand", 1.3, "naive", "torch"),
        step("SAM's step against the plain one", 2.1, "sam"),
        step("LookSAM's step, k = 5", 1.35, "looksam"),
        step("C-Flat's step", 4.2, "c_flat"),
        seeds("vmapped", "together_cpu"),
        seeds("in turn", "in_turn_cpu"),
        Target(
            f"EWC, tasks {late(config)} against tasks 2 to 5 of {config.long_tasks}",
            1.1,
            False,
            [growth(record["train_cpu"]) for record in done.get(ours("ewc-long"), [])],
        ),
        Target("compilation of the slowest method", 5.0, False, compiling, "CPU s"),
    ]
    return [target for target in listed if target.values]


def ratios(
    done: Done,
    above: tuple[str, str],
    below: tuple[str, str],
    cost: Callable[[Record], float],
) -> list[float]:
    """Cost over cost, each within one round; rounds that lack one of them are left out."""
    there = {record["round"]: cost(record) for record in done.get(below, [])}
    return [
        cost(record) / there[record["round"]]
        for record in done.get(above, [])
        if record["round"] in there
    ]


def growth(seconds: Sequence[float]) -> float:
    """The last quarter of a stream against tasks 2 to 5; the first task warms up."""
    return fmean(seconds[-max(1, len(seconds) // 4) :]) / fmean(seconds[1:5])


def late(config: Config) -> str:
    """The last quarter, in words."""
    total = config.long_tasks
    return f"{total - max(1, total // 4) + 1} to {total}"


def targets_table(listed: Sequence[Target]) -> Table:
    """What was promised, and what came: the median round decides."""
    rows = []
    for what, bound, at_least, values, unit in listed:
        middle = median(values)
        met = middle >= bound if at_least else middle <= bound
        sign = "≥" if at_least else "≤"
        asked = f"{sign} {bound:g} {unit}"
        spread = f"{min(values):.2f} to {max(values):.2f}"
        rows.append((what, asked, middle, spread, "met" if met else "missed"))
    columns = (
        Column("target"),
        Column("asked"),
        Column("median round", 2),
        Column("all rounds"),
        Column("verdict"),
    )
    note = "Ratios of CPU seconds within a round; evaluation and compilation apart."
    return Table(columns, tuple(rows), (note,))


def seconds_table(config: Config, done: Done) -> Table:
    """CPU seconds of whole streams, median and least."""
    rows, held = [], any(system == "baseline" for _, system in done)
    for job in config.jobs:
        for system in LABELS:
            records = done.get((job, system), [])
            if job not in NAMES or not records:
                continue
            train = [sum(record["train_cpu"]) for record in records]
            test = [sum(record["eval_cpu"]) for record in records]
            images = config.num_tasks**2 * config.num_test
            matrix = records[-1]["accuracy"]
            rows.append(
                (
                    NAMES[job],
                    LABELS[system],
                    median(train),
                    min(train),
                    config.num_tasks * config.num_train / median(train) / 1000,
                    median(test),
                    images / median(test) / 1000,
                    records[0].get("compile_cpu"),
                    fmean(row[task] for task, row in enumerate(matrix)),
                    fmean(matrix[-1]),
                    *([times_baseline(done, job, system)] if held else []),
                )
            )
    columns = (
        Column("method"),
        Column("system"),
        Column("train, s", 2),
        Column("least", 2),
        Column("thousand images/s", 1),
        Column("evaluate, s", 3),
        Column("thousand images/s", 0),
        Column("compile, s", 2),
        Column("just learned, %", 1, 100.0),
        Column("at the end, %", 1, 100.0),
        *([Column("x baseline")] if held else []),
    )
    note = (
        "CPU seconds of one stream: medians, and the least for training. Accuracy is a "
        "mean over the tasks: each when it was just learned, which shows that all did "
        "the same job, and all at the end, which shows what was forgotten of it. "
        "Nothing is tuned."
    )
    if held:
        note += (
            " x baseline: training against that of an earlier commit in the same round, "
            "the median round and all of them."
        )
    return Table(columns, tuple(rows), (note,))


def times_baseline(done: Done, job: str, system: str) -> str | None:
    """How many times the baseline's seconds ours are, in words; None for others."""
    train = lambda record: sum(record["train_cpu"])
    found = ratios(done, (job, system), (job, "baseline"), train)
    if system != "jaxcl" or not found:
        return None
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def ewc_table(done: Done) -> Table:
    """Seconds of each task: whose penalty grows with the past."""
    rows = []
    for (job, system), records in done.items():
        if job not in ("ewc", "ewc-long"):
            continue
        total = len(records[0]["train_cpu"])
        shown = sorted(
            {0, 1, 2, 3, 4, *range(4, total, 5), total - 1} & {*range(total)}
        )
        middle = [median(r["train_cpu"][task] for r in records) for task in shown]
        cells = ", ".join(
            f"{task + 1}: {value:.2f}"
            for task, value in zip(shown, middle, strict=True)
        )
        rows.append((LABELS[system], cells))
    note = "Median CPU seconds of training, Fisher included."
    return Table((Column("EWC"), Column("seconds of task")), tuple(rows), (note,))


def surroundings(folder: RunFolder, done: Done) -> str:
    """Versions and machine, in a sentence or two."""
    here = read_json(folder.path / "environment.json")
    versions = {name: here["versions"][name] for name in ("python", "jax", "optax")}
    for records in done.values():
        versions |= records[0].get("versions", {})
    loads = [record["load"] for records in done.values() for record in records]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    rounds = max(map(len, done.values()))
    return (
        f"{rounds} rounds on one thread of {here['cpu']}; {listed}. Load average "
        f"{min(loads):.1f} to {max(loads):.1f} while measuring."
    )
