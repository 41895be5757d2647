"""The jobs by jaxcl: each is compiled once, and then takes its turns."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.language.config import Config
from experiments.benchmarks.language.shapes import (
    NUM_CLASSES,
    PROMPTS,
    SHAPES,
    Shape,
    kernels,
    num_tokens,
)
from experiments.benchmarks.rounds import Seconds, Work, compiled, in_turn, timed
from jaxcl.adapters import add_lora, combine, lora_rule, partition
from jaxcl.averages import ema
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import cross_entropy, mean_loss, single_head, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.models import (
    DecoderConfig,
    cast_compute,
    decoder,
    generate,
    sequence_classifier,
)
from jaxcl.regularizers import ewc
from jaxcl.training.compiled import Build, Program, Rows, compile_program
from jaxcl.transforms import accumulated, sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import Batch, Loss, Model, Params, StepInfo

KEY_SEED = 1  # no array before main has chosen threads


def make_model(shape: Shape) -> tuple[Model, Callable[[Callable], Loss]]:
    """The network, and the loss of its ``apply``."""
    if isinstance(shape.config, DecoderConfig):
        loss = lambda apply: token_cross_entropy(single_head(apply))
        return decoder(shape.config), loss
    loss = lambda apply: cross_entropy(single_head(apply))
    return sequence_classifier(shape.config, NUM_CLASSES), loss


@cache
def make_params(config: Config, name: str) -> Params:
    """Random weights, which all jobs of a model share."""
    return make_model(SHAPES[name])[0].init(jax.random.key(config.seed))


@cache
def make_tokens(config: Config, name: str, rows: int) -> np.ndarray:
    """Random tokens ``[rows, length]`` of a model."""
    shape, draw = SHAPES[name], np.random.default_rng(config.seed)
    size = rows, shape.length
    return draw.integers(shape.config.vocab_size, size=size, dtype=np.int32)


def make_batch(config: Config, name: str, rows: int) -> Batch:
    """Tokens, and labels: the next ones for a decoder, for an encoder classes."""
    tokens = make_tokens(config, name, rows)
    if not isinstance(SHAPES[name].config, DecoderConfig):
        return as_batch(tokens, np.arange(rows, dtype=np.int32) % NUM_CLASSES)
    last = np.full((rows, 1), -100, np.int32)
    return as_batch(tokens, np.concatenate([tokens[:, 1:], last], axis=1))


def make_prompts(config: Config, name: str, count: int) -> list[list[int]]:
    """Random prompts of a few lengths."""
    lengths = np.resize(PROMPTS, count)
    tokens = make_tokens(config, name, max(count * max(PROMPTS), 1)).ravel().tolist()
    return [tokens[n * max(PROMPTS) :][:length] for n, length in enumerate(lengths)]


class Job(NamedTuple):
    """What is trained, and on what."""

    trainable: Params
    frozen: Params
    loss: Callable[[Params], Loss]  # of the frozen part
    batch: Batch


def make_job(config: Config, name: str, *, adapter: bool, rows: int = 0) -> Job:
    """All weights of a model, or an adapter of all its projections, and some rows."""
    shape = SHAPES[name]
    (model, loss), params = make_model(shape), make_params(config, name)
    batch = make_batch(config, name, rows or shape.batch_size)
    if not adapter:
        narrow = partial(cast_compute, jnp.bfloat16) if shape.narrow else lambda f: f
        return Job(params, (), lambda _: loss(narrow(model.apply)), batch)
    if shape.narrow:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    extra = "classifier" if "classifier" in params else ()
    targets, key = "all-linear", jax.random.key(KEY_SEED)
    params = add_lora(key, params, rank=config.rank, targets=targets, extra=extra)
    rules = [lora_rule, extra] if extra else lora_rule
    trainable, frozen = partition(params, rules)

    def loss_of(frozen):
        return loss(lambda p, *given: model.apply(combine(p, frozen), *given))

    return Job(trainable, frozen, loss_of, batch)


# ------------------------------------------------------------------------------ training


def make_program(config: Config, job: Job, **parts: Callable) -> Program:
    """The functions of the host loop; ``parts`` are made from the loss."""
    optimizer = optax.adamw(config.learning_rate)

    def build(frozen):
        loss = job.loss(frozen)
        made = {name: make(loss) for name, make in parts.items()}
        return make_method(loss, optimizer, **made)

    return program_of(job, build)


def program_of(job: Job, build: Build) -> Program:
    """The functions of the host loop, of any method over the frozen part."""
    shapes = Rows(at(slice(0, 1), job.batch), job.batch, job.batch, job.batch, "tokens")
    key = jax.random.key(KEY_SEED)
    return compile_program(build, job.trainable, job.frozen, shapes, key=key)


class Steps(NamedTuple):
    """A training step, compiled and taken once."""

    go_on: Callable[[], StepInfo]  # takes so many, from where it stopped
    compiled: Any
    first: Seconds  # of compiling and of the first step


def make_steps(job: Job, program: Program, count: int) -> Steps:
    """Steps on the batch of a job; ``go_on`` takes so many of them."""
    key = jax.random.key(KEY_SEED)
    inputs = program.frozen, key, np.int32(0), np.int32(count), job.batch
    state = jax.block_until_ready(program.start(job.trainable))
    step, cost = compiled(program.parts.step, state, *inputs)
    (state, _), first = timed(partial(step, state, *inputs))
    held = [state]  # donated to each step: training goes on from turn to turn

    def go_on():
        for _ in range(count):
            state, info = step(held.pop(), *inputs)
            held.append(state)
        return info

    return Steps(go_on, step, both(cost, first))


def train(config: Config, name: str, what: str) -> Work:
    """Steps of all weights, of an adapter, or of an adapter after SAM."""
    count = SHAPES[name].steps
    job = make_job(config, name, adapter=what != "step")
    parts = {"gradient": lambda _: sam(config.rho)} if what == "sam" else {}
    steps = make_steps(job, make_program(config, job, **parts), count)

    def work(_):
        info, cost = timed(steps.go_on)
        found = {"loss": float(info.loss), "finite": bool(info.finite)}
        return {**seconds("", cost, count), **seconds("first_", steps.first), **found}

    return work


def evaluate(config: Config, name: str, what: str) -> Work:
    """Logits of a batch, or the gradient of all weights, in programs without a method."""
    job = make_job(config, name, adapter=False)
    model, _ = make_model(SHAPES[name])
    loss, key = job.loss(()), jax.random.key(KEY_SEED)
    works = {
        "forward": lambda params, batch: model.apply(params, batch.x),
        "gradient": jax.grad(lambda params, batch: mean_loss(loss, params, batch, key)),
    }
    inputs = job.trainable, job.batch
    program, cost = compiled(works[what], *inputs)
    begin = seconds("first_", both(cost, timed(partial(program, *inputs))[1]))
    return lambda _: seconds("", timed(partial(program, *inputs))[1]) | begin


def products(name: str) -> Work:
    """The products of a gradient: of each projection's outputs, inputs and weights."""

    def product(x, kernel, grad):
        return x @ kernel, grad @ kernel.T, x.T @ grad

    works, rows = [], num_tokens(name)
    for count, inputs, outputs in kernels(name):
        shapes = (rows, inputs), (inputs, outputs), (rows, outputs)
        given = [jnp.ones(shape) for shape in shapes]
        works += [partial(compiled(product, *given)[0], *given)] * count
    work = lambda: [jax.block_until_ready(one()) for one in works][-1]
    return lambda _: seconds("", timed(work)[1])


