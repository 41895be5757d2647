"""Functions on any stream: build one of arrays, select and join tasks, stack plans."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcl.data.dataset import Task
from jaxcl.data.numbering import none_numbered
from jaxcl.data.pixels import pixels_as_floats
from jaxcl.errors import as_numbers, check_size, require, shown
from jaxcl.tree import as_arrays, as_batch, at, check_batch, num_rows, row_format
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
      ValueError: among others if some tasks are numbered and several are not.
    """
    check_size("from_arrays", num_classes=num_classes)
    tasks = Tasks(_as_tasks("train", train), _as_tasks("test", test))
    count, other = (len(part.weight) for part in tasks)
    same = f"the same number of tasks, got {count} and {other}; give both of each"
    require(count == other, "from_arrays", f"train and test must have {same}")
    return Stream(
        pool=jax.tree.map(jnp.asarray, _numbered(tasks)),
        plan=jnp.asarray(np.arange(count, dtype=np.int32)),
        train=lambda pool, task: pixels_as_floats(at(task, pool.train)),
        test=lambda pool, task: pixels_as_floats(at(task, pool.test)),
        num_classes=num_classes,
        name=name,
    )


def _as_tasks(split: str, given) -> Batch:
    """A batch with leaves ``[T, n, ...]`` of such a batch or of a pair ``(x, y)``."""
    is_pair = isinstance(given, tuple | list) and len(given) == 2
    wanted = f"{split} must be (x, y) or a Batch, got {shown(given)}; give (x, y)"
    require(is_pair or isinstance(given, Batch), "from_arrays", wanted)
    pair = as_arrays(f"from_arrays: {split}", *given[:2])
    if not isinstance(given, Batch):
        lengths = {
            len(rows) for part in pair if isinstance(part, list) for rows in part
        }
        wanted = (
            f"all tasks of {split} must have equally many rows, got {sorted(lengths)}"
        )
        require(len(lengths) < 2, "from_arrays", f"{wanted}; take stack_tasks")
        given = [np.stack(part) if isinstance(part, list) else part for part in pair]
    shapes = sorted({np.shape(leaf)[:2] for leaf in jax.tree.leaves(given)})
    good = len(shapes) == 1 and len(shapes[0]) == 2 and 0 not in shapes[0]
    wanted = f"all leaves of {split} must start with one [tasks, rows], both above 0"
    remedy = f"got {[*map(list, shapes)]}; tasks of unequal length need stack_tasks"
    require(good, "from_arrays", f"{wanted}, {remedy}")
    if isinstance(given, Batch):
        return given
    flat = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
    rows = as_batch(*jax.tree.map(flat, given))
    return jax.tree.map(lambda leaf: leaf.reshape(*shapes[0], *leaf.shape[1:]), rows)


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
      num_classes: see :func:`from_arrays`.
      name: likewise.

    Raises:
      ValueError: naming the task, if rows differ from those of task 0 in shape or dtype,
        or none has a weight above 0.
    """
    shuffled = {task.shuffle for task in tasks if isinstance(task, Task)} or {True}
    wanted = "tasks must all be shuffled, or none, got both; split them"
    require(len(shuffled) == 1, "stack_tasks", wanted)
    require(tasks, "stack_tasks", "expected at least one task, got none; give some")
    read = lambda rows: rows.read(np.arange(rows.count))
    pairs = [
        (read(task.train), read(task.test)) if isinstance(task, Task) else task
        for task in tasks
    ]
    is_pair = lambda task: isinstance(task, tuple | list) and len(task) == 2
    odd = next((shown(task) for task in pairs if not is_pair(task)), None)
    wanted = (
        f"each task must be (train, test) or a Task, got {odd}; give a list of these"
    )
    require(odd is None, "stack_tasks", wanted)
    splits = zip(("train", "test"), zip(*pairs, strict=True), strict=True)
    train, test = (_stacked(split, batches) for split, batches in splits)
    stream = from_arrays(train, test, num_classes=num_classes, name=name)
    return stream._replace(shuffle=shuffled == {True})


def _stacked(split: str, batches: Sequence[Batch]) -> Batch:
    """Batches of unequal lengths, padded to the longest: leaves ``[T, n, ...]``."""
    for task, batch in enumerate(batches):
        check_batch(f"stack_tasks: {split} of task {task}", batch)
        found, wanted = row_format(batch), row_format(batches[0])
        like = f"{split} rows of task {task} must be like those of task 0, {wanted}"
        came = f"got {found}; pad or cast them"
        require(found == wanted, "stack_tasks", f"{like}, {came}")
        real = f"{split} of task {task} must have rows of weight above 0, got none"
        some = np.any(np.asarray(batch.weight) > 0)
        require(some, "stack_tasks", f"{real}; leave the task out")
    size = max(map(num_rows, batches))

    def fill(batch):
        count, first = num_rows(batch), int(np.argmax(np.asarray(batch.weight) > 0))
        rows = np.concatenate([np.arange(count), np.full(size - count, first)])
        filled = at(rows, jax.tree.map(np.asarray, batch))
        weight = np.where(np.arange(size) < count, filled.weight, 0)
        return filled._replace(weight=weight.astype(np.float32))

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(fill, batches))


def _numbered(pool: Tasks) -> Tasks:
    """Rows with the number of their task: their place, where all of them have 0.

    Test rows of 0 get the number of the task's training rows, where that is one.
    """
    if isinstance(pool.train.task, Tracer) or isinstance(pool.test.task, Tracer):
        return pool
    train, test = (np.asarray(part.task) for part in pool)
    numbers = [set(np.unique(task).tolist()) for task in train]
    first = lambda task: at((task, 0), (pool.train.x, pool.train.y))
    if none_numbered("from_arrays", numbers, first):
        train = np.zeros_like(train) + np.arange(len(train), dtype=train.dtype)[:, None]
    bare = (test == 0).all(1) & (train == train[:, :1]).all(1)
    test = np.where(bare[:, None], train[:, :1], test)
    return Tasks(pool.train._replace(task=train), pool.test._replace(task=test))


def take_tasks(
    stream: Stream, tasks: slice | Sequence[int] | np.ndarray, *, axis: int = 0
) -> Stream:
    """A stream of some of the tasks; each keeps its ``task`` number.

    ``tasks`` are a slice, or numbers in the order wanted, not a mask; ``axis`` is where the
    tasks are in the plan, 1 after :func:`stack_plans`.
    """
    count = jax.tree.leaves(stream.plan)[0].shape[axis]
    tasks = np.arange(count)[tasks] if isinstance(tasks, slice) else tasks
    chosen = task_list("take_tasks", stream, tasks, count)
    cut = lambda leaf: jnp.asarray(np.take(np.asarray(leaf), chosen, axis))
    return stream._replace(plan=jax.tree.map(cut, stream.plan))


def task_list(who: str, stream: Stream, tasks, count: int) -> np.ndarray:
    """The numbers of some of a stream's ``count`` tasks as an array, checked."""
    chosen = as_numbers(who, "tasks", tasks)
    listed = chosen.ndim == 1 and chosen.size and chosen.dtype.kind in "iu"
    inside = listed and -count <= chosen.min() and chosen.max() < count
    came = f"got {chosen.tolist() if chosen.size else 'none'}; list some of these"
    require(inside, who, f"{stream.name} has tasks 0 to {count - 1}, {came}")
    return chosen


