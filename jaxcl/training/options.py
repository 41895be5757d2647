"""Options of a run of the host loop, and checks of its arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import check_key, check_kind, check_number, check_size, require
from jaxcl.sharding import ShardingPlan, check_sharding_plan
from jaxcl.training.compiled import Policy
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
      eval_batch_size: test rows held at once; if None 256, and of sequences with labels
        for tokens at most as many as have 8,192 positions, whose logits take 1.6 GB at a
        vocabulary of 49,152.
      eval_tasks: at the ends of tasks, evaluate on ``all`` tasks or on those ``seen``.
      eval_every_tasks: tasks between two such evaluations; there is always one at the end.
      eval_start: whether to evaluate before the first task, too.
      eval_every: steps between two evaluations on the tasks so far and the sets for
        evaluation, besides those at the ends of tasks; none if None. Needs metrics.
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
    eval_batch_size: int | None = None
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
        return int(-(-task.num_epochs * rows // min(options.batch_size, rows)))
    missing = (
        f"task {task.name!r} has no number of steps; give it num_steps or num_epochs, or "
        "give Options.num_steps for all"
    )
    require(options.num_steps is not None, "learn", missing)
    return int(options.num_steps or 0)


_DATASET = "make it, such as by array_dataset(batch)"


def check_run(
    key: Key,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    sharding: ShardingPlan | None,
    evaluation: Mapping[str, Dataset],
    *,
    measured: bool,
) -> list[int]:
    """Refuse arguments of :func:`jaxcl.training.learn` that cannot run, in one line.

    Returns the steps of each task.
    """
    check_key("learn", key)
    check_params("learn", params)
    check_kind("learn", Options, options=options)
    check_kind("learn", ShardingPlan, optional=True, sharding=sharding)
    for name, rows in evaluation.items():
        named: dict[str, Any] = {f"evaluation[{name!r}]": rows}
        check_kind("learn", Dataset, _DATASET, **named)
    _check_options(options)
    lengths = [_check_task(task, options, measured=measured) for task in tasks]
    names = [*(task.name for task in tasks), *evaluation]
    commonest = max(names, key=names.count, default="")
    empty = [name for name, rows in evaluation.items() if not rows.count]
    processes = jax.process_count()
    for holds, message in (
        (tasks, "expected at least one task, got none"),
        (
            measured or not evaluation,
            "evaluation sets need metrics, got none; give metrics= as well",
        ),
        (
            measured or options.eval_every is None,
            f"eval_every={options.eval_every} needs metrics, got none; give metrics= as "
            "well",
        ),
        (not empty, f"evaluation set {', '.join(map(repr, empty))} has no rows"),
        (
            names.count(commonest) <= 1,
            "tasks and evaluation sets must have different names, got "
            f"{commonest!r} twice",
        ),
        (
            sharding is not None or processes == 1,
            f"{processes} processes share one sharding, got None; give "
            "ShardingPlan(make_mesh(), fsdp())",
        ),
    ):
        require(holds, "learn", message)
    if sharding is not None:
        wanted = options.eval_batch_size
        sizes = {} if wanted is None else {"eval_batch_size": wanted}
        check_sharding_plan("learn", sharding, batch_size=options.batch_size, **sizes)
    return lengths


def _check_options(options: Options) -> None:
    """Refuse numbers out of range, and choices that would be ignored."""
    named = lambda names: {name: getattr(options, name) for name in names.split()}
    sizes = "batch_size eval_every_tasks report_every keep"
    maybe = "num_steps end_task_examples eval_examples eval_batch_size eval_every"
    many = isinstance(options.num_steps, list | tuple)
    came = f"num_steps must be one number for all tasks, got {options.num_steps}"
    require(not many, "learn", f"{came}; that of a single one is Task(num_steps=)")
    check_size("learn", **named(sizes))
    check_size("learn", optional=True, **named(f"{maybe} max_tasks"))
    check_number("learn", infinite=True, save_every=options.save_every)
    choices = {"on_non_finite": get_args(Policy), "eval_tasks": ("all", "seen")}
    for name, came in named(" ".join(choices)).items():
        wanted = f"{name} must be one of {', '.join(choices[name])}, got {came!r}"
        require(came in choices[name], "learn", wanted)
    check_kind("learn", bool, "give True or False", eval_start=options.eval_start)
    if options.early_stopping is not None:
        check_kind("learn", EarlyStopping, early_stopping=options.early_stopping)
        check_size("learn", patience=options.early_stopping.patience)
        unset = "early_stopping evaluates every eval_every steps, got None; set it"
        require(options.eval_every is not None, "learn", unset)


def _check_task(task: Task, options: Options, *, measured: bool) -> int:
    """Refuse a task without rows or length, and what is not a task; its steps."""
    check_kind("learn", Task, "give a list, such as stream_tasks(stream)", task=task)
    check_kind("learn", Dataset, _DATASET, train=task.train, test=task.test)
    check_kind("learn", Dataset, _DATASET, optional=True, valid=task.valid)
    steps, epochs = task.num_steps, task.num_epochs
    check_size("learn", optional=True, num_steps=steps, num_epochs=epochs)
    name, valid = f"task {task.name!r}", task.valid
    for holds, message in (
        (
            steps is None or epochs is None,
            f"{name} has num_steps and num_epochs; leave one out",
        ),
        (task.train.count, f"{name} has no rows to learn from; drop the task"),
        (
            task.test.count or not measured,
            f"{name} has no rows to be tested on; give it some, or drop the metrics",
        ),
        (
            valid is None or valid.count,
            f"{name} has no validation rows; leave valid out",
        ),
        (
            valid is not None or options.early_stopping is None,
            f"early_stopping needs validation rows, {name} has none; give it valid=, such "
            "as by train_valid_split",
        ),
    ):
        require(holds, "learn", message)
    return steps_of(task, options)
