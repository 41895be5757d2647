"""The host loop: the same ``step`` and ``end_task``, for what no compiled stream can hold.

Tasks of any kind and size are walked one batch at a time. Nothing here decides what is
learned: a run ends where the compiled stream of the same tasks ends, to float tolerance,
because both take their rows and keys from :mod:`jaxcl.training.order`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxcl.streams.rows import Rows, Task
from jaxcl.training.checkpoint import restore, saving, steps
from jaxcl.training.evaluate import mean_scores, padded_rows
from jaxcl.training.feed import feed
from jaxcl.training.interrupt import interruptible
from jaxcl.training.log import bar, metrics_file, tensorboard
from jaxcl.training.order import batch_order, fit_keys, task_keys
from jaxcl.tree import at
from jaxcl.typing import Batch, Key, Method, MethodState, Params, StepInfo

#: ``(frozen) -> method``: called while tracing, so that nothing is baked in.
Build = Callable[[PyTree], Method]

#: ``(params, frozen, batch) -> [b]``: how well each row is answered, such as 0 or 1.
Score = Callable[[Params, PyTree, Batch], Float[Array, " b"]]


class Options(NamedTuple):
    """How a run is walked. Only the first four change what is learned."""

    num_steps: int  # per task
    batch_size: int
    on_non_finite: Literal["stop", "skip", "continue"] = "stop"
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
    matrix: Float[Array, "T T"]  # score on task j after task i; NaN where not known
    task: Int[Array, ""]  # the task at hand
    step: Int[Array, ""]  # steps done of it
    num_bad: Int[Array, ""]  # steps so far that were not finite


class Learned(NamedTuple):
    """Where a run ended."""

    status: Literal["done", "diverged", "interrupted"]
    params: Params  # what the method evaluates
    position: Position


class Program(NamedTuple):
    """What is compiled, once each."""

    start: Callable  # (params, frozen, example) -> state
    step: Callable  # (state, frozen, key, number, batch) -> (state, info)
    end_task: Callable  # (state, frozen, key, task) -> state
    read: Callable  # (state, frozen) -> params
    score: Callable | None  # (params, frozen, batch) -> sum, weight


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
    about: Mapping[str, Any] | None = None,
    tensorboard_folder: str | Path | None = None,
    quiet: bool = False,
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
      folder: gets ``checkpoints/`` and ``metrics.jsonl``; created if absent.
      frozen: weights that are used and never trained; they are not in the checkpoints.
      score: what the matrix holds; without it nothing is evaluated.
      about: what the run is (settings, fingerprint of ``frozen``): the checkpoint of
        another run is refused, with what differs.
      tensorboard_folder: also write scalars for TensorBoard.
      quiet: no progress.

    Returns:
      The status, the parameters to evaluate, and the last position. A run that stopped
      because a step was not finite is ``diverged``; its last checkpoint is from before.

    Raises:
      ValueError: for options that cannot work, a task with fewer rows than a batch, or
        a checkpoint of another run.

    Cost: per step what the method's step costs. The next batches are read by a thread;
    losses are fetched when they are reported, ``report_every`` steps late. While a
    checkpoint is written there is one more copy of the state.
    """
    check(tasks, options)
    folder, total = Path(folder), len(tasks)
    program = compile_program(build, score, options)
    position = begin(program, params, frozen, tasks)
    if steps(folder / "checkpoints"):
        position = restore(folder / "checkpoints", position, about=about).tree
    done = position_number(position, options)
    with ExitStack() as stack:
        enter = stack.enter_context
        session = Session(
            interrupted=enter(interruptible()),
            save=enter(saving(folder / "checkpoints", keep=options.keep, about=about)),
            write=enter(
                metrics_file(
                    folder / "metrics.jsonl", keep=lambda line: line["at"] <= done
                )
            ),
            scalar=enter(tensorboard(tensorboard_folder)),
            advance=enter(
                bar(
                    total * options.num_steps,
                    done=_steps(position, options),
                    quiet=quiet,
                )
            ),
        )
        status = "done"
        while status == "done" and int(position.task) < total:
            position, status = fit(
                key, program, frozen, tasks, options, position, session
            )
            if status == "done":
                position = finish_task(
                    key, program, frozen, tasks, options, position, session
                )
    return Learned(status, program.read(position.state, frozen), position)