def joint(stream: Stream) -> Stream:
    """One task that holds the rows of all tasks: joint or multi-task training.

    Rows are in the order of the tasks and keep their ``task`` number, so that each uses
    its own head. The network learns from all tasks as from one data set, which is the
    upper bound that most papers report. ``accuracy_row(outputs, stream)`` of the original
    stream still measures task by task. For the intransigence, whose ``J_k`` is learned
    from tasks ``1 .. k``, use ``joint(take_tasks(stream, slice(k)))``.

    All ``T n`` training rows are in memory at once: permuted MNIST takes 188 MB a task.
    For several seeds make every stream joint first, then :func:`stack_plans`.

    Of one seed's stream, whose plan ``[T, ...]`` may be traced, this is a stream of one
    task, plan ``[1, T, ...]``, and the same pool: a train batch of ``T n`` rows and a test
    batch of ``T m``, padding included.
    """

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


def stack_plans(streams: Sequence[Stream]) -> Stream:
    """One stream for many seeds: plans stacked to ``[s, T, ...]``, and one pool.

    ``jax.vmap`` over ``stream.plan`` then runs all seeds; the pool is not copied. The
    streams must come from the same constructor with the same arguments except keys.
    """
    require(streams, "stack_plans", "needs at least one stream, got none; give some")
    first = streams[0]

    def kind(stream):
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), stream.plan)
        return stream.name, stream.num_classes, stream.shuffle, shapes

    for number, other in enumerate(streams[1:], 1):
        same = kind(first) == kind(other) and _same_arrays(first.pool, other.pool)
        came = "another name, num_classes, shuffle, plan shapes or pool"
        both = f"stream {number} ({other.name}) has {came} than stream 0 ({first.name})"
        require(same, "stack_plans", f"streams must differ in keys only, but {both}")
    stack = lambda *leaves: jnp.asarray(np.stack(leaves))
    plans = [stream.plan for stream in streams]
    return first._replace(plan=jax.tree.map(stack, *plans))


def _same_arrays(a: PyTree, b: PyTree) -> bool:
    """Whether two trees hold the same arrays; the same objects are not compared."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    same = lambda x, y: x is y or (x.dtype == y.dtype and np.array_equal(x, y))
    return all(map(same, jax.tree.leaves(a), jax.tree.leaves(b)))
