"""The job by jaxcl: each method, timed task by task, and runs side by side."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.config import Config
from jaxcl import methods
from jaxcl.data import Images, permuted, stack_plans, synthetic_images
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import default_learner
from jaxcl.models import mlp
from jaxcl.training import (
    accuracies,
    first_example,
    over_runs,
    run_stream,
    steps_for,
)
from jaxcl.transforms import c_flat, gnp, looksam, sam
from jaxcl.tree import at
from jaxcl.tree import num_tasks as num_tasks_of
from jaxcl.typing import Method, Model, Stream

#: Mean and standard deviation of MNIST's pixels, as most code writes them.
NORMALISE = (0.1307, 0.3081)


class Seconds(NamedTuple):
    """What some work cost."""

    cpu: float  # of all threads of this process
    wall: float


def timed(work: Callable[[], Any]) -> tuple[Any, Seconds]:
    """Do it, wait for it, and tell what it cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    done = jax.block_until_ready(work())
    return done, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


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
    optimizer = optax.sgd(config.learning_rate)
    method_with = lambda gradient, **options: (
        lambda: methods.plain(loss, optimizer, gradient=gradient, **options)
    )
    return {
        "naive": lambda: methods.plain(loss, optimizer),
        "ewc": lambda: methods.ewc(loss, optimizer, strength=config.strength),
        "er": lambda: methods.experience_replay(
            loss, optimizer, capacity=config.capacity, sample_size=config.replay_size
        ),
        "agem": lambda: methods.agem(
            loss,
            optimizer,
            num_tasks=num_tasks,
            capacity_per_task=config.capacity_per_task,
            sample_size=config.replay_size,
        ),
        "sam": method_with(sam(config.rho)),
        "gnp": method_with(gnp(config.rho, alpha=0.5)),
        "looksam": method_with(looksam(config.rho, k=5)),
        "looksam_reset": method_with(looksam(config.rho, k=5), reset_gradient=True),
        "c_flat": method_with(c_flat()),
    }


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
    logits = single_head(model.apply)
    fit = partial(run_stream, num_steps=num_steps(config), batch_size=config.batch_size)

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
    state = start(key)
    advance, second = compiled(
        advance, state, key, *shared, jnp.zeros(1, int), donate=0
    )
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
    for task in range(num_tasks_of(stream.plan)):
        train = partial(program.advance, state, key, *stream[:2], jnp.array([task]))
        (state, record), cost = timed(train)
        training.append(cost)
        finite = finite and bool(jnp.all(record.finite))
        if evaluate:
            row, cost = timed(partial(program.test, state, *stream[:2]))
            testing.append(cost)
            matrix.append(np.asarray(row).tolist())
    return {
        "compile_cpu": program.compiling.cpu,
        "compile_wall": program.compiling.wall,
        "train_cpu": [cost.cpu for cost in training],
        "train_wall": [cost.wall for cost in training],
        "eval_cpu": [cost.cpu for cost in testing],
        "eval_wall": [cost.wall for cost in testing],
        "accuracy": matrix,
        "finite": finite,
    }


class Pack(NamedTuple):
    """Several seeds, each with its own tasks: one program for all, and one for each."""

    together: Callable  # (keys, plans, pool) -> ..., vmapped
    in_turn: Callable  # the same, as a loop inside the program
    alone: Callable  # (key, plan, pool) -> ...
    streams: Stream  # plan leaves [s, T, ...]
    compiling: Seconds  # of the first


def make_pack(config: Config, images: Images) -> Pack:
    """Compile runs without a method, to be run side by side and one by one."""
    model, build = make_model(config), make_methods(config, config.seed_tasks)["naive"]
    streams = stack_plans(
        [
            make_stream(config, images, num_tasks=config.seed_tasks, seed=seed)
            for seed in range(config.num_seeds)
        ]
    )

    def run(key, plan, pool):
        stream, method = streams._replace(pool=pool, plan=plan), build()
        state = method.init(model.init(key), first_example(stream))
        return run_stream(
            key,
            method,
            stream,
            state,
            num_steps=num_steps(config),
            batch_size=config.batch_size,
        )

    keys, plans = run_keys(config), streams.plan
    alone, _ = compiled(run, keys[0], at(0, plans), streams.pool)
    axes, arguments = (0, 0, None), (keys, plans, streams.pool)
    together, cost = compiled(over_runs(run, axes), *arguments)
    in_turn, _ = compiled(over_runs(run, axes, at_once=1), *arguments)
    return Pack(together, in_turn, alone, streams, cost)


def learn_side_by_side(config: Config, pack: Pack) -> dict[str, Any]:
    """All seeds in one program, at once and in turn; then a program for each."""
    keys, plans, pool = run_keys(config), pack.streams.plan, pack.streams.pool
    together = timed(lambda: pack.together(keys, plans, pool))[1]
    in_turn = timed(lambda: pack.in_turn(keys, plans, pool))[1]
    runs = [(keys[seed], at(seed, plans), pool) for seed in range(config.num_seeds)]
    alone = [timed(partial(pack.alone, *one))[1] for one in runs]
    return {
        "compile_cpu": pack.compiling.cpu,
        "compile_wall": pack.compiling.wall,
        "together_cpu": together.cpu,
        "together_wall": together.wall,
        "in_turn_cpu": in_turn.cpu,
        "in_turn_wall": in_turn.wall,
        "alone_cpu": [cost.cpu for cost in alone],
        "alone_wall": [cost.wall for cost in alone],
    }


def run_keys(config: Config):
    """A key for each of the runs side by side."""
    return jax.random.split(jax.random.key(config.seed), config.num_seeds)


def compiled(function: Callable, *args, donate: tuple[int, ...] | int = ()):
    """The function compiled for such arguments, and what compiling cost."""
    jitted = jax.jit(function, donate_argnums=donate)
    cpu, wall = time.process_time(), time.perf_counter()
    program = jitted.lower(*args).compile()
    return program, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def num_steps(config: Config) -> int:
    """Steps of one pass over a task; its last batch is filled up, not shortened."""
    return steps_for(config.num_train, batch_size=config.batch_size)


__all__ = [
    "NORMALISE",
    "Pack",
    "Program",
    "learn",
    "learn_side_by_side",
    "make_images",
    "make_pack",
    "make_program",
    "make_stream",
]
