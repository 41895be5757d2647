"""How a run of the host loop is walked, and what cannot be walked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcl.checks import check_key, check_kind, check_size, shown
from jaxcl.streams.rows import Rows, Task
from jaxcl.training.fingerprint import fingerprint
from jaxcl.training.parallel import Layout, check_rows, num_parts
from jaxcl.training.program import Policy
from jaxcl.tree import check_batch
from jaxcl.typing import Batch, Key, Params


class Options(NamedTuple):
    """How a run is walked. Only the first four change what is learned."""

    num_steps: int  # per task
    batch_size: int
    on_non_finite: Policy = "stop"
    consolidate_rows: int | None = None  # rows that `end_task` sees; all if None
    eval_batch_size: int = 256
    eval_rows: int | None = None  # test rows per task; all if None
    eval_every: int | None = None  # steps, besides the end of each task
    report_every: int = 10  # steps between two lines of metrics
    save_every: float = 300.0  # seconds between two checkpoints
    keep: int = 2  # checkpoints inside tasks, besides one for each task's end


def check_run(
    key: Key,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    layout: Layout | None,
) -> None:
    """Refuse what cannot run, before any compute.

    Raises:
      ValueError: in one line.
    """
    check_key("learn", key)
    if not jax.tree.leaves(params):
        msg = (
            f"learn: params must be a tree of arrays, got {shown(params)}; give "
            "model.init(key)."
        )
        raise ValueError(msg)
    check_kind("learn", Options, options=options)
    check_kind("learn", Layout, optional=True, layout=layout)
    named = lambda names: {name: getattr(options, name) for name in names.split()}
    check_size(
        "learn", **named("num_steps batch_size eval_batch_size report_every keep")
    )
    maybe = named("consolidate_rows eval_rows eval_every")
    check_size("learn", optional=True, **maybe)
    if options.on_non_finite not in get_args(Policy):
        msg = (
            f"learn: on_non_finite must be one of {', '.join(get_args(Policy))}, got "
            f"{options.on_non_finite!r}."
        )
        raise ValueError(msg)
    if not tasks:
        msg = "learn: expected at least one task, got none."
        raise ValueError(msg)
    for task in tasks:
        _check_task(task, options)
    if layout is not None:
        sizes = options.batch_size, options.eval_batch_size
        check_rows(layout, batch_size=sizes[0], eval_batch_size=sizes[1])


def _check_task(task: Task, options: Options) -> None:
    check_kind("learn", Task, "give a list, such as stream_tasks(stream)", task=task)
    remedy = "make them, such as by array_rows(batch)"
    check_kind("learn", Rows, remedy, train=task.train, test=task.test)
    if task.train.count < options.batch_size:
        msg = (
            f"learn: task {task.name!r} has {task.train.count} rows, fewer than a "
            f"batch of {options.batch_size}; lower batch_size or drop the task."
        )
        raise ValueError(msg)


class FirstRows(NamedTuple):
    """One row of the first task to learn from, and one to be tested on."""

    train: Batch
    test: Batch


def first_rows(tasks: Sequence[Task], *, scored: bool) -> FirstRows:
    """The first rows of the first task; those of all others must be like them.

    Args:
      tasks: one program is to serve them all.
      scored: whether test rows are looked at.

    Raises:
      ValueError: naming the task with rows of another shape or dtype.
    """
    found = []
    for part in ("train", "test")[: 2 if scored else 1]:
        rows = [getattr(task, part).read(np.arange(1)) for task in tasks]
        for task, row in zip(tasks, rows, strict=True):
            check_batch(f"learn: {part} of task {task.name!r}", row)
            kinds = [str(shapes_of(each, 1)) for each in (row, rows[0])]
            if kinds[0] != kinds[1]:
                came, wanted = (_in_words(each) for each in (row, rows[0]))
                msg = (
                    f"learn: {part} of task {task.name!r} has rows of {came}, unlike those "
                    f"of the first task, {wanted}; pad or cast them, as one program "
                    "serves all tasks."
                )
                raise ValueError(msg)
        found.append(rows[0])
    return FirstRows(found[0], found[-1])


def shapes_of(row: Batch, size: int) -> Batch:
    """A batch of so many rows like the one that is given, in shapes and dtypes only."""

    def shape(leaf):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), dtype)

    return jax.tree.map(shape, row)


def _in_words(row: Batch) -> str:
    kind = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    x, y = (jax.tree.map(kind, shapes_of(row, 1)._asdict()[name]) for name in "xy")
    return f"x {x} and y {y}"


def identity(
    key: Key, options: Options, frozen: PyTree, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a checkpoint must agree with for a run to go on from it."""
    names = "num_steps", "batch_size", "consolidate_rows", "on_non_finite"
    decisive = {name: getattr(options, name) for name in names}
    decisive |= {"key": jax.random.key_data(key).tolist()}
    if jax.tree.leaves(frozen):
        decisive |= {"frozen": fingerprint(frozen)}
    return dict(about or {}) | decisive  # the caller's names hide none of these


def task_rows(tasks: Sequence[Task], options: Options, layout: Layout | None) -> int:
    """How many rows ``end_task`` gets: those asked for, or of the longest task."""
    size = options.consolidate_rows or max(task.train.count for task in tasks)
    parts = 1 if layout is None else num_parts(layout)
    return -(-size // parts) * parts


__all__ = [
    "FirstRows",
    "Options",
    "check_run",
    "first_rows",
    "identity",
    "shapes_of",
    "task_rows",
]
