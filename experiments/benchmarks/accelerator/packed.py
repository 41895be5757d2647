"""The runs of the plasticity experiment, many in one program: how long does a task take?

The programs are those of the experiment, measures after each task included. Only as many
tasks are made as are timed, one per call; all that differs from task to task is whether
the Hessian's eigenvalue is due, which one in five is.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from experiments.benchmarks.accelerator.schedule import Box, compiled, seconds_of
from experiments.plasticity.arms import arms, trials
from experiments.plasticity.config import PRESETS, Config
from experiments.plasticity.program import make_program
from experiments.plasticity.run import arguments
from experiments.plasticity.settings import Setting, load, make_model, make_setting
from jaxcl.data import synthetic_images
from jaxcl.losses import cross_entropy
from jaxcl.runs.trials import Trial
from jaxcl.training.device import first_example, over_runs, run_stream
from jaxcl.tree import at

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

#: Seconds of compiling, and of a task, by setting and arm.
Timings = dict[tuple[str, str], tuple[float, float]]


class Here(NamedTuple):
    """What an item works with."""

    box: Box
    config: Config
    setting: Setting


def begin(box: Box, names: Sequence[str] = ("permuted",)) -> list[Here]:
    """Settings of the experiment with as many tasks as are timed; small ones on a CPU."""
    grid = SMALL if box.small else GRID
    config = dataclasses.replace(grid, num_tasks=1 + NUM_TIMED)
    drawn = partial(synthetic_images, num_train=60_000, num_test=10_000)
    images = load(config) if box.small else drawn(jax.random.key(config.seed))
    return [Here(box, config, make_setting(name, config, images)) for name in names]


def packs(box: Box) -> None:
    """Runs per hour against runs in one program: SGD on permuted images.

    The first number is that of the steps alone, whose program is compiled much sooner.
    """
    (here,) = begin(box)
    box.tell("images and tasks are made", num_tasks=here.setting.num_tasks)
    time_part(here, "the steps alone", steps_alone)
    for pack in SMALL_PACKS if box.small else PACKS:
        time_runs(here, pack_of(here.config, "sgd", pack))


def one_pack(box: Box) -> None:
    """The third of these packs only, to compare the compiler's flags."""
    (here,) = begin(box)
    time_runs(here, pack_of(here.config, "sgd", third(box)))


def third(box: Box) -> int:
    """Runs in the third of the packs, of which a CPU has fewer."""
    return (SMALL_PACKS if box.small else PACKS)[-2]


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


def time_runs(here: Here, packed: Sequence[Trial]) -> tuple[float, float]:
    """Compile a pack of runs and time its tasks; a line after the first, one at the end.

    Runs per hour are those of whole streams, as long as the experiment's.

    Returns:
      Seconds of compiling, and of a task.
    """
    box, config, setting = here
    name, runs, total = packed[0].arm, len(packed), stream_length(setting)
    config = dataclasses.replace(config, runs_per_call=runs)
    program = make_program(config, setting, arms(config, setting.num_steps)[name])
    keys, hypers, seeds = arguments(config, packed)
    given = keys, hypers, seeds, setting.streams.pool, setting.streams.plan
    state, starting = seconds_of(lambda: program.start(keys, hypers))
    advance = compiled(program.advance, state, *given, jnp.arange(1))

    def one(task: int) -> float:
        nonlocal state
        call = partial(advance.call, state, *given, jnp.array([task]))
        (state, _), seconds = seconds_of(call)
        return seconds

    per_task = 0.0
    for what, tasks in (("the first task", [0]), ("a task", range(1, 1 + NUM_TIMED))):
        per_task = fmean(map(one, tasks))
        box.tell(
            f"{setting.name}, {name}, {runs} runs: {what}",
            **advance.costs,
            start_seconds=starting,
            run_seconds=per_task,
            runs=runs,
            runs_per_hour=3600 * runs / (per_task * total),
            steps_per_second=runs * setting.num_steps / per_task,
            tasks_timed=len(tasks),
        )
    return starting + advance.seconds, per_task


def stream_length(setting: Setting) -> int:
    """Tasks of the experiment's stream: pairs are always all pairs."""
    return GRID.num_tasks if setting.name == "permuted" else setting.num_tasks


