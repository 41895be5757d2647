"""What is compared: one program per arm, and the Fisher that EWC's penalty is made of."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.ewc_permuted.config import PENALIZED, Config
from experiments.ewc_permuted.joint import reading, so_far
from jaxcl.curvature import Fisher, empirical_fisher, exact_fisher, sampled_fisher
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.regularizers import ewc
from jaxcl.training import accuracies, accuracy_row, first_example, run_stream
from jaxcl.typing import Outputs, Stream


class Program(NamedTuple):
    """One arm of a stage, compiled once; strength, plan and seed are arguments."""

    start: Callable  # (key) -> state
    advance: Callable  # (state, key, strength, pool, plan, tasks) -> state, record
    final: Callable  # (state, pool, plan) -> [T], on all test rows


def make_program(config: Config, arm: str, stream: Stream) -> Program:
    """Compile once what the runs of an arm share."""
    sizes = (first_example(stream).x.shape[1], *config.hidden, stream.num_classes)
    model = mlp(sizes, gain=config.gain, out_gain=config.gain)
    outputs = single_head(model.apply)

    def build(stream, strength):
        joint = arm == "joint"
        regularizer = None
        if arm in PENALIZED:
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
    given = cross_entropy(outputs)

    def predicted(params, batch, keys):
        labels = jnp.argmax(outputs(params, batch, keys), -1).astype(batch.y.dtype)
        return given(params, batch._replace(y=labels), keys)

    fisher = {
        "exact": partial(exact_fisher, outputs),
        "sampled": partial(sampled_fisher, outputs),
        "empirical": partial(empirical_fisher, given),
        "predicted": partial(empirical_fisher, predicted),
    }[config.fisher]
    return fisher(num_examples=config.fisher_examples)
