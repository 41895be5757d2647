"""Batches of both loops: random keys, the order of rows, shapes, sharding, prefetch."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import require
from jaxcl.sequences import sequence_width, widen
from jaxcl.sharding import (
    ShardingPlan,
    batch_sharding,
    num_parts,
    own_rows,
    place_rows,
)
from jaxcl.tree import check_batch, row_format
from jaxcl.typing import Batch, Key


class FitKeys(NamedTuple):
    """The keys of the order of a task's rows, of its steps (by number), and its end."""

    order: Key
    steps: Key
    end: Key


class TaskKeys(NamedTuple):
    """The keys of a task's fit and of its observers."""

    fit: Key
    before: Key
    after: Key


def task_keys(key: Key, index) -> TaskKeys:
    """The keys of task ``index``, from the key of the run alone."""
    return TaskKeys(*jax.random.split(jax.random.fold_in(key, index), 3))


def fit_keys(key: Key) -> FitKeys:
    """The keys of one task from the key of its fit; both loops use the same."""
    return FitKeys(*jax.random.split(key, 3))


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
    like: Batch | None = None,
) -> Batch:
    """A batch of ``size`` rows, padded with copies of the first of weight 0.

    There are at most ``size`` numbers. With a sharding each process reads its own part.
    Sequences are as wide as those of ``like``, if that is given.
    """
    mine = np.arange(size) if sharding is None else own_rows(sharding, np.arange(size))
    if like is None and len(mine) < size and rows.groups is not None:
        # A process must not choose the width by its own part.
        like = rows.read(numbers[[np.argmax(rows.groups[numbers])]])
    real = mine < len(numbers)
    batch = rows.read(numbers[np.where(real, mine, 0)])
    if not real.all():
        batch = batch._replace(weight=batch.weight * real.astype(np.float32))
    batch = batch if like is None else widen(batch, like)
    return batch if sharding is None else place_rows(sharding, batch)


def first_rows(
    tasks: Sequence[Task], evaluation: Mapping[str, Dataset], *, measured: bool
) -> tuple[Batch, Batch]:
    """A training row and a test row of the first task.

    Those of all others must be alike in shapes and dtypes, as one program serves all; test
    rows only where they are ``measured``.
    """
    trained = [(f"train of task {task.name!r}", task.train) for task in tasks]
    tested = [(f"test of task {task.name!r}", task.test) for task in tasks]
    valid = [(f"valid of task {t.name!r}", t.valid) for t in tasks if t.valid]
    sets = [(f"evaluation set {name!r}", rows) for name, rows in evaluation.items()]
    first = _alike_rows(trained)
    if not measured:
        return first, first
    test = _alike_rows([*tested, *valid, *sets])
    widest = max(first, test, key=sequence_width)
    train_x, test_x = (shapes_of(widen(row, widest), 1).x for row in (first, test))
    require(
        str(train_x) == str(test_x),
        "learn",
        f"{tested[0][0]} has rows of {row_format(test)}, unlike {trained[0][0]}, of "
        f"{row_format(first)}; give the inputs x of both the same shapes and dtypes",
    )
    return first, test


def _alike_rows(parts: Sequence[tuple[str, Dataset]]) -> Batch:
    """The first row of the first part; those of the others have its shapes and dtypes.

    Of sequences with several widths it is a row of the largest one.
    """
    rows = [(name, example_of(part)) for name, part in parts]
    first = rows[0][1]
    for name, row in rows:
        check_batch(f"learn: {name}", row)
        first = max(first, row, key=sequence_width)
    for name, row in rows:
        require(
            str(shapes_of(widen(row, first), 1)) == str(shapes_of(first, 1)),
            "learn",
            f"{name} has rows of {row_format(row)}, unlike those of the first task, "
            f"{row_format(rows[0][1])}; pad or cast them, as one program serves all tasks",
        )
    return first


def example_of(rows: Dataset) -> Batch:
    """A row of a dataset, of the largest width that rows have."""
    if rows.example is not None:
        return rows.example
    number = 0 if rows.groups is None else int(np.argmax(rows.groups))
    return rows.read(np.array([number]))


def shapes_of(row: Batch, size: int, sharding: ShardingPlan | None = None) -> Batch:
    """The shapes and dtypes of a batch of ``size`` rows like the one given."""
    where = None if sharding is None else batch_sharding(sharding)

    def shape(leaf):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), dtype, sharding=where)

    return jax.tree.map(shape, row)


