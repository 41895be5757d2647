"""The protocol in order: data, network, method, loop; the strength is chosen first."""

from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ewc_permuted.arms import Program, make_program
from experiments.ewc_permuted.config import PENALIZED, Config
from experiments.ewc_permuted.search import (
    Stage,
    choose,
    numbers,
    search_trials,
    stage_of,
)
from jaxcl.data import permuted, validate
from jaxcl.runs.folder import RunFolder, check_data_hash, read_records
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


def run(config: Config, folder: RunFolder) -> None:
    """Choose the strengths, then do every run that is not in ``results.jsonl`` yet."""
    check_data_hash(folder, stage_of(config, "test").images)
    stage_of(config, "search")  # refuses what does not fit the data
    do = lambda trials: run_trials(folder, trials, worker, workers=config.workers)
    # Workers end between the two stages: the second needs what the first has found.
    strengths: dict[str, float | None] = dict.fromkeys(PENALIZED, config.strength)
    if searching := search_trials(config):
        do(searching)
        strengths |= choose(read_records(folder))
    do(test_trials(config, strengths))


def worker(folder: RunFolder) -> Learn:
    """What a process needs to do trials: data once, and each program when it is due."""
    programs: dict[tuple[str, str], Program] = {}

    def do(pack: Sequence[Trial], tell: Tell) -> list[dict]:
        (trial,) = pack
        stage = stage_of(folder.config, trial.setting)
        key, _, _ = run_keys(stage.config, trial.seed)
        made = permuted(key, stage.images, num_tasks=stage.config.num_tasks)
        stream, name = validate(made), (trial.setting, trial.arm)
        if name not in programs:
            programs[name] = make_program(stage.config, trial.arm, stream)
        return [learn(stage, programs[name], stream, trial, folder, tell)]

    return do


def test_trials(config: Config, strengths: dict[str, float | None]) -> list[Trial]:
    """All arms seed by seed, so that an interrupted run has compared something."""
    return [
        Trial("test", arm, numbers(config, arm, strengths.get(arm)), seed)
        for seed in range(config.seeds)
        for arm in config.arms
    ]


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


def run_keys(config: Config, seed: int) -> tuple[Key, ...]:
    """What draws the permutations, the start and the batches of a run."""
    of_seed = jax.random.fold_in(jax.random.key(config.seed), seed)
    return tuple(jax.random.split(of_seed, 3))
