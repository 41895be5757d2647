"""Packing: what the whole grid costs when runs learn side by side on one accelerator.

The runs are those of the experiment: its settings, arms, numbers and seeds, and after each
task its accuracy and measures. All runs of an arm in a setting are one compiled program.
Images are drawn in MNIST's shapes, since only time and memory are looked at.

    python -m experiments.plasticity.packing smoke    # seconds, any machine
    python -m experiments.plasticity.packing curve    # runs per hour against runs packed
    python -m experiments.plasticity.packing grid     # all runs of the preset ``paper``
"""

import dataclasses
import itertools
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from experiments.plasticity import config as experiment
from experiments.plasticity.arms import Trial, arms, trials
from experiments.plasticity.run import Program, check, learn, make_program, run_id
from experiments.plasticity.settings import Setting, load, make_setting
from jaxcl.data import Images, synthetic_images
from jaxcl.report.tables import Column, Table, to_markdown
from jaxcl.runs import (
    RunFolder,
    append,
    check_names,
    finished,
    main,
    progress,
    read_records,
    write_text,
)
from jaxcl.tree import at, num_tasks


@dataclass(frozen=True, kw_only=True)
class Config(experiment.Config):
    """The experiment, with the number of runs in one program."""

    data: str = "synthetic"
    """synthetic (60,000 images of 28x28), or data as the experiment names them."""
    arms: tuple[str, ...] | None = None
    """Arms to time; all that the groups hold, if None."""
    packs: tuple[int, ...] | None = None
    """Runs in one program; all that the groups hold of an arm, if None."""


PRESETS = {
    "smoke": Config(
        data="digits",
        settings=("permuted",),
        groups=("paper",),
        arms=("sgd", "sam"),
        packs=(1, 2),
        seeds=2,
        num_tasks=4,
        task_limit=2,
        examples_per_task=64,
        test_examples=40,
        hidden=(8,),
        probe_every=2,
        probe_examples=16,
        tasks_per_call=1,
    ),
    "curve": Config(
        settings=("permuted",),
        groups=("paper",),
        packs=(1, 10, 40, 160, 640),
        task_limit=5,
    ),
    "grid": Config(tasks_per_call=20),
}


def run(config: Config, folder: RunFolder) -> None:
    """Time every setting, arm and pack; a pack that does not fit ends its arm."""
    check(config)
    todo, images = by_arm(config), load_images(config)
    settings = [make_setting(name, config, images) for name in config.settings]
    jobs = [
        (setting, arm, pack)
        for setting, (arm, runs) in itertools.product(settings, todo.items())
        for pack in sorted(config.packs or [len(runs)])
    ]
    full: set[tuple[str, str]] = set()
    with progress(len(jobs), "programs") as advance:
        for setting, arm, pack in jobs:
            name = f"{setting.name}/{arm}/runs={pack}"
            if name not in finished(folder) and (setting.name, arm) not in full:
                packed = list(itertools.islice(itertools.cycle(todo[arm]), pack))
                record = time_pack(config, setting, packed, folder)
                append(folder, [{"run": name, **record}])
                if record["status"] == "out of memory":
                    full.add((setting.name, arm))
            advance(1, name)


def by_arm(config: Config) -> dict[str, list[Trial]]:
    """All runs of the groups, each once, by the program that they share.

    Raises:
      ValueError: for a name that is not an arm of the groups.
    """
    runs: dict[str, dict[tuple, Trial]] = {}
    for trial in trials(config):  # the sweep contains some of the others
        name = (*trial.hyper.items(), trial.seed)
        runs.setdefault(trial.arm, {}).setdefault(name, trial)
    check_names("arms", config.arms or (), runs)
    return {arm: list(runs[arm].values()) for arm in config.arms or runs}


def load_images(config: Config) -> Images:
    """The images of the experiment, or drawn ones in MNIST's shapes."""
    if config.data != "synthetic":
        return load(config)
    key = jax.random.key(config.seed)
    return synthetic_images(key, num_train=60_000, num_test=10_000)


def time_pack(
    config: Config, setting: Setting, packed: list[Trial], folder: RunFolder
) -> dict[str, Any]:
    """Compile a pack of runs, do it as the experiment does, and say what it took."""
    total = num_tasks(at(0, setting.streams.plan))
    head = {
        "setting": setting.name,
        "arm": packed[0].arm,
        "pack": len(packed),
        "tasks": total,
        "tasks_timed": setting.num_tasks,
        "device": jax.devices()[0].device_kind,
    }
    as_packed = dataclasses.replace(  # no checkpoint of another attempt goes on here
        config, runs_per_call=len(packed), checkpoint_seconds=math.inf
    )
    arm = arms(config, setting.num_steps)[packed[0].arm]
    started = time.perf_counter()
    program, costs = metered(make_program(as_packed, setting, arm), started)
    try:
        lines = learn(as_packed, setting, program, packed, folder, lambda _: None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**head, "status": "out of memory"}
    learning = time.perf_counter() - started - costs["compile_seconds"]  # tasks alone
    seconds = learning * total / setting.num_tasks
    return {
        **head,
        "status": "done",
        **costs,
        "seconds": seconds,
        "runs_per_hour": 3600 * len(packed) / seconds,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "accuracy": float(np.mean([line["accuracy"] for line in lines])),
        "measures": sorted(lines[0]["measures"]),
        "first": run_id(setting, packed[0]),
    }


def metered(program: Program, started: float) -> tuple[Program, dict[str, Any]]:
    """The program, and a dict that says after its first call what compiling cost.

    Counted is all that comes before the first task: tracing and the start, too. None of
    it grows with the tasks, so it must not be scaled to the whole stream.
    """
    costs: dict[str, Any] = {}
    compiled = []

    def advance(*args):
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args)):
            return program.advance(*args)  # only its shapes are asked for
        if not compiled:
            compiled.append(program.advance.lower(*args).compile())
            costs["compile_seconds"] = time.perf_counter() - started
            costs["program_bytes"] = program_bytes(compiled[0])
        return compiled[0](*args)

    return program._replace(advance=advance), costs


def program_bytes(program) -> int | None:
    """Arguments, results and scratch of a compiled program, where the device reports it."""
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    parts = ("argument", "output", "temp")
    return sum(getattr(sizes, f"{part}_size_in_bytes") for part in parts)


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


command = partial(
    main,
    PRESETS,
    run,
    __doc__ or "",
    report=report,
    name="plasticity.packing",
    path_fields=experiment.PATH_FIELDS,
)

__all__ = ["PRESETS", "Config", "by_arm", "command", "report", "run"]

if __name__ == "__main__":
    raise SystemExit(command())
