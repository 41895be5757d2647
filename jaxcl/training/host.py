"""The host loop: the same ``step`` and ``end_task``, for what no compiled stream can hold.

Tasks of any kind and size are walked one batch at a time. Nothing here decides what is
learned: a run ends where the compiled stream of the same tasks ends, to float tolerance,
because both take their rows and keys from :mod:`jaxcl.training.order`.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxcl.data.dataset import Task
from jaxcl.sharding import ShardingPlan
from jaxcl.training.batches import (
    first_rows,
    first_seen,
    longest,
    shapes_of,
    take_rows,
    task_rows,
    training_order,
)
from jaxcl.training.checkpoint import saving
from jaxcl.training.compiled import Build, Program, Score, compile_program, shard
from jaxcl.training.evaluate import mean_scores
from jaxcl.training.interrupt import interruptible
from jaxcl.training.lock import lock_across_processes
from jaxcl.training.logging import bar, metrics_file, tensorboard
from jaxcl.training.options import Options, check_run, identity
from jaxcl.training.order import fit_keys, task_keys
from jaxcl.training.prefetch import prefetch
from jaxcl.training.processes import any_across_processes, exit_together, is_primary
from jaxcl.training.run_state import (
    RunState,
    begin,
    latest_run_state,
    number_of,
    on_devices,
    untested,
    warn_of_bad_scores,
    warn_of_bad_steps,
)
from jaxcl.typing import Batch, Key, MethodState, Params, StepInfo

Status = Literal["done", "diverged", "interrupted"]


class TrainResult(NamedTuple):
    """Where a run ended."""

    status: Status
    params: Params  # what the method evaluates
    run_state: RunState


class Run(NamedTuple):
    """What a run has besides its position: its inputs, its program, all its effects."""

    key: Key
    tasks: Sequence[Task]
    options: Options
    sharding: ShardingPlan | None
    program: Program
    interrupted: Callable[[], bool]
    save: Callable[..., None]
    write: Callable[[Mapping[str, Any]], None]
    scalar: Callable[[str, float, int], None]
    advance: Callable[..., None]


def learn(
    key: Key,
    build: Build,
    params: Params,
    tasks: Sequence[Task],
    options: Options,
    *,
    folder: str | Path,
    frozen: PyTree = (),
    score: Score | None = None,
    sharding: ShardingPlan | None = None,
    metadata: Mapping[str, Any] | None = None,
    tensorboard_folder: str | Path | None = None,
    quiet: bool | None = None,
    on_progress: Callable[[int, str], None] | None = None,
) -> TrainResult:
    """Learn tasks one after another; go on from the last checkpoint if there is one.

    A run that is killed at any moment and started again ends with the same bits as one
    left alone. SIGTERM and SIGINT end it with a checkpoint after the step at hand (many
    processes, which have to agree, after the steps of the next report), or after the end
    of a task and the test rows of the task at hand.

    Args:
      key: of the run; the only source of randomness.
      build: ``(frozen) -> method``, called while tracing, so that ``frozen`` is an argument
        of the program.
      params: where learning begins; not touched.
      tasks: in order; rows may differ in number from task to task, not in shape.
      options: see :class:`Options`.
      folder: gets ``checkpoints/`` and ``metrics.jsonl``; created if absent. A run has one
        of its own; one that had finished there is returned, with a warning.
      frozen: weights that are used and never trained. The checkpoints hold a fingerprint
        of them, and a run on others is another run.
      score: ``(params, frozen, batch) -> [b]``, what the matrix holds; without it nothing
        is evaluated.
      sharding: devices to spread over, see :mod:`jaxcl.sharding`; one if absent.
      metadata: what the run is (method, rates, data, path of ``frozen``): the checkpoint of
        another run is refused, with what differs. What is not told here or named under
        Raises is not compared.
      tensorboard_folder: also write scalars for TensorBoard.
      quiet: no progress; by default only a terminal gets a bar.
      on_progress: hears of progress instead of a bar: steps, and a few words.

    Returns:
      The status, the parameters to evaluate, and the last position. A run that stopped
      because a step was not finite is ``diverged``; its last checkpoint is from before.
      Warnings tell of steps and of scores that were not finite.

    Raises:
      ValueError: for an argument of another kind, options that cannot work, a task with
        fewer rows than a batch or with rows unlike those of the first, a ``build``,
        ``score`` or rule that takes or returns something else, a mesh of other axes, an
        ``metadata`` that JSON cannot hold, a folder in which another process learns, or a
        checkpoint of another run: of another key, another number of tasks, other options
        that decide what comes of it, other ``frozen`` weights, or another ``metadata``; or
        for checkpoints whose notes are lost.
      OSError: if the disk is full or the folder cannot be written; what was saved stays.
      ImportError: for a ``tensorboard_folder`` without ``tensorboardX``.

    Step, end of task and score are traced before the first step: what is wrong with shapes
    shows then.

    Cost: per step what the method's step costs. The next batches are read by a thread;
    every ``report_every`` steps the loop waits for their losses. While a checkpoint is
    written there is one more copy of the state. A further call with the same objects as
    ``build`` and ``score``, and equal shapes, uses the programs of the earlier one: what
    these functions read must not be changed in place in between.
    """
    scored = score is not None
    check_run(
        key,
        params,
        tasks,
        options,
        sharding,
        folder=folder,
        metadata=metadata,
        scored=scored,
    )
    first, frozen = first_rows(tasks, scored=scored), shard(sharding, frozen, "frozen/")
    program = compile_program(
        build,
        params,
        frozen,
        first.train,
        score=score,
        on_non_finite=options.on_non_finite,
        sharding=sharding,
    )
    at_end = task_rows(tasks, options.end_task_examples, sharding)
    program.check_shapes(
        key,
        shapes_of(first.train, options.batch_size, sharding),
        shapes_of(first.train, at_end, sharding),
        shapes_of(first.test, options.eval_batch_size, sharding),
    )
    home = Path(folder)
    metadata = identity(key, len(tasks), options, frozen, metadata)
    with ExitStack() as stack:
        enter = stack.enter_context
        interrupted = enter(interruptible())
        enter(lock_across_processes(home))
        run_state = latest_run_state(
            home / "checkpoints", begin(program, params, len(tasks)), sharding, metadata
        )
        done = number_of(run_state.task, run_state.step, options)
        done -= untested(run_state, scored=scored)  # whose line is not there yet
        known = lambda line: line["at"] <= done
        walked = run_state.task * options.num_steps + run_state.step
        quiet = not (is_primary() and sys.stderr.isatty()) if quiet is None else quiet
        total = len(tasks) * options.num_steps
        run = Run(
            key,
            tasks,
            options,
            sharding,
            program,
            interrupted=interrupted,
            save=enter(
                saving(home / "checkpoints", keep=options.keep, metadata=metadata)
            ),
            write=enter(metrics_file(home / "metrics.jsonl", keep=known))
            if is_primary()
            else lambda line: None,
            scalar=enter(tensorboard(tensorboard_folder if is_primary() else None)),
            advance=on_progress or enter(bar(total, done=walked, quiet=quiet)),
        )
        with exit_together():
            run_state, status = walk(run, run_state)
    policy, diverged = options.on_non_finite, status == "diverged"
    warn_of_bad_steps(run_state, tasks, policy, diverged=diverged)
    if scored and not untested(run_state, scored=scored):
        warn_of_bad_scores(run_state, tasks)
    return TrainResult(status, program.read(run_state.state), run_state)


def walk(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """All tasks that are left, one after another."""
    status: Status = "done"
    if untested(run_state, scored=run.program.total is not None):
        run_state, status = test(run, run_state)
    while status == "done" and run_state.task < len(run.tasks):
        run_state, status = fit(run, run_state)
        if status == "done":
            run_state, status = finish_task(run, run_state)
    return run_state, status


def fit(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """Walk the rest of the task at hand, step by step."""
    options, index = run.options, run_state.task
    rows, order = run.tasks[index].train, training_order_of(run, index)

    def read(step):
        return take_rows(
            rows, order[step], size=options.batch_size, sharding=run.sharding
        )

    left = range(run_state.step, options.num_steps)
    with closing(prefetch(read, left)) as batches:
        return take_steps(run, run_state, batches)


def take_steps(
    run: Run, run_state: RunState, batches: Iterable[Batch]
) -> tuple[RunState, Status]:
    """A step for each batch, with reports, looks and checkpoints when they are due."""
    options, index = run.options, run_state.task
    keys, state = fit_keys(task_keys(run.key, index).fit), run_state.state
    num_bad = run_state.num_bad
    here = lambda over: run_state._replace(state=state, step=over, num_bad=num_bad)
    recent: list[StepInfo] = []
    began = saved = time.monotonic()
    for step, batch in enumerate(batches, run_state.step):
        state, info = run.program.step(
            state, keys.steps, np.int32(step), np.int32(options.num_steps), batch
        )
        recent.append(info)
        over = step + 1
        stop, pause = False, False
        due = over == options.num_steps or over % options.report_every == 0
        look = options.eval_every and over % options.eval_every == 0
        if look:
            jax.block_until_ready(state)  # steps count as training, looking does not
        if due or jax.process_count() == 1:  # many processes agree, and not every step
            old = time.monotonic() - saved >= options.save_every
            stop, old = any_across_processes(run.interrupted(), old)
            pause = stop or old
        if pause or due:
            found, began = report(run, recent, index, over, began)
            num_bad, recent = num_bad + found, []
            if found and options.on_non_finite == "stop":
                return here(over), "diverged"
        rest = time.monotonic()
        if look:
            scores = list(evaluate(run, state, run.tasks[: index + 1]))
            line = {"at": number_of(index, over, options), "task": index, "step": over}
            run.write(line | {"scores": scores})
        if pause:
            now = on_devices(here(over), run.sharding)
            run.save(number_of(index, over, options), now)
            saved = time.monotonic()
        began += time.monotonic() - rest
        if stop:
            return here(over), "interrupted"
    return here(options.num_steps), "done"


def report(
    run: Run, infos: Sequence[StepInfo], index: int, over: int, began: float
) -> tuple[int, float]:
    """Wait for some steps of a task, the last of them number ``over``, and tell about them.

    Returns:
      How many of them were not finite, and when the device was through with them.
    """
    seen, ready = jax.device_get(infos), time.monotonic()
    bad, seconds = sum(not info.finite for info in seen), ready - began
    rate = len(seen) * run.options.batch_size / max(seconds, 1e-9)
    loss = float(np.mean([float(info.loss) for info in seen]))
    run.write(
        {
            "at": number_of(index, over, run.options),
            "task": index,
            "step": over,
            "loss": loss,
            **{name: float(value) for name, value in seen[-1].metrics.items()},
            "seconds": round(seconds, 6),
            "examples_per_second": round(rate, 1),
            "not_finite": bad,
        }
    )
    run.scalar("loss", loss, index * run.options.num_steps + over)
    name = run.tasks[index].name
    run.advance(len(seen), f"{name}, loss {loss:.4g}, {rate:.3g} examples/s")
    return bad, ready


def finish_task(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """Consolidate, evaluate all tasks, and save the end of the task for good."""
    index = run_state.task
    keys = fit_keys(task_keys(run.key, index).fit)
    state = run.program.end_task(run_state.state, keys.end, whole_task(run, index))
    run_state = run_state._replace(state=state, task=index + 1, step=0)
    run_state, status = test(run, run_state)
    number = number_of(index + 1, 0, run.options)
    run.save(number, on_devices(run_state, run.sharding), preserve=True)
    return run_state, status


def test(run: Run, run_state: RunState) -> tuple[RunState, Status]:
    """Evaluate all tasks after one has ended; after a signal, the run that goes on does."""
    if run.program.total is None:
        return run_state, "done"
    scores = []
    for score in evaluate(run, run_state.state, run.tasks):
        scores.append(score)
        (stop,) = any_across_processes(run.interrupted())
        if stop and len(scores) < len(run.tasks):
            return run_state, "interrupted"
    index, matrix = run_state.task - 1, run_state.matrix.copy()
    matrix[index] = scores
    number = number_of(index + 1, 0, run.options)
    run.write({"at": number, "task": index, "scores": scores, "ended": True})
    for task, value in enumerate(scores):
        run.scalar(f"score/{task}", value, (index + 1) * run.options.num_steps)
    return run_state._replace(matrix=matrix), "done"


def evaluate(run: Run, state: MethodState, tasks: Sequence[Task]) -> Iterator[float]:
    """The mean score on the test rows of each task."""
    params, total = run.program.read(state), run.program.total
    if total is None:
        return iter(())
    return mean_scores(
        lambda batch: total(params, batch),
        tasks,
        batch_size=run.options.eval_batch_size,
        num_rows=run.options.eval_examples,
        sharding=run.sharding,
    )


def training_order_of(run: Run, index: int) -> Int[np.ndarray, "steps b"]:
    """The rows of all batches of a task."""
    options = run.options
    return training_order(
        fit_keys(task_keys(run.key, index).fit).order,
        run.tasks[index].train,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        most=longest(run.tasks),
    )


def whole_task(run: Run, index: int) -> Batch:
    """What ``end_task`` sees: equally many rows for all tasks, filled up with weight 0."""
    rows, size = run.tasks[index].train, run.options.end_task_examples
    numbers = np.arange(rows.count)
    if size and size < rows.count:
        numbers = first_seen(training_order_of(run, index), size)
    size = task_rows(run.tasks, size, run.sharding)
    return take_rows(rows, numbers, size=size, sharding=run.sharding)


__all__ = ["Options", "RunState", "TrainResult", "learn"]
