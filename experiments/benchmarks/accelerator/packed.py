"""The runs of the plasticity experiment, many in one program: how long does a task take?

The programs are those of the experiment, measures after each task included. Only as many
tasks are made as are timed, one per call; all that differs from task to task is whether
the Hessian's eigenvalue is due, which one in five is.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator.box import (
    Box,
    compiled,
    seconds_of,
)
from experiments.plasticity.arms import arms, trials
from experiments.plasticity.packing.config import PRESETS, Config
from experiments.plasticity.packing.run import by_arm, load_images
from experiments.plasticity.program import make_program
from experiments.plasticity.settings import Setting, make_model, make_setting
from jaxcl.losses import cross_entropy
from jaxcl.runs.trials import Trial
from jaxcl.training.device import first_example, over_runs, run_stream
from jaxcl.tree import at

GRID = PRESETS["grid"]
PACKS, SMALL_PACKS = (1, 10, 50, 200), (1, 2)
NUM_TIMED = 5  # tasks after the first: the eigenvalue is due in one of them


def sizes(box: Box) -> Config:
    """The experiment on as many tasks as are timed; on a CPU a small one."""
    if not box.small:
        return dataclasses.replace(GRID, num_tasks=1 + NUM_TIMED)
    return dataclasses.replace(
        PRESETS["smoke"],
        settings=GRID.settings,
        groups=GRID.groups,
        arms=None,
        num_tasks=1 + NUM_TIMED,
        task_limit=None,
        probe_every=GRID.probe_every,
    )


def packs(box: Box) -> None:
    """Runs per hour against runs in one program: SGD on permuted images.

    The first number is that of the steps alone, whose program is compiled much sooner.
    """
    config = sizes(box)
    setting = make_setting("permuted", config, load_images(config))
    box.tell("images and tasks are made", num_tasks=setting.num_tasks)
    time_part(box, config, setting, "the steps alone", steps_alone)
    for pack in SMALL_PACKS if box.small else PACKS:
        time_runs(box, config, setting, pack_of(config, "sgd", pack))


def one_pack(box: Box) -> None:
    """The third of these packs only, to compare the compiler's flags."""
    config = sizes(box)
    setting = make_setting("permuted", config, load_images(config))
    pack = (SMALL_PACKS if box.small else PACKS)[-2]
    time_runs(box, config, setting, pack_of(config, "sgd", pack))


def pack_of(config: Config, arm: str, pack: int) -> list[Trial]:
    """So many runs of an arm; they come again where there are fewer."""
    here = lambda trial: (trial.setting, trial.arm) == (config.settings[0], arm)
    runs = list(filter(here, trials(config)))
    return list(itertools.islice(itertools.cycle(runs), pack))


class Timing(NamedTuple):
    """What a pack of runs costs."""

    compiling: float
    per_task: float


def time_runs(
    box: Box, config: Config, setting: Setting, packed: Sequence[Trial]
) -> Timing:
    """Compile a pack of runs and time its tasks; a line after the first, one at the end.

    Runs per hour are those of whole streams, as long as the experiment's.
    """
    name, runs = packed[0].arm, len(packed)
    total = stream_length(setting)
    config = dataclasses.replace(config, runs_per_call=runs)
    program = make_program(config, setting, arms(config, setting.num_steps)[name])
    keys, hypers, seeds = arguments(config, packed)
    shared = seeds, setting.streams.pool, setting.streams.plan
    state, starting = seconds_of(lambda: program.start(keys, hypers))
    advance = compiled(program.advance, state, keys, hypers, *shared, jnp.arange(1))

    def tell(what: str, per_task: float, **facts) -> None:
        box.tell(
            f"{setting.name}, {name}, {runs} runs: {what}",
            **advance.costs,
            start_seconds=starting,
            run_seconds=per_task,
            runs=runs,
            runs_per_hour=3600 * runs / (per_task * total),
            steps_per_second=runs * setting.num_steps / per_task,
            **facts,
        )

    def one(task: int) -> float:
        nonlocal state
        call = lambda: advance.call(state, keys, hypers, *shared, jnp.array([task]))
        (state, _), seconds = seconds_of(call)
        return seconds

    tell("the first task", one(0), tasks_timed=1)
    per_task = fmean(one(task) for task in range(1, 1 + NUM_TIMED))
    tell("a task", per_task, tasks_timed=NUM_TIMED)
    return Timing(starting + advance.seconds, per_task)


def stream_length(setting: Setting) -> int:
    """Tasks of the experiment's stream: pairs are always all pairs."""
    return GRID.num_tasks if setting.name == "permuted" else setting.num_tasks


def arguments(config: Config, packed: Sequence[Trial]) -> tuple[Any, Any, Any]:
    """Keys, numbers and seeds of the runs, as the experiment gives them."""
    seeds = jnp.array([trial.seed for trial in packed])
    key = jax.random.key(config.seed)
    hypers = {
        name: jnp.array([trial.hyper[name] for trial in packed], jnp.float32)
        for name in packed[0].hyper
    }
    return jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds), hypers, seeds


