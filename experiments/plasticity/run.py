"""The paper's algorithm, in the paper's order: data, network, method, loop, figures."""

import functools
import hashlib
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import RunFolder, append, finished, progress
from experiments.plasticity.arms import Arm, Trial, arms, trials
from experiments.plasticity.config import Config
from experiments.plasticity.settings import Setting, load, make_model, make_setting
from jaxcl.curvature import top_eigenvalue
from jaxcl.losses import cross_entropy, mean_loss
from jaxcl.plasticity import measure
from jaxcl.training.checkpoint import restore, save, steps
from jaxcl.training.device import (
    current_accuracy,
    first_example,
    over_runs,
    run_stream,
)
from jaxcl.tree import at


class Program(NamedTuple):
    """One arm in one setting, compiled for a number of runs side by side."""

    start: Callable  # (keys, hypers) -> states
    advance: Callable  # (states, keys, hypers, seeds, pool, plans, tasks) -> ...


def run(config: Config, folder: RunFolder) -> None:
    """Do every trial that is not in ``results.jsonl`` yet."""
    check(config)
    images = load(config)
    todo = trials(config)
    settings = [make_setting(name, config, images) for name in config.settings]
    every_arm = [arms(config, setting.num_steps) for setting in settings]

    @functools.cache
    def program_of(place: int, name: str) -> Program:
        return make_program(config, settings[place], every_arm[place][name])

    total, done = len(unique(settings, todo)), len(finished(folder))
    with progress(total, "runs", done=done) as advance:
        for group, (place, setting) in itertools.product(
            config.groups, enumerate(settings)
        ):
            part = [trial for trial in todo if trial.group == group]
            for name, left in unfinished(setting, part, folder).items():
                for pack in packs(left, config.runs_per_call):
                    program = program_of(place, name)
                    note = functools.partial(advance, 0)
                    append(folder, learn(config, setting, program, pack, folder, note))
                    shutil.rmtree(
                        checkpoints(folder, setting, pack), ignore_errors=True
                    )
                    advance(len(pack))


def check(config: Config) -> None:
    """Refuse numbers that could not work, before any compute.

    Raises:
      ValueError: naming the field, what it must be, and what it was.
    """
    positive = (
        "seeds sweep_seeds num_tasks batch_size num_epochs hidden learning_rates rho r "
        "penalty rhos penalties radii target_sharpness probe_examples probe_every "
        "tasks_per_call runs_per_call renewal_period redo_period task_limit "
        "examples_per_task test_examples"
    )
    for name in positive.split():
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is not None and not number > 0 for number in numbers):
            msg = f"{name}: expected numbers above 0, got {value}."
            raise ValueError(msg)
    for name in ("momentum", "shrink", "dormant", "replacement_rate", "warm_share"):
        value = getattr(config, name)
        if not 0 <= value < 1:
            msg = f"{name}: expected a share of at least 0 and below 1, got {value}."
            raise ValueError(msg)
    # A quadratic pull is stable only while learning rate * strength < 2.
    pull = max(config.learning_rates) * config.l2_init_strength
    if not 0 <= pull < 2:
        msg = (
            "l2_init_strength: learning rate * strength must lie in [0, 2) to be stable, "
            f"got {pull:g}; lower one of them."
        )
        raise ValueError(msg)


