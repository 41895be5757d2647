"""Options of a run of the host loop, and checks of its arguments."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import PyTree

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import (
    InputError,
    check_key,
    check_kind,
    check_number,
    check_size,
    shown,
)
from jaxcl.sharding import ShardingPlan, check_rows, check_sharding_plan
from jaxcl.training.compiled import Policy
from jaxcl.training.files import as_folder, as_metadata
from jaxcl.tree import check_params
from jaxcl.typing import Key, Params


class EarlyStopping(NamedTuple):
    """End a task when its validation metric no longer improves, and restore the best.

    The full state of the best evaluation is restored, of all parts of the method; a run
    holds it beside its own, also in checkpoints. The last step of a task is evaluated, too.

    Attributes:
      metric: name of the metric, of the default learner, evaluated every ``eval_every``.
      patience: evaluations without improvement after which the task ends.
      lower_is_better: for errors and losses; if None, for those of this library, by name.
    """

    metric: str
    patience: int = 3
    lower_is_better: bool | None = None

    @property
    def minimizes(self) -> bool:
        """Whether a lower value is better."""
        given = self.lower_is_better
        return self.metric in LOWER_IS_BETTER if given is None else given


#: Metrics of :mod:`jaxcl.metrics` of which a lower value is better.
LOWER_IS_BETTER = ("loss", "mae", "mse", "perplexity", "rmse")


class Options(NamedTuple):
    """Options of a run.

    Only ``num_steps``, ``batch_size``, ``on_non_finite``, ``end_task_examples`` and
    ``early_stopping`` change what is learned, with it also ``eval_every`` and
    ``eval_examples``. A run resumes with these as they were.

    Attributes:
      num_steps: of each task without its own number; None if all have one.
      batch_size: rows per step. A task with fewer has all of them in every batch, which is
        padded with rows of weight 0.
      on_non_finite: how to treat a step that is not finite: ``stop`` the run, ``skip``
        the step, or ``continue``; all are counted and reported.
      end_task_examples: rows that ``end_task`` gets; all of the task if None.
      eval_examples: test rows per task, drawn at random and the same for every run; all
        if None.
      eval_batch_size: test rows held at once.
      eval_tasks: at the ends of tasks, evaluate on ``all`` tasks or on those ``seen``.
      eval_every_tasks: tasks between two such evaluations; there is always one at the end.
      eval_start: whether to evaluate before the first task, too.
      eval_every: steps between two evaluations on the tasks so far, besides those at the
        ends of tasks; none if None.
      early_stopping: end tasks early by their validation rows; needs ``eval_every``.
      max_tasks: how many tasks the run may grow to, for parts of a method that have room
        for so many: ``episodic(max_tasks, ...)`` would write over the oldest.
      report_every: steps between two lines of metrics, at each of which the loop waits.
      save_every: seconds between two checkpoints inside a task; 0: after each step.
      keep: checkpoints inside tasks, besides one for each task's end.
    """

    num_steps: int | None
    batch_size: int
    on_non_finite: Policy = "stop"
    end_task_examples: int | None = None
    eval_examples: int | None = None
    eval_batch_size: int = 256
    eval_tasks: Literal["all", "seen"] = "all"
    eval_every_tasks: int = 1
    eval_start: bool = True
    eval_every: int | None = None
    early_stopping: EarlyStopping | None = None
    max_tasks: int | None = None
    report_every: int = 10
    save_every: float = 300.0
    keep: int = 2


def steps_of(task: Task, options: Options) -> int:
    """Steps of a task: its own, those of its epochs, or those of the options."""
    if task.num_steps is not None:
        return int(task.num_steps)
    if task.num_epochs is not None:
        rows = task.train.count
        return -(-task.num_epochs * rows // min(options.batch_size, rows))
    if options.num_steps is None:
        msg = (
            f"learn: task {task.name!r} has no number of steps; give it num_steps or "
            "num_epochs, or give Options.num_steps for all."
        )
        raise InputError(msg)
    return options.num_steps


def check_run(
    key: Key,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    sharding: ShardingPlan | None,
    *,
    evaluation: Mapping[str, Dataset],
    folder: str | os.PathLike[str] | None,
    start: str | os.PathLike[str] | None,
    frozen: PyTree,
    metadata: Mapping[str, Any] | None,
    measured: bool,
) -> None:
    """Refuse arguments of :func:`jaxcl.training.learn` that cannot run.

    Raises:
      InputError: in one line, before any compute.
    """
    check_key("learn", key)
    check_params("learn", params)
    _check_options(options)
    check_kind("learn", Mapping, "give {name: dataset}", evaluation=evaluation)
    _check_tasks(tasks, options, evaluation, measured=measured)
    for name, rows in evaluation.items():
        check_kind("learn", Dataset, f"as evaluation[{name!r}]", evaluation=rows)
        _require(rows.count, f"evaluation set {name!r} has no rows; leave it out")
    _check_sharding(sharding, options)
    as_metadata("learn", metadata)
    arrays = jax.Array | np.ndarray | np.generic | float | int
    for leaf in jax.tree.leaves(frozen):
        _require(
            isinstance(leaf, arrays), f"frozen must have arrays, got {shown(leaf)}"
        )
    unmeasured = "evaluation sets need metrics, got none; give metrics= as well"
    _require(measured or not evaluation, unmeasured)
    for name, place in {"folder": folder, "start": start}.items():
        if place is not None:
            as_folder("learn", place, name)


def _require(holds: Any, message: str) -> None:
    if not holds:
        msg = f"learn: {message}."
        raise InputError(msg)


def _check_options(options: Options) -> None:
    check_kind("learn", Options, options=options)
    named = lambda names: {name: getattr(options, name) for name in names.split()}
    sizes = named("batch_size eval_batch_size eval_every_tasks report_every keep")
    check_size("learn", **sizes)
    _require(
        not isinstance(options.num_steps, Sequence),
        "num_steps must be one int, got a list; give each task its own: "
        "Task(..., num_steps=)",
    )
    maybe = named("num_steps end_task_examples eval_examples eval_every max_tasks")
    check_size("learn", optional=True, **maybe)
    check_number("learn", infinite=True, save_every=options.save_every)
    check_kind("learn", bool, "True or False", eval_start=options.eval_start)
    choices = {"on_non_finite": get_args(Policy), "eval_tasks": ("all", "seen")}
    for name, allowed in choices.items():
        came = getattr(options, name)
        wanted = f"{name} must be one of {', '.join(allowed)}, got {came!r}"
        _require(came in allowed, wanted)
    stopping = options.early_stopping
    if stopping is not None:
        check_kind("learn", EarlyStopping, early_stopping=stopping)
        check_size("learn", patience=stopping.patience)
        lower = stopping.lower_is_better
        check_kind("learn", bool, "True or False", optional=True, lower_is_better=lower)
        _require(
            options.eval_every is not None,
            "early_stopping evaluates every eval_every steps, got None; set it, such as "
            "to a tenth of a task",
        )


def _check_sharding(sharding: ShardingPlan | None, options: Options) -> None:
    check_kind("learn", ShardingPlan, optional=True, sharding=sharding)
    _require(
        sharding is not None or jax.process_count() == 1,
        f"{jax.process_count()} processes share one sharding, got None; give "
        "ShardingPlan(make_mesh(), fsdp())",
    )
    if sharding is not None:
        check_sharding_plan("learn", sharding)
        sizes = options.batch_size, options.eval_batch_size
        check_rows("learn", sharding, batch_size=sizes[0], eval_batch_size=sizes[1])


def _check_tasks(
    tasks: Sequence[Task],
    options: Options,
    evaluation: Mapping[str, Dataset],
    *,
    measured: bool,
) -> None:
    several = isinstance(tasks, Sequence) and not isinstance(tasks, Task)
    came = type(tasks).__name__
    _require(several, f"tasks must be a list of tasks, got {came}; make one of them")
    _require(tasks, "expected at least one task, got none")
    room = options.max_tasks
    _require(
        room is None or len(tasks) <= room,
        f"the run has room for {room} tasks (max_tasks), got {len(tasks)}; begin another "
        "one with start= and fresh= for the parts that are full",
    )
    for task in tasks:
        _check_task(task, options, measured=measured)
    names = [*(task.name for task in tasks), *evaluation]
    odd = [name for name in names if not isinstance(name, str) or not name]
    twice = [f"{name!r} twice" for name in names if names.count(name) > 1]
    wanted = "tasks and evaluation sets must have different names, got"
    for wrong in [*map(shown, odd), *twice]:
        _require(False, f"{wanted} {wrong}; give each its own")


def _check_task(task: Task, options: Options, *, measured: bool) -> None:
    check_kind("learn", Task, "give a list, such as stream_tasks(stream)", task=task)
    remedy = "make them, such as by array_dataset(batch)"
    check_kind("learn", Dataset, remedy, train=task.train, test=task.test)
    check_kind("learn", Dataset, remedy, optional=True, valid=task.valid)
    steps, epochs = task.num_steps, task.num_epochs
    check_size("learn", optional=True, num_steps=steps, num_epochs=epochs)
    name, valid = f"task {task.name!r}", task.valid
    both = f"{name} has num_steps and num_epochs; leave one out"
    _require(steps is None or epochs is None, both)
    steps_of(task, options)
    _require(task.train.count, f"{name} has no rows to learn from; drop the task")
    _require(
        task.test.count or not measured,
        f"{name} has no rows to be tested on; give it some, or drop the task or the "
        "metrics",
    )
    empty = f"{name} has no validation rows; leave valid out"
    _require(valid is None or valid.count, empty)
    _require(
        valid is not None or options.early_stopping is None,
        f"early_stopping needs validation rows, {name} has none; give it valid=, such as "
        "by train_valid_split",
    )
