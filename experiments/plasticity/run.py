"""The paper's algorithm, in the paper's order: data, network, method, loop, figures."""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plasticity.arms import Arm, arms, trials
from experiments.plasticity.config import Config
from experiments.plasticity.settings import Setting, load, make_model, make_setting
from jaxcl.curvature import top_eigenvalue
from jaxcl.losses import cross_entropy, mean_loss
from jaxcl.plasticity import measure
from jaxcl.runs.folder import RunFolder, check_data_hash
from jaxcl.runs.jobs import worker_count
from jaxcl.runs.trials import (
    Learn,
    Tell,
    Trial,
    checkpoint_folder,
    result_line,
    rounded,
    run_trials,
)
from jaxcl.training import (
    current_accuracy,
    first_example,
    in_segments,
    over_runs,
    run_stream,
    segment_size,
)
from jaxcl.tree import at


class Program(NamedTuple):
    """One arm in one setting, compiled for a number of runs side by side."""

    start: Callable  # (keys, hypers) -> states
    advance: Callable  # (states, keys, hypers, seeds, pool, plans, tasks) -> ...


def run(config: Config, folder: RunFolder) -> None:
    """Do every trial that is not in ``results.jsonl`` yet."""
    check_data_hash(folder, images_of(config))
    for name in config.settings:
        setting_of(config, name)  # refuses what does not fit the data
    run_trials(
        folder,
        trials(config),
        worker,
        (config, folder),
        num_workers=worker_count(config.workers),
        size=runs_per_call(config),
        program=lambda trial: (trial.setting, trial.arm),
    )


def worker(config: Config, folder: RunFolder) -> Learn:
    """What a process needs to do trials: data once, and each program when it is due."""

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
                rho=config.measured_rho,
                tau=config.measured_dormant,
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
    pack: Sequence[Trial],
    folder: RunFolder,
    tell: Tell,
) -> list[dict]:
    """Learn one pack of runs side by side; return their lines."""
    # A short pack repeats its last run, so that one compiled program serves all packs.
    full = [*pack, *[pack[-1]] * (runs_per_call(config) - len(pack))]
    seeds = jnp.array([trial.seed for trial in full])
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(config.seed), s))(seeds)
    hypers = {
        name: jnp.array([trial.hyper[name] for trial in full], jnp.float32)
        for name in pack[0].hyper
    }
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
    return [
        line(trial, at(index, learned.record), seconds)
        for index, trial in enumerate(pack)
    ]


def line(trial: Trial, record, seconds: float) -> dict:
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


def runs_per_call(config: Config) -> int:
    """The wanted number; by default one on a CPU, where runs only take turns."""
    return config.runs_per_call or (1 if jax.default_backend() == "cpu" else 10)


def mesh_for(num_runs: int) -> jax.sharding.Mesh:
    """As many devices as divide the runs evenly."""
    count = max(k for k in range(1, jax.device_count() + 1) if num_runs % k == 0)
    return jax.sharding.Mesh(np.array(jax.devices()[:count]), ("runs",))
