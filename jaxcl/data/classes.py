"""Streams with some classes per task: pairs, and splits of all classes."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxcl.data.draws import generator
from jaxcl.data.images import Images
from jaxcl.data.pixels import Normalise, as_pool, finisher, task_batch, task_numbers
from jaxcl.errors import as_numbers, check_size, is_whole, require, shown
from jaxcl.typing import Key, Stream


class GroupPlan(NamedTuple):
    """The plan of tasks with some classes each."""

    task: Int[Array, " T"]
    classes: Int[Array, "T k"]  # in the order of their new labels; -1 for padding
    train_rows: Int[Array, "T n"]
    train_count: Int[Array, " T"]  # rows from here on are padding
    test_rows: Int[Array, "T m"]
    test_count: Int[Array, " T"]


def class_pairs(
    images: Images,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
    truncate: bool = False,
    flat: bool = True,
    normalise: Normalise | None = None,
) -> Stream:
    """Every task has two classes; labels are 0 and 1 in the order of the pair.

    Args:
      images: where the classes come from.
      pairs: the two classes of each task; if absent all pairs in the order 0-1, 0-2, ...,
        0-9, 1-2, ..., 8-9, which is 45 tasks for ten classes.
      truncate: whether every task is truncated to the size of the smallest (the first rows
        in the order of the set) instead of padded to that of the largest with weight 0.
      flat: see :func:`permuted`.
      normalise: see :func:`permuted`.

    Returns:
      A stream of two outputs, for one head for all tasks or for
      :func:`jaxcl.losses.heads` with ``2 T`` outputs.
    """
    known = range(images.num_classes)
    pairs = list(itertools.combinations(known, 2)) if pairs is None else pairs
    groups = as_numbers("class_pairs", "pairs", pairs)
    listed = groups.dtype.kind in "iu" and groups.shape[1:] == (2,)
    rows = groups.tolist() if listed else []
    odd = [tuple(p) for p in rows if len(set(p)) != 2 or set(p) - set(known)]
    found = shown(odd[0] if odd else pairs)
    wanted = (
        f"two different classes of 0 to {known[-1]}, got {found}; give [(0, 1), ...]"
    )
    require(rows and not odd, "class_pairs", f"pairs must each be {wanted}")
    groups = groups.astype(np.int32)
    best = min if truncate else max
    sizes = [
        best(_class_counts("class_pairs", images, y, groups).sum(1).tolist())
        for y in (images.train_y, images.test_y)
    ]
    return _groups(images, groups, sizes, True, flat, normalise, "pairs")


def class_splits(
    key: Key,
    images: Images,
    *,
    num_tasks: int | None = None,
    sizes: Sequence[int] | np.ndarray | None = None,
    shuffle_classes: bool = True,
    relabel: bool = True,
    truncate: bool = False,
    flat: bool = True,
    normalise: Normalise | None = None,
) -> Stream:
    """Every class belongs to one task: an even split, or one by ``sizes``.

    All tasks are padded to the size of the largest, so that one program serves all of
    them: with a base task of 50 classes and others of 10, four fifths of those is padding.

    Args:
      key: draws the classes of each task.
      images: where the classes come from.
      num_tasks: tasks ``T``, as even as the number of classes allows; see
        :func:`split_sizes`.
      sizes: classes of every task instead, such as ``(50, 10, 10, 10, 10, 10)``. Where
        their sum is smaller than the number of classes, the remaining ones never appear.
      shuffle_classes: whether the classes come in random order instead of 0, 1, 2, ...
      relabel: whether labels count from 0 within each task (for one head per task, or one
        for all) instead of being the class in the full set (class-incremental).
      truncate: whether tasks are truncated to the fewest rows that ``min(sizes)`` classes
        can have, instead of padded to the most that ``max(sizes)`` can have with weight 0.
        Both numbers depend on the images only, so that seeds can be stacked.
      flat: see :func:`permuted`.
      normalise: see :func:`permuted`.

    Returns:
      A stream of ``max(sizes)`` outputs with ``relabel``, else ``num_classes``. With a
      head for each task the model has ``sum(sizes)`` outputs, read by
      ``jaxcl.losses.heads(model.apply, sizes)``.
    """
    sizes = _sizes(images.num_classes, num_tasks, sizes)
    width = min(sizes) if truncate else max(sizes)
    classes = np.arange(images.num_classes)
    rows = []
    for y in (images.train_y, images.test_y):
        counts = np.sort(_class_counts("class_splits", images, y, classes))
        rows.append(int((counts[:width] if truncate else counts[-width:]).sum()))
    order = generator(key).permutation(classes) if shuffle_classes else classes
    ends = np.cumsum(sizes)
    groups = np.full((len(sizes), max(sizes)), -1, np.int32)
    for group, end, size in zip(groups, ends, sizes, strict=True):
        group[:size] = order[end - size : end]
    return _groups(images, groups, rows, relabel, flat, normalise, f"split{len(sizes)}")


def split_sizes(num_classes: int, num_tasks: int) -> tuple[int, ...]:
    """Classes of every task, as even as possible: the first tasks have one more.

    Such as ``(4, 3, 3)`` for ten classes in three tasks: what ``jaxcl.losses.heads`` takes.
    """
    return _even_sizes("split_sizes", num_classes, num_tasks)


def _even_sizes(who: str, num_classes: int, num_tasks: int) -> tuple[int, ...]:
    """Classes of every task of an even split."""
    check_size(who, num_classes=num_classes)
    good = is_whole(num_tasks) and 1 <= num_tasks <= num_classes
    wanted = f"num_tasks must be an int in [1, {num_classes}], the classes"
    require(good, who, f"{wanted}, got {shown(num_tasks)}")
    width, more = divmod(num_classes, num_tasks)
    return (width + 1,) * more + (width,) * (num_tasks - more)


def _sizes(num_classes: int, num_tasks, sizes) -> tuple[int, ...]:
    """Classes of every task, from the one argument of the two that is given."""
    either = f"either num_tasks or sizes, got {shown(num_tasks)} and {shown(sizes)}"
    one = (num_tasks is None) != (sizes is None)
    require(one, "class_splits", f"expected {either}; give one of them")
    if sizes is None:
        return _even_sizes("class_splits", num_classes, num_tasks)
    counts = as_numbers("class_splits", "sizes", sizes)
    ints = counts.ndim == 1 and counts.size and counts.dtype.kind in "iu"
    wanted = f"ints above 0 that sum to at most the {num_classes} classes"
    message = f"sizes must be {wanted}, got {shown(sizes)}; give for example (50, 10)"
    good = ints and counts.min() > 0 and counts.sum() <= num_classes
    require(good, "class_splits", message)
    return tuple(counts.tolist())


def _groups(images, groups, sizes, relabel, flat, normalise, kind) -> Stream:
    """Tasks of class groups ``[T, k]``, -1 in narrow ones, with ``sizes`` rows."""
    pool, finish = as_pool(images), finisher(images, flat, normalise)

    def batch(x, y, rows, count, plan):
        labels = y[rows]
        if relabel:
            labels = jnp.argmax(labels[:, None] == plan.classes, 1).astype(jnp.int32)
        real = jnp.arange(rows.shape[0]) < count
        made = task_batch(finish(x[rows]), labels, plan.task)
        return made._replace(weight=real.astype(jnp.float32))

    def train(pool, plan):
        rows, count = plan.train_rows, plan.train_count
        return batch(pool.train_x, pool.train_y, rows, count, plan)

    def test(pool, plan):
        rows, count = plan.test_rows, plan.test_count
        return batch(pool.test_x, pool.test_y, rows, count, plan)

    plan = GroupPlan(
        task_numbers(len(groups)),
        jnp.asarray(groups),
        *_members(images.train_y, groups, sizes[0]),
        *_members(images.test_y, groups, sizes[1]),
    )
    num_classes = groups.shape[1] if relabel else images.num_classes
    name = f"{kind}-{images.name}"
    return Stream(pool, plan, train, test, num_classes, name)


def _members(y: np.ndarray, groups: np.ndarray, size: int):
    """Each group's first ``size`` rows, padded by its first one; how many are real."""
    rows = np.empty((len(groups), size), np.int32)
    counts = np.empty(len(groups), np.int32)
    for task, classes in enumerate(groups):
        found = np.flatnonzero(np.isin(y, classes))[:size]
        rows[task] = np.pad(found, (0, size - len(found)), constant_values=found[0])
        counts[task] = len(found)
    return jnp.asarray(rows), jnp.asarray(counts)


def _class_counts(who: str, images: Images, y: np.ndarray, classes: np.ndarray):
    """Rows of each of the classes; a ValueError if one has none."""
    counts = np.bincount(y, minlength=images.num_classes)[classes]
    lacking = next(iter(classes[counts == 0]), None)
    wanted = f"every class needs train and test rows, but class {lacking} of "
    require(lacking is None, who, f"{wanted}{images.name} lacks some; leave it out")
    return counts
