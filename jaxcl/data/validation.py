"""A check of a stream's data, before anything is learned from it."""

import functools

import jax
import jax.numpy as jnp

from jaxcl.errors import require
from jaxcl.tree import at
from jaxcl.typing import Array, Batch, PyTree, Stream


def validate(stream: Stream) -> Stream:
    """Check a stream on the host before anything is learned from it.

    All tasks are checked for labels and weights, the pool and the first task for values
    that are not finite. Labels ``[n]`` must lie in ``[0, num_classes)`` where the weight
    is not 0; labels with more axes may be negative (positions to ignore). Costs two
    small compilations and, for the usual streams, far less than making the tasks.

    ``stream`` is one seed's, plan ``[T, ...]``, and is returned; the first error is a
    ValueError.
    """
    who = f"validate: {stream.name}"
    for where, tree in (("the pool", stream.pool), ("the plan", stream.plan)):
        _need_finite(who, where, _num_strange(tree))
    formats = []
    for split, make in (("train", stream.train), ("test", stream.test)):
        first = lambda pool, plan, make=make: make(pool, at(0, plan))
        batch = jax.eval_shape(first, stream.pool, stream.plan)
        _need_rows(who, split, batch)
        inputs = jax.tree.leaves(batch.x)
        formats.append([(str(leaf.dtype), list(leaf.shape[1:])) for leaf in inputs])
        alike = (
            f"train and test inputs must have one format, got {formats}; make them so"
        )
        require(formats[0] == formats[-1], who, alike)
        survey = jax.jit(functools.partial(_survey, make))
        strange, tasks = jax.device_get(survey(stream.pool, stream.plan))
        _need_finite(who, f"the {split} inputs of task 0", strange)
        for task, (usual, low, high) in enumerate(zip(*tasks, strict=True)):
            where = f"in the {split} set of task {task} must"
            weights = f"weights {where} be finite, none negative and some above 0"
            require(usual, who, f"{weights}; use 1 for a row and 0 for padding")
            inside = low >= 0 and high < stream.num_classes
            lie = f"lie in [0, {stream.num_classes}), got {low} to {high}"
            require(inside, who, f"labels {where} {lie}; renumber them")
    return stream


def _need_rows(who: str, split: str, batch: Batch):
    """Refuse a weight ``[rows, 1]``, which would broadcast, and other mismatches."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(batch)]
    rows = batch.weight.shape
    vectors = len(rows) == len(batch.task.shape) == 1
    alike = vectors and {shape[:1] for shape in shapes} == {rows}
    wanted = f"all leaves of a {split} batch must start with [rows], weight and task be"
    require(alike, who, f"{wanted} that, got {shapes[:4]}; give one entry a row")


def _need_finite(who: str, where: str, strange):
    finite = f"{where} must hold finite numbers only, got {int(strange)} that are not"
    require(strange == 0, who, f"{finite}; clean the data")


def _survey(make, pool: PyTree, plan: PyTree) -> tuple[Array, tuple[Array, ...]]:
    """How many inputs of task 0 are not finite; weights and labels ``[T]`` of all tasks.

    These are whether weights are finite, not negative, and one above 0, and the smallest
    and the largest label. Inputs of other tasks are not used, so that XLA does not compute
    them.
    """

    def measured(plan):
        batch = make(pool, plan)
        real, labels = batch.weight > 0, jax.tree.leaves(batch.y)
        usual = jnp.all(jnp.isfinite(batch.weight) & (batch.weight >= 0)) & real.any()
        low = jnp.stack([_extreme(jnp.min, y, real) for y in labels]).min()
        return usual, low, jnp.stack([_extreme(jnp.max, y, real) for y in labels]).max()

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
    return reduce(jnp.where(counted, y, 0))  # not cast: a large label would wrap around
