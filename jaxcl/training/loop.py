"""The host loop over tasks: steps, evaluations, ends of tasks, and checkpoints."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxcl.data.dataset import Dataset, Task
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import (
    first_seen,
    fit_keys,
    longest,
    prefetch,
    take_rows,
    task_keys,
    task_rows,
    training_order,
)
from jaxcl.training.compiled import Program
from jaxcl.training.evaluate import Measured, measure
from jaxcl.training.options import Options
from jaxcl.training.processes import any_across_processes
from jaxcl.training.results import Records, add_losses
from jaxcl.training.run_state import (
    Best,
    RunState,
    evaluation_due,
    new_best,
    on_devices,
    position,
    steps_done,
)
from jaxcl.typing import Batch, Key, StepInfo

Status = Literal["done", "diverged", "interrupted"]


class Run(NamedTuple):
    """The constant part of a run: its inputs, its program, and functions with effects."""

    key: Key
    tasks: Sequence[Task]  # each with its num_steps
    evaluation: Mapping[str, Dataset]
    options: Options
    sharding: ShardingPlan | None
    program: Program
    records: Records  # filled in place
    interrupted: Callable[[], bool]
    save: Callable[..., None]
    write: Callable[[Mapping[str, Any]], None]
    scalar: Callable[[str, float, int], None]
    advance: Callable[..., None]
    on_task_end: Callable[..., None] | None = None


def walk_tasks(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """All remaining tasks, in order."""
    status: Status = "done"
    if evaluation_due(run_state):
        run_state, status = test(run, run_state)
        if status == "done" and run_state.task > 0:
            save(run, run_state, preserve=True)
    while status == "done" and run_state.task < len(run.tasks):
        run_state, status = fit(run, run_state)
        if status == "done":
            run_state, status = finish_task(run, run_state)
    return run_state, status


def fit(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """The remaining steps of the current task."""
    rows = run.tasks[run_state.task].train
    size, order = run.options.batch_size, training_order_of(run, int(run_state.task))
    read = lambda step: take_rows(rows, order[step], size=size, sharding=run.sharding)
    if patience_exceeded(run, run_state):
        return run_state, "done"
    left = range(int(run_state.step), len(order))
    with closing(prefetch(read, left)) as batches:
        return take_steps(run, run_state, batches)


def take_steps(
    run: Run, run_state: RunState, batches: Iterable[Batch]
) -> tuple[RunState, Status]:
    """A step for each batch, with reports, evaluations and checkpoints when due."""
    options = run.options
    key = fit_keys(task_keys(run.key, run_state.task).fit).steps
    last = np.int32(run.tasks[run_state.task].num_steps)
    recent: list[StepInfo] = []
    began = saved = time.monotonic()
    for step, batch in enumerate(batches, int(run_state.step)):
        state, info = run.program.step(
            run_state.state, key, np.int32(step), last, batch
        )
        run_state = run_state._replace(state=state, step=np.int32(step + 1))
        recent.append(info)
        over, stop, pause = step + 1, False, False
        evaluate = options.eval_every and over % options.eval_every == 0
        evaluate = evaluate or (options.early_stopping and over == last)
        due = over == last or over % options.report_every == 0
        due = due or (evaluate and options.early_stopping)  # bad steps are seen first
        if evaluate:
            jax.block_until_ready(state)  # the time of training without evaluation
        if due or jax.process_count() == 1:  # many processes agree only when it is due
            old = time.monotonic() - saved >= options.save_every
            stop, old = any_across_processes(run.interrupted(), old)
            pause = stop or old
        if pause or due:
            found, began = report(run, recent, run_state, began)
            num_bad, recent = run_state.num_bad + np.int32(found), []
            run_state = run_state._replace(num_bad=num_bad)
            if found and options.on_non_finite == "stop":
                return run_state, "diverged"
        rest = time.monotonic()
        if evaluate:
            run_state = evaluate_within_task(run, run_state)
        if pause:
            save(run, run_state)
            saved = time.monotonic()
        began += time.monotonic() - rest
        if stop:
            return run_state, "interrupted"
        if patience_exceeded(run, run_state):
            break
    return run_state, "done"


def report(
    run: Run, infos: Sequence[StepInfo], run_state: RunState, began: float
) -> tuple[int, float]:
    """Wait for the last steps of a task, and report them.

    Returns:
      How many of them were not finite, and when the device had finished them.
    """
    seen, ready = jax.device_get(infos), time.monotonic()
    bad, seconds = sum(not info.finite for info in seen), ready - began
    rate = len(seen) * run.options.batch_size / max(seconds, 1e-9)
    losses = [float(info.loss) for info in seen]
    penalties = [float(info.metrics.get("penalty", 0.0)) for info in seen]
    task, loss = int(run_state.task), float(np.mean(losses))
    add_losses(run.records.spent, task, losses, penalties, seconds)
    run.write(
        {
            "at": position(run_state, run.tasks),
            "task": task,
            "step": int(run_state.step),
            "loss": loss,
            **{name: float(value) for name, value in seen[-1].metrics.items()},
            "seconds": round(seconds, 6),
            "examples_per_second": round(rate, 1),
            "not_finite": bad,
        }
    )
    run.scalar("loss", loss, steps_done(run_state, run.tasks))
    name = run.tasks[task].name
    run.advance(len(seen), f"{name}, loss {loss:.4g}, {rate:.3g} examples/s")
    return bad, ready


def evaluate_within_task(run: Run, run_state: RunState) -> RunState:
    """Evaluate on the tasks so far within one, its validation rows, and further sets."""
    if not run.program.metrics:
        return run_state
    task, step = int(run_state.task), int(run_state.step)
    learners = run.program.read(run_state.state)
    key = jax.random.fold_in(task_keys(run.key, task).after, step)
    found = [
        measured_on(run, jax.random.fold_in(key, place), learners, seen.test)
        for place, seen in enumerate(run.tasks[: task + 1])
    ]
    at, results = position(run_state, run.tasks), _by_metric(found)
    line = {"at": at, "task": task, "step": step, "results": results}
    valid, stopping = run.tasks[task].valid, run.options.early_stopping
    if valid is not None:
        line["valid"] = measured_on(run, key, learners, valid)
    if run.evaluation:
        line["sets"] = {
            name: measured_on(run, jax.random.fold_in(key, place), learners, rows)
            for place, (name, rows) in enumerate(run.evaluation.items(), len(run.tasks))
        }
    run.write(line)
    best = run_state.best
    if stopping is None or not isinstance(best, Best):
        return run_state
    value = np.float32(next(iter(line["valid"][stopping.metric].values())))
    ahead = best.value - value if stopping.minimizes else value - best.value
    if np.isfinite(value) and (np.isnan(best.value) or ahead > 0):
        best = new_best(run_state.state)._replace(value=value)
    else:
        best = best._replace(stale=best.stale + np.int32(1))
    return run_state._replace(best=best)


def patience_exceeded(run: Run, run_state: RunState) -> bool:
    """Whether a task ends before its last step."""
    stopping, best = run.options.early_stopping, run_state.best
    return bool(stopping and isinstance(best, Best) and best.stale >= stopping.patience)


def finish_task(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """End the task, evaluate, and save a checkpoint that is preserved."""
    index, state, best = int(run_state.task), run_state.state, run_state.best
    key = fit_keys(task_keys(run.key, index).fit).end
    if isinstance(best, Best) and not np.isnan(best.value):
        state = best.state  # with the best validation metric
    state = run.program.end_task(state, key, end_task_data(run, index))
    run_state = run_state._replace(
        state=state,
        task=np.int32(index + 1),
        step=np.int32(0),
        best=new_best(state) if isinstance(best, Best) else (),
    )
    run_state, status = test(run, run_state)
    save(run, run_state, preserve=True)
    return run_state, status


def test(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """Evaluate between two tasks; after a signal, this is left to the resumed run."""
    ended = int(run_state.task)
    over = run_state._replace(evaluated=np.int32(ended + 1))
    columns = columns_at(run, ended)
    if not columns and run.on_task_end is None:
        return over, "done"
    learners = run.program.read(run_state.state)
    if run.on_task_end is not None:
        run.on_task_end(ended, learners, run.interrupted)
        (stop,) = any_across_processes(run.interrupted())
        if stop:  # perhaps in the middle of it
            return run_state, "interrupted"
    if not columns:
        return over, "done"
    sets = {**{task.name: task.test for task in run.tasks}, **run.evaluation}
    names = list(sets)
    key, found = task_keys(run.key, ended).before, []
    for column in columns:
        own = jax.random.fold_in(key, column)
        found.append(measured_on(run, own, learners, sets[names[column]]))
        (stop,) = any_across_processes(run.interrupted())
        if stop and len(found) < len(columns):
            return run_state, "interrupted"
    steps = steps_done(run_state, run.tasks)
    for column, measured in zip(columns, found, strict=True):
        run.records.measured[ended, column] = True
        for metric, values in measured.items():
            for learner, value in values.items():
                run.records.results[metric][learner][ended, column] = value
                run.scalar(f"{metric}/{learner}/{names[column]}", value, steps)
    run.write(
        {
            "at": position(run_state, run.tasks),
            "task": ended - 1,
            "columns": [names[column] for column in columns],
            "results": _by_metric(found),
            "ended": True,
        }
    )
    return over, "done"


def columns_at(run: Run, ended: int) -> list[int]:
    """The columns of the results that are measured after ``ended`` tasks."""
    options, total = run.options, len(run.tasks)
    if not run.program.metrics or (ended == 0 and not options.eval_start):
        return []
    if 0 < ended < total and ended % options.eval_every_tasks:
        return []
    tasks = total if options.eval_tasks == "all" else ended
    return [*range(tasks), *range(total, total + len(run.evaluation))]


def measured_on(
    run: Run, key: Key, learners: Mapping[str, PyTree], rows: Dataset
) -> Measured:
    """All metrics of all learners on one data set."""
    return measure(
        key,
        run.program,
        learners,
        rows,
        batch_size=run.program.num_tested,
        num_rows=run.options.eval_examples,
        sharding=run.sharding,
    )


def _by_metric(found: Sequence[Measured]) -> dict[str, dict[str, list[float]]]:
    """``{metric: {learner: [value on each set]}}``, of at least one set."""
    return {
        metric: {name: [one[metric][name] for one in found] for name in learners}
        for metric, learners in found[0].items()
    }


def save(run: Run, run_state: RunState, *, preserve: bool = False) -> None:
    """Write a checkpoint of the run."""
    now = on_devices(run_state, run.sharding)
    run.save(position(run_state, run.tasks), now, preserve=preserve)


def training_order_of(run: Run, index: int) -> Int[np.ndarray, "steps b"]:
    """The rows of all batches of a task, fewer per batch in a task with fewer."""
    task = run.tasks[index]
    return training_order(
        fit_keys(task_keys(run.key, index).fit).order,
        task.train,
        num_steps=int(task.num_steps or 0),
        batch_size=min(run.options.batch_size, task.train.count),
        most=longest(run.tasks),
        shuffle=task.shuffle,
    )


def end_task_data(run: Run, index: int) -> Batch:
    """The rows for ``end_task``: equally many for all tasks, padded with weight 0."""
    rows, size = run.tasks[index].train, run.options.end_task_examples
    numbers = np.arange(rows.count)
    if size and size < rows.count:
        numbers = first_seen(training_order_of(run, index), size)
    size = task_rows(run.tasks, size, run.sharding)
    like = run.program.example
    return take_rows(rows, numbers, size=size, sharding=run.sharding, like=like)
