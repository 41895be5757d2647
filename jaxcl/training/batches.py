"""Batches of both loops: random keys, the order of rows, shapes, sharding, prefetch."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcl.data.dataset import Dataset, Task
from jaxcl.data.stream import check_task_numbers
from jaxcl.errors import InputError
from jaxcl.sharding import (
    ShardingPlan,
    batch_sharding,
    num_parts,
    own_rows,
    place_rows,
)
from jaxcl.tree import check_batch
from jaxcl.typing import Batch, Key


class FitKeys(NamedTuple):
    """The keys of the order of a task's rows, of its steps (by number), and its end."""

    order: Key
    steps: Key
    end: Key


def fit_keys(key: Key) -> FitKeys:
    """The keys of one task from the key of its fit; the host loop uses the same."""
    return FitKeys(*jax.random.split(key, 3))


class TaskKeys(NamedTuple):
    """The keys of a task's fit and of its observers."""

    fit: Key
    before: Key
    after: Key


def task_keys(key: Key, index) -> TaskKeys:
    """The keys of task ``index``, from the key of the run alone."""
    return TaskKeys(*jax.random.split(jax.random.fold_in(key, index), 3))


def batch_order(
    key: Key,
    weight: Float[Array, " n"],
    *,
    num_steps: int,
    batch_size: int,
    shuffle: bool = True,
) -> Int[Array, "steps b"]:
    """Row numbers of ``num_steps`` batches, drawn without replacement.

    Each pass over the task is a new random order of its real rows, and padding at the end
    does not change the order. A batch may span two passes, so that all batches are full.
    A padded task with fewer real rows than a batch has each of them once in every batch,
    which is filled up with a row of weight zero; these appear nowhere else.

    Args:
      key: draws the orders.
      weight: [n], zero for padding.
      num_steps: how many batches.
      batch_size: rows of each, at most ``n``.
      shuffle: whether a pass is in random order; else it is in that of the rows.
    """
    n, total = weight.shape[0], num_steps * batch_size
    last = jnp.where(weight > 0, 0.0, 2.0)  # padding comes after all draws
    real = jnp.maximum(jnp.sum(weight > 0).astype(jnp.int32), 1)

    def add(number, rows):
        draws = jax.random.uniform(jax.random.fold_in(key, number), (n,), jnp.float32)
        order = jnp.argsort(draws + last if shuffle else last).astype(jnp.int32)
        # The padding of this pass is overwritten by the next one.
        return jax.lax.dynamic_update_slice(rows, order, (number * real,))

    drawn = jnp.where(real < n, jnp.minimum(real, batch_size), batch_size)  # a batch
    passes = (num_steps * drawn + real - 1) // real
    rows = jax.lax.fori_loop(0, passes, add, jnp.zeros(total + n, jnp.int32))
    column = jnp.arange(batch_size, dtype=jnp.int32)
    place = jnp.arange(num_steps, dtype=jnp.int32)[:, None] * drawn + column
    padding = jnp.argmin(weight > 0).astype(jnp.int32)
    return jnp.where(column < drawn, rows[place], padding)


def take_rows(
    rows: Dataset,
    numbers: np.ndarray,
    *,
    size: int,
    sharding: ShardingPlan | None = None,
) -> Batch:
    """A batch of ``size`` rows, padded with copies of the first of weight 0.

    Args:
      rows: the dataset.
      numbers: of the rows, at most ``size``.
      size: rows of the batch, of all processes together.
      sharding: of the batch; each process then reads its own part only.
    """
    missing = size - len(numbers)
    filled = np.concatenate([numbers, np.repeat(numbers[:1], missing)])
    real = np.arange(size) < len(numbers)
    if sharding is None:
        return _weighted(rows.read(filled), real)
    mine = own_rows(sharding, np.arange(size))
    return place_rows(sharding, _weighted(rows.read(filled[mine]), real[mine]))


def _weighted(batch: Batch, real: np.ndarray) -> Batch:
    if real.all():
        return batch
    return batch._replace(weight=batch.weight * real.astype(np.float32))


