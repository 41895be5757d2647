"""Joint training: every task so far at once, in no more memory than one task takes.

Rows are numbers of images; the pixels of a row are made when a batch reads them.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxcl.tree import at, num_tasks
from jaxcl.typing import Array, Batch, Model, Outputs, Stream


def so_far(stream: Stream) -> Stream:
    """The stream whose task ``t`` holds the training rows of tasks ``0 .. t``.

    Args:
      stream: its tasks must all have the rows of the pool, in the same order.

    Returns:
      A stream with ``x`` the number of a row in the pool and ``task`` the task it is
      shown in; rows of later tasks are there with weight 0.
    """
    total = num_tasks(stream.plan)

    def train(pool, task):
        labels = pool.train_y
        number = jnp.arange(total * len(labels), dtype=jnp.int32)
        shown_in = number // len(labels)
        seen = (shown_in <= task).astype(jnp.float32)
        return Batch(number % len(labels), jnp.tile(labels, total), seen, shown_in)

    return stream._replace(plan=jnp.arange(total), train=train)


def read_row(stream: Stream, row: Array, task: Array) -> Array:
    """The input that is row ``row`` of the pool as task ``task`` shows it."""
    pool = stream.pool._replace(
        train_x=stream.pool.train_x[row][None],
        train_y=stream.pool.train_y[row][None],
    )
    return stream.train(pool, at(task, stream.plan)).x[0]


def reading(model: Model, stream: Stream) -> Outputs:
    """The logits of rows of :func:`so_far`."""
    read = jax.vmap(partial(read_row, stream))
    return lambda params, batch, keys=None: model.apply(
        params, read(batch.x, batch.task), keys
    )
