"""The paper's algorithm, in the paper's order: data, network, method, loop, figures."""

import functools
from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp

from experiments.plasticity.arms import arms, trials
from experiments.plasticity.config import Config
from experiments.plasticity.program import Program, make_program, runs_per_call
from experiments.plasticity.settings import Setting, load, make_setting
from jaxcl.runs.folder import RunFolder, check_data_hash
from jaxcl.runs.trials import (
    Learn,
    Tell,
    Trial,
    checkpoint_folder,
    result_line,
    rounded,
    run_trials,
)
from jaxcl.training import TaskRecord, in_segments, segment_size
from jaxcl.tree import at
from jaxcl.typing import Array, Key


def run(config: Config, folder: RunFolder) -> None:
    """Do every trial that is not in ``results.jsonl`` yet."""
    check_data_hash(folder, images_of(config))
    for name in config.settings:
        setting_of(config, name)  # refuses what does not fit the data
    run_trials(
        folder,
        trials(config),
        worker,
        workers=config.workers,
        size=runs_per_call(config),
        program=lambda trial: (trial.setting, trial.arm),
    )


def worker(folder: RunFolder) -> Learn:
    """What a process needs to do trials: data once, and each program when it is due."""
    config: Config = folder.config

    @functools.cache
    def program_of(name: str, arm: str) -> Program:
        setting = setting_of(config, name)
        return make_program(config, setting, arms(config, setting.num_steps)[arm])

    def do(pack: Sequence[Trial], tell: Tell) -> list[dict]:
        setting = setting_of(config, pack[0].setting)
        program = program_of(setting.name, pack[0].arm)
        return learn(config, setting, program, pack, folder, tell)

    return do


@functools.cache  # one process checks the data, and may then do the work
def setting_of(config: Config, name: str) -> Setting:
    """A setting on the data of the experiment."""
    return make_setting(name, config, images_of(config))


images_of = functools.lru_cache(maxsize=1)(load)


def learn(
    config: Config,
    setting: Setting,
    program: Program,
    pack: Sequence[Trial],
    folder: RunFolder,
    tell: Tell,
) -> list[dict]:
    """Learn one pack of runs side by side; return their lines."""
    # A short pack repeats its last run, so that one compiled program serves all packs.
    full = [*pack, *[pack[-1]] * (runs_per_call(config) - len(pack))]
    keys, hypers, seeds = arguments(config, full)
    shared = setting.streams.pool, setting.streams.plan
    size = segment_size(setting.num_tasks, config.tasks_per_call)

    def note(task: int) -> None:
        part = Fraction(size if task else 0, setting.num_tasks)
        tell(part, f"{setting.name}, {pack[0].arm}, task {task + 1}")

    learned = in_segments(
        lambda state, tasks: program.advance(
            state, keys, hypers, seeds, *shared, tasks
        ),
        program.start(keys, hypers),
        num_tasks=setting.num_tasks,
        size=size,
        folder=checkpoint_folder(folder, pack),
        save_every=config.checkpoint_seconds,
        task_axis=1,
        note=note,
    )
    seconds = learned.seconds / len(pack)
    return [line(t, at(i, learned.record), seconds) for i, t in enumerate(pack)]


def arguments(
    config: Config, pack: Sequence[Trial]
) -> tuple[Key, dict[str, Array], Array]:
    """Keys, numbers and seeds of runs that learn side by side, each with a leading axis."""
    seeds = jnp.array([trial.seed for trial in pack])
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(config.seed)))(seeds)
    column = lambda name: jnp.array([trial.hyper[name] for trial in pack], jnp.float32)
    return keys, {name: column(name) for name in pack[0].hyper}, seeds


def line(trial: Trial, record: TaskRecord, seconds: float) -> dict:
    """What ``results.jsonl`` keeps of one run: few digits, there are many runs."""
    accuracy, figures = record.after
    return result_line(
        trial,
        record.finite,
        seconds=seconds,
        accuracy=rounded(accuracy),
        loss=rounded(record.loss),
        measures={name: rounded(values, 3) for name, values in figures.items()},
    )
