"""A check of a stream's data, before anything is learned from it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcl.errors import require
from jaxcl.tree import at, num_tasks
from jaxcl.typing import Array, Batch, PyTree, Stream


def validate(stream: Stream) -> Stream:
    """Check a stream on the host before anything is learned from it.

    All tasks are checked for labels and weights, the pool and the first task for values
    that are not finite. Labels ``[n]`` must lie in ``[0, num_classes)`` where the weight
    is not 0; labels with more axes may be negative (positions to ignore). Costs two
    small compilations and, for the usual streams, far less than making the tasks.

    Args:
      stream: one seed's stream, plan ``[T, ...]``.

    Returns:
      The stream itself.

    Raises:
      ValueError: for the first error found, in one line.
    """
    who = f"validate: {stream.name}"
    for where, tree in (("the pool", stream.pool), ("the plan", stream.plan)):
        _need_finite(who, where, _num_strange(tree))
    for split, make in (("train", stream.train), ("test", stream.test)):
        first = lambda pool, plan, make=make: make(pool, at(0, plan))
        batch = jax.eval_shape(first, stream.pool, stream.plan)
        _need_rows(who, split, batch)
        survey = jax.jit(functools.partial(_survey, make))
        strange, tasks = jax.device_get(survey(stream.pool, stream.plan))
        _need_finite(who, f"the {split} inputs of task 0", strange)
        for task in range(num_tasks(stream.plan)):
            where = f"in the {split} set of task {task}"
            _need_usual(who, where, at(task, tasks), stream.num_classes)
    return stream


class TaskSurvey(NamedTuple):
    """What :func:`validate` measures of one split of each task, leaves ``[T]``."""

    real: Array  # rows of weight above 0
    usual: Array  # whether weights are finite and not negative
    lowest: PyTree  # smallest label among real rows, for each leaf of y
    highest: PyTree  # largest label


def _need_rows(who: str, split: str, batch: Batch):
    """Refuse a weight ``[rows, 1]``, which would broadcast, and other mismatches."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(batch)]
    rows = batch.weight.shape
    alike = len(rows) == len(batch.task.shape) == 1 and {s[:1] for s in shapes} == {
        rows
    }
    wanted = (
        f"all leaves of a {split} batch must start with [rows], weight and task be "
    )
    require(alike, who, f"{wanted}that, got {shapes[:4]}; give one entry a row")


def _need_finite(who: str, where: str, strange):
    finite = f"{where} must hold finite numbers only, got {int(strange)} that are not"
    require(strange == 0, who, f"{finite}; clean the data")


def _need_usual(who: str, where: str, task: TaskSurvey, num_classes: int):
    """Refuse what is wrong with a task's weights or labels."""
    weights = f"weights {where} must be finite and not negative"
    require(task.usual, who, f"{weights}; use 1 for a row and 0 for padding")
    some = f"there must be rows of weight above 0 {where}, got none"
    require(task.real > 0, who, f"{some}; leave the task out")
    low = min(jax.tree.leaves(task.lowest))
    high = max(jax.tree.leaves(task.highest))
    lie = f"labels {where} must lie in [0, {num_classes}), got {low} to {high}"
    require(low >= 0 and high < num_classes, who, f"{lie}; renumber them")


def _survey(make, pool: PyTree, plan: PyTree) -> tuple[Array, TaskSurvey]:
    """How many inputs of task 0 are not finite, and a survey of all tasks.

    Inputs of the others are not used, so that XLA does not compute them.
    """

    def measured(plan):
        batch = make(pool, plan)
        real = batch.weight > 0
        usual = jnp.all(jnp.isfinite(batch.weight) & (batch.weight >= 0))
        lowest = jax.tree.map(lambda y: _extreme(jnp.min, y, real), batch.y)
        highest = jax.tree.map(lambda y: _extreme(jnp.max, y, real), batch.y)
        return TaskSurvey(jnp.sum(real), usual, lowest, highest)

    return _num_strange(make(pool, at(0, plan)).x), jax.lax.map(measured, plan)


def _num_strange(tree: PyTree):
    """How many numbers are not finite."""
    leaves = jax.tree.leaves(tree)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(leaf)) for leaf in floats), jnp.zeros((), int))


def _extreme(reduce, y, real):
    """The extreme class number of real rows; 0 where there are none, and for targets."""
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return jnp.zeros((), jnp.int32)
    real = real.reshape(real.shape + (1,) * (y.ndim - 1))
    # Labels of more than one axis mark positions to ignore by a negative number.
    counted = real if y.ndim == 1 else real & (y >= 0)
    return reduce(jnp.where(counted, y, 0))
