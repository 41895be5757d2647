"""Streams without clear boundaries: tasks that are blurred, gradual, or not marked at all.

All take and return tasks of the host loop; :func:`jaxcl.data.stack_tasks` makes a stream of
the compiled loop of them. A row keeps the number of the task it comes from, and a task its
test set, so that accuracy is still measured task by task. Tasks without numbers are
numbered by :func:`jaxcl.data.number_tasks`.
"""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxcl.data.dataset import Dataset, Task
from jaxcl.data.draws import generator
from jaxcl.data.numbering import number_tasks
from jaxcl.errors import check_number, require
from jaxcl.sequences import sequence_width, widen
from jaxcl.typing import Key


def blurry(
    key: Key, tasks: Sequence[Task], *, minor_fraction: float | int
) -> list[Task]:
    """Tasks with some rows of all others: the blurry boundaries of Bang et al.

    Each task gives ``minor_fraction`` of its training rows away, drawn at random, in equal
    parts to all others. Every row is in exactly one task, and tasks of equal size keep it.

    Args:
      key: draws the rows that are given away.
      tasks: at least two, which keep their names, test and validation sets, and are
        numbered by :func:`jaxcl.data.number_tasks`.
      minor_fraction: M / 100, in [0, 1): 0.1 is Blurry10, 0 mixes nothing.

    Source: Bang et al. 2021, arXiv:2103.17230; also the blurry classes of
    Koh et al. 2022, arXiv:2110.10031 (i-Blurry).
    """
    check_number("blurry", most=1.0, below=True, minor_fraction=minor_fraction)
    tasks, rng = _numbered("blurry", tasks), generator(key)
    total = len(tasks)
    places, takers = [], []
    for index, task in enumerate(tasks):
        rows = rng.permutation(task.train.count)
        given = int(minor_fraction * len(rows) + 0.5)
        taker = np.full(len(rows), index)
        taker[:given] = (index + 1 + np.arange(given) % (total - 1)) % total
        places.append(_places(index, rows))
        takers.append(taker)
    every, takers = np.concatenate(places), np.concatenate(takers)
    mixed = []
    for index, task in enumerate(tasks):
        own = every[takers == index]
        own = own[rng.permutation(len(own))]
        # Loops know a task by its first, middle and last row: the middle one is its own.
        middle, first = len(own) // 2, int(np.argmax(own[:, 0] == index))
        own[[middle, first]] = own[[first, middle]]
        mixed.append(task._replace(train=_rows_of(tasks, own)))
    return mixed


def gradual(key: Key, tasks: Sequence[Task], *, overlap: float | int) -> list[Task]:
    """Tasks that change gradually: near a boundary, rows of both appear.

    In a window of ``w`` rows around the boundary ``B`` of two tasks, the probability of a
    row of the next task rises linearly::

        p(t) = 1 / 2 + (t - B) / w,    |t - B| <= w / 2,
        w = overlap * min(rows of the one, rows of the other)

    Every row appears exactly once, and a task's rows in random order. The results are cut
    at the old boundaries and learned in the order of time, without shuffling
    (``shuffle=False``). A last batch that is not full begins the task again: let
    ``batch_size`` divide the rows of a task.

    Args:
      key: draws the order.
      tasks: at least two, in order; see :func:`blurry`.
      overlap: in [0, 1]. At 0 the tasks are separate; at 1 some rows of the next task
        appear from the middle of a task on.

    Source: the continuous task-agnostic streams of Zeno et al. 2018, arXiv:1803.10123.
    """
    check_number("gradual", most=1.0, overlap=overlap)
    tasks, rng = _numbered("gradual", tasks), generator(key)
    counts = [task.train.count for task in tasks]
    widths = [float(overlap) * min(pair) for pair in itertools.pairwise(counts)]
    ends = np.cumsum(counts)
    times, places = [], []
    for index, count in enumerate(counts):
        rise, fall = [0.0, *widths][index], [*widths, 0.0][index]
        mass = np.arange(count) + rng.random(count)  # one row in each unit of mass
        times.append(ends[index] - count + _time_of(mass, count, rise, fall))
        places.append(_places(index, rng.permutation(count)))
    order = np.argsort(np.concatenate(times), kind="stable")
    parts = np.split(np.concatenate(places)[order], ends[:-1])
    return [
        task._replace(train=_rows_of(tasks, part), shuffle=False)
        for task, part in zip(tasks, parts, strict=True)
    ]


def task_free(tasks: Sequence[Task], *, name: str = "stream") -> Task:
    """One task of the rows of all tasks in order, seen once: no boundary, no shuffling.

    A method's ``end_task`` is called once, at the end. With :func:`gradual` before it, the
    stream has no sharp changes either. The original tasks are measured as sets for
    evaluation only, whose rows need the numbers of their tasks::

        tasks = number_tasks(tasks)
        one = task_free(gradual(key, tasks, overlap=0.5))
        learn(..., [one], ..., evaluation={task.name: task.test for task in tasks})

    Source: the setting of Aljundi et al. 2019, arXiv:1812.03596.
    """
    tasks = _numbered("task_free", tasks, least=1)

    def joined(split):
        counts = [getattr(task, split).count for task in tasks]
        every = [_places(i, np.arange(count)) for i, count in enumerate(counts)]
        return _rows_of(tasks, np.concatenate(every), split)

    return Task(name, joined("train"), joined("test"), num_epochs=1, shuffle=False)


def _time_of(
    mass: Float[np.ndarray, " n"], count: int, rise: float, fall: float
) -> Float[np.ndarray, " n"]:
    """When a task's density of rows has reached a mass, from its nominal beginning.

    The density rises over ``[-rise / 2, rise / 2]``, is 1, and falls over
    ``[count - fall / 2, count + fall / 2]``: after ``s`` of the rise the mass is
    ``s^2 / (2 rise)``, and ``rise / 2`` at its end.
    """
    left = count - mass
    early = np.sqrt(2 * rise * mass) - rise / 2
    late = count + fall / 2 - np.sqrt(2 * fall * left)
    return np.where(mass < rise / 2, early, np.where(left < fall / 2, late, mass))


def _places(index: int, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 2"]:
    """Rows of a task by its number and theirs."""
    return np.stack([np.full(len(rows), index), rows], 1)


def _rows_of(
    tasks: Sequence[Task], places: Int[np.ndarray, "n 2"], split: str = "train"
) -> Dataset:
    """Rows of several tasks as one dataset; a batch reads each of its tasks once."""

    def read(numbers):
        task, row = places[numbers].T
        order = np.argsort(task, kind="stable")
        parts = [
            getattr(tasks[index], split).read(row[task == index])
            for index in np.unique(task)
        ]
        back = np.argsort(order, kind="stable")
        widest = max(parts, key=sequence_width)
        parts = [widen(part, widest) for part in parts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)

    sets = [getattr(task, split) for task in tasks]
    examples = [rows.example for rows in sets if rows.example is not None]
    groups = None
    if all(rows.groups is not None for rows in sets):
        groups = np.array([sets[index].groups[row] for index, row in places])
    example = max(examples, key=sequence_width, default=None)
    return Dataset(len(places), read, groups, example)


def _numbered(who: str, tasks: Sequence[Task], least: int = 2) -> list[Task]:
    """The tasks, of which there are enough, numbered."""
    some = f"expected at least {least} tasks, got {len(tasks)}; give a list"
    require(len(tasks) >= least, who, some)
    return number_tasks(tasks, who=who)
