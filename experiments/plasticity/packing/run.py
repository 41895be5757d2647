"""Every program of the grid once, with the time and the memory that it takes."""

import dataclasses
import itertools
import math
import time
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from experiments.plasticity.arms import arms, trials
from experiments.plasticity.packing.config import Config
from experiments.plasticity.program import Program, make_program
from experiments.plasticity.run import learn
from experiments.plasticity.settings import Setting, load, make_setting
from jaxcl.data import Images, synthetic_images
from jaxcl.runs.experiment import check_names
from jaxcl.runs.folder import RunFolder, append, finished
from jaxcl.runs.trials import Trial
from jaxcl.training.logging import progress
from jaxcl.tree import at, num_tasks


def run(config: Config, folder: RunFolder) -> None:
    """Time every setting, arm and pack; a pack that does not fit ends its arm."""
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
                here = [trial._replace(setting=setting.name) for trial in todo[arm]]
                packed = list(itertools.islice(itertools.cycle(here), pack))
                record = time_pack(config, setting, packed, folder)
                append(folder, [{"run": name, **record}])
                if record["status"] == "out of memory":
                    full.add((setting.name, arm))
            advance(1, name)


def by_arm(config: Config) -> dict[str, list[Trial]]:
    """All runs of the groups, each once, by the program that they share.

    Raises:
      InputError: for a name that is not an arm of the groups.
    """
    runs: dict[str, dict[str, Trial]] = {}
    for trial in trials(config):  # the sweep contains some of the others
        if trial.setting == config.settings[0]:
            runs.setdefault(trial.arm, {}).setdefault(trial.run, trial)
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
        lines = learn(as_packed, setting, program, packed, folder, lambda *_: None)
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
        "first": packed[0].run,
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
