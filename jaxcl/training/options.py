"""How a run of the host loop is walked, what cannot be, and what is another run."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import check_key, check_kind, check_number, check_size, shown
from jaxcl.sharding import ShardingPlan, check_rows, check_sharding_plan
from jaxcl.training.checkpoint import check_plain
from jaxcl.training.compiled import Policy
from jaxcl.training.fingerprint import fingerprint
from jaxcl.typing import Key, Params


class Options(NamedTuple):
    """How a run is walked. Only the first five change what comes of it.

    Attributes:
      num_steps: of each task.
      batch_size: rows per step.
      on_non_finite: what becomes of a step that is not finite: ``stop`` the run, ``skip``
        the step, or ``continue``; all are counted and told.
      end_task_examples: rows that ``end_task`` sees; all of the task if None.
      eval_examples: test rows per task; all if None.
      eval_batch_size: test rows held at once.
      eval_every: steps between two looks at the tasks so far, besides that at all tasks
        at the end of each; none if None.
      report_every: steps between two lines of metrics, at each of which the loop waits.
      save_every: seconds between two checkpoints inside a task; 0: after each step.
      keep: checkpoints inside tasks, besides one for each task's end.
    """

    num_steps: int
    batch_size: int
    on_non_finite: Policy = "stop"
    end_task_examples: int | None = None
    eval_examples: int | None = None
    eval_batch_size: int = 256
    eval_every: int | None = None
    report_every: int = 10
    save_every: float = 300.0
    keep: int = 2


def check_run(
    key: Key,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    sharding: ShardingPlan | None,
    *,
    folder: str | os.PathLike[str],
    metadata: Mapping[str, Any] | None,
    scored: bool,
) -> None:
    """Refuse what cannot run, before any compute.

    Args:
      key: as for :func:`jaxcl.training.learn`.
      params: likewise.
      tasks: likewise.
      options: likewise.
      sharding: likewise.
      folder: likewise.
      metadata: likewise.
      scored: whether test rows are looked at.

    Raises:
      ValueError: in one line.
    """
    check_key("learn", key)
    _check_params(params)
    _check_options(options)
    _check_tasks(tasks, options, scored=scored)
    _check_layout(sharding, options)
    check_plain("learn", metadata)
    if not isinstance(folder, str | os.PathLike):
        msg = (
            f"learn: folder must be a path, got {shown(folder)}; give each run one of "
            "its own."
        )
        raise ValueError(msg)


def _check_params(params: Params) -> None:
    leaves = jax.tree.leaves(params)
    floats = lambda leaf: (
        hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    if not leaves or not all(map(floats, leaves)):
        odd = next((leaf for leaf in leaves if not floats(leaf)), params)
        msg = (
            f"learn: params must be a tree of float arrays, got {shown(odd)}; give "
            "model.init(key)."
        )
        raise ValueError(msg)


def _check_options(options: Options) -> None:
    check_kind("learn", Options, options=options)
    named = lambda names: {name: getattr(options, name) for name in names.split()}
    check_size(
        "learn", **named("num_steps batch_size eval_batch_size report_every keep")
    )
    maybe = named("end_task_examples eval_examples eval_every")
    check_size("learn", optional=True, **maybe)
    check_number("learn", infinite=True, save_every=options.save_every)
    if options.on_non_finite not in get_args(Policy):
        msg = (
            f"learn: on_non_finite must be one of {', '.join(get_args(Policy))}, got "
            f"{options.on_non_finite!r}."
        )
        raise ValueError(msg)


def _check_layout(sharding: ShardingPlan | None, options: Options) -> None:
    check_kind("learn", ShardingPlan, optional=True, sharding=sharding)
    if sharding is None and jax.process_count() > 1:
        msg = (
            f"learn: {jax.process_count()} processes share one layout, got None; give "
            "ShardingPlan(make_mesh(), fsdp())."
        )
        raise ValueError(msg)
    if sharding is not None:
        check_sharding_plan("learn", sharding)
        sizes = options.batch_size, options.eval_batch_size
        check_rows("learn", sharding, batch_size=sizes[0], eval_batch_size=sizes[1])


def _check_tasks(tasks: Sequence[Task], options: Options, *, scored: bool) -> None:
    if not isinstance(tasks, Sequence) or isinstance(tasks, Task):
        came = type(tasks).__name__
        msg = f"learn: tasks must be a list of tasks, got {came}; make one of them."
        raise ValueError(msg)
    if not tasks:
        msg = "learn: expected at least one task, got none."
        raise ValueError(msg)
    for task in tasks:
        _check_task(task, options, scored=scored)


def _check_task(task: Task, options: Options, *, scored: bool) -> None:
    check_kind("learn", Task, "give a list, such as stream_tasks(stream)", task=task)
    remedy = "make them, such as by array_dataset(batch)"
    check_kind("learn", Dataset, remedy, train=task.train, test=task.test)
    if task.train.count < options.batch_size:
        msg = (
            f"learn: task {task.name!r} has {task.train.count} rows, fewer than a "
            f"batch of {options.batch_size}; lower batch_size or drop the task."
        )
        raise ValueError(msg)
    if scored and task.test.count < 1:
        msg = (
            f"learn: task {task.name!r} has no rows to be tested on; give it some, or "
            "drop the task or score."
        )
        raise ValueError(msg)


def identity(
    key: Key,
    num_tasks: int,
    options: Options,
    frozen: PyTree,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a checkpoint must agree with for a run to go on from it."""
    decisive = dict(zip(Options._fields[:5], options[:5], strict=True))
    decisive |= {"key": jax.random.key_data(key).tolist(), "tasks": num_tasks}
    if jax.tree.leaves(frozen):
        decisive |= {"frozen": fingerprint(frozen)}
    return dict(metadata or {}) | decisive  # the caller's names hide none of these


__all__ = ["Options", "check_run", "identity"]
