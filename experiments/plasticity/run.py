"""The paper's algorithm, in the paper's order: data, network, method, loop, figures."""

import functools
import hashlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plasticity.arms import Arm, Trial, arms, trials
from experiments.plasticity.config import Config
from experiments.plasticity.settings import (
    SETTINGS,
    Setting,
    load,
    make_model,
    make_setting,
)
from jaxcl.curvature import top_eigenvalue
from jaxcl.errors import InputError
from jaxcl.losses import cross_entropy, mean_loss
from jaxcl.plasticity import measure
from jaxcl.runs import (
    RunFolder,
    append,
    check_data_hash,
    check_fields,
    check_names,
    finished,
    progress,
    share_out,
    worker_count,
)
from jaxcl.training import (
    current_accuracy,
    first_example,
    over_runs,
    run_stream,
)
from jaxcl.training.device import in_segments, segment_size
from jaxcl.tree import at


class Program(NamedTuple):
    """One arm in one setting, compiled for a number of runs side by side."""

    start: Callable  # (keys, hypers) -> states
    advance: Callable  # (states, keys, hypers, seeds, pool, plans, tasks) -> ...


class Job(NamedTuple):
    """Runs that share a compiled program, for one worker."""

    place: int  # of the setting
    arm: str
    trials: list[Trial]


class Finished(NamedTuple):
    """A pack of runs: its lines, and the checkpoints that are no longer needed."""

    lines: list[dict]
    checkpoints: Path


def run(config: Config, folder: RunFolder) -> None:
    """Do every trial that is not in ``results.jsonl`` yet."""
    check(config)
    check_data_hash(folder, images_of(config))
    settings, todo = make_settings(config), trials(config)
    num_workers = worker_count(config.workers)
    jobs = unfinished(settings, todo, finished(folder), num_workers)
    total, done = len(unique(settings, todo)), len(finished(folder))
    with progress(total, "runs", done=done) as advance:

        def receive(sent: str | Finished):
            if isinstance(sent, str):
                advance(0, sent)
                return
            append(folder, sent.lines)
            shutil.rmtree(sent.checkpoints, ignore_errors=True)
            advance(len(sent.lines))

        share_out(worker, (config, folder), jobs, receive, num_workers=num_workers)


def worker(config: Config, folder: RunFolder):
    """What a process needs to do jobs: data once, and each program when it is due."""
    settings = make_settings(config)

    @functools.cache
    def program_of(place: int, name: str) -> Program:
        setting = settings[place]
        return make_program(config, setting, arms(config, setting.num_steps)[name])

    def do(job: Job, send: Callable[[str | Finished], None]) -> None:
        setting, program = settings[job.place], program_of(job.place, job.arm)
        for pack in packs(job.trials, runs_per_call(config)):
            lines = learn(config, setting, program, pack, folder, send)
            send(Finished(lines, checkpoints(folder, setting, pack)))

    return do


@functools.lru_cache(maxsize=1)  # one process checks the data, and may then do the work
def make_settings(config: Config) -> list[Setting]:
    """All settings on the data of the experiment."""
    return [make_setting(name, config, images_of(config)) for name in config.settings]


images_of = functools.lru_cache(maxsize=1)(load)


