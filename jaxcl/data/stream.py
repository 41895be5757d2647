"""Functions on any stream: build one from arrays, select tasks, stack, and check it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcl.errors import as_numbers, check_kind, check_size, shown
from jaxcl.tree import at, check_batch, lists_as_arrays, num_rows, num_tasks
from jaxcl.typing import Array, Batch, PyTree, Stream


class Tasks(NamedTuple):
    """The pool of :func:`from_arrays`: all tasks, stacked."""

    train: Batch  # leaves [T, n, ...]
    test: Batch  # leaves [T, m, ...]


def from_arrays(
    train: Batch, test: Batch, *, num_classes: int, name: str = "arrays"
) -> Stream:
    """A stream of stacked arrays.

    Args:
      train: leaves ``[T, n, ...]``, arrays or lists. Short tasks are padded with rows
        of weight 0; :func:`stack_tasks` does that. If ``task`` is 0 in all rows, the
        default of :func:`jaxcl.tree.as_batch`, rows are numbered by their task.
      test: leaves ``[T, m, ...]``.
      num_classes: outputs that the model needs.
      name: what the stream is called in logs and reports.

    Returns:
      A stream whose pool is all tasks and whose plan is ``arange(T)``.

    Raises:
      ValueError: if leaves differ in the number of tasks or rows.
    """
    check_size("from_arrays", num_classes=num_classes)
    check_kind("from_arrays", Batch, "stack the tasks in one", train=train, test=test)
    train, test = (lists_as_arrays("from_arrays", part) for part in (train, test))
    for split, batch in (("train", train), ("test", test)):
        shapes = {
            np.shape(leaf)[:2] for leaf in (batch.weight, *jax.tree.leaves(batch))
        }
        first = next(iter(shapes))
        if len(shapes) != 1 or len(first) != 2 or 0 in first:
            msg = (
                f"from_arrays: all leaves of {split} must start with the same [tasks, "
                f"rows], both above 0, got {sorted(map(list, shapes))}; stack the tasks."
            )
            raise ValueError(msg)
    if train.weight.shape[0] != test.weight.shape[0]:
        msg = (
            "from_arrays: train and test must have the same number of tasks, got "
            f"{train.weight.shape[0]} and {test.weight.shape[0]}; give both of each."
        )
        raise ValueError(msg)
    pool = jax.tree.map(jnp.asarray, Tasks(_numbered(train), _numbered(test)))
    return Stream(
        pool=pool,
        plan=jnp.asarray(np.arange(train.weight.shape[0], dtype=np.int32)),
        train=lambda pool, task: at(task, pool.train),
        test=lambda pool, task: at(task, pool.test),
        num_classes=num_classes,
        name=name,
    )


def stack_tasks(
    tasks: Sequence[tuple[Batch, Batch]], *, num_classes: int, name: str = "tasks"
) -> Stream:
    """A stream of tasks that may have unequal numbers of rows.

    Shorter tasks are padded to the longest with copies of their first real row, of
    weight 0. All tasks are held on the device at once; for data that do not fit, see
    :class:`jaxcl.data.Task`.

    Args:
      tasks: ``(train, test)`` for every task, leaves ``[n, ...]`` and ``[m, ...]`` with
        their own ``n`` and ``m``; see :func:`jaxcl.tree.as_batch`. If ``task`` is 0 in all
        rows, they are numbered by their task.
      num_classes: outputs that the model needs.
      name: what the stream is called in logs and reports.

    Raises:
      ValueError: naming the task, if rows differ from those of task 0 in shape or dtype,
        or none has a weight above 0.
    """
    pairs = [pair for pair in tasks if isinstance(pair, tuple) and len(pair) == 2]
    if not pairs or len(pairs) < len(tasks):
        msg = (
            "stack_tasks: tasks must be a list of pairs (train, test), got "
            f"{shown(tasks) if len(tasks) == 0 else 'something else in it'}; make the "
            "batches with jaxcl.tree.as_batch."
        )
        raise ValueError(msg)
    train, test = (
        _stacked(split, [lists_as_arrays("stack_tasks", pair[k]) for pair in pairs])
        for k, split in enumerate(("train", "test"))
    )
    return from_arrays(train, test, num_classes=num_classes, name=name)


def _stacked(split: str, batches: list[Batch]) -> Batch:
    """Batches of unequal lengths, padded to the longest: leaves ``[T, n, ...]``."""
    for task, batch in enumerate(batches):
        check_batch(f"stack_tasks: {split} of task {task}", batch)
        found, wanted = _row_format(batch), _row_format(batches[0])
        if found != wanted:
            msg = (
                f"stack_tasks: {split} rows of task {task} must be like those of task 0, "
                f"{wanted}, got {found}; pad or cast them."
            )
            raise ValueError(msg)
        if not np.any(np.asarray(batch.weight) > 0):
            msg = (
                f"stack_tasks: {split} of task {task} must have rows of weight above 0, "
                f"got none in {num_rows(batch)}; leave the task out."
            )
            raise ValueError(msg)
    size = max(map(num_rows, batches))

    def fill(batch):
        count, first = num_rows(batch), int(np.argmax(np.asarray(batch.weight) > 0))
        rows = np.concatenate([np.arange(count), np.full(size - count, first)])
        filled = at(rows, jax.tree.map(np.asarray, batch))
        weight = np.where(np.arange(size) < count, filled.weight, 0)
        return filled._replace(weight=weight.astype(np.float32))

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(fill, batches))


def _row_format(batch: Batch) -> str:
    """Shapes and dtypes of a row, as they will be on the device."""
    dtype = lambda leaf: jax.dtypes.canonicalize_dtype(leaf.dtype)
    kind = lambda leaf: f"{dtype(leaf)}{list(leaf.shape[1:])}"
    x, y = jax.tree.map(kind, (batch.x, batch.y))
    return f"x {x} and y {y}"


def _numbered(tasks: Batch) -> Batch:
    """Rows with the number of their task, if it is 0 in all of them."""
    if isinstance(tasks.task, Tracer) or np.any(np.asarray(tasks.task)):
        return tasks
    shape = np.shape(tasks.task)
    number = np.broadcast_to(np.arange(shape[0], dtype=np.int32)[:, None], shape)
    return tasks._replace(task=number)


def take_tasks(
    stream: Stream, tasks: slice | Sequence[int] | np.ndarray, *, axis: int = 0
) -> Stream:
    """A stream of some of the tasks; each keeps its ``task`` number.

    Args:
      stream: where to take them from.
      tasks: a slice, or the numbers of the tasks in the order wanted; not a mask.
      axis: where the tasks are in the plan; 1 after :func:`stack_plans`.

    Raises:
      ValueError: if no task is left, a number is out of range, or one is not an int.
    """
    check_kind("take_tasks", Stream, stream=stream)
    count = jax.tree.leaves(stream.plan)[0].shape[axis]
    tasks = np.arange(count)[tasks] if isinstance(tasks, slice) else tasks
    chosen = task_list("take_tasks", stream, tasks, count)
    cut = lambda leaf: jnp.asarray(np.take(np.asarray(leaf), chosen, axis))
    return stream._replace(plan=jax.tree.map(cut, stream.plan))


def task_list(who: str, stream: Stream, tasks, count: int) -> np.ndarray:
    """The numbers of some of a stream's ``count`` tasks as an array.

    Raises:
      ValueError: unless they are a list of at least one int, each the number of a task.
    """
    chosen = as_numbers(who, "tasks", tasks)
    listed = chosen.ndim == 1 and chosen.size and chosen.dtype.kind in "iu"
    if not listed or chosen.min() < -count or chosen.max() >= count:
        msg = (
            f"{who}: {stream.name} has tasks 0 to {count - 1}, got "
            f"{chosen.tolist() if chosen.size else 'none'}; list some of these."
        )
        raise ValueError(msg)
    return chosen


def stack_plans(streams: Sequence[Stream]) -> Stream:
    """One stream for many seeds: plans stacked to ``[s, T, ...]``, and one pool.

    ``jax.vmap`` over ``stream.plan`` then runs all seeds; the pool is not copied. The
    streams must come from the same constructor with the same arguments except keys.

    Args:
      streams: one for each seed.

    Raises:
      ValueError: if there is none, or names, plan shapes or pools differ.
    """
    if not streams:
        msg = (
            "stack_plans: needs at least one stream, got none; give one for each seed."
        )
        raise ValueError(msg)
    for stream in streams:
        check_kind("stack_plans", Stream, "give a list of them", stream=stream)
    first = streams[0]
    for number, other in enumerate(streams[1:], 1):
        for what, same in (
            ("name", first.name == other.name),
            ("num_classes", first.num_classes == other.num_classes),
            ("plan shapes", _shapes(first.plan) == _shapes(other.plan)),
            ("pool", _same_arrays(first.pool, other.pool)),
        ):
            if not same:
                msg = (
                    f"stack_plans: streams must differ in their keys only, but stream "
                    f"{number} ({other.name}) has another {what} than stream 0 "
                    f"({first.name}); build them by the same call."
                )
                raise ValueError(msg)
    stack = lambda *leaves: jnp.asarray(np.stack(leaves))
    plans = [stream.plan for stream in streams]
    return first._replace(plan=jax.tree.map(stack, *plans))


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
    if _shapes(train.x, skip=1) != _shapes(test.x, skip=1):
        _wrong(
            stream,
            "train and test inputs must have the same shape and dtype",
            f"{_shapes(train.x, skip=1)[1]} and {_shapes(test.x, skip=1)[1]}",
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
    raise ValueError(msg)


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

    def look(make):
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

    return look(train), look(test)


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


def _shapes(tree: PyTree, skip: int = 0):
    shapes = [(leaf.shape[skip:], str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), shapes


def _same_arrays(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return _shapes(a) == _shapes(b) and all(
        x is y or np.array_equal(x, y) for x, y in pairs
    )


__all__ = [
    "from_arrays",
    "stack_plans",
    "stack_tasks",
    "take_tasks",
    "task_list",
    "validate",
]
