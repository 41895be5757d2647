"""The protocol in order: data, network, method, loop; the strength is chosen first."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.ewc_permuted.config import LABELS, Config
from experiments.ewc_permuted.joint import reading, so_far
from jaxcl.curvature import Fisher, empirical_fisher, exact_fisher, sampled_fisher
from jaxcl.data import Images, digits, load_images, padded, permuted, validate
from jaxcl.errors import InputError
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.regularizers import ewc
from jaxcl.runs import (
    CHECKPOINTS,
    RunFolder,
    append,
    check_data_hash,
    check_fields,
    check_names,
    finished,
    progress,
    read_records,
    share_out,
    worker_count,
)
from jaxcl.training import (
    accuracies,
    accuracy_row,
    first_example,
    run_stream,
)
from jaxcl.training.device import in_segments
from jaxcl.typing import Key, Outputs, Stream

PULLED = ("ewc", "online-ewc")  # the arms with a strength


class Stage(NamedTuple):
    """Where runs take place: the search on held-out rows, or the test."""

    name: str
    config: Config
    images: Images


class Trial(NamedTuple):
    """One run: an arm with its strength and a seed."""

    arm: str
    strength: float | None  # None where there is no penalty
    seed: int


class Program(NamedTuple):
    """One arm of a stage, compiled once; strength, plan and seed are arguments."""

    start: Callable  # (key) -> state
    advance: Callable  # (state, key, strength, pool, plan, tasks) -> state, record
    final: Callable  # (state, pool, plan) -> [T], on all test rows


class Finished(NamedTuple):
    """A run: its line, and the checkpoints that are no longer needed."""

    line: dict
    checkpoints: Path


def run(config: Config, folder: RunFolder) -> None:
    """Choose the strengths, then do every run that is not in ``results.jsonl`` yet."""
    check(config)
    check_data_hash(folder, images_of(config))
    make_stages(config)  # refuses what does not fit the data
    searching = search_trials(config)
    num_runs = len(searching) + len(config.arms) * config.seeds
    with progress(num_runs, "runs", done=len(finished(folder))) as advance:
        do(config, "search", searching, folder, advance)
        strengths: dict[str, float | None] = {arm: config.strength for arm in PULLED}
        if searching:
            strengths |= choose(read_records(folder))
        do(config, "test", test_trials(config, strengths), folder, advance)


def do(
    config: Config, name: str, trials: list[Trial], folder: RunFolder, advance: Callable
) -> None:
    """Share out the trials of a stage that have no line yet."""
    stage, done = make_stages(config)[name], finished(folder)
    jobs = [trial for trial in trials if run_id(stage, trial) not in done]

    def receive(sent: str | Finished) -> None:
        if isinstance(sent, str):
            advance(0, sent)
            return
        append(folder, [sent.line])
        shutil.rmtree(sent.checkpoints, ignore_errors=True)
        advance(1)

    count = worker_count(config.workers)
    share_out(worker, (config, name, folder), jobs, receive, num_workers=count)


def worker(config: Config, name: str, folder: RunFolder):
    """What a process needs to do trials: data once, and each program when it is due."""
    stage, programs = make_stages(config)[name], {}

    def learn_one(trial: Trial, send: Callable[[str | Finished], None]) -> None:
        stream = make_stream(stage, trial.seed)
        if trial.arm not in programs:
            programs[trial.arm] = make_program(stage.config, trial.arm, stream)
        made = learn(stage, programs[trial.arm], stream, trial, folder, send)
        send(Finished(made, checkpoints(folder, stage, trial)))

    return learn_one


@functools.lru_cache(maxsize=1)
def images_of(config: Config) -> Images:
    """The images, padded."""
    if config.data == "digits":
        return padded(digits(), config.padding)
    return padded(load_images(config.data), config.padding)


@functools.lru_cache(maxsize=1)
def make_stages(config: Config) -> dict[str, Stage]:
    """Both stages by name."""
    images = images_of(config)
    stages = search_stage(config, images), Stage("test", config, images)
    return {stage.name: stage for stage in stages}


def search_stage(config: Config, images: Images) -> Stage:
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
    return Stage("search", shorter, held_out)


def search_trials(config: Config) -> list[Trial]:
    """Every arm that pulls at every strength of the grid; nothing if it is given."""
    if config.strength is not None:
        return []
    return [
        Trial(arm, value, config.search_seed)
        for arm in config.arms
        if arm in PULLED
        for value in config.strengths
    ]


def test_trials(config: Config, strengths: dict[str, float | None]) -> list[Trial]:
    """All arms seed by seed, so that an interrupted run has compared something."""
    return [
        Trial(arm, strengths.get(arm), seed)
        for seed in range(config.seeds)
        for arm in config.arms
    ]


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


def make_stream(stage: Stage, seed: int) -> Stream:
    """The permutations of a seed."""
    key, _, _ = run_keys(stage.config, seed)
    return validate(permuted(key, stage.images, num_tasks=stage.config.num_tasks))


def make_program(config: Config, arm: str, stream: Stream) -> Program:
    """Compile once what the runs of an arm share."""
    sizes = (first_example(stream).x.shape[1], *config.hidden, stream.num_classes)
    model = mlp(sizes, gain=config.gain, out_gain=config.gain)
    outputs = single_head(model.apply)

    def build(stream, strength):
        joint = arm == "joint"
        regularizer = None
        if arm in PULLED:
            decay = config.decay if arm == "online-ewc" else None
            regularizer = ewc(make_fisher(config, outputs), strength, decay=decay)
        return make_method(
            cross_entropy(reading(model, stream) if joint else outputs),
            optax.adam(config.learning_rate),
            regularizer=regularizer,
            reset_optimizer=config.reset_optimizer,
        ), so_far(stream) if joint else stream

    @jax.jit
    def start(key):
        method, arriving = build(stream, 0.0)
        return method.init(model.init(key), first_example(arriving))

    @partial(jax.jit, donate_argnums=0)
    def advance(state, key, strength, pool, plan, tasks):
        here = stream._replace(pool=pool, plan=plan)
        method, arriving = build(here, strength)
        return run_stream(
            key,
            method,
            arriving,
            state,
            num_steps=config.iterations,
            batch_size=config.batch_size,
            after=accuracy_row(
                outputs, here, num_examples=config.matrix_examples, chunk_size=1000
            ),
            tasks=tasks,
        )

    @jax.jit
    def final(state, pool, plan):
        here = stream._replace(pool=pool, plan=plan)
        return accuracies(outputs, state.params, here, chunk_size=1000)

    return Program(start, advance, final)


def make_fisher(config: Config, outputs: Outputs) -> Fisher:
    """What measures importance at the end of a task."""
    size = config.fisher_examples
    if config.fisher == "exact":
        return exact_fisher(outputs, num_examples=size)
    if config.fisher == "sampled":
        return sampled_fisher(outputs, num_examples=size)
    given = cross_entropy(outputs)
    if config.fisher == "empirical":
        return empirical_fisher(given, num_examples=size)

    def predicted(params, batch, keys):
        labels = jnp.argmax(outputs(params, batch, keys), -1).astype(batch.y.dtype)
        return given(params, batch._replace(y=labels), keys)

    return empirical_fisher(predicted, num_examples=size)


def learn(
    stage: Stage,
    program: Program,
    stream: Stream,
    trial: Trial,
    folder: RunFolder,
    note: Callable[[str], None],
) -> dict:
    """Learn one stream task by task; return its line."""
    config, name = stage.config, run_id(stage, trial)
    _, key_start, key = run_keys(config, trial.seed)
    strength = jnp.float32(trial.strength or 0.0)
    data = stream.pool, stream.plan
    walked = in_segments(
        lambda state, tasks: program.advance(state, key, strength, *data, tasks),
        program.start(key_start),
        num_tasks=config.num_tasks,
        size=1,
        folder=checkpoints(folder, stage, trial),
        save_every=config.checkpoint_seconds,
        note=lambda task: note(f"{name}, task {task + 1}"),
    )
    final = program.final(walked.state, *data)
    return line(stage, trial, walked.record, np.asarray(final), walked.seconds)


def line(stage: Stage, trial: Trial, record, final: np.ndarray, seconds: float) -> dict:
    """What ``results.jsonl`` keeps of one run; accuracies to four decimals."""
    finite = np.asarray(record.finite)
    bad = int(np.argmin(finite)) if not finite.all() else None
    matrix = np.round(np.asarray(record.after, np.float64), 4)
    return {
        "run": run_id(stage, trial),
        "setting": stage.name,
        "arm": trial.arm,
        "hyper": {} if trial.strength is None else {"strength": trial.strength},
        "seed": trial.seed,
        "status": "done" if bad is None else "diverged",
        "first_bad_task": bad,
        "accuracy": np.diagonal(matrix),
        "final": np.round(final.astype(np.float64), 4),
        "matrix": matrix,
        "loss": record.loss,
        "iterations": stage.config.iterations,
        "seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
    }


def check(config: Config) -> None:
    """Refuse what cannot run, before anything is computed.

    Raises:
      ValueError: in one line.
    """
    if not config.data:
        msg = "data: name a folder with MNIST's four idx files: --data FOLDER."
        raise InputError(msg)
    check_fields(
        config,
        may_be_zero=(
            "checkpoint_seconds",
            "decay",
            "padding",
            "search_seed",
            "strength",
            "strengths",
        ),
    )
    check_names("arms", config.arms, LABELS)
    if config.decay > 1:
        msg = f"decay: expected a share from 0 to 1, got {config.decay:g}."
        raise InputError(msg)
    if config.search_seed in range(config.seeds):
        msg = (
            f"search_seed: must not be one of the {config.seeds} reported seeds, got "
            f"{config.search_seed}."
        )
        raise InputError(msg)


def run_keys(config: Config, seed: int) -> tuple[Key, Key, Key]:
    """What draws the permutations, the start and the batches of a run."""
    stream, start, steps = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), seed), 3
    )
    return stream, start, steps


def run_id(stage: Stage, trial: Trial) -> str:
    """``test/ewc/strength=100/seed=0``."""
    number = "" if trial.strength is None else f"strength={trial.strength:g}/"
    return f"{stage.name}/{trial.arm}/{number}seed={trial.seed}"


def checkpoints(folder: RunFolder, stage: Stage, trial: Trial) -> Path:
    """Where the unfinished state of a run lies."""
    return folder.path / CHECKPOINTS / run_id(stage, trial).replace("/", "-")


__all__ = ["choose", "make_program", "run"]
