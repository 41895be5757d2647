"""The host loop: the same ``step`` and ``end_task``, for what no compiled stream can hold.

Tasks of any kind and size are walked one batch at a time. Nothing here decides what is
learned: a run ends where the compiled stream of the same tasks ends, to float tolerance,
because both take their rows and keys from :mod:`jaxcl.training.order`.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxcl.streams.rows import Task
from jaxcl.training.checkpoint import restore, saving, steps
from jaxcl.training.evaluate import mean_scores
from jaxcl.training.feed import feed
from jaxcl.training.interrupt import interruptible
from jaxcl.training.lock import claim
from jaxcl.training.log import bar, metrics_file, tensorboard
from jaxcl.training.options import (
    Options,
    check_run,
    first_rows,
    identity,
    shapes_of,
    task_rows,
)
from jaxcl.training.order import fit_keys, task_keys
from jaxcl.training.parallel import Layout, whole
from jaxcl.training.processes import any_process, end_together, leads
from jaxcl.training.program import (
    Build,
    Program,
    Score,
    compile_program,
    place_frozen,
)
from jaxcl.training.reading import first_learned, take_rows, training_order
from jaxcl.typing import Batch, Key, MethodState, Params, StepInfo

Status = Literal["done", "diverged", "interrupted"]


class Position(NamedTuple):
    """Everything that a run is: what is saved, and what it goes on from."""

    state: MethodState
    matrix: Float[np.ndarray, "T T"]  # score on task j after task i; NaN if not known
    task: int  # the task at hand
    step: int  # steps done of it
    num_bad: int  # steps so far that were not finite


class Learned(NamedTuple):
    """Where a run ended."""

    status: Status
    params: Params  # what the method evaluates
    position: Position


class Run(NamedTuple):
    """What a run has besides its position: its inputs, its program, all its effects."""

    key: Key
    tasks: Sequence[Task]
    options: Options
    layout: Layout | None
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
    layout: Layout | None = None,
    about: Mapping[str, Any] | None = None,
    tensorboard_folder: str | Path | None = None,
    quiet: bool = False,
    told: Callable[[int, str], None] | None = None,
) -> Learned:
    """Learn tasks one after another; go on from the last checkpoint if there is one.

    A run that is killed at any moment and started again ends with the same bits as one
    left alone. SIGTERM and SIGINT end it after the step at hand, with a checkpoint.

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
      layout: devices to spread over, see :mod:`jaxcl.training.parallel`; one if absent.
      about: what the run is (settings, path of ``frozen``): the checkpoint of another
        run is refused, with what differs.
      tensorboard_folder: also write scalars for TensorBoard.
      quiet: no progress.
      told: hears of progress instead of a bar: steps, and a few words.

    Returns:
      The status, the parameters to evaluate, and the last position. A run that stopped
      because a step was not finite is ``diverged``; its last checkpoint is from before.
      A warning tells of steps that were not finite.

    Raises:
      ValueError: for options that cannot work, a task with fewer rows than a batch or
        with rows unlike those of the first, a ``build`` or ``score`` that takes or returns
        something else, a folder in which another process learns, or a checkpoint of
        another run: of another key, other options that decide what is learned, other
        ``frozen`` weights, or another ``about``.

    Step, end of task and score are traced before the first step: what is wrong with shapes
    shows then.

    Cost: per step what the method's step costs. The next batches are read by a thread;
    losses are fetched when they are reported, ``report_every`` steps late. While a
    checkpoint is written there is one more copy of the state.
    """
    check_run(key, params, tasks, options, layout)
    first = first_rows(tasks, scored=score is not None)
    frozen = place_frozen(layout, frozen)
    program = compile_program(
        build,
        params,
        frozen,
        first.train,
        score=score,
        on_non_finite=options.on_non_finite,
        layout=layout,
    )
    sizes = options.batch_size, task_rows(tasks, options, layout)
    batch, task = (shapes_of(first.train, size) for size in sizes)
    program.rehearse(batch, task, shapes_of(first.test, options.eval_batch_size))
    place, about = Path(folder), identity(key, options, frozen, about)
    with ExitStack() as stack:
        enter = stack.enter_context
        if leads():
            enter(claim(place))
        position = last_position(
            place / "checkpoints", begin(program, params, len(tasks)), layout, about
        )
        done = _number(position.task, position.step, options)
        known = lambda line: line["at"] <= done
        walked = position.task * options.num_steps + position.step
        total = len(tasks) * options.num_steps
        run = Run(
            key,
            tasks,
            options,
            layout,
            program,
            interrupted=enter(interruptible()),
            save=enter(saving(place / "checkpoints", keep=options.keep, about=about)),
            write=enter(metrics_file(place / "metrics.jsonl", keep=known))
            if leads()
            else lambda line: None,
            scalar=enter(tensorboard(tensorboard_folder if leads() else None)),
            advance=told or enter(bar(total, done=walked, quiet=quiet or not leads())),
        )
        with end_together():
            position, status = walk(run, position)
    warn_of_bad_steps(run, position, status)
    return Learned(status, program.read(position.state), position)


def last_position(
    place: Path, start: Position, layout: Layout | None, about: Mapping[str, Any]
) -> Position:
    """Where the run in a folder of checkpoints had come to; ``start`` if nowhere."""
    if not steps(place):
        return start
    position = _on_host(restore(place, _on_devices(start, layout), about=about).tree)
    if position.task == len(position.matrix):
        warnings.warn(
            f"learn: the run in {place.parent} had finished; its result is returned "
            "and nothing is learned. For another run give another folder.",
            stacklevel=3,
        )
    return position


def warn_of_bad_steps(run: Run, position: Position, status: Status) -> None:
    """Say what became of steps that were not finite, if there were any."""
    if not position.num_bad:
        return
    became = {
        "stop": "the run was stopped",
        "skip": "these were skipped",
        "continue": "the run went on all the same",
    }[run.options.on_non_finite]
    where = ""
    if status == "diverged":
        where = (
            f", the last by step {position.step} of {run.tasks[position.task].name!r}"
        )
    warnings.warn(
        f"learn: {position.num_bad} steps were not finite{where}; {became}. Look for "
        "NaN among the rows, or lower the learning rate.",
        stacklevel=3,
    )


def walk(run: Run, position: Position) -> tuple[Position, Status]:
    """All tasks that are left, one after another."""
    while position.task < len(run.tasks):
        position, status = fit(run, position)
        if status != "done":
            return position, status
        position = finish_task(run, position)
    return position, "done"


def begin(program: Program, params: Params, num_tasks: int) -> Position:
    """The position before the first step."""
    matrix = np.full((num_tasks, num_tasks), np.nan, np.float32)
    return Position(program.start(params), matrix, 0, 0, 0)


def fit(run: Run, position: Position) -> tuple[Position, Status]:
    """Walk the rest of the task at hand, step by step."""
    options, index, first = run.options, position.task, position.step
    keys = fit_keys(task_keys(run.key, index).fit)
    order = training_order_of(run, index)
    rows, state, num_bad = run.tasks[index].train, position.state, position.num_bad
    here = lambda over: position._replace(state=state, step=over, num_bad=num_bad)

    def read(step):
        return take_rows(rows, order[step], size=options.batch_size, layout=run.layout)

    recent: list[StepInfo] = []
    waiting: list[Interval] = []  # losses are over when the next interval is
    began = saved = time.monotonic()
    for step, batch in enumerate(feed(read, range(first, options.num_steps)), first):
        state, info = run.program.step(state, keys.steps, np.int32(step), batch)
        recent.append(info)
        over = step + 1
        stop, pause, due = False, False, over % options.report_every == 0
        look = options.eval_every and over % options.eval_every == 0
        if look:
            jax.block_until_ready(state)  # steps count as training, looking does not
        if due or jax.process_count() == 1:  # many processes agree, and not every step
            old = time.monotonic() - saved > options.save_every
            stop, old = any_process(run.interrupted(), old)
            pause = stop or old
        last = pause or over == options.num_steps
        if last or due:
            now = time.monotonic()
            waiting.append(Interval(recent, index, over, now - began))
            recent, began = [], now
            bad = 0
            while len(waiting) > (0 if last else 1):
                bad += report(run, waiting.pop(0))
            num_bad += bad
            if bad and options.on_non_finite == "stop":
                return here(over), "diverged"
        rest = time.monotonic()
        if look:
            scores = evaluate(run, state, run.tasks[: index + 1])
            line = {"at": _number(index, over, options), "task": index, "step": over}
            run.write(line | {"scores": scores})
        if pause:
            now = _on_devices(here(over), run.layout)
            run.save(_number(index, over, options), now)
            saved = time.monotonic()
        began += time.monotonic() - rest
        if stop:
            return here(over), "interrupted"
    return here(options.num_steps), "done"


class Interval(NamedTuple):
    """Steps of which the losses are still on the device."""

    infos: list[StepInfo]
    task: int
    over: int  # steps of the task when it ended
    seconds: float


def report(run: Run, interval: Interval) -> int:
    """Tell about some steps; return how many of them were not finite."""
    infos, index, over, seconds = interval
    seen = jax.device_get(infos)
    bad = sum(not info.finite for info in seen)
    rate = len(seen) * run.options.batch_size / max(seconds, 1e-9)
    loss = float(np.mean([info.loss for info in seen]))
    run.write(
        {
            "at": _number(index, over, run.options),
            "task": index,
            "step": over,
            "loss": loss,
            "grad_norm": float(seen[-1].grad_norm),
            "seconds": round(seconds, 6),
            "examples_per_second": round(rate, 1),
            "not_finite": bad,
        }
    )
    run.scalar("loss", loss, index * run.options.num_steps + over)
    name = run.tasks[index].name
    run.advance(len(seen), f"{name}, loss {loss:.4g}, {rate:.3g} examples/s")
    return bad


def finish_task(run: Run, position: Position) -> Position:
    """Consolidate, evaluate all tasks, and save the end of the task for good."""
    index, matrix = position.task, position.matrix.copy()
    keys = fit_keys(task_keys(run.key, index).fit)
    state = run.program.end_task(position.state, keys.end, whole_task(run, index))
    number = _number(index + 1, 0, run.options)
    if run.program.total is not None:
        scores = evaluate(run, state, run.tasks)
        matrix[index] = scores
        run.write({"at": number, "task": index, "scores": scores, "ended": True})
        for task, value in enumerate(scores):
            run.scalar(f"score/{task}", value, (index + 1) * run.options.num_steps)
    position = position._replace(state=state, matrix=matrix, task=index + 1, step=0)
    run.save(number, _on_devices(position, run.layout), hold=True)
    return position


def evaluate(run: Run, state: MethodState, tasks: Sequence[Task]) -> list[float]:
    """The mean score on the test rows of each task."""
    params, total = run.program.read(state), run.program.total
    if total is None:
        return []
    return mean_scores(
        lambda batch: total(params, batch),
        tasks,
        batch_size=run.options.eval_batch_size,
        num_rows=run.options.eval_rows,
        layout=run.layout,
    )


def training_order_of(run: Run, index: int) -> Int[np.ndarray, "steps b"]:
    """The rows of all batches of a task."""
    options = run.options
    return training_order(
        fit_keys(task_keys(run.key, index).fit).order,
        run.tasks[index].train,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
    )


def whole_task(run: Run, index: int) -> Batch:
    """What ``end_task`` sees: equally many rows for all tasks, filled up with weight 0."""
    rows, size = run.tasks[index].train, run.options.consolidate_rows
    numbers = np.arange(rows.count)
    if size and size < rows.count:
        numbers = first_learned(training_order_of(run, index), size)
    size = task_rows(run.tasks, run.options, run.layout)
    return take_rows(rows, numbers, size=size, layout=run.layout)


def _on_devices(position: Position, layout: Layout | None) -> tuple:
    """What a checkpoint holds of a position: arrays, the same on all devices."""
    small = position.matrix, *(np.array(number, np.int32) for number in position[2:])
    if layout is None:
        return position.state, *map(jnp.asarray, small)
    put = lambda x: jax.make_array_from_process_local_data(whole(layout), x)
    return position.state, *map(put, small)


def _on_host(saved: tuple) -> Position:
    """The position that a checkpoint held."""
    state, matrix, *numbers = saved
    return Position(state, np.array(matrix), *map(int, numbers))


def _number(task: int, step: int, options: Options) -> int:
    """The end of a task and the start of the next are two positions with one number."""
    return task * (options.num_steps + 1) + step


__all__ = ["Learned", "Options", "Position", "learn"]