class Part(NamedTuple):
    """One program of the grid: all runs of an arm in a setting."""

    setting: str
    arm: str


def grid(box: Box) -> None:
    """Every run of the preset ``paper``: programs are timed one by one until time is up.

    After each of them a line says what the whole grid would take. A program that was not
    timed counts as one of the same arm in another setting, task by task, or else as the
    mean of those that were.
    """
    config = sizes(box)
    todo, images = by_arm(config), load_images(config)
    settings = [make_setting(name, config, images) for name in config.settings]
    lengths = {setting.name: stream_length(setting) for setting in settings}
    timed: dict[Part, Timing] = {}
    for setting, (arm, runs) in itertools.product(settings, todo.items()):
        timed[Part(setting.name, arm)] = time_runs(box, config, setting, runs)
        whole = extrapolated(timed, lengths, list(todo))
        count = sum(map(len, todo.values())) * len(config.settings)
        box.tell(
            "the whole grid, extrapolated",
            programs_timed=len(timed),
            programs=len(todo) * len(config.settings),
            runs=count,
            compile_seconds=whole.compiling,
            run_seconds=whole.per_task,
            runs_per_hour=3600 * count / (whole.compiling + whole.per_task),
        )


def extrapolated(
    timed: dict[Part, Timing], lengths: dict[str, int], names: Sequence[str]
) -> Timing:
    """Seconds of compiling and of running all arms in all settings."""

    def of(part: Part) -> Timing:
        same = [time for other, time in timed.items() if other.arm == part.arm]
        some = [timed[part]] if part in timed else same or list(timed.values())
        return Timing(*(fmean(values) for values in zip(*some, strict=True)))

    parts = [(of(Part(name, arm)), lengths[name]) for name in lengths for arm in names]
    return Timing(
        sum(time.compiling for time, _ in parts),
        sum(time.per_task * length for time, length in parts),
    )


def parts(box: Box) -> None:
    """Where a task of a pack spends its time, besides the steps that ``packs`` shows.

    On a GPU the singular values of many matrices are found one after another, so that
    packing does not help them; the eigenvalues of their Gram matrices stand beside them.
    """
    config = sizes(box)
    setting = make_setting("permuted", config, load_images(config))
    for what, program in {
        "making the tasks": making,
        "singular values alone": singular,
        "eigenvalues of the Gram matrices": eigenvalues,
    }.items():
        time_part(box, config, setting, what, program)


def time_part(
    box: Box, config: Config, setting: Setting, what: str, part: Callable
) -> None:
    """The least of three times of a part, for as many runs as ``one_pack`` has."""
    runs = (SMALL_PACKS if box.small else PACKS)[-2]
    function, args = part(config, setting, runs)
    made = compiled(function, *args)
    times = [seconds_of(lambda: made.call(*args))[1] for _ in range(4)]
    box.tell(f"{runs} runs, a task: {what}", **made.costs, run_seconds=min(times[1:]))


Work = tuple[Callable, tuple]  # a function to be compiled, and its arguments


def making(config: Config, setting: Setting, runs: int) -> Work:
    """The training images of the first task of all runs."""
    stream = setting.streams

    def one(seed, pool, plans):
        task = stream.train(pool, at(0, at(seed, plans)))
        return jnp.sum(task.x) + jnp.sum(task.y)

    seeds = jnp.arange(runs) % config.seeds
    return over_runs(one, (0, None, None)), (seeds, stream.pool, stream.plan)


def steps_alone(config: Config, setting: Setting, runs: int) -> Work:
    """A task without any measure after it."""
    packed = pack_of(config, "sgd", runs)
    arm = arms(config, setting.num_steps)["sgd"]
    model = make_model(config, setting)
    loss = cross_entropy(setting.outputs(model.apply))

    def one(key, hyper, seed, pool, plans):
        method = arm.build(loss, model, hyper, key)
        stream = setting.streams._replace(pool=pool, plan=at(seed, plans))
        state = method.init(model.init(key), first_example(stream))
        return run_stream(
            key,
            method,
            stream,
            state,
            num_steps=setting.num_steps,
            batch_size=config.batch_size,
            tasks=jnp.arange(1),
        )

    shared = setting.streams.pool, setting.streams.plan
    args = (*arguments(config, packed), *shared)
    return over_runs(one, (0, 0, 0, None, None)), args


def features_like(config: Config, runs: int) -> jax.Array:
    """Random numbers in the shape of what the measures look at, [runs, rows, units]."""
    shape = runs, config.probe_examples, config.hidden[-1]
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def singular(config: Config, setting: Setting, runs: int) -> Work:
    """Singular values as the measures take them."""
    del setting
    find = lambda x: jnp.linalg.svd(x, compute_uv=False)
    return find, (features_like(config, runs),)


def eigenvalues(config: Config, setting: Setting, runs: int) -> Work:
    """Their squares, from products that a GPU is good at."""
    del setting
    find = lambda x: jnp.linalg.eigvalsh(jnp.swapaxes(x, 1, 2) @ x)
    return find, (features_like(config, runs),)
