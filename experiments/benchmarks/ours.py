"""The job by jaxcl: each method, timed task by task, and runs side by side."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.config import Config
from experiments.benchmarks.rounds import Seconds, Work, compiled, timed
from jaxcl import methods
from jaxcl.data import Images, permuted, stack_plans, synthetic_images
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import default_learner
from jaxcl.models import mlp
from jaxcl.training import accuracies, first_example, over_runs, run_stream, steps_for
from jaxcl.transforms import c_flat, gnp, looksam, sam
from jaxcl.tree import at, num_tasks
from jaxcl.typing import Method, Model, Stream

#: Mean and standard deviation of MNIST's pixels, as most code writes them.
NORMALISE = (0.1307, 0.3081)


def make_images(config: Config) -> Images:
    """The images of all systems."""
    key = jax.random.key(config.seed)
    return synthetic_images(key, num_train=config.num_train, num_test=config.num_test)


def make_stream(
    config: Config, images: Images, *, num_tasks: int, seed: int = 0
) -> Stream:
    """The tasks of all systems; another ``seed`` has other permutations."""
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    return permuted(key, images, num_tasks=num_tasks, normalise=NORMALISE)


def make_model(config: Config) -> Model:
    """The network of all systems."""
    return mlp((784, *config.hidden, 10))


def make_methods(config: Config, num_tasks: int) -> dict[str, Callable[[], Method]]:
    """What is timed, by name."""
    loss = cross_entropy(single_head(make_model(config).apply))
    given, size = (loss, optax.sgd(config.learning_rate)), config.replay_size
    plain, replay = partial(methods.plain, *given), methods.experience_replay
    slots, rho = config.capacity_per_task, config.rho
    agem = partial(methods.agem, *given, num_tasks=num_tasks, capacity_per_task=slots)
    every_fifth = partial(plain, gradient=looksam(rho, k=5))
    return {
        "naive": plain,
        "ewc": partial(methods.ewc, *given, strength=config.strength),
        "er": partial(replay, *given, capacity=config.capacity, sample_size=size),
        "agem": partial(agem, sample_size=size),
        "sam": partial(plain, gradient=sam(rho)),
        "gnp": partial(plain, gradient=gnp(rho, alpha=0.5)),
        "looksam": every_fifth,
        "looksam_reset": partial(every_fifth, reset_gradient=True),
        "c_flat": partial(plain, gradient=c_flat()),
    }


def make_fit(config: Config) -> Callable:
    """One pass over each task; a task's last batch is filled up, not shortened."""
    steps = steps_for(config.num_train, batch_size=config.batch_size)
    return partial(run_stream, num_steps=steps, batch_size=config.batch_size)


class Program(NamedTuple):
    """One method, compiled; all data are arguments."""

    start: Callable  # (key) -> state
    advance: Callable  # (state, key, pool, plan, tasks) -> (state, record)
    test: Callable  # (state, pool, plan) -> accuracies
    stream: Stream
    compiling: Seconds  # of all three


def make_program(config: Config, images: Images, name: str, num_tasks: int) -> Program:
    """Compile what one method needs on one stream."""
    stream = make_stream(config, images, num_tasks=num_tasks)
    model, build = make_model(config), make_methods(config, num_tasks)[name]
    logits, fit = single_head(model.apply), make_fit(config)

    def start(key):
        return build().init(model.init(key), first_example(stream))

    def advance(state, key, pool, plan, tasks):
        here = stream._replace(pool=pool, plan=plan)
        return fit(key, build(), here, state, tasks=tasks)

    def test(state, pool, plan):
        here = stream._replace(pool=pool, plan=plan)
        return accuracies(logits, default_learner(build(), state), here)

    key, shared = jax.random.key(config.seed), (stream.pool, stream.plan)
    start, first = compiled(start, key)
    state, task = start(key), jnp.zeros(1, int)
    advance, second = compiled(advance, state, key, *shared, task, donate=0)
    test, third = compiled(test, state, *shared)
    costs = zip(first, second, third, strict=True)
    return Program(start, advance, test, stream, Seconds(*map(sum, costs)))


def learn(config: Config, program: Program, *, evaluate: bool = True) -> dict[str, Any]:
    """One method on one stream, timed task by task.

    Returns:
      CPU and wall seconds of compilation, and per task of training and of evaluating all
      tasks; the accuracy matrix; whether all losses were numbers.
    """
    stream, key = program.stream, jax.random.key(config.seed)
    state = jax.block_until_ready(program.start(key))
    training, testing, matrix, finite = [], [], [], True
    for task in range(num_tasks(stream.plan)):
        train = partial(program.advance, state, key, *stream[:2], jnp.array([task]))
        (state, record), cost = timed(train)
        training.append(cost)
        finite = finite and bool(jnp.all(record.finite))
        if evaluate:
            row, cost = timed(partial(program.test, state, *stream[:2]))
            testing.append(cost)
            matrix.append(np.asarray(row, float).round(6).tolist())
    costs = fields(compile=program.compiling, train=training, eval=testing)
    return {**costs, "accuracy": matrix, "finite": finite}


def side_by_side(config: Config, images: Images) -> Work:
    """Compile several seeds, each with its own tasks; the function runs and times them.

    They run in one program, vmapped and as a loop inside it; then in a program for each.
    """
    model, build = make_model(config), make_methods(config, config.seed_tasks)["naive"]
    seeds, fit = range(config.num_seeds), make_fit(config)
    make = partial(make_stream, config, images, num_tasks=config.seed_tasks)
    streams = stack_plans([make(seed=seed) for seed in seeds])  # plans [s, T, ...]

    def run(key, plan, pool):
        stream, method = streams._replace(pool=pool, plan=plan), build()
        state = method.init(model.init(key), first_example(stream))
        return fit(key, method, stream, state)

    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    each = [(keys[seed], at(seed, streams.plan), streams.pool) for seed in seeds]
    axes, every = (0, 0, None), (keys, streams.plan, streams.pool)
    alone, _ = compiled(run, *each[0])
    together, cost = compiled(over_runs(run, axes), *every)
    in_turn, _ = compiled(over_runs(run, axes, at_once=1), *every)
    return lambda _: fields(
        compile=cost,
        together=timed(partial(together, *every))[1],
        in_turn=timed(partial(in_turn, *every))[1],
        alone=[timed(partial(alone, *one))[1] for one in each],
    )


def fields(**costs: Seconds | list[Seconds]) -> dict[str, Any]:
    """``NAME_cpu`` and ``NAME_wall`` of each cost; lists of them for a list."""
    return {
        f"{name}_{unit}": getattr(cost, unit)
        if isinstance(cost, Seconds)
        else [getattr(one, unit) for one in cost]
        for name, cost in costs.items()
        for unit in Seconds._fields
    }