def fisher(config: Config, name: str) -> Work:
    """The empirical Fisher of an adapter, and the gradient in batches of a step."""
    count, size = config.fisher_rows, SHAPES[name].batch_size
    key = jax.random.key(KEY_SEED)
    job = make_job(config, name, adapter=True, rows=count)

    def squares(trainable, frozen, batch):
        return empirical_fisher(job.loss(frozen))(key, trainable, batch)

    def gradient(trainable, frozen, batch):
        loss = job.loss(frozen)
        parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), batch)
        grad = jax.grad(lambda params, part: mean_loss(loss, params, part, key))
        return accumulated(grad, parts)(trainable)

    inputs = job.trainable, job.frozen, job.batch
    works: dict[str, Any] = {
        work.__name__: partial(compiled(work, *inputs)[0], *inputs)
        for work in (squares, gradient)
    }
    for work in works.values():
        timed(work)

    def turn(turn):
        costs = in_turn(works, turn.round)
        return seconds("", costs["squares"]) | seconds("gradient_", costs["gradient"])

    return turn


def memory(config: Config, name: str) -> Work:
    """Bytes of a step of an adapter with AdamW, EWC and an average; nothing is run."""
    job = make_job(config, name, adapter=True)
    regularizer = lambda loss: ewc(empirical_fisher(loss), 1.0)
    parts = {"regularizer": regularizer, "average": lambda _: ema(0.99)}
    program = make_program(config, job, **parts)
    given = job.trainable, job.frozen, program.example
    state = jax.eval_shape(program.parts.start, *given)
    key, number = jax.random.key(KEY_SEED), np.int32(0)
    inputs = state, job.frozen, key, number, number, job.batch
    held = compiled(program.parts.step, *inputs)[0].memory_analysis()
    found = {
        "base": num_bytes(job.frozen),
        "adapter": num_bytes(job.trainable),
        "state": num_bytes(state),
        "arguments": held.argument_size_in_bytes,
        "kept": held.alias_size_in_bytes,
        "temporary": held.temp_size_in_bytes,
    }
    return lambda _: found


def num_bytes(tree: Any) -> int:
    """Of arrays or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def write(config: Config, name: str, count: int) -> Work:
    """Greedy tokens after prompts, all of a batch."""
    sizes = SHAPES[name].config
    params = make_params(config, name)
    prompts, key = make_prompts(config, name, count), jax.random.key(KEY_SEED)
    length = config.new_tokens
    given = key, sizes, jax.block_until_ready(params), prompts
    generated = partial(generate, *given, max_new_tokens=length, quiet=True)
    begin = seconds("first_", timed(generated)[1])

    def work(_):
        found, cost = timed(generated)
        return seconds("", cost) | begin | {"tokens": sum(map(len, found))}

    return work


def ready(config: Config, job: str) -> Work:
    """Compile a job; what is returned does it once."""
    name, what = job.split("-")
    if what == "products":
        return products(name)
    if what in ("fisher", "memory"):
        return {"fisher": fisher, "memory": memory}[what](config, name)
    if what in ("forward", "gradient"):
        return evaluate(config, name, what)
    if what.startswith("generate"):
        return write(config, name, int(what.removeprefix("generate_")))
    return train(config, name, what)


def seconds(name: str, cost: Seconds, count: int = 1) -> dict[str, float]:
    """Of one of so many, as fields ``NAMEcpu`` and ``NAMEwall``."""
    return {f"{name}{unit}": getattr(cost, unit) / count for unit in Seconds._fields}


def both(one: Seconds, other: Seconds) -> Seconds:
    """The cost of two things."""
    return Seconds(one.cpu + other.cpu, one.wall + other.wall)
