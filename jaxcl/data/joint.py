"""Joint training on all tasks of a stream: the usual upper bound."""

import jax
import jax.numpy as jnp

from jaxcl.errors import check_kind
from jaxcl.typing import Batch, PyTree, Stream


def joint(stream: Stream) -> Stream:
    """One task that holds the rows of all tasks: joint or multi-task training.

    Rows are in the order of the tasks and keep their ``task`` number, so that each uses
    its own head. The network learns from all tasks as from one data set, which is the
    upper bound that most papers report. ``accuracy_row(outputs, stream)`` of the original
    stream still measures task by task. For the intransigence, whose ``J_k`` is learned
    from tasks ``1 .. k``, use ``joint(take_tasks(stream, slice(k)))``.

    All ``T n`` training rows are in memory at once: permuted MNIST takes 188 MB a task.
    For several seeds make every stream joint first, then :func:`stack_plans`.

    Args:
      stream: one seed's stream, plan ``[T, ...]``; only reshaped, so that its plan may be
        traced.

    Returns:
      A stream of one task, plan ``[1, T, ...]``, and the same pool: a train batch of
      ``T n`` rows and a test batch of ``T m``, padding included.
    """
    check_kind("joint", Stream, stream=stream)

    def all_rows(make):
        def batch(pool: PyTree, plan: PyTree) -> Batch:
            tasks = jax.lax.map(lambda plan: make(pool, plan), plan)
            flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
            return jax.tree.map(flat, tasks)

        return batch

    return stream._replace(
        plan=jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], stream.plan),
        train=all_rows(stream.train),
        test=all_rows(stream.test),
        name=f"joint-{stream.name}",
    )
