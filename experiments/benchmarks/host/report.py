"""From ``results.jsonl`` to tables, and into the README of the benchmarks."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from experiments.benchmarks.host.config import Config
from experiments.benchmarks.report import README, Target, targets_table
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs.folder import RunFolder, read_json, read_records
from jaxcl.runs.readme import fill
from jaxcl.training.files import write_text

Record = dict[str, Any]
Done = dict[str, list[Record]]


def report(config: Config, folder: RunFolder) -> None:
    """Write and print the tables; fill the README, if these are the committed results."""
    made = tables(folder)
    for name, text in made.items():
        write_text(folder.path / "tables" / f"{name}.md", text)
    if folder.path.resolve() == README.parent / "results" / "host":
        fill(README, section(config, folder), "host")
    print(*made.values(), sep="\n")


def tables(folder: RunFolder) -> dict[str, str]:
    """All tables by name, in Markdown."""
    done: Done = {}
    for record in read_records(folder):
        done.setdefault(record["job"], []).append(record)
    made = {
        "targets": targets_table(targets(done))._replace(notes=()),
        "costs": costs_table(done),
        "devices": devices_table(done.get("devices", [])),
    }
    return {name: to_markdown(table) for name, table in made.items() if table.rows}


def targets(done: Done) -> list[Target]:
    """Every promise whose job was done."""
    loops = [r["loop"] / r["bare"] for r in done.get("loop", [])]
    steps = [r["sam"] / r["plain"] for r in done.get("sam", [])]
    states = [
        (r["sam_state"] - r["plain_state"]) / r["parameters"]
        for r in done.get("memory", [])
    ]
    listed = [
        Target("the host loop against its bare step", 1.03, False, loops),
        Target("SAM's step against the plain one", 2.1, False, steps),
        Target("parameter copies that SAM keeps", 0.01, False, states, "copies"),
    ]
    return [target for target in listed if target.values]


def costs_table(done: Done) -> Table:
    """Median numbers of one machine."""
    rows: list[tuple] = []

    def add(what: str, value: float, unit: str, per: str = ""):
        rows.append((what, f"{value:.3g} {unit}", per))

    middle = lambda records, name: median(record[name] for record in records)
    for record in done.get("loop", [])[:1]:
        each = 1000 / record["steps"]
        add("the bare step", middle(done["loop"], "bare") * each, "ms")
        add("the same in the host loop", middle(done["loop"], "loop") * each, "ms")
    for record in done.get("checkpoint", [])[:1]:
        records, size = done["checkpoint"], f"{record['megabytes']:.0f} MB"
        add("a checkpoint, until it is on the disk", middle(records, "save"), "s", size)
        held = middle(records, "held_up") * 1000
        add("the time that it holds up the loop", held, "ms", size)
        add("resume", middle(records, "restore"), "s", size)
        add("NumPy's savez of the same", middle(records, "numpy_save"), "s", size)
        add("and its load", middle(records, "numpy_load"), "s", size)
    for record in done.get("memory", [])[:1]:
        size = f"parameters: {record['parameters'] / 1e6:.1f} MB"
        for name, words in (("plain", "AdamW"), ("sam", "SAM and AdamW")):
            state, within = record[f"{name}_state"], record[f"{name}_temporary"]
            add(f"state between steps, {words}", state / 1e6, "MB", size)
            add(f"extra within a step, {words}", within / 1e6, "MB", size)
    columns = Column("what"), Column("median"), Column("of")
    return Table(columns, tuple(rows), ())


def devices_table(records: Sequence[Record]) -> Table:
    """Rows per second by the number of pretend devices."""
    counts = sorted({record["devices"] for record in records})
    by_count = {
        count: [r["rows_per_second"] for r in records if r["devices"] == count]
        for count in counts
    }
    rows = tuple(
        (str(count), median(found), f"{min(found):.0f} to {max(found):.0f}")
        for count, found in by_count.items()
    )
    columns = Column("devices"), Column("rows/s", 0), Column("all rounds")
    cores = {record["cores"] for record in records}
    note = f"Pretend devices on {', '.join(map(str, cores))} cores, the same batch."
    return Table(columns, rows, (note,) if records else ())


def section(config: Config, folder: RunFolder) -> str:
    """What the README says of a folder of results."""
    here = read_json(folder.path / "environment.json")
    loads = [record["load"] for record in read_records(folder)]
    shared = f" ({config.devices_batch_size} on several devices)"
    machine = here["cpu"] if here["backend"] == "cpu" else here["devices"]
    words = (
        f"A decoder of {config.num_layers} layers and width {config.hidden_size} "
        f"({config.large_hidden_size} for checkpoints and memory), rows of "
        f"{config.length} bytes, batches of {config.batch_size}"
        f"{shared if 'devices' in config.jobs else ''}; {config.rounds} rounds, "
        f"{machine}, jax {here['versions']['jax']}. Load average {min(loads):.1f} to "
        f"{max(loads):.1f} while measuring."
    )
    return "\n".join([f"{words}\n", *tables(folder).values()])