def make_program(config: Config, setting: Setting, arm: Arm) -> Program:
    """Compile once what all runs of an arm share; numbers and seeds are arguments."""
    model = make_model(
        config, setting, activation=arm.activation, layer_norm=arm.layer_norm
    )
    logits = setting.logits(model.apply)
    example_loss = cross_entropy(logits)

    def start(key, hyper):
        method = arm.build(example_loss, model, hyper)
        one_seed = setting.streams._replace(plan=at(0, setting.streams.plan))
        return method.init(model.init(key), first_example(one_seed))

    def advance(state, key, hyper, seed, pool, plans, tasks):
        method = arm.build(example_loss, model, hyper)
        stream = setting.streams._replace(pool=pool, plan=at(seed, plans))
        accuracy = current_accuracy(logits, stream, chunk_size=1000)
        origin = model.init(key)

        def look(moment):
            """Figures on the first images of the task at hand."""
            probe = at(slice(config.probe_examples), moment.task)
            figures = measure(
                moment.key,
                example_loss,
                model.features,
                moment.params,
                origin,
                probe,
                rho=config.rho,
                tau=config.dormant,
            )
            loss = lambda p: mean_loss(example_loss, p, probe, moment.key)
            due = (moment.index + 1) % config.probe_every == 0
            curvature = jax.lax.cond(
                due,
                lambda p: top_eigenvalue(moment.key, loss, p, num_steps=10),
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

    mesh = mesh_for(config.runs_per_call)
    shared = (0, 0, 0, 0, None, None, None)
    return Program(
        jax.jit(over_runs(start, mesh=mesh)),
        jax.jit(over_runs(advance, shared, mesh=mesh), donate_argnums=0),
    )


def learn(
    config: Config,
    setting: Setting,
    program: Program,
    pack: list[Trial],
    folder: RunFolder,
    note: Callable[[str], None],
) -> list[dict]:
    """Learn one pack of runs side by side, segment by segment; return their lines.

    Segments end in checkpoints, from which a run killed at any moment goes on with the
    same bits.
    """
    began = time.perf_counter()
    # A short pack repeats its last run, so that one compiled program serves all packs.
    full = pack + [pack[-1]] * (config.runs_per_call - len(pack))
    seeds = jnp.array([trial.seed for trial in full])
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(config.seed), s))(seeds)
    hypers = {
        name: jnp.array([trial.hyper[name] for trial in full], jnp.float32)
        for name in pack[0].hyper
    }
    state = program.start(keys, hypers)
    size = segment_size(setting.num_tasks, config.tasks_per_call)
    walk = lambda state, first: program.advance(
        state,
        keys,
        hypers,
        seeds,
        setting.streams.pool,
        setting.streams.plan,
        first + jnp.arange(size),
    )
    record = record_like(walk, state, setting.num_tasks)
    place, done = checkpoints(folder, setting, pack), 0
    if steps(place):
        done, (state, record) = restore(place, (state, record))
        record = jax.tree.map(np.array, record)
    saved = time.perf_counter()
    for first in range(done, setting.num_tasks, size):
        note(f"{setting.name}, {pack[0].arm}, task {first + 1}")
        state, part = walk(state, first)
        jax.tree.map(functools.partial(fill, slice(first, first + size)), record, part)
        if time.perf_counter() - saved > config.checkpoint_seconds:
            save(place, first + size, (state, record))
            saved = time.perf_counter()
    seconds = (time.perf_counter() - began) / len(pack)
    return [
        line(setting, trial, at(index, record), seconds)
        for index, trial in enumerate(pack)
    ]


def mesh_for(num_runs: int) -> jax.sharding.Mesh:
    """As many devices as divide the runs evenly."""
    count = max(k for k in range(1, jax.device_count() + 1) if num_runs % k == 0)
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("runs",))


def fill(where: slice, whole: np.ndarray, part: jax.Array) -> None:
    """Write the tasks of a segment into the records of the stream."""
    whole[:, where] = np.asarray(part)


def checkpoints(folder: RunFolder, setting: Setting, pack: list[Trial]) -> Path:
    """Where a pack's unfinished state lies; other packs have other places."""
    names = ";".join(run_id(setting, trial) for trial in pack)
    return folder.path / "checkpoints" / hashlib.sha256(names.encode()).hexdigest()[:16]


def line(setting: Setting, trial: Trial, record, seconds: float) -> dict:
    """What ``results.jsonl`` keeps of one run, rounded to four digits."""
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
        "measures": {name: rounded(values) for name, values in figures.items()},
        "seconds": round(seconds, 2),
        "device": jax.devices()[0].device_kind,
    }


def record_like(walk, state, num_tasks: int):
    """Empty records of a whole stream, [runs, T, ...], for segments to fill."""
    part = jax.eval_shape(lambda s: walk(s, 0)[1], state)
    empty = lambda leaf: np.zeros(
        (leaf.shape[0], num_tasks, *leaf.shape[2:]), leaf.dtype
    )
    return jax.tree.map(empty, part)


def segment_size(num_tasks: int, wanted: int) -> int:
    """The largest divisor of ``num_tasks`` up to ``wanted``: segments of equal length."""
    return max(k for k in range(1, wanted + 1) if num_tasks % k == 0)


def run_id(setting: Setting, trial: Trial) -> str:
    """``setting/arm/lr=0.01,rho=0.05/seed=3``."""
    numbers = ",".join(f"{name}={value:g}" for name, value in trial.hyper.items())
    return f"{setting.name}/{trial.arm}/{numbers}/seed={trial.seed}"


def unique(settings: list[Setting], todo: list[Trial]) -> set[str]:
    """All runs; the sweeps contain some of the others."""
    return {run_id(setting, trial) for setting in settings for trial in todo}


def unfinished(
    setting: Setting, todo: list[Trial], folder: RunFolder
) -> dict[str, list[Trial]]:
    """The trials of a setting that have no line yet, each once, by arm."""
    done = finished(folder)
    arms: dict[str, list[Trial]] = {}
    for trial in todo:
        name = run_id(setting, trial)
        if name not in done:
            done.add(name)
            arms.setdefault(trial.arm, []).append(trial)
    return arms


def packs(todo: list[Trial], size: int) -> list[list[Trial]]:
    """Runs that share a compiled call."""
    return [todo[first : first + size] for first in range(0, len(todo), size)]


def rounded(values) -> list[float | None]:
    """Four significant digits; None where there is no number."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values)]


__all__ = ["learn", "make_program", "run"]
