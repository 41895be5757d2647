"""Streams that show some classes at a time: pairs, and splits of all classes."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxcl.data.draws import generator
from jaxcl.data.images import Images
from jaxcl.data.pixels import (
    Normalise,
    as_pool,
    finisher,
    need_tasks,
    task_batch,
    task_numbers,
)
from jaxcl.errors import check_kind
from jaxcl.typing import Key, Stream


class GroupPlan(NamedTuple):
    """What makes a task of some classes."""

    task: Int[Array, " T"]
    classes: Int[Array, "T k"]  # in the order of their new labels
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
    """Every task tells two classes apart; labels are 0 and 1 in the order of the pair.

    Args:
      images: where the classes come from.
      pairs: the two classes of each task; if absent all pairs in the order 0-1, 0-2, ...,
        0-9, 1-2, ..., 8-9, which is 45 tasks for ten classes.
      truncate: whether every task is cut to the smallest one's rows (the first ones in
        the order of the set) instead of padded to the largest one's with weight 0.
      flat: see :func:`permuted`.
      normalise: see :func:`permuted`.

    Returns:
      A stream of two outputs: for one head that all tasks share, or for
      ``jaxcl.losses.heads`` with ``2 T`` outputs.

    Raises:
      ValueError: if a pair names a class twice, or one without train or test rows.
    """
    check_kind("class_pairs", Images, images=images)
    if pairs is None:
        pairs = list(itertools.combinations(range(images.num_classes), 2))
    known = range(images.num_classes)
    odd = [p for p in pairs if len(set(p)) != 2 or len(p) != 2 or set(p) - set(known)]
    if odd or len(pairs) == 0:
        msg = (
            f"class_pairs: pairs must be a list of two different classes of 0 to "
            f"{known[-1]}, got {odd[0] if odd else 'an empty list'}; correct it."
        )
        raise ValueError(msg)
    groups = np.asarray(pairs, np.int32)
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
    num_tasks: int,
    shuffle_classes: bool = True,
    relabel: bool = True,
    truncate: bool = False,
    flat: bool = True,
    normalise: Normalise | None = None,
) -> Stream:
    """The classes are dealt out: every task has ``num_classes / T`` of them.

    Args:
      key: draws which classes meet in which task.
      images: where the classes come from.
      num_tasks: tasks ``T``; must divide the number of classes.
      shuffle_classes: whether the classes come in random order instead of 0, 1, 2, ...
      relabel: whether labels count from 0 within each task (for a head of its own, or
        one that all share) instead of being the class in the whole set
        (class-incremental).
      truncate: whether tasks are cut to the fewest rows that ``num_classes / T`` classes
        can have, instead of padded to the most with weight 0. Both sizes depend on the
        images only, so that seeds can be stacked.
      flat: see :func:`permuted`.
      normalise: see :func:`permuted`.

    Returns:
      A stream of ``num_classes / T`` outputs with ``relabel``, else ``num_classes``.

    Raises:
      ValueError: if ``num_tasks`` does not divide the classes, or a class has no rows.
    """
    check_kind("class_splits", Images, images=images)
    need_tasks("class_splits", num_tasks)
    width, rest = divmod(images.num_classes, num_tasks)
    if rest:
        msg = (
            f"class_splits: num_tasks must divide the {images.num_classes} classes, got "
            f"{num_tasks}; choose a divisor."
        )
        raise ValueError(msg)
    classes = np.arange(images.num_classes)
    sizes = []
    for y in (images.train_y, images.test_y):
        counts = np.sort(_class_counts("class_splits", images, y, classes))
        sizes.append(int((counts[:width] if truncate else counts[-width:]).sum()))
    order = generator(key).permutation(classes) if shuffle_classes else classes
    groups = order.astype(np.int32).reshape(num_tasks, width)
    return _groups(images, groups, sizes, relabel, flat, normalise, f"split{num_tasks}")


def _groups(images, groups, sizes, relabel, flat, normalise, kind) -> Stream:
    """Tasks of class groups ``[T, k]``, with ``sizes`` train and test rows."""
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
    """Rows of each of the classes; none may be without."""
    counts = np.bincount(y, minlength=images.num_classes)[classes]
    if not counts.all():
        msg = (
            f"{who}: every class needs train and test rows, but class "
            f"{int(classes[counts == 0][0])} of {images.name} lacks some; leave it out."
        )
        raise ValueError(msg)
    return counts


__all__ = ["GroupPlan", "class_pairs", "class_splits"]
