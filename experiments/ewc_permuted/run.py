"""The protocol in order: data, network, method, loop; the strength is chosen first."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ewc_permuted.arms import Program, make_program
from experiments.ewc_permuted.config import PENALIZED, Config
from jaxcl.data import Images, digits, load_images, padded, permuted, validate
from jaxcl.errors import InputError
from jaxcl.runs.folder import RunFolder, check_data_hash, read_records
from jaxcl.runs.jobs import worker_count
from jaxcl.runs.trials import (
    Learn,
    Tell,
    Trial,
    checkpoint_folder,
    result_line,
    run_trials,
)
from jaxcl.training import in_segments
from jaxcl.typing import Key, Stream


class Stage(NamedTuple):
    """Where runs take place: the search on held-out rows, or the test."""

    config: Config
    images: Images


def run(config: Config, folder: RunFolder) -> None:
    """Choose the strengths, then do every run that is not in ``results.jsonl`` yet."""
    check_data_hash(folder, stage_of(config, "test").images)
    stage_of(config, "search")  # refuses what does not fit the data
    count = worker_count(config.workers)
    do = lambda trials: run_trials(
        folder, trials, worker, (config, folder), num_workers=count
    )
    strengths: dict[str, float | None] = dict.fromkeys(PENALIZED, config.strength)
    if searching := search_trials(config):
        do(searching)
        strengths |= choose(read_records(folder))
    do(test_trials(config, strengths))


def worker(config: Config, folder: RunFolder) -> Learn:
    """What a process needs to do trials: data once, and each program when it is due."""
    programs = {}

    def do(pack: Sequence[Trial], tell: Tell) -> list[dict]:
        (trial,) = pack
        stage = stage_of(config, trial.setting)
        key, _, _ = run_keys(stage.config, trial.seed)
        stream = permuted(key, stage.images, num_tasks=stage.config.num_tasks)
        stream, program = validate(stream), (trial.setting, trial.arm)
        if program not in programs:
            programs[program] = make_program(stage.config, trial.arm, stream)
        return [learn(stage, programs[program], stream, trial, folder, tell)]

    return do


@functools.cache
def stage_of(config: Config, name: str) -> Stage:
    """The search or the test, on images that are padded."""
    images = images_of(config)
    return Stage(config, images) if name == "test" else _search(config, images)


@functools.lru_cache(maxsize=1)
def images_of(config: Config) -> Images:
    """The images, padded."""
    images = digits() if config.data == "digits" else load_images(config.data)
    return padded(images, config.padding)


def _search(config: Config, images: Images) -> Stage:
    """Shorter runs that learn on all but the last training rows and test on those."""
    rows = len(images.train_y) - config.search_rows
    if rows < config.batch_size:
        msg = (
            f"search_rows: must leave a batch of {config.batch_size} of the "
            f"{len(images.train_y)} training rows, got {config.search_rows}."
        )
        raise InputError(msg)
    held_out = images._replace(
        train_x=images.train_x[:rows],
        train_y=images.train_y[:rows],
        test_x=images.train_x[rows:],
        test_y=images.train_y[rows:],
    )
    shorter = replace(
        config,
        num_tasks=config.search_tasks,
        iterations=config.search_iterations,
        fisher_examples=config.search_fisher_examples,
    )
    return Stage(shorter, held_out)


def search_trials(config: Config) -> list[Trial]:
    """Every arm with a penalty at every strength of the grid; none if it is given."""
    if config.strength is not None:
        return []
    return [
        Trial("search", arm, numbers(config, arm, value), config.search_seed)
        for arm in config.arms
        if arm in PENALIZED
        for value in config.strengths
    ]


def test_trials(config: Config, strengths: dict[str, float | None]) -> list[Trial]:
    """All arms seed by seed, so that an interrupted run has compared something."""
    return [
        Trial("test", arm, numbers(config, arm, strengths.get(arm)), seed)
        for seed in range(config.seeds)
        for arm in config.arms
    ]


def numbers(config: Config, arm: str, strength: float | None) -> dict[str, float]:
    """The numbers that make an arm what it is."""
    made = {"learning_rate": config.learning_rate}
    if strength is not None:
        made |= {"strength": strength}
    return made | ({"decay": config.decay} if arm == "online-ewc" else {})


def choose(records: list[dict]) -> dict[str, float]:
    """For every arm searched, the strength with the best mean accuracy on held-out rows.

    Raises:
      ValueError: if every run of an arm's search diverged.
    """
    searched = [record for record in records if record["setting"] == "search"]
    chosen = {}
    for arm in dict.fromkeys(record["arm"] for record in searched):
        found = {
            record["hyper"]["strength"]: np.mean(record["final"])
            for record in searched
            if record["arm"] == arm and record["status"] == "done"
        }
        if not found:
            msg = f"strengths: all runs of {arm}'s search diverged; give smaller ones."
            raise InputError(msg)
        chosen[arm] = max(sorted(found), key=found.__getitem__)
    return chosen


def learn(
    stage: Stage,
    program: Program,
    stream: Stream,
    trial: Trial,
    folder: RunFolder,
    tell: Tell,
) -> dict:
    """Learn one stream task by task; return its line."""
    config = stage.config
    _, key_start, key = run_keys(config, trial.seed)
    strength = jnp.float32(trial.hyper.get("strength", 0.0))
    data = stream.pool, stream.plan

    def note(task: int) -> None:
        part = Fraction(min(task, 1), config.num_tasks)
        tell(part, f"{trial.setting}, {trial.arm}, task {task + 1}")

    learned = in_segments(
        lambda state, tasks: program.advance(state, key, strength, *data, tasks),
        program.start(key_start),
        num_tasks=config.num_tasks,
        size=1,
        folder=checkpoint_folder(folder, [trial]),
        save_every=config.checkpoint_seconds,
        note=note,
    )
    matrix = np.round(np.asarray(learned.record.after, np.float64), 4)
    final = np.asarray(program.final(learned.state, *data), np.float64)
    return result_line(
        trial,
        learned.record.finite,
        seconds=learned.seconds,
        accuracy=np.diagonal(matrix),
        final=np.round(final, 4),
        matrix=matrix,
        loss=learned.record.loss,
        iterations=config.iterations,
    )


def run_keys(config: Config, seed: int) -> tuple[Key, Key, Key]:
    """What draws the permutations, the start and the batches of a run."""
    stream, start, steps = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), seed), 3
    )
    return stream, start, steps