class Session(NamedTuple):
    """What a run talks to: all of its effects."""

    interrupted: Callable[[], bool]
    save: Callable[..., None]
    write: Callable[[Mapping[str, Any]], None]
    scalar: Callable[[str, float, int], None]
    advance: Callable[..., None]


def check(tasks: Sequence[Task], options: Options) -> None:
    """Refuse what cannot run, before any compute.

    Raises:
      ValueError: in one line.
    """
    for name in ("num_steps", "batch_size", "eval_batch_size", "report_every", "keep"):
        if getattr(options, name) < 1:
            msg = f"learn: {name} must be at least 1, got {getattr(options, name)}."
            raise ValueError(msg)
    policies = ("stop", "skip", "continue")
    if options.on_non_finite not in policies:
        msg = (
            f"learn: on_non_finite must be one of {', '.join(policies)}, got "
            f"{options.on_non_finite!r}."
        )
        raise ValueError(msg)
    if not tasks:
        msg = "learn: expected at least one task, got none."
        raise ValueError(msg)
    for task in tasks:
        if task.train.count < options.batch_size:
            msg = (
                f"learn: task {task.name!r} has {task.train.count} rows, fewer than a "
                f"batch of {options.batch_size}; lower batch_size or drop the task."
            )
            raise ValueError(msg)


def compile_program(build: Build, score: Score | None, options: Options) -> Program:
    """Everything that runs on the device, jitted; nothing is compiled before it is used."""

    def start(params, frozen, example):
        return build(frozen).init(params, example)

    def step(state, frozen, key, number, batch):
        after, info = build(frozen).step(jax.random.fold_in(key, number), state, batch)
        finite = info.finite & jnp.isfinite(info.grad_norm)
        if options.on_non_finite == "skip":
            for leaf in jax.tree.leaves(after.params):
                finite &= jnp.all(jnp.isfinite(leaf))
            after = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), after, state
            )
        return after, info._replace(finite=finite)

    def end_task(state, frozen, key, task):
        return build(frozen).end_task(key, state, task)

    def read(state, frozen):
        return build(frozen).eval_params(state)

    def total(params, frozen, batch):
        assert score is not None
        return jnp.sum(score(params, frozen, batch) * batch.weight), jnp.sum(
            batch.weight
        )

    return Program(
        jax.jit(start),
        jax.jit(step, donate_argnums=0),
        jax.jit(end_task, donate_argnums=0),
        jax.jit(read),
        jax.jit(total) if score is not None else None,
    )


def begin(
    program: Program, params: Params, frozen: PyTree, tasks: Sequence[Task]
) -> Position:
    """The position before the first step."""
    example = at(slice(1), tasks[0].train.read(np.arange(1)))
    zero = lambda: jnp.zeros((), jnp.int32)
    state = program.start(params, frozen, example)
    # Copies: each leaf must own its buffer, and the caller keeps `params`.
    state = jax.tree.map(jnp.copy, state)
    matrix = jnp.full((len(tasks), len(tasks)), jnp.nan)
    return Position(state, matrix, zero(), zero(), zero())


def fit(
    key: Key,
    program: Program,
    frozen: PyTree,
    tasks: Sequence[Task],
    options: Options,
    position: Position,
    session: Session,
) -> tuple[Position, Literal["done", "diverged", "interrupted"]]:
    """Walk the rest of the task at hand, step by step."""
    index, first = int(position.task), int(position.step)
    rows, keys = tasks[index].train, fit_keys(task_keys(key, index).fit)
    order = training_order(keys.order, rows, options)
    state, num_bad = position.state, int(position.num_bad)
    pending: list[StepInfo] = []  # steps whose losses nobody has looked at
    reported = saved = time.monotonic()

    def here(step: int) -> Position:
        return position._replace(
            state=state, step=jnp.int32(step), num_bad=jnp.int32(num_bad)
        )

    def look(infos: list[StepInfo], step: int) -> bool:
        """Report on steps that are over; tell whether the run may go on."""
        nonlocal num_bad, reported
        if not infos:
            return True
        seen = jax.device_get(infos)
        bad = sum(not info.finite for info in seen)
        num_bad += bad
        now = time.monotonic()
        rate = len(seen) * options.batch_size / max(now - reported, 1e-9)
        reported = now
        loss = float(np.mean([info.loss for info in seen]))
        session.write(
            {
                "at": _number(index, step, options),
                "task": index,
                "step": step,
                "loss": loss,
                "grad_norm": float(seen[-1].grad_norm),
                "examples_per_second": round(rate, 1),
                "not_finite": bad,
            }
        )
        session.scalar("loss", loss, index * options.num_steps + step)
        session.advance(
            len(seen), f"{tasks[index].name}, loss {loss:.4g}, {rate:.3g} examples/s"
        )
        return not (bad and options.on_non_finite == "stop")

    late: list[StepInfo] = []  # of the interval before: looked at without waiting
    batches = feed(lambda step: rows.read(order[step]), range(first, options.num_steps))
    for step, batch in enumerate(batches, first):
        state, info = program.step(state, frozen, keys.steps, step, batch)
        pending.append(info)
        over = step + 1
        if over % options.report_every == 0:
            if not look(late, over - len(pending)):
                return here(over), "diverged"
            late, pending = pending, []
        if options.eval_every and over % options.eval_every == 0:
            scores = evaluated(program, state, frozen, tasks[: index + 1], options)
            session.write(
                {"at": _number(index, over, options), "task": index, "step": over}
                | {"scores": scores}
            )
        stop = session.interrupted()
        if (
            stop
            or over == options.num_steps
            or (time.monotonic() - saved > options.save_every)
        ):
            if not (look(late, over - len(pending)) and look(pending, over)):
                return here(over), "diverged"
            late, pending = [], []
            if over < options.num_steps or stop:
                session.save(_number(index, over, options), here(over))
                saved = time.monotonic()
        if stop:
            return here(over), "interrupted"
    return here(options.num_steps), "done"