def numbered(tasks: Sequence[Task], first: int = 0) -> list[Task]:
    """Tasks with numbers: by their place, where no training row has one above 0.

    A test or validation set without numbers gets that of the training set. A single task
    is numbered only if it is not the first of its stream.

    Args:
      tasks: of a run, checked.
      first: number of the first one.

    Raises:
      ValueError: if some tasks are numbered and several are not.
    """
    found = [_task_numbers(task.train) for task in tasks]
    row_of = lambda place: tasks[place].train.read(np.arange(1))
    check_task_numbers("learn", found, lambda place: tuple(row_of(place)[:2]))
    bare = all(numbers == {0} for numbers in found)
    if bare and len(tasks) + first > 1:
        tasks = [
            task._replace(train=_with_number(task.name, task.train, first + place))
            for place, task in enumerate(tasks)
        ]
    return [_with_one_number(task) for task in tasks]


def _with_one_number(task: Task) -> Task:
    """The task with the number of its training set in the others, if these have none."""
    numbers = _task_numbers(task.train)
    if len(numbers) > 1 or numbers == {0}:
        return task
    parts = {"test": task.test, "valid": task.valid}
    found = {
        name: _with_number(task.name, rows, *numbers)
        for name, rows in parts.items()
        if rows is not None and _task_numbers(rows) == {0}
    }
    return task._replace(**found)


def _task_numbers(rows: Dataset) -> set[int]:
    """The task numbers of the first, middle and last row."""
    read = (rows.read(np.array([place])) for place in some_places(rows))
    return {int(row.task[0]) for row in read}


def some_places(rows: Dataset) -> list[int]:
    """The first, middle and last row, by which a set is known; none of an empty one."""
    return sorted({0, rows.count // 2, rows.count - 1}) if rows.count > 0 else []


def _with_number(name: str, rows: Dataset, number: int) -> Dataset:
    """The same rows with the number of their task."""

    def read(numbers):
        batch = rows.read(numbers)
        if np.any(np.asarray(batch.task) != 0):
            msg = (
                f"learn: task {name!r} has rows with task 0 and rows with "
                f"{int(np.max(np.asarray(batch.task)))}; number those of all tasks from "
                "1, so that they are not taken for rows without a number."
            )
            raise InputError(msg)
        return batch._replace(task=np.full_like(np.asarray(batch.task), number))

    return Dataset(rows.count, read)


class FirstRows(NamedTuple):
    """One training row and one test row of the first task."""

    train: Batch
    test: Batch


def first_rows(
    tasks: Sequence[Task], evaluation: Mapping[str, Dataset], *, measured: bool
) -> FirstRows:
    """The first rows of the first task; those of all others must have the same format.

    Args:
      tasks: of the run, all by one compiled program.
      evaluation: further test sets.
      measured: whether test rows are used.

    Raises:
      ValueError: naming the task with rows of another shape or dtype.
    """
    trained = [(f"train of task {task.name!r}", task.train) for task in tasks]
    tested = [(f"test of task {task.name!r}", task.test) for task in tasks]
    valid = [
        (f"valid of task {task.name!r}", t.valid) for task in tasks if (t := task).valid
    ]
    sets = [(f"evaluation set {name!r}", rows) for name, rows in evaluation.items()]
    first = _alike_rows(trained)
    if not measured:
        return FirstRows(first, first)
    test = _alike_rows([*tested, *valid, *sets])
    kinds = [str(shapes_of(row, 1).x) for row in (first, test)]
    if kinds[0] != kinds[1]:
        msg = (
            f"learn: {tested[0][0]} has inputs {kinds[1]}, unlike those that are learned "
            f"from, {kinds[0]}; give both the same shapes and dtypes."
        )
        raise InputError(msg)
    return FirstRows(first, test)


def _alike_rows(parts: Sequence[tuple[str, Dataset]]) -> Batch:
    """The first row of the first part; those of the others have its shapes and dtypes."""
    rows = [(name, part.read(np.arange(1))) for name, part in parts]
    first = rows[0][1]
    for name, row in rows:
        check_batch(f"learn: {name}", row)
        kinds = [str(shapes_of(each, 1)) for each in (row, first)]
        if kinds[0] != kinds[1]:
            came, wanted = (_in_words(each) for each in (row, first))
            msg = (
                f"learn: {name} has rows of {came}, unlike those of the first task, "
                f"{wanted}; pad or cast them, as one program serves all tasks."
            )
            raise InputError(msg)
    return first


def shapes_of(row: Batch, size: int, sharding: ShardingPlan | None = None) -> Batch:
    """The shapes and dtypes of a batch of ``size`` rows like the one given."""
    where = None if sharding is None else batch_sharding(sharding)

    def shape(leaf):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), dtype, sharding=where)

    return jax.tree.map(shape, row)