#: Numbers that turn something off when they are 0.
MAY_BE_ZERO = (
    "checkpoint_seconds",
    "dormant",
    "l2_init_strength",
    "momentum",
    "perturb",
    "replacement_rate",
    "resnet_width",
    "shrink",
    "warm_share",
)
SHARES = ("momentum", "shrink", "dormant", "replacement_rate", "warm_share")


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute.

    Raises:
      ValueError: naming the field, what it must be, and what it was.
    """
    if not config.data:
        msg = (
            "data: name the images: --data FOLDER with MNIST's four idx files (or CIFAR's "
            "binary files, .npy, .npz), --data tfds:NAME, or --data digits."
        )
        raise InputError(msg)
    check_fields(config, may_be_zero=MAY_BE_ZERO, shares=SHARES)
    check_names("settings", config.settings, SETTINGS)
    # A quadratic penalty is stable only while learning rate * strength < 2.
    product = max(config.learning_rates) * config.l2_init_strength
    if product >= 2:
        msg = (
            "l2_init_strength: learning rate * strength must be below 2 to be stable, "
            f"got {product:g}; lower one of them."
        )
        raise InputError(msg)


def make_program(config: Config, setting: Setting, arm: Arm) -> Program:
    """Compile once what all runs of an arm share; numbers and seeds are arguments."""
    model = make_model(
        config, setting, activation=arm.activation, layer_norm=arm.layer_norm
    )
    outputs = setting.outputs(model.apply)
    loss = cross_entropy(outputs)

    def start(key, hyper):
        method = arm.build(loss, model, hyper, key)
        one_seed = setting.streams._replace(plan=at(0, setting.streams.plan))
        return method.init(model.init(key), first_example(one_seed))

    def advance(state, key, hyper, seed, pool, plans, tasks):
        method = arm.build(loss, model, hyper, key)
        stream = setting.streams._replace(pool=pool, plan=at(seed, plans))
        accuracy = current_accuracy(outputs, stream, chunk_size=1000)
        origin = model.init(key)

        def look(moment):
            """Figures on the first images of the task at hand."""
            probe = at(slice(config.probe_examples), moment.task)
            figures = measure(
                moment.key,
                loss,
                model.hidden,
                moment.params,
                origin,
                probe,
                rho=config.rho,
                tau=config.dormant,
            )
            mean = lambda p: mean_loss(loss, p, probe, moment.key)
            due = (moment.index + 1) % config.probe_every == 0
            curvature = jax.lax.cond(
                due,
                lambda p: top_eigenvalue(moment.key, mean, p, num_steps=10),
                lambda p: jnp.full((), jnp.nan),
                moment.params,
            )
            return accuracy(moment), figures | {"top_eigenvalue": curvature}

        return run_stream(
            key,
            method,
            stream,
            state,
            num_steps=setting.num_steps,
            batch_size=config.batch_size,
            after=look,
            tasks=tasks,
        )

    runs = {
        "mesh": mesh_for(runs_per_call(config)),
        "at_once": 1 if jax.default_backend() == "cpu" else None,
    }
    shared = (0, 0, 0, 0, None, None, None)
    return Program(
        jax.jit(over_runs(start, **runs)),
        jax.jit(over_runs(advance, shared, **runs), donate_argnums=0),
    )


def learn(
    config: Config,
    setting: Setting,
    program: Program,
    pack: list[Trial],
    folder: RunFolder,
    note: Callable[[str], None],
) -> list[dict]:
    """Learn one pack of runs side by side; return their lines."""
    # A short pack repeats its last run, so that one compiled program serves all packs.
    full = pack + [pack[-1]] * (runs_per_call(config) - len(pack))
    seeds = jnp.array([trial.seed for trial in full])
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(config.seed), s))(seeds)
    hypers = {
        name: jnp.array([trial.hyper[name] for trial in full], jnp.float32)
        for name in pack[0].hyper
    }
    shared = setting.streams.pool, setting.streams.plan
    walked = in_segments(
        lambda state, tasks: program.advance(
            state, keys, hypers, seeds, *shared, tasks
        ),
        program.start(keys, hypers),
        num_tasks=setting.num_tasks,
        size=segment_size(setting.num_tasks, config.tasks_per_call),
        folder=checkpoints(folder, setting, pack),
        save_every=config.checkpoint_seconds,
        task_axis=1,
        note=lambda task: note(f"{setting.name}, {pack[0].arm}, task {task + 1}"),
    )
    return [
        line(setting, trial, at(index, walked.record), walked.seconds / len(pack))
        for index, trial in enumerate(pack)
    ]


def runs_per_call(config: Config) -> int:
    """The wanted number; by default one on a CPU, where runs only take turns."""
    return config.runs_per_call or (1 if jax.default_backend() == "cpu" else 10)


def mesh_for(num_runs: int) -> jax.sharding.Mesh:
    """As many devices as divide the runs evenly."""
    count = max(k for k in range(1, jax.device_count() + 1) if num_runs % k == 0)
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("runs",))


def checkpoints(folder: RunFolder, setting: Setting, pack: list[Trial]) -> Path:
    """Where a pack's unfinished state lies; other packs have other places."""
    names = ";".join(run_id(setting, trial) for trial in pack)
    return folder.path / "checkpoints" / hashlib.sha256(names.encode()).hexdigest()[:16]


def line(setting: Setting, trial: Trial, record, seconds: float) -> dict:
    """What ``results.jsonl`` keeps of one run: few digits, there are many runs."""
    accuracy, figures = record.after
    finite = np.asarray(record.finite)
    bad = int(np.argmin(finite)) if not finite.all() else None
    return {
        "run": run_id(setting, trial),
        "setting": setting.name,
        "arm": trial.arm,
        "group": trial.group,
        "hyper": trial.hyper,
        "seed": trial.seed,
        "status": "done" if bad is None else "diverged",
        "first_bad_task": bad,
        "accuracy": rounded(accuracy),
        "loss": rounded(record.loss),
        "measures": {name: rounded(values, 3) for name, values in figures.items()},
        "seconds": round(seconds, 2),
        "device": jax.devices()[0].device_kind,
    }


def run_id(setting: Setting, trial: Trial) -> str:
    """``setting/arm/lr=0.01,rho=0.05/seed=3``."""
    numbers = ",".join(f"{name}={value:g}" for name, value in trial.hyper.items())
    return f"{setting.name}/{trial.arm}/{numbers}/seed={trial.seed}"


def unique(settings: list[Setting], todo: list[Trial]) -> set[str]:
    """All runs; the sweeps contain some of the others."""
    return {run_id(setting, trial) for setting in settings for trial in todo}


def unfinished(
    settings: list[Setting], todo: list[Trial], done: set[str], num_workers: int
) -> list[Job]:
    """What is left to do, each run once: group by group, setting by setting, arm by arm.

    A job is all runs of a program, cut only where there would be fewer jobs than workers.
    """
    done, jobs = set(done), {}
    groups = list(dict.fromkeys(trial.group for trial in todo))
    for group, (place, setting) in itertools.product(groups, enumerate(settings)):
        for trial in todo:
            name = run_id(setting, trial)
            if trial.group == group and name not in done:
                done.add(name)
                jobs.setdefault((group, place, trial.arm), []).append(trial)
    parts = -(-num_workers // max(1, len(jobs)))
    return [
        Job(place, arm, part)
        for (_, place, arm), left in jobs.items()
        for part in packs(left, -(-len(left) // parts))
    ]


def packs(todo: list[Trial], size: int) -> list[list[Trial]]:
    """Runs that share a compiled call."""
    return [todo[first : first + size] for first in range(0, len(todo), size)]


def rounded(values, digits: int = 4) -> list[float | None]:
    """So many significant digits; None where there is no number."""
    return [
        float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in np.asarray(values)
    ]


__all__ = ["learn", "make_program", "run"]
