"""Records of steps for tests of parts that observe them."""

import jax.numpy as jnp

from jaxcl.typing import Context, Progress, StepRecord


def progress(task=0, step=0, num_steps=0):
    """Where a method is."""
    return Progress(*(jnp.asarray(n, jnp.int32) for n in (task, step, num_steps)))


def seen(batch, params=(), **fields):
    """The record of a step of which only the batch and the parameters are known."""
    record = StepRecord(params, (), (), batch, (), (), progress())
    return record._replace(**fields)


def context(batch=(), replay=(), average=(), **fields):
    """What a penalty sees, where keys do not matter."""
    return Context(batch, replay, (), (), average, progress())._replace(**fields)
