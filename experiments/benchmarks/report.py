"""From ``results.jsonl`` to tables, and into this folder's README."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcl.files import write_text
from jaxcl.report.records import Record, split
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill

#: ``{(job, system): records by round}``; only :mod:`.config` has several systems.
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


def report(config: Any, folder: RunFolder) -> None:
    """Write and print the tables; fill the README, if they stand there."""
    made = tables(config, folder)
    for name, table in made.items():
        write_text(folder.path / "tables" / f"{name}.md", table)
    name = folder.path.name
    mark = "results" if name == "speed" else name
    committed = README.parent in folder.path.resolve().parents
    if committed and f"<!-- {mark}: begin -->" in README.read_text("utf-8"):
        fill(README, section(config, folder), mark)
    print(*made.values(), sep="\n")


def tables(config: Any, folder: RunFolder) -> dict[str, str]:
    """All tables by name, in Markdown; those without a row are left out."""
    done = by_job(read_records(folder))
    notes = [RATIOS] if any(system for _, system in done) else []
    made = {
        "targets": targets_table(targets(done), *notes),
        "seconds": seconds_table(config, done),
        "ewc": ewc_table(done),
        "costs": costs_table(done),
        "devices": devices_table(done),
    }
    return {name: to_markdown(table) for name, table in made.items() if table.rows}


def by_job(records: Sequence[Record]) -> Done:
    """The finished turns of each system at each job, in the order of rounds."""
    done: Done = {}
    for record in sorted(split(records)[0], key=lambda record: record["round"]):
        who = record["job"], record.get("system", "")
        done.setdefault(who, []).append(record)
    return done


# ------------------------------------------------------------------ targets


class Target(NamedTuple):
    """A promise about a number taken in every round."""

    what: str
    bound: float
    at_least: bool
    values: list[float]  # one per round
    unit: str = "x"


HOST_LOOP = "the host loop against its bare step"
ALONE = "against one by one"


def targets(done: Done) -> list[Target]:
    """Every promise whose systems were run."""

    def faster(what, bound, job, system, field="train_cpu"):
        values = ratios(done, (job, system, field), (job, "jaxcl", field))
        return Target(what, bound, True, values)

    def dearer(what, bound, job):
        above, below = ((name, "jaxcl", "train_cpu") for name in (job, "naive"))
        return Target(what, bound, False, ratios(done, above, below))

    def within(what, bound, who, field, base):
        return Target(what, bound, False, ratios(done, (*who, field), (*who, base)))

    ours = lambda job, field: [turn[field] for turn in done.get((job, "jaxcl"), [])]
    memory = done.get(("memory", ""), [])
    sam_keeps = [(m["sam_state"] - m["plain_state"]) / m["parameters"] for m in memory]
    compiling = [turns[0].get("compile_cpu", 0.0) for turns in done.values()]
    slowest = [max(compiling)] if any(compiling) else []
    long, seeds = ours("ewc-long", "train_cpu"), ours("seeds", "alone_cpu")
    last = max(map(len, long), default=0)
    late = f"EWC, tasks {last - max(1, last // 4) + 1} to {last}"
    packed = f"{max(map(len, seeds), default=0)} seeds in one program"
    side = ("seeds", "jaxcl")
    listed = [
        faster("SGD against Avalanche", 3.0, "naive", "avalanche"),
        faster("EWC against Avalanche", 4.5, "ewc", "avalanche"),
        faster("experience replay against Avalanche", 2.0, "er", "avalanche"),
        faster("A-GEM against Avalanche", 2.0, "agem", "avalanche"),
        faster("evaluation against Avalanche", 4.0, "naive", "avalanche", "eval_cpu"),
        faster("SGD against PyTorch by hand", 1.3, "naive", "torch"),
        within(HOST_LOOP, 1.03, ("loop", ""), "loop", "bare"),
        dearer("SAM's step against the plain one", 2.1, "sam"),
        within("SAM's step against the plain one", 2.1, ("sam", ""), "sam", "plain"),
        dearer("LookSAM's step, k = 5", 1.35, "looksam"),
        dearer("C-Flat's step", 4.2, "c_flat"),
        within(f"{packed}, vmapped, {ALONE}", 0.75, side, "together_cpu", "alone_cpu"),
        within(f"{packed}, in turn, {ALONE}", 0.75, side, "in_turn_cpu", "alone_cpu"),
        Target(
            f"{late} against tasks 2 to 5 of {last}", 1.1, False, [*map(growth, long)]
        ),
        Target("compilation of the slowest method", 5.0, False, slowest, "CPU s"),
        Target("parameter copies that SAM keeps", 0.01, False, sam_keeps, "copies"),
    ]
    return [target for target in listed if target.values]


def ratios(
    done: Done, above: tuple[str, str, str], below: tuple[str, str, str]
) -> list[float]:
    """Cost over cost, each within one round; rounds that lack one of them are left out.

    A cost is named by job, system and field; that of several tasks is their sum.
    """

    def cost(job: str, system: str, field: str) -> pd.Series:
        turns = done.get((job, system), [])
        return pd.Series(
            {turn["round"]: np.sum(turn[field]) for turn in turns}, dtype=float
        )

    return (cost(*above) / cost(*below)).dropna().tolist()


def growth(seconds: Sequence[float]) -> float:
    """The last quarter of a stream against tasks 2 to 5; the first task warms up."""
    return fmean(seconds[-max(1, len(seconds) // 4) :]) / fmean(seconds[1:5])


TARGETS = ("target", "asked", "median round", "all rounds", "verdict")
RATIOS = "Ratios of CPU seconds within a round; evaluation and compilation apart."


def targets_table(listed: Sequence[Target], *notes: str) -> Table:
    """What was promised, and what came: the median round decides."""
    rows = []
    for what, bound, at_least, values, unit in listed:
        middle = median(values)
        met = middle >= bound if at_least else middle <= bound
        asked = f"{'≥' if at_least else '≤'} {bound:g} {unit}"
        verdict = "met" if met else "missed"
        rows.append((what, asked, middle, spread(values), verdict))
    return Table(tuple(map(Column, TARGETS)), tuple(rows), notes)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The least and the largest, in words."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


# ------------------------------------------------------------------ seconds

STREAMS = (
    "CPU seconds of one stream: medians, and the least for training. Accuracy is a mean "
    "over the tasks: each when it was just learned, which shows that all did the same "
    "job, and all at the end, which shows what was forgotten of it. Nothing is tuned."
)
BASELINE = (
    " x baseline: training against that of an earlier commit in the same round, the "
    "median round and all of them."
)


SECONDS = (
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
    Column("x baseline"),
)


def seconds_table(config: Any, done: Done) -> Table:
    """CPU seconds of streams, median and least."""
    rows = []
    for job, system in itertools.product(config.jobs, LABELS):
        if job not in NAMES or (job, system) not in done:
            continue
        turns = done[job, system]
        train = [sum(turn["train_cpu"]) for turn in turns]
        middle, test = median(train), median(sum(turn["eval_cpu"]) for turn in turns)
        trained = config.num_tasks * config.num_train / 1000
        tested = config.num_tasks**2 * config.num_test / 1000
        seconds = middle, min(train), trained / middle, test, tested / test
        compiling, matrix = turns[0].get("compile_cpu"), turns[-1]["accuracy"]
        accuracy = fmean(np.diag(matrix)), fmean(matrix[-1])
        ours, before = ((job, who, "train_cpu") for who in ("jaxcl", "baseline"))
        found = ratios(done, ours, before) if system == "jaxcl" else []
        versus = f"{median(found):.2f} ({spread(found)})" if found else None
        head = NAMES[job], LABELS[system]
        rows.append((*head, *seconds, compiling, *accuracy, versus))
    if any(system == "baseline" for _, system in done):
        return Table(SECONDS, tuple(rows), (STREAMS + BASELINE,))
    return Table(SECONDS[:-1], tuple(row[:-1] for row in rows), (STREAMS,))


def ewc_table(done: Done) -> Table:
    """Seconds of each task: whose penalty grows with the past."""
    rows = []
    for (job, system), turns in done.items():
        if job in ("ewc", "ewc-long"):
            middle = np.median([turn["train_cpu"] for turn in turns], axis=0)
            last = len(middle)
            shown = [n for n in range(1, last + 1) if n <= 5 or n % 5 == 0 or n == last]
            seconds = ", ".join(f"{task}: {middle[task - 1]:.2f}" for task in shown)
            rows.append((LABELS[system], seconds))
    columns = Column("EWC"), Column("seconds of task")
    note = "Median CPU seconds of training, Fisher included."
    return Table(columns, tuple(rows), (note,))


# ------------------------------------------------------------------ the host loop

#: What is said of each job: the field of its lines, the factor to the unit.
COSTS = {
    "loop": {
        "the bare step": ("bare", 1e3, "ms"),
        "the same in the host loop": ("loop", 1e3, "ms"),
    },
    "checkpoint": {
        "a checkpoint, until it is on the disk": ("save", 1, "s"),
        "the time that it holds up the loop": ("held_up", 1e3, "ms"),
        "resume": ("restore", 1, "s"),
        "NumPy's savez of the same": ("numpy_save", 1, "s"),
        "and its load": ("numpy_load", 1, "s"),
    },
    "memory": {
        "state between steps, AdamW": ("plain_state", 1e-6, "MB"),
        "extra within a step, AdamW": ("plain_temporary", 1e-6, "MB"),
        "state between steps, SAM and AdamW": ("sam_state", 1e-6, "MB"),
        "extra within a step, SAM and AdamW": ("sam_temporary", 1e-6, "MB"),
    },
}


def costs_table(done: Done) -> Table:
    """Median numbers of one machine; of a loop, the seconds of one step."""
    rows = []
    for job in [job for job in COSTS if (job, "") in done]:
        turns = done[job, ""]
        first, of = turns[0], ""
        if job == "checkpoint":
            of = f"{first['megabytes']:.0f} MB"
        elif job == "memory":
            of = f"parameters: {first['parameters'] / 1e6:.1f} MB"
        for what, (field, scale, unit) in COSTS[job].items():
            middle = median(turn[field] for turn in turns)
            value = middle * scale / first.get("steps", 1)
            rows.append((what, f"{value:.3g} {unit}", of))
    return Table((Column("what"), Column("median"), Column("of")), tuple(rows))


def devices_table(done: Done) -> Table:
    """Rows per second by the number of pretend devices."""
    turns = pd.DataFrame(
        done.get(("devices", ""), []), columns=["devices", "rows_per_second", "cores"]
    )
    rows = tuple(
        (str(count), speeds.median(), spread(speeds.tolist(), 0))
        for count, speeds in turns.groupby("devices")["rows_per_second"]
    )
    columns = Column("devices"), Column("rows/s", 0), Column("all rounds")
    cores = ", ".join(map(str, turns["cores"].unique()))
    return Table(columns, rows, (f"Pretend devices on {cores} cores, the same batch.",))


# ------------------------------------------------------------------ the README


def section(config: Any, folder: RunFolder) -> str:
    """What the README says of a folder: of all with streams but ``speed``, the seconds."""
    records, made = read_records(folder), tables(config, folder)
    done, here = by_job(records), read_json(folder.path / "environment.json")
    if "seconds" in made:
        known = {name: here["versions"][name] for name in ("python", "jax", "optax")}
        for turns in done.values():
            known |= turns[0].get("versions", {})
        versions = ", ".join(f"{name} {version}" for name, version in known.items())
        rounds = max(map(len, done.values()))
        words = f"{rounds} rounds on one thread of {here['cpu']}; {versions}."
        if folder.path.name != "speed":
            made = {"seconds": made["seconds"]}
    else:
        shared = f" ({config.devices_batch_size} on several devices)"
        machine = here["cpu"] if here["backend"] == "cpu" else here["devices"]
        words = (
            f"A decoder of {config.num_layers} layers and width {config.hidden_size} "
            f"({config.large_hidden_size} for checkpoints and memory), rows of "
            f"{config.length} bytes, batches of {config.batch_size}"
            f"{shared if 'devices' in made else ''}; {config.rounds} rounds, "
            f"{machine}, jax {here['versions']['jax']}."
        )
    words += f" Load average {spread([r['load'] for r in records], 1)} while measuring."
    if lost := split(records)[1]:
        names = ", ".join(record["run"] for record in lost)
        words += f" Diverged, and counted nowhere: {names}."
    return "\n".join([f"{words}\n", *made.values()])
