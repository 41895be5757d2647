"""From ``results.jsonl`` to tables, and into the README of the benchmarks."""

from collections.abc import Sequence
from statistics import median

from experiments.benchmarks.host.config import Config
from experiments.benchmarks.report import (
    README,
    Target,
    markdown,
    publish,
    spread,
    table_of,
    targets_table,
)
from jaxcl.report.records import Record
from jaxcl.report.tables import Column, Table
from jaxcl.runs.folder import RunFolder, read_json, read_records

#: ``{job: its records}``.
Done = dict[str, list[Record]]


def report(config: Config, folder: RunFolder) -> None:
    """Write and print the tables; fill the README, if these are the committed results."""
    committed = folder.path.resolve() == README.parent / "results" / "host"
    text = section(config, folder) if committed else ""
    publish(folder, tables(folder), text, "host")


def tables(folder: RunFolder) -> dict[str, str]:
    """All tables by name, in Markdown."""
    done: Done = {}
    for record in read_records(folder):
        done.setdefault(record["job"], []).append(record)
    made = {
        "targets": targets_table(targets(done)),
        "costs": costs_table(done),
        "devices": devices_table(done.get("devices", [])),
    }
    return markdown(made)


def targets(done: Done) -> list[Target]:
    """Every promise whose job was done."""
    loops = [turn["loop"] / turn["bare"] for turn in done.get("loop", [])]
    steps = [turn["sam"] / turn["plain"] for turn in done.get("sam", [])]
    states = [
        (turn["sam_state"] - turn["plain_state"]) / turn["parameters"]
        for turn in done.get("memory", [])
    ]
    listed = [
        Target("the host loop against its bare step", 1.03, False, loops),
        Target("SAM's step against the plain one", 2.1, False, steps),
        Target("parameter copies that SAM keeps", 0.01, False, states, "copies"),
    ]
    return [target for target in listed if target.values]


#: What is said of a checkpoint: the field, the factor to the unit.
CHECKPOINT = {
    "a checkpoint, until it is on the disk": ("save", 1, "s"),
    "the time that it holds up the loop": ("held_up", 1000, "ms"),
    "resume": ("restore", 1, "s"),
    "NumPy's savez of the same": ("numpy_save", 1, "s"),
    "and its load": ("numpy_load", 1, "s"),
}
MEMORY = {"state between steps": "state", "extra within a step": "temporary"}


def costs_table(done: Done) -> Table:
    """Median numbers of one machine."""
    rows = []

    def add(what: str, job: str, name: str, scale: float, unit: str, of: str = ""):
        value = f"{median(turn[name] for turn in done[job]) * scale:.3g} {unit}"
        rows.append({Column("what"): what, Column("median"): value, Column("of"): of})

    if "loop" in done:
        each = 1000 / done["loop"][0]["steps"]
        add("the bare step", "loop", "bare", each, "ms")
        add("the same in the host loop", "loop", "loop", each, "ms")
    if "checkpoint" in done:
        size = f"{done['checkpoint'][0]['megabytes']:.0f} MB"
        for what, how in CHECKPOINT.items():
            add(what, "checkpoint", *how, size)
    if "memory" in done:
        size = f"parameters: {done['memory'][0]['parameters'] / 1e6:.1f} MB"
        for name, by in (("plain", "AdamW"), ("sam", "SAM and AdamW")):
            for what, field in MEMORY.items():
                add(f"{what}, {by}", "memory", f"{name}_{field}", 1e-6, "MB", size)
    return table_of(rows)


def devices_table(turns: Sequence[Record]) -> Table:
    """Rows per second by the number of pretend devices."""
    speeds: dict[int, list[float]] = {}
    for turn in sorted(turns, key=lambda turn: turn["devices"]):
        speeds.setdefault(turn["devices"], []).append(turn["rows_per_second"])
    rows = (
        {
            Column("devices"): str(count),
            Column("rows/s", 0): median(found),
            Column("all rounds"): spread(found, 0),
        }
        for count, found in speeds.items()
    )
    cores = ", ".join(map(str, {turn["cores"] for turn in turns}))
    return table_of(rows, f"Pretend devices on {cores} cores, the same batch.")


def section(config: Config, folder: RunFolder) -> str:
    """What the README says of a folder of results."""
    here = read_json(folder.path / "environment.json")
    loads = [turn["load"] for turn in read_records(folder)]
    shared = f" ({config.devices_batch_size} on several devices)"
    machine = here["cpu"] if here["backend"] == "cpu" else here["devices"]
    words = (
        f"A decoder of {config.num_layers} layers and width {config.hidden_size} "
        f"({config.large_hidden_size} for checkpoints and memory), rows of "
        f"{config.length} bytes, batches of {config.batch_size}"
        f"{shared if 'devices' in config.jobs else ''}; {config.rounds} rounds, "
        f"{machine}, jax {here['versions']['jax']}. Load average {spread(loads, 1)} "
        "while measuring."
    )
    return "\n".join([f"{words}\n", *tables(folder).values()])