def finish_task(
    key: Key,
    program: Program,
    frozen: PyTree,
    tasks: Sequence[Task],
    options: Options,
    position: Position,
    session: Session,
) -> Position:
    """Consolidate, evaluate all tasks, and save the end of the task for good."""
    index = int(position.task)
    keys = fit_keys(task_keys(key, index).fit)
    rows = consolidation_rows(keys.order, tasks, index, options)
    state = program.end_task(position.state, frozen, keys.end, rows)
    matrix = position.matrix
    number = _number(index + 1, 0, options)
    if program.score is not None:
        scores = evaluated(program, state, frozen, tasks, options)
        matrix = matrix.at[index].set(jnp.asarray(scores))
        session.write({"at": number, "task": index, "scores": scores, "ended": True})
        for task, value in enumerate(scores):
            session.scalar(f"score/{task}", value, (index + 1) * options.num_steps)
    position = position._replace(
        state=state, matrix=matrix, task=jnp.int32(index + 1), step=jnp.int32(0)
    )
    session.save(number, position, hold=True)
    return position


def evaluated(
    program: Program,
    state: MethodState,
    frozen: PyTree,
    tasks: Sequence[Task],
    options: Options,
) -> list[float]:
    """The mean score on the test rows of each task."""
    params, total = program.read(state, frozen), program.score
    assert total is not None
    return mean_scores(
        lambda batch: total(params, frozen, batch),
        tasks,
        batch_size=options.eval_batch_size,
        num_rows=options.eval_rows,
    )


def training_order(
    key: Key, rows: Rows, options: Options
) -> Int[np.ndarray, "steps b"]:
    """Row numbers of all batches of a task, as the compiled loop draws them."""
    order = batch_order(
        key,
        jnp.ones(rows.count),
        num_steps=options.num_steps,
        batch_size=options.batch_size,
    )
    return np.asarray(order)


def consolidation_rows(
    key: Key, tasks: Sequence[Task], index: int, options: Options
) -> Batch:
    """The rows that ``end_task`` sees: as many for all tasks, filled up with weight 0."""
    rows = tasks[index].train
    wanted = options.consolidate_rows or max(task.train.count for task in tasks)
    numbers = np.arange(rows.count)
    if wanted < rows.count:  # the first that were learned
        drawn = training_order(key, rows, options).ravel()
        numbers = (
            np.unique(drawn[:wanted]) if len(drawn) >= wanted else numbers[:wanted]
        )
    return padded_rows(rows, numbers, wanted)


def position_number(position: Position, options: Options) -> int:
    """Where a position stands among all positions of a run."""
    return _number(int(position.task), int(position.step), options)


def _number(task: int, step: int, options: Options) -> int:
    """The end of a task and the start of the next are two positions, with one number."""
    return task * (options.num_steps + 1) + step


def _steps(position: Position, options: Options) -> int:
    return int(position.task) * options.num_steps + int(position.step)


__all__ = ["Learned", "Options", "Position", "Score", "learn"]
