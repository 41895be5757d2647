"""Functions on any stream: build one from arrays, select tasks, and stack plans."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcl.data.dataset import Task
from jaxcl.data.pixels import pixels_as_floats
from jaxcl.errors import InputError, as_numbers, check_kind, check_size, shown
from jaxcl.tree import (
    as_batch,
    at,
    check_batch,
    check_numbers,
    lists_as_arrays,
    num_rows,
)
from jaxcl.typing import Batch, PyTree, Stream


class Tasks(NamedTuple):
    """The pool of :func:`from_arrays`: all tasks, stacked."""

    train: Batch  # leaves [T, n, ...]
    test: Batch  # leaves [T, m, ...]


def from_arrays(
    train: Batch | tuple[PyTree, PyTree],
    test: Batch | tuple[PyTree, PyTree],
    *,
    num_classes: int,
    name: str = "arrays",
) -> Stream:
    """A stream of stacked arrays.

    Args:
      train: a pair ``(x, y)`` of arrays ``[T, n, ...]`` or lists of arrays, one a task,
        or a batch with such leaves. Short tasks are padded with rows of weight 0;
        :func:`stack_tasks` does that. Images as uint8, ``[T, n, h, w]`` or with channels,
        stay bytes in the pool; the rows of a task are float32 in [0, 1]. If ``task`` is
        0 in all rows, they are numbered by their task.
      test: likewise, ``[T, m, ...]``; a task's rows of number 0 get that of its training
        rows.
      num_classes: outputs that the model needs.
      name: what the stream is called in logs and reports.

    Returns:
      A stream whose pool is all tasks and whose plan is ``arange(T)``.

    Raises:
      ValueError: if leaves differ in the number of tasks or rows, or hold anything but
        numbers; if some tasks are numbered and several are not.
    """
    check_size("from_arrays", num_classes=num_classes)
    given = {"train": _pair_as_batch(train), "test": _pair_as_batch(test)}
    check_kind("from_arrays", Batch, "give (x, y)", **given)
    read = lambda batch: lists_as_arrays("from_arrays", batch)
    given = {split: read(batch) for split, batch in given.items()}
    for split, batch in given.items():
        check_numbers(f"from_arrays: {split}", batch.x, batch.y)
        shapes = {
            np.shape(leaf)[:2] for leaf in (batch.weight, *jax.tree.leaves(batch))
        }
        first = next(iter(shapes))
        if len(shapes) != 1 or len(first) != 2 or 0 in first:
            msg = (
                f"from_arrays: all leaves of {split} must start with the same [tasks, "
                f"rows], both above 0, got {sorted(map(list, shapes))}; stack the tasks."
            )
            raise InputError(msg)
    counts = [len(batch.weight) for batch in given.values()]
    if counts[0] != counts[1]:
        msg = (
            "from_arrays: train and test must have the same number of tasks, got "
            f"{counts[0]} and {counts[1]}; give both of each."
        )
        raise InputError(msg)
    pool = jax.tree.map(jnp.asarray, _numbered(Tasks(**given)))
    return Stream(
        pool=pool,
        plan=jnp.asarray(np.arange(counts[0], dtype=np.int32)),
        train=lambda pool, task: pixels_as_floats(at(task, pool.train)),
        test=lambda pool, task: pixels_as_floats(at(task, pool.test)),
        num_classes=num_classes,
        name=name,
    )


def _pair_as_batch(part) -> Any:
    """A batch with leaves ``[T, n, ...]`` of a pair; anything else as it is."""
    if isinstance(part, Batch) or not (isinstance(part, tuple) and len(part) == 2):
        return part
    check_numbers("from_arrays", *part)
    x, y = (_stacked_list(tree) for tree in lists_as_arrays("from_arrays", part))
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves((x, y))}
    lead = next(iter(shapes))
    if len(shapes) != 1 or len(lead) != 2:
        msg = (
            "from_arrays: x and y must be arrays [tasks, rows, ...], got "
            f"{sorted(map(list, shapes))} of them; tasks of unequal length need "
            "stack_tasks."
        )
        raise InputError(msg)
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    rows = as_batch(*jax.tree.map(flat, (x, y)))
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), rows)


def _stacked_list(tree: PyTree) -> PyTree:
    """Arrays on the host; a list of arrays, one a task, as one if they are alike."""
    tree = jax.tree.map(np.asarray, tree)
    if isinstance(tree, list) and all(isinstance(leaf, np.ndarray) for leaf in tree):
        shapes = sorted({leaf.shape for leaf in tree})
        if len(shapes) != 1:
            msg = (
                f"from_arrays: tasks must have the same shape, got {shapes}; take "
                "stack_tasks."
            )
            raise InputError(msg)
        return np.stack(tree)
    return tree


def stack_tasks(
    tasks: Sequence[tuple[Batch, Batch] | Task],
    *,
    num_classes: int,
    name: str = "tasks",
) -> Stream:
    """A stream of tasks that may have unequal numbers of rows.

    Shorter tasks are padded to the longest with copies of their first real row, of
    weight 0. All tasks are held on the device at once; for data that do not fit, see
    :class:`jaxcl.data.Task`.

    Args:
      tasks: ``(train, test)`` for every task, leaves ``[n, ...]`` and ``[m, ...]`` with
        their own ``n`` and ``m``; see :func:`jaxcl.tree.as_batch`. Or tasks of the host
        loop, of which the training and the test set are read. If ``task`` is 0 in all
        rows, they are numbered by their task.
      num_classes: outputs that the model needs.
      name: what the stream is called in logs and reports.

    Raises:
      ValueError: naming the task, if rows differ from those of task 0 in shape or dtype,
        or none has a weight above 0.
    """
    shuffled = {task.shuffle for task in tasks if isinstance(task, Task)} or {True}
    if len(shuffled) > 1:
        msg = "stack_tasks: tasks must all be shuffled, or none, got both; split them."
        raise InputError(msg)
    tasks = [_all_rows(task) if isinstance(task, Task) else task for task in tasks]
    pairs = [pair for pair in tasks if isinstance(pair, tuple) and len(pair) == 2]
    if not pairs or len(pairs) < len(tasks):
        msg = (
            "stack_tasks: tasks must be a list of pairs (train, test), got "
            f"{shown(tasks) if len(tasks) == 0 else 'something else in it'}; make the "
            "batches with jaxcl.tree.as_batch."
        )
        raise InputError(msg)
    train, test = (
        _stacked(split, [lists_as_arrays("stack_tasks", pair[k]) for pair in pairs])
        for k, split in enumerate(("train", "test"))
    )
    stream = from_arrays(train, test, num_classes=num_classes, name=name)
    return stream._replace(shuffle=shuffled == {True})


def _all_rows(task: Task) -> tuple[Batch, Batch]:
    """Training and test set of a task of the host loop, in memory."""
    train, test = (part.read(np.arange(part.count)) for part in (task.train, task.test))
    return train, test


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
            raise InputError(msg)
        if not np.any(np.asarray(batch.weight) > 0):
            msg = (
                f"stack_tasks: {split} of task {task} must have rows of weight above 0, "
                f"got none in {num_rows(batch)}; leave the task out."
            )
            raise InputError(msg)
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


def _numbered(pool: Tasks) -> Tasks:
    """Rows with the number of their task: their place, where all of them have 0.

    Test rows of 0 get the number of the task's training rows, where that is one.
    """
    if isinstance(pool.train.task, Tracer) or isinstance(pool.test.task, Tracer):
        return pool
    train, test = (np.asarray(part.task) for part in pool)
    if not train.any():
        train = np.zeros_like(train) + np.arange(len(train), dtype=train.dtype)[:, None]
    else:
        numbers = [set(np.unique(task).tolist()) for task in train]
        first = lambda task: at((task, 0), (pool.train.x, pool.train.y))
        check_task_numbers("from_arrays", numbers, first)
    bare = (test == 0).all(1) & (train == train[:, :1]).all(1)
    test = np.where(bare[:, None], train[:, :1], test)
    return Tasks(pool.train._replace(task=train), pool.test._replace(task=test))


def check_task_numbers(
    who: str, numbers: Sequence[set[int]], first: Callable[[int], PyTree]
) -> None:
    """Refuse tasks that would share number 0 because it was left out in some of them.

    A task that returns later has the same number, and the same first row.

    Args:
      who: the function, for the message.
      numbers: of each task, those of its training rows.
      first: inputs and labels of the first row of a task.

    Raises:
      ValueError: if several tasks have 0 alone, others do not, and rows differ.
    """
    bare = [place for place, found in enumerate(numbers) if found == {0}]
    if len(bare) in (0, 1, len(numbers)):
        return
    rows = [jax.tree.leaves(first(place)) for place in bare]
    if all(all(map(np.array_equal, rows[0], row)) for row in rows):
        return
    msg = (
        f"{who}: tasks {', '.join(map(str, bare))} all have number 0, the default of "
        f"as_batch, and others have {max(set().union(*numbers))} or less; number each by "
        "task=, from 1 if some share one, or none."
    )
    raise InputError(msg)


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
        raise InputError(msg)
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
        raise InputError(msg)
    for stream in streams:
        check_kind("stack_plans", Stream, "give a list of them", stream=stream)
    first = streams[0]
    for number, other in enumerate(streams[1:], 1):
        for what, same in (
            ("name", first.name == other.name),
            ("num_classes", first.num_classes == other.num_classes),
            ("shuffle", first.shuffle == other.shuffle),
            ("plan shapes", _shapes(first.plan) == _shapes(other.plan)),
            ("pool", _same_arrays(first.pool, other.pool)),
        ):
            if not same:
                msg = (
                    f"stack_plans: streams must differ in their keys only, but stream "
                    f"{number} ({other.name}) has another {what} than stream 0 "
                    f"({first.name}); build them by the same call."
                )
                raise InputError(msg)
    stack = lambda *leaves: jnp.asarray(np.stack(leaves))
    plans = [stream.plan for stream in streams]
    return first._replace(plan=jax.tree.map(stack, *plans))


def _shapes(tree: PyTree):
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), shapes


def _same_arrays(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return _shapes(a) == _shapes(b) and all(
        x is y or np.array_equal(x, y) for x, y in pairs
    )
