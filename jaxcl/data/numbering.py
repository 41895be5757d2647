"""Numbers of tasks: by them losses and metrics find the head of a row."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import check_kind, require
from jaxcl.typing import PyTree


def number_tasks(
    tasks: Sequence[Task], first: int = 0, *, who: str = "number_tasks"
) -> list[Task]:
    """Tasks with numbers: by their place, where no training row has one above 0.

    A test or validation set without numbers gets that of the training set.
    :func:`jaxcl.training.learn` and the functions that mix tasks, such as
    :func:`jaxcl.data.blurry`, do this to the tasks they get; data sets that are given for
    evaluation only need it before.

    Args:
      tasks: in order. A single one is numbered only if it is not the first of its stream.
      first: number of the first one.
      who: begins the messages of errors.

    Raises:
      ValueError: if some tasks are numbered and several are not; when it is read, for a
        row with another number in a task that was numbered by its place.

    Cost: reads the first, middle and last row of every set.
    """
    tasks = list(tasks)
    for task in tasks:
        check_kind(who, Task, "give a list, such as stream_tasks(stream)", task=task)
        none = f"task {task.name!r} has no rows to learn from; drop the task"
        require(task.train.count, who, none)
    found = [_task_numbers(task.train) for task in tasks]
    row_of = lambda place: tasks[place].train.read(np.arange(1))
    bare = none_numbered(who, found, lambda place: tuple(row_of(place)[:2]))
    by_place = bare and len(tasks) + first > 1

    def with_number(place, task):
        numbers = {first + place} if by_place else found[place]
        if by_place:
            train = _with_number(who, task.name, task.train, first + place)
            task = task._replace(train=train)
        if len(numbers) > 1 or numbers == {0}:
            return task
        bare = {
            name: _with_number(who, task.name, rows, *numbers)
            for name, rows in {"test": task.test, "valid": task.valid}.items()
            if rows is not None and _task_numbers(rows) == {0}
        }
        return task._replace(**bare)

    return [with_number(place, task) for place, task in enumerate(tasks)]


def none_numbered(
    who: str, numbers: Sequence[set[int]], first: Callable[[int], PyTree]
) -> bool:
    """Whether all tasks have number 0, the default, so that their place numbers them.

    Tasks that would share it because it was left out in some are refused. ``numbers`` are
    those of each task's training rows, ``first(task)`` the inputs and labels of its first
    row: a task that returns later has the same number and the same row.
    """
    bare = [task for task, found in enumerate(numbers) if found == {0}]
    some = 1 < len(bare) < len(numbers)
    rows = [jax.tree.leaves(first(task)) for task in bare if some]
    again = all(all(map(np.array_equal, rows[0], row)) for row in rows)
    shared = f"tasks {', '.join(map(str, bare))} all have number 0, the default"
    remedy = "others have more; number each by task=, from 1 if some share one, or none"
    require(again, who, f"{shared}, and {remedy}")
    return len(bare) == len(numbers)


def some_places(rows: Dataset) -> list[int]:
    """The first, middle and last row, by which a set is known; none of an empty one."""
    return sorted({0, rows.count // 2, rows.count - 1}) if rows.count > 0 else []


def _task_numbers(rows: Dataset) -> set[int]:
    """The task numbers of the first, middle and last row."""
    read = (rows.read(np.array([place])) for place in some_places(rows))
    return {int(row.task[0]) for row in read}


def _with_number(who: str, name: str, rows: Dataset, number: int) -> Dataset:
    """The same rows with the number of their task."""

    def read(numbers):
        batch = rows.read(numbers)
        given = np.asarray(batch.task)
        require(
            not given.any(),
            who,
            f"task {name!r} has rows with task 0 and rows with {given.max(initial=0)}; "
            "number those of all tasks from 1, so that they are not taken for rows without "
            "a number",
        )
        return batch._replace(task=np.full_like(given, number))

    return rows._replace(read=read)
