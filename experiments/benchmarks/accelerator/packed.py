"""The runs of the plasticity experiment, many in one program: how long does a task take?

The programs are those of the experiment, measures after each task included. Only as many
tasks are made as are timed, one per call; all that differs from task to task is whether
the Hessian's eigenvalue is due, which one in five is.
"""

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import jax
import jax.numpy as jnp
import pandas as pd

from experiments.benchmarks.accelerator.schedule import Fact, compiled
from experiments.benchmarks.rounds import timed
from experiments.plasticity.arms import arms, trials
from experiments.plasticity.config import PRESETS, Config
from experiments.plasticity.program import make_program
from experiments.plasticity.run import arguments
from experiments.plasticity.settings import Setting, load, make_setting
from jaxcl.data import synthetic_images
from jaxcl.runs.trials import Trial

#: The preset ``paper`` on images drawn in MNIST's shapes: only time and memory count.
GRID = dataclasses.replace(PRESETS["paper"], data="synthetic")
SMALL = dataclasses.replace(
    GRID,
    data="digits",
    seeds=2,
    examples_per_task=64,
    test_examples=40,
    hidden=(8,),
    probe_examples=16,
)
PACKS, SMALL_PACKS = (1, 10, 50, 200), (1, 2)
NUM_TIMED = 5  # tasks after the first: the eigenvalue is due in one of them

#: Seconds of compiling, and of a task.
Costs = tuple[float, float]


def packs(small: bool, _folder: Path, chosen: slice = slice(None)) -> Iterator[Fact]:
    """Runs per hour against runs in one program: SGD on permuted images."""
    config, (setting,) = begin(small, ["permuted"])
    yield {"what": "images and tasks are made", "num_tasks": setting.num_tasks}
    for pack in (SMALL_PACKS if small else PACKS)[chosen]:
        yield from time_runs(config, setting, pack_of(config, "sgd", pack))


#: The last but one of these packs only, to compare the compiler's flags.
one_pack = partial(packs, chosen=slice(-2, -1))


def grid(small: bool, _folder: Path) -> Iterator[Fact]:
    """Every run of the preset ``paper``: programs are timed one by one until time is up.

    After each of them a line says what all together would take.
    """
    config, settings = begin(small, GRID.settings)
    lengths = {setting.name: stream_length(setting) for setting in settings}
    todo = by_arm(config)
    count = sum(map(len, todo.values())) * len(settings)
    known: dict[tuple[str, str], Costs] = {}
    for setting, arm in itertools.product(settings, todo):
        known[setting.name, arm] = yield from time_runs(config, setting, todo[arm])
        compiling, running = extrapolated(known, lengths, list(todo))
        yield {
            "what": "the whole grid, extrapolated",
            "programs_timed": len(known),
            "programs": len(todo) * len(settings),
            "runs": count,
            "compile_seconds": compiling,
            "run_seconds": running,
            "runs_per_hour": 3600 * count / (compiling + running),
        }


def begin(small: bool, names: Sequence[str]) -> tuple[Config, list[Setting]]:
    """Settings of the experiment with as many tasks as are timed; small ones on a CPU."""
    config = dataclasses.replace(SMALL if small else GRID, num_tasks=1 + NUM_TIMED)
    drawn = partial(synthetic_images, num_train=60_000, num_test=10_000)
    images = load(config) if small else drawn(jax.random.key(config.seed))
    return config, [make_setting(name, config, images) for name in names]


def by_arm(config: Config) -> dict[str, list[Trial]]:
    """All runs of the first setting, each once, by the program that they share."""
    runs: dict[str, dict[str, Trial]] = {}
    for trial in trials(config):  # the sweep contains some of the others
        if trial.setting == config.settings[0]:
            runs.setdefault(trial.arm, {}).setdefault(trial.run, trial)
    return {arm: list(found.values()) for arm, found in runs.items()}


def pack_of(config: Config, arm: str, pack: int) -> list[Trial]:
    """So many runs of an arm; they come again where there are fewer."""
    return list(itertools.islice(itertools.cycle(by_arm(config)[arm]), pack))


def stream_length(setting: Setting) -> int:
    """Tasks of the experiment's stream: pairs are always all pairs."""
    return GRID.num_tasks if setting.name == "permuted" else setting.num_tasks


def time_runs(
    config: Config, setting: Setting, packed: Sequence[Trial]
) -> Generator[Fact, None, Costs]:
    """Compile a pack of runs and time its tasks; a line after the first, one at the end.

    Runs per hour are those of full streams, as long as the experiment's.
    """
    name, runs = packed[0].arm, len(packed)
    config = dataclasses.replace(config, runs_per_call=runs)
    program = make_program(config, setting, arms(config, setting.num_steps)[name])
    keys, hypers, seeds = arguments(config, packed)
    given = keys, hypers, seeds, setting.streams.pool, setting.streams.plan
    state, starting = timed(lambda: program.start(keys, hypers))
    advance, costs = compiled(program.advance, state, *given, jnp.arange(1))
    per_task = 0.0
    for what, tasks in (("the first task", [0]), ("a task", range(1, 1 + NUM_TIMED))):
        times = []
        for task in tasks:
            (state, _), cost = timed(partial(advance, state, *given, jnp.array([task])))
            times.append(cost.wall)
        per_task = fmean(times)
        yield {
            "what": f"{setting.name}, {name}, {runs} runs: {what}",
            **costs,
            "start_seconds": starting.wall,
            "run_seconds": per_task,
            "runs": runs,
            "runs_per_hour": 3600 * runs / (per_task * stream_length(setting)),
            "steps_per_second": runs * setting.num_steps / per_task,
            "tasks_timed": len(tasks),
        }
    return starting.wall + costs["compile_seconds"], per_task


def extrapolated(
    known: dict[tuple[str, str], Costs], lengths: dict[str, int], names: Sequence[str]
) -> tuple[float, float]:
    """Seconds of compiling and of running all arms in all settings.

    A program that was not timed counts as one of the same arm in another setting, task by
    task, or else as the mean of those that were.
    """
    programs = pd.MultiIndex.from_product([lengths, names])
    costs = pd.DataFrame(known, ["compiling", "per task"]).T.reindex(programs)
    same_arm = costs.groupby(level=1).transform("mean")
    costs = costs.where(costs.notna(), same_arm).fillna(costs.mean())
    compiling, per_task = costs.to_numpy().T
    tasks = [lengths[name] for name, _ in programs]
    return float(compiling.sum()), float(per_task @ tasks)