def _in_words(row: Batch) -> str:
    kind = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    x, y = (jax.tree.map(kind, shapes_of(row, 1)._asdict()[name]) for name in "xy")
    return f"x {x} and y {y}"


def task_rows(
    tasks: Sequence[Task], wanted: int | None, sharding: ShardingPlan | None
) -> int:
    """How many rows ``end_task`` gets: by the options, or of the longest task."""
    parts = 1 if sharding is None else num_parts(sharding)
    return -(-(wanted or longest(tasks)) // parts) * parts


def longest(tasks: Sequence[Task]) -> int:
    """Rows of the longest task."""
    return max(task.train.count for task in tasks)


def training_order(
    key: Key,
    rows: Dataset,
    *,
    num_steps: int,
    batch_size: int,
    most: int,
    shuffle: bool = True,
) -> Int[np.ndarray, "steps b"]:
    """Row numbers of all batches of a task, as the compiled loop draws them.

    Args:
      key: draws the order.
      rows: of the task.
      num_steps: how many batches.
      batch_size: rows of each.
      most: rows of the longest task, for which one program is compiled.
      shuffle: see :func:`batch_order`.
    """
    sizes = {"num_steps": num_steps, "batch_size": batch_size}
    weight = (np.arange(most) < rows.count).astype(np.float32)
    return np.asarray(_order(key, weight, shuffle=shuffle, **sizes))


# Jitted: otherwise the loop inside is compiled at every call.
_order = jax.jit(batch_order, static_argnames=("num_steps", "batch_size", "shuffle"))


def first_seen(order: Int[np.ndarray, "steps b"], count: int) -> Int[np.ndarray, " k"]:
    """The first ``count`` different training rows, ascending."""
    _, first = np.unique(order.ravel(), return_index=True)
    return np.sort(order.ravel()[np.sort(first)[:count]])


def prefetch(
    read: Callable[[Any], Any], items: Iterable[Any], *, ahead: int = 2
) -> Generator[Any, None, None]:
    """Yield ``read(item)`` for all items in order, reading ``ahead`` of them early.

    Args:
      read: called in another thread; it may be slow.
      items: what to read.
      ahead: how many results may wait.

    Raises:
      Whatever ``read`` raises, at the place in the order where it raised it; a
      StopIteration, which an iterator cannot pass on, as a RuntimeError.
    """
    box: queue.Queue = queue.Queue(max(1, ahead))
    done = object()
    ended = threading.Event()

    def put(entry) -> bool:
        while not ended.is_set():
            try:
                box.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    # The context manager has effect in its own thread only: rows would become float32.
    wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def work():
        try:
            with jax.enable_x64(wide):
                for item in items:
                    if not put((read(item), None)):
                        return
        except BaseException as error:  # raised where the result is awaited
            put((None, error))
        else:
            put((done, None))

    reader = threading.Thread(target=work, daemon=True, name="feed")
    reader.start()
    try:
        while True:
            result, error = box.get()
            if error is not None:
                raise error
            if result is done:
                return
            yield result
    finally:
        ended.set()
        reader.join()  # a thread inside JAX would abort the process at exit