def grid(box: Box) -> None:
    """Every run of the preset ``paper``: programs are timed one by one until time is up.

    After each of them a line says what the whole grid would take.
    """
    here = {one.setting.name: one for one in begin(box, GRID.settings)}
    lengths = {name: stream_length(one.setting) for name, one in here.items()}
    todo = by_arm(here[GRID.settings[0]].config)
    count = sum(map(len, todo.values())) * len(here)
    timed: Timings = {}
    for name, arm in itertools.product(here, todo):
        timed[name, arm] = time_runs(here[name], todo[arm])
        compiling, running = extrapolated(timed, lengths, list(todo))
        box.tell(
            "the whole grid, extrapolated",
            programs_timed=len(timed),
            programs=len(todo) * len(here),
            runs=count,
            compile_seconds=compiling,
            run_seconds=running,
            runs_per_hour=3600 * count / (compiling + running),
        )


def extrapolated(
    timed: Timings, lengths: dict[str, int], names: Sequence[str]
) -> tuple[float, float]:
    """Seconds of compiling and of running all arms in all settings.

    A program that was not timed counts as one of the same arm in another setting, task by
    task, or else as the mean of those that were.
    """
    programs = pd.MultiIndex.from_product([lengths, names])
    known = pd.DataFrame(timed, ["compiling", "per task"]).T.reindex(programs)
    same_arm = known.groupby(level=1).transform("mean")
    costs = known.where(known.notna(), same_arm).fillna(known.mean())
    compiling, per_task = costs.to_numpy().T
    tasks = [lengths[name] for name, _ in programs]
    return float(compiling.sum()), float(per_task @ tasks)


def parts(box: Box) -> None:
    """Where a task of a pack spends its time, besides the steps that ``packs`` shows.

    On a GPU the singular values of many matrices are found one after another, so that
    packing does not help them; the eigenvalues of their Gram matrices stand beside them.
    """
    (here,) = begin(box)
    time_part(here, "making the tasks", making)
    time_part(here, "singular values alone", singular)
    time_part(here, "eigenvalues of the Gram matrices", eigenvalues)


Work = tuple[Callable, tuple]  # a function to be compiled, and its arguments


def time_part(here: Here, what: str, part: Callable[[Here, int], Work]) -> None:
    """The least of three times of a part, for as many runs as ``one_pack`` has."""
    runs = third(here.box)
    function, args = part(here, runs)
    made = compiled(function, *args)
    times = [seconds_of(partial(made.call, *args))[1] for _ in range(4)]
    words = f"{runs} runs, a task: {what}"
    here.box.tell(words, **made.costs, run_seconds=min(times[1:]))


def making(here: Here, runs: int) -> Work:
    """The training images of the first task of all runs."""
    stream = here.setting.streams

    def one(seed, pool, plans):
        task = stream.train(pool, at(0, at(seed, plans)))
        return jnp.sum(task.x) + jnp.sum(task.y)

    seeds = jnp.arange(runs) % here.config.seeds
    return over_runs(one, (0, None, None)), (seeds, stream.pool, stream.plan)


def steps_alone(here: Here, runs: int) -> Work:
    """A task without any measure after it."""
    _, config, setting = here
    arm = arms(config, setting.num_steps)["sgd"]
    model, steps = make_model(config, setting), setting.num_steps
    loss = cross_entropy(setting.outputs(model.apply))
    fit = partial(run_stream, num_steps=steps, batch_size=config.batch_size)

    def one(key, hyper, seed, pool, plans):
        method = arm.build(loss, model, hyper, key)
        stream = setting.streams._replace(pool=pool, plan=at(seed, plans))
        state = method.init(model.init(key), first_example(stream))
        return fit(key, method, stream, state, tasks=jnp.arange(1))

    given = arguments(config, pack_of(config, "sgd", runs))
    shared = setting.streams.pool, setting.streams.plan
    return over_runs(one, (0, 0, 0, None, None)), (*given, *shared)


def hidden_like(here: Here, runs: int) -> jax.Array:
    """Random numbers in the shape of what the measures see, [runs, rows, units]."""
    shape = runs, here.config.probe_examples, here.config.hidden[-1]
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def singular(here: Here, runs: int) -> Work:
    """Singular values as the measures take them."""
    return partial(jnp.linalg.svd, compute_uv=False), (hidden_like(here, runs),)


def eigenvalues(here: Here, runs: int) -> Work:
    """Their squares, from products that a GPU is good at."""
    find = lambda x: jnp.linalg.eigvalsh(jnp.swapaxes(x, 1, 2) @ x)
    return find, (hidden_like(here, runs),)
