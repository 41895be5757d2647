"""A check of a stream's data, before anything is learned from it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.errors import InputError, check_kind
from jaxcl.tree import at, num_tasks
from jaxcl.typing import Array, Batch, PyTree, Stream


def validate(stream: Stream) -> Stream:
    """Check a stream on the host before anything is learned from it.

    All tasks are checked for labels and weights, the pool and the first task for values
    that are not finite. Labels ``[n]`` must lie in ``[0, num_classes)`` where the weight
    is not 0; labels with more axes may be negative (positions to ignore). Costs one
    small compilation and, for the usual streams, far less than making the tasks.

    Args:
      stream: one seed's stream, plan ``[T, ...]``.

    Returns:
      The stream itself.

    Raises:
      ValueError: for the first error found, in one line.
    """
    check_kind("validate", Stream, stream=stream)
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(stream.plan)}
    if len(lengths) != 1 or next(iter(lengths)) in ((), (0,)):
        _wrong(
            stream,
            "all leaves of the plan must have the same number of tasks, above 0",
            sorted(map(list, lengths)),
            "stack one entry a task",
        )
    for where, tree in (("pool", stream.pool), ("plan", stream.plan)):
        floats = [
            x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        bad = sum(int(jnp.sum(~jnp.isfinite(leaf))) for leaf in floats)
        _need_finite(stream, f"the {where}", bad)
    train, test = _check_shapes(stream, "train"), _check_shapes(stream, "test")
    if _rows(train.x) != _rows(test.x):
        _wrong(
            stream,
            "train and test inputs must have the same shape and dtype",
            f"{_rows(train.x)[1]} and {_rows(test.x)[1]}",
            "make them alike",
        )
    found = jax.jit(functools.partial(_survey, stream.train, stream.test))(
        stream.pool, stream.plan
    )
    for split, survey in zip(("train", "test"), found, strict=True):
        _check_survey(stream, split, jax.tree.map(np.asarray, survey))
    return stream


class Survey(NamedTuple):
    """What :func:`validate` measures of one split of a stream."""

    strange: Array  # [] inputs of task 0 that are not finite
    real: Array  # [T] rows of weight above 0
    usual: Array  # [T] whether weights are finite and not negative
    lowest: PyTree  # [T] smallest label among real rows, for each leaf of y
    highest: PyTree  # [T] largest label


def _wrong(stream: Stream, expected: str, got, remedy: str):
    msg = f"validate: {stream.name}: {expected}, got {got}; {remedy}."
    raise InputError(msg)


def _need_finite(stream: Stream, where: str, bad: int):
    if bad:
        _wrong(
            stream,
            f"{where} must hold finite numbers only",
            f"{bad} that are NaN or infinite",
            "clean the data",
        )


def _check_shapes(stream: Stream, split: str) -> Batch:
    make = getattr(stream, split)
    batch = jax.eval_shape(lambda p, q: make(p, at(0, q)), stream.pool, stream.plan)
    rows = {leaf.shape[:1] for leaf in jax.tree.leaves(batch)}
    if len(rows) != 1 or next(iter(rows)) in ((), (0,)):
        expected = (
            f"all leaves of a {split} batch must have the same number of rows, above 0"
        )
        _wrong(stream, expected, sorted(map(list, rows)), "give rows all their parts")
    for part in ("weight", "task"):
        shape = list(getattr(batch, part).shape)
        if len(shape) != 1:
            expected = f"{part} of a {split} batch must be [rows]"
            _wrong(stream, expected, shape, "give one number a row")
    return batch


def _survey(train, test, pool: PyTree, plan: PyTree) -> tuple[Survey, Survey]:
    """Measure all tasks; their inputs are not used, so that XLA does not compute them."""

    def survey(make):
        def task(plan):
            batch = make(pool, plan)
            real = batch.weight > 0
            usual = jnp.all(jnp.isfinite(batch.weight) & (batch.weight >= 0))
            lowest = jax.tree.map(lambda y: _extreme(jnp.min, y, real), batch.y)
            highest = jax.tree.map(lambda y: _extreme(jnp.max, y, real), batch.y)
            return jnp.sum(real), usual, lowest, highest

        inputs = jax.tree.leaves(make(pool, at(0, plan)).x)
        floats = [x for x in inputs if jnp.issubdtype(x.dtype, jnp.floating)]
        strange = sum((jnp.sum(~jnp.isfinite(x)) for x in floats), jnp.zeros((), int))
        return Survey(strange, *jax.lax.map(task, plan))

    return survey(train), survey(test)


def _extreme(reduce, y, real):
    """The extreme class number of real rows; 0 where there are none, and for targets."""
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return jnp.zeros((), jnp.int32)
    real = real.reshape(real.shape + (1,) * (y.ndim - 1))
    counted = real if y.ndim == 1 else real & (y >= 0)
    return reduce(jnp.where(counted, y, 0))


def _check_survey(stream: Stream, split: str, survey: Survey):
    _need_finite(stream, f"the {split} inputs of task 0", int(survey.strange))
    for task in range(num_tasks(stream.plan)):
        here = f"in the {split} set of task {task}"
        if not survey.usual[task]:
            expected = f"weights {here} must be finite and not negative"
            _wrong(stream, expected, "others", "use 1 for a row and 0 for padding")
        if survey.real[task] == 0:
            expected = f"there must be rows of weight above 0 {here}"
            _wrong(stream, expected, "none", "leave the task out")
        low = min(leaf[task] for leaf in jax.tree.leaves(survey.lowest))
        high = max(leaf[task] for leaf in jax.tree.leaves(survey.highest))
        if low < 0 or high >= stream.num_classes:
            expected = f"labels {here} must lie in [0, {stream.num_classes})"
            _wrong(stream, expected, f"{low} to {high}", "renumber them")


def _rows(tree: PyTree):
    """Structure, shapes and dtypes of rows."""
    rows = [(leaf.shape[1:], str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), rows