def task_rows(
    tasks: Sequence[Task], wanted: int | None, sharding: ShardingPlan | None
) -> int:
    """How many rows ``end_task`` gets: by the options, or of the longest task."""
    parts = 1 if sharding is None else num_parts(sharding)
    return -(-(wanted or longest(tasks)) // parts) * parts


def rows_to_test(test: Batch, wanted: int | None, sharding: ShardingPlan | None) -> int:
    """How many test rows are held at once: by the options, or by the labels of a row."""
    if wanted is not None:
        return wanted
    parts = 1 if sharding is None else num_parts(sharding)
    of_row = lambda leaf: np.size(leaf) // len(leaf)
    labels = max(map(of_row, jax.tree.leaves(test.y)), default=1)
    most = _MOST_LABELS // labels if sequence_width(test) else _MOST_ROWS
    return max(min(most, _MOST_ROWS) // parts, 1) * parts


#: Test rows and labels of tokens that are held at once where nothing else is wanted.
_MOST_ROWS, _MOST_LABELS = 256, 8192


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

    See :func:`batch_order`; ``most`` are the rows of the longest task, for which one
    program is compiled. For rows of several widths see :func:`grouped_order`.
    """
    if rows.groups is not None:
        sizes = {"num_steps": num_steps, "batch_size": batch_size}
        return grouped_order(key, rows.groups, shuffle=shuffle, **sizes)
    sizes = {"num_steps": num_steps, "batch_size": batch_size}
    weight = (np.arange(most) < rows.count).astype(np.float32)
    return np.asarray(_order(key, weight, shuffle=shuffle, **sizes))


# Jitted: otherwise the loop inside is compiled at every call.
_order = jax.jit(batch_order, static_argnames=("num_steps", "batch_size", "shuffle"))


def grouped_order(
    key: Key,
    groups: Int[np.ndarray, " n"],
    *,
    num_steps: int,
    batch_size: int,
    shuffle: bool = True,
) -> Int[np.ndarray, "steps b"]:
    """Row numbers of batches of rows of one group, drawn without replacement.

    A pass over the task is a random order of its rows. Those of each group fill batches;
    what is left of a group goes on to the next wider one. What is left of all is in the
    first batch of the next pass, so that an epoch has every row. The other batches of a
    pass are in random order, too.

    Args:
      key: draws the orders.
      groups: of each row, from the narrowest to the widest.
      num_steps: how many batches.
      batch_size: rows of each, at most ``n``.
      shuffle: whether a pass is in random order; else it is in that of the rows, and a
        batch has its place when its last row has come.
    """
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    names, left, batches = np.unique(groups), np.zeros(0, int), []
    while len(batches) < num_steps:
        rows = random.permutation(len(groups)) if shuffle else np.arange(len(groups))
        if len(left):
            other = groups[rows] != groups[left].max()  # filled up by rows as wide
            rows = rows[np.argsort(other, kind="stable")] if shuffle else rows
            rows = np.concatenate([left, rows])
            batches.append(rows[:batch_size])
            rows, left = rows[batch_size:], left[:0]
        new = []
        for name in names:
            left = np.concatenate([left, rows[groups[rows] == name]])
            full = len(left) // batch_size * batch_size
            new += [*left[:full].reshape(-1, batch_size)]
            left = left[full:]
        new = random.permutation(new) if shuffle else sorted(new, key=np.max)
        batches += [*new]
    return np.stack(batches[:num_steps]).astype(np.int32)


def first_seen(order: Int[np.ndarray, "steps b"], count: int) -> Int[np.ndarray, " k"]:
    """The first ``count`` different training rows, ascending."""
    _, first = np.unique(order.ravel(), return_index=True)
    return np.sort(order.ravel()[np.sort(first)[:count]])


def prefetch(
    read: Callable[[Any], Any], items: Iterable[Any], *, ahead: int = 2
) -> Generator[Any, None, None]:
    """Yield ``read(item)`` for all items in order, reading ``ahead`` of them early.

    ``read`` is called in another thread. What it raises is raised at its place in the
    order; a StopIteration, which an iterator cannot pass on, as a RuntimeError.
    """
    # The context manager has effect in its own thread only: rows would become float32.
    wide = jax.dtypes.canonicalize_dtype(np.float64) == np.float64

    def read_wide(item):
        with jax.enable_x64(wide):
            return read(item)

    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(1, "feed") as reader:
        try:
            for item in items:
                waiting.append(reader.submit(read_wide, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also joins it: a thread inside JAX would abort the process at exit
            reader.shutdown(cancel_futures=True)
