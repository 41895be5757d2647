"""A table of what packs of runs cost."""

from experiments.plasticity.packing.config import Config
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs.folder import RunFolder, read_records
from jaxcl.training.files import write_text


def report(config: Config, folder: RunFolder) -> None:
    """Write ``tables/packing.md``: a row per setting, arm and pack."""
    records = read_records(folder)
    names = ("setting", "arm", "pack", "seconds", "runs_per_hour", "program_bytes")
    rows = [tuple(record.get(name) for name in names) for record in records]
    columns = (
        Column("setting"),
        Column("arm"),
        Column("runs packed", 0),
        Column("minutes", 2, 1 / 60),
        Column("runs per hour", 0),
        Column("memory, GB", 2, 1e-9),
    )
    done = [record for record in records if record["status"] == "done"]
    whole = sum(record["seconds"] + record["compile_seconds"] for record in done) / 60
    count = sum(record["pack"] for record in done)
    device = records[0]["device"] if records else "nothing"
    notes = [
        f"On {device}; {count} runs in {len(done)} programs, with compilation "
        f"{whole:.1f} minutes. Accuracy and measures after each task are included."
    ]
    if config.task_limit:
        notes.append(
            f"Timed on {config.task_limit} tasks and scaled to the whole stream."
        )
    table = Table(columns, tuple(rows), tuple(notes))
    write_text(folder.path / "tables" / "packing.md", to_markdown(table))
