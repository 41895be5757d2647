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
    that are not finite. Labels ``[n]`` must be integers in ``[0, num_classes)`` where the
    weight is not 0; labels with more axes may be negative (positions to ignore). One-hot
    labels ``[n, num_classes]`` are refused, other targets with more axes, and those of one
    output, pass. Costs two small compilations and, for the usual streams, far less than
    making the tasks.

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
        _need_kinds(who, split, batch, stream.num_classes)
        inputs = jax.tree.leaves(batch.x)
        formats.append([(str(leaf.dtype), list(leaf.shape[1:])) for leaf in inputs])
        alike = (
            f"train and test inputs must have one format, got {formats}; make them so"
        )
        require(formats[0] == formats[-1], who, alike)
        survey = jax.jit(functools.partial(_survey, make, stream.num_classes))
        strange, tasks = jax.device_get(survey(stream.pool, stream.plan))
        _need_finite(who, f"the {split} inputs of task 0", strange)
        for task, (usual, one_hot, low, high) in enumerate(zip(*tasks, strict=True)):
            where = f"in the {split} set of task {task} must"
            weights = f"weights {where} be finite, none negative and some above 0"
            require(usual, who, f"{weights}; use 1 for a row and 0 for padding")
            numbers = (
                f"labels {where} be class numbers, got one-hot rows; take their argmax"
            )
            require(not one_hot, who, numbers)
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


def _need_kinds(who: str, split: str, batch: Batch, num_classes: int):
    """Refuse complex inputs, and labels of classes that are not integers."""
    for leaf in jax.tree.leaves(batch.x):
        wanted = (
            f"{split} inputs must be real, got {leaf.dtype}; give their parts or moduli"
        )
        require(not jnp.issubdtype(leaf.dtype, jnp.complexfloating), who, wanted)
    for leaf in jax.tree.leaves(batch.y):
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        came = f"got {leaf.dtype}; convert them (encode_labels numbers classes)"
        wanted = f"{split} labels of {num_classes} classes must be integers, {came}"
        require(whole or leaf.ndim > 1 or num_classes == 1, who, wanted)


def _need_finite(who: str, where: str, strange):
    finite = f"{where} must hold finite numbers only, got {int(strange)} that are not"
    require(strange == 0, who, f"{finite}; clean the data")


def _survey(
    make, num_classes: int, pool: PyTree, plan: PyTree
) -> tuple[Array, tuple[Array, ...]]:
    """How many inputs of task 0 are not finite; weights and labels ``[T]`` of all tasks.

    These are whether weights are finite, not negative, and one above 0, whether labels are
    one-hot, and the smallest and the largest of them. Inputs of other tasks are not used,
    so that XLA does not compute them.
    """

    def measured(plan):
        batch = make(pool, plan)
        real, labels = batch.weight > 0, jax.tree.leaves(batch.y)
        usual = jnp.all(jnp.isfinite(batch.weight) & (batch.weight >= 0)) & real.any()
        low = jnp.stack([_extreme(jnp.min, y, real) for y in labels]).min()
        one_hot = jnp.stack([_are_one_hot(y, num_classes, real) for y in labels]).any()
        return (
            usual,
            one_hot,
            low,
            jnp.stack([_extreme(jnp.max, y, real) for y in labels]).max(),
        )

    return _num_strange(make(pool, at(0, plan)).x), jax.lax.map(measured, plan)


def _num_strange(tree: PyTree):
    """How many numbers are not finite."""
    leaves = jax.tree.leaves(tree)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(leaf)) for leaf in floats), jnp.zeros((), int))


def _are_one_hot(y, num_classes: int, real):
    """Whether the labels of all real rows are a 1 among zeros, for one of the classes."""
    if num_classes == 1 or y.shape[1:] != (num_classes,):
        return jnp.zeros((), bool)
    ones = jnp.all((y == 0) | (y == 1), axis=1) & (jnp.sum(y, axis=1) == 1)
    return jnp.all(ones | ~real)


def _extreme(reduce, y, real):
    """The extreme class number of real rows; 0 where there are none, and for targets."""
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return jnp.zeros((), jnp.int32)
    real = real.reshape(real.shape + (1,) * (y.ndim - 1))
    # Labels of more than one axis mark positions to ignore by a negative number.
    counted = real if y.ndim == 1 else real & (y >= 0)
    return reduce(jnp.where(counted, y, 0))  # not cast: a large label would wrap around
