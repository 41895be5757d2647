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
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, PyTree

from jaxcl.checks import check_key, check_kind, check_size
from jaxcl.streams.rows import Rows, Task
from jaxcl.training.checkpoint import restore, saving, steps
from jaxcl.training.evaluate import mean_scores
from jaxcl.training.feed import feed
from jaxcl.training.interrupt import interruptible
from jaxcl.training.log import bar, metrics_file, tensorboard
from jaxcl.training.order import fit_keys, task_keys
from jaxcl.training.parallel import Layout, check_rows, num_parts, whole
from jaxcl.training.processes import any_process, end_together, leads
from jaxcl.training.program import Build, Policy, Program, Score, compile_program
from jaxcl.training.reading import first_learned, take_rows, training_order
from jaxcl.tree import at
from jaxcl.typing import Batch, Key, MethodState, Params, StepInfo

Status = Literal["done", "diverged", "interrupted"]


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
      build: makes the method; ``frozen`` reaches it as an argument of the program.
      params: where learning begins; not touched.
      tasks: in order; rows may differ in number from task to task, not in shape.
      options: see :class:`Options`.
      folder: gets ``checkpoints/`` and ``metrics.jsonl``; created if absent. A run has one
        of its own; one that had finished there is returned, with a warning.
      frozen: weights that are used and never trained; they are not in the checkpoints.
      score: what the matrix holds; without it nothing is evaluated.
      layout: devices to spread over, see :mod:`jaxcl.training.parallel`; one if absent.
      about: what the run is (settings, fingerprint of ``frozen``): the checkpoint of
        another run is refused, with what differs.
      tensorboard_folder: also write scalars for TensorBoard.
      quiet: no progress.
      told: hears of progress instead of a bar: steps, and a few words.

    Returns:
      The status, the parameters to evaluate, and the last position. A run that stopped
      because a step was not finite is ``diverged``; its last checkpoint is from before.

    Raises:
      ValueError: for options that cannot work, a task with fewer rows than a batch, or
        a checkpoint of another run: of another key, other options that decide what is
        learned, or another ``about``.

    Cost: per step what the method's step costs. The next batches are read by a thread;
    losses are fetched when they are reported, ``report_every`` steps late. While a
    checkpoint is written there is one more copy of the state.
    """
    check_key("learn", key)
    check_kind("learn", Callable, "a function of frozen -> method", build=build)
    check(tasks, options, layout)
    place, about = Path(folder) / "checkpoints", identity(key, options, about)
    program = compile_program(
        build,
        params,
        frozen,
        at(slice(1), tasks[0].train.read(np.arange(1))),
        score=score,
        on_non_finite=options.on_non_finite,
        layout=layout,
    )
    position = begin(program, params, len(tasks))
    if steps(place):
        on_disk = restore(place, _on_devices(position, layout), about=about).tree
        position = _on_host(on_disk)
        if position.task == len(tasks):
            warnings.warn(
                f"learn: the run in {place.parent} had finished; its result is returned "
                "and nothing is learned. For another run give another folder.",
                stacklevel=2,
            )
    done = _number(position.task, position.step, options)
    known = lambda line: line["at"] <= done
    walked = position.task * options.num_steps + position.step
    total = len(tasks) * options.num_steps
    with ExitStack() as stack:
        enter = stack.enter_context
        run = Run(
            key,
            tasks,
            options,
            layout,
            program,
            interrupted=enter(interruptible()),
            save=enter(saving(place, keep=options.keep, about=about)),
            write=enter(metrics_file(place.parent / "metrics.jsonl", keep=known))
            if leads()
            else lambda line: None,
            scalar=enter(tensorboard(tensorboard_folder if leads() else None)),
            advance=told or enter(bar(total, done=walked, quiet=quiet or not leads())),
        )
        with end_together():
            position, status = walk(run, position)
    return Learned(status, program.read(position.state), position)


def walk(run: Run, position: Position) -> tuple[Position, Status]:
    """All tasks that are left, one after another."""
    while position.task < len(run.tasks):
        position, status = fit(run, position)
        if status != "done":
            return position, status
        position = finish_task(run, position)
    return position, "done"


def check(tasks: Sequence[Task], options: Options, layout: Layout | None) -> None:
    """Refuse what cannot run, before any compute.

    Raises:
      ValueError: in one line.
    """
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
        check_kind(
            "learn", Task, "give a list, such as stream_tasks(stream)", task=task
        )
        remedy = "make them, such as by array_rows(batch)"
        check_kind("learn", Rows, remedy, train=task.train, test=task.test)
        if task.train.count < options.batch_size:
            msg = (
                f"learn: task {task.name!r} has {task.train.count} rows, fewer than a "
                f"batch of {options.batch_size}; lower batch_size or drop the task."
            )
            raise ValueError(msg)
    if layout is not None:
        sizes = options.batch_size, options.eval_batch_size
        check_rows(layout, batch_size=sizes[0], eval_batch_size=sizes[1])


def identity(key: Key, options: Options, about: Mapping[str, Any] | None) -> dict:
    """What a checkpoint must agree with for a run to go on from it."""
    names = "num_steps", "batch_size", "consolidate_rows", "on_non_finite"
    decisive = {name: getattr(options, name) for name in names}
    decisive |= {"key": jax.random.key_data(key).tolist()}
    return dict(about or {}) | decisive  # the caller's names hide none of these


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
    rows, wanted = run.tasks[index].train, run.options.consolidate_rows
    size = wanted or max(task.train.count for task in run.tasks)
    parts = 1 if run.layout is None else num_parts(run.layout)
    numbers = np.arange(rows.count)
    if size < rows.count:
        numbers = first_learned(training_order_of(run, index), size)
    return take_rows(rows, numbers, size=-(-size // parts) * parts, layout=run.layout)


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
