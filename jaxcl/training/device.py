"""The device loop: a full stream of tasks as one compiled program.

``scan`` over tasks, ``scan`` over steps, and outside them a ``vmap`` over runs (seeds,
strengths, learning rates) whose axis can be sharded over the devices of a mesh::

    def run(key, learning_rate, plan):                       # one run, all arguments traced
        method = make_method(loss, optax.sgd(learning_rate)) # built inside
        state = method.init(model.init(key), example)
        return run_stream(key, method, stream._replace(plan=plan), state, ...)

    states, records = jax.jit(over_runs(run))(keys, rates, plans)

Everything that a task boundary changes is part of the state, hence an argument of the
program: it has no constants from an earlier task, and compiles once.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree, ScalarLike

from jaxcl.data.stream import task_list
from jaxcl.errors import check_key, check_size, require
from jaxcl.lockstep import when
from jaxcl.training.batches import batch_order, fit_keys, task_keys
from jaxcl.training.checkpoint import restore, save, steps
from jaxcl.tree import at, num_rows, num_tasks
from jaxcl.typing import Batch, Key, Method, MethodState, Stream


class TaskSnapshot(NamedTuple):
    """The input of an observer: before a task's first step, or after its last."""

    key: Key
    index: Int[Array, ""]  # number of the task, from 0
    plan: PyTree  # the task's part of the stream's plan
    task: Batch  # its training set
    state: MethodState
    learners: Mapping[str, PyTree]  # what the method evaluates, the default one first

    @property
    def params(self) -> PyTree:
        """The default learner."""
        return next(iter(self.learners.values()))


#: ``(snapshot) -> pytree`` of arrays, recorded once per task.
Callback = Callable[[TaskSnapshot], Any]


class TaskRecord(NamedTuple):
    """The record of a task; leaves have a leading ``[T]`` in a stream."""

    loss: Float[Array, ""]  # mean over the task's steps, before each: loss and penalty
    finite: Bool[Array, ""]  # every loss of the task and all parameters are finite
    before: PyTree  # what `before` observed
    after: PyTree  # what `after` observed


def fit_task(
    key: Key,
    method: Method,
    state: MethodState,
    task: Batch,
    *,
    num_steps: int | Int[Array, ""],
    batch_size: int,
    most_steps: int | None = None,
    shuffle: bool = True,
) -> tuple[MethodState, Float[Array, ""], Bool[Array, ""]]:
    """Train on one task, then end it.

    Args:
      key: draws the batches, and is the key of the method.
      method: the learner.
      state: its state.
      task: the training set, leaves ``[n, ...]``.
      num_steps: batches to train on; see :func:`steps_for`. May be traced where
        ``most_steps`` is given.
      batch_size: rows per batch; all of a task that has fewer.
      most_steps: what ``num_steps`` can be at most; steps from there on are skipped.
      shuffle: whether rows are drawn in random order.

    Returns:
      ``(state, loss, finite)``: the mean training loss, and whether all losses and all
      parameters are finite.
    """
    length: Any = num_steps if most_steps is None else most_steps
    check_size("fit_task", num_steps=length, batch_size=batch_size)
    keys, state = fit_keys(key), with_num_steps(state, num_steps)
    order = batch_order(
        keys.order,
        task.weight,
        num_steps=length,
        batch_size=min(batch_size, num_rows(task)),
        shuffle=shuffle,
    )

    def one_step(carry, step, rows):
        state, total, finite = carry
        key = jax.random.fold_in(keys.steps, step)
        state, info = method.step(key, state, at(rows, task))
        loss = info.loss + info.metrics.get("penalty", 0.0)
        return state, total + loss, finite & info.finite

    def body(carry, item):
        take = lambda carry: one_step(carry, *item)
        if most_steps is None:
            return take(carry), None
        return when(item[0] < num_steps, take, carry), None

    start = (state, jnp.zeros(()), jnp.ones((), bool))
    (state, total, finite), _ = jax.lax.scan(body, start, (jnp.arange(length), order))
    for leaf in jax.tree.leaves(state.params):
        finite &= jnp.all(jnp.isfinite(leaf))
    return method.end_task(keys.end, state, task), total / num_steps, finite


def with_num_steps(state: MethodState, num_steps: ScalarLike) -> MethodState:
    """The state with the number of steps of the current task."""
    count = jnp.asarray(num_steps, jnp.int32)
    return state._replace(progress=state.progress._replace(num_steps=count))


def run_stream(
    key: Key,
    method: Method,
    stream: Stream,
    state: MethodState,
    *,
    num_steps: int | Sequence[int],
    batch_size: int,
    before: Callback | None = None,
    after: Callback | None = None,
    tasks: Int[Array, " k"] | None = None,
) -> tuple[MethodState, TaskRecord]:
    """Learn tasks in order, as one ``scan``.

    A stream in segments gives the same bits as one in a single call: the randomness of
    task ``t`` comes from ``fold_in(key, t)`` alone.

    Args:
      key: one per run, the same for all segments of it.
      method: the learner; build it inside the compiled function.
      stream: the tasks.
      state: ``method.init(params, first_example(stream))``, or the state an earlier
        segment returned.
      num_steps: batches per task, or a list with one number for each task of the stream.
        One program serves all of them; shorter tasks skip the remaining steps.
      batch_size: rows per batch.
      before: observes each task before its first step.
      after: observes each task after the method's ``end_task``.
      tasks: numbers of the tasks to learn, in order; all of the stream if absent.

    Returns:
      The final state, and a :class:`TaskRecord` with leaves ``[k, ...]``.

    Raises:
      ValueError: if ``tasks`` is concrete and a number in it is out of range.
    """
    check_key("run_stream", key)
    count = num_tasks(stream.plan)
    steps_of, most_steps = _step_counts(num_steps, count)
    if tasks is None:
        tasks = jnp.arange(count)
    elif not isinstance(tasks, Tracer):
        tasks = jnp.asarray(task_list("run_stream", stream, tasks, count) % count)

    def body(state, index):
        keys = task_keys(key, index)
        plan = at(index, stream.plan)
        task = stream.train(stream.pool, plan)

        def seen(observe, key, state):
            if observe is None:
                return ()
            learners = method.learners(state)
            return observe(TaskSnapshot(key, index, plan, task, state, learners))

        seen_before = seen(before, keys.before, state)
        state, loss, finite = fit_task(
            keys.fit,
            method,
            state,
            task,
            num_steps=steps_of(index),
            batch_size=batch_size,
            most_steps=most_steps,
            shuffle=stream.shuffle,
        )
        seen_after = seen(after, keys.after, state)
        return state, TaskRecord(loss, finite, seen_before, seen_after)

    return jax.lax.scan(body, state, tasks)


def _step_counts(num_steps, tasks: int):
    """``(index) -> steps``, and the largest of them where they are not all the same."""
    if not isinstance(num_steps, Sequence | np.ndarray):
        check_size("run_stream", num_steps=num_steps)
        return lambda index: num_steps, None
    for count in num_steps:
        check_size("run_stream", num_steps=count)
    require(
        len(num_steps) == tasks,
        "run_stream",
        f"num_steps must be one number, or one for each of the {tasks} tasks, got "
        f"{len(num_steps)}",
    )
    array = jnp.asarray(num_steps, jnp.int32)
    return lambda index: array[index], int(max(num_steps))


def first_example(stream: Stream) -> Batch:
    """A batch of one row, the first real one of the stream, for ``method.init``."""
    task = stream.train(stream.pool, at(0, stream.plan))
    return at(jnp.argmax(task.weight > 0)[None], task)


def steps_for(num_rows: int, *, batch_size: int, num_epochs: int = 1) -> int:
    """Steps that visit ``num_rows`` rows ``num_epochs`` times: the ceiling of the ratio.

    A task smaller than a batch has all its rows in each step.
    """
    check_size("steps_for", num_rows=num_rows, batch_size=batch_size)
    check_size("steps_for", num_epochs=num_epochs)
    return -(-num_rows * num_epochs // min(batch_size, num_rows))


def over_runs(
    run: Callable,
    in_axes: int | tuple = 0,
    *,
    mesh: jax.sharding.Mesh | None = None,
    at_once: int | None = None,
) -> Callable:
    """``vmap`` over runs, with their axis sharded over all devices of a mesh.

    Args:
      run: one run; every argument and result a pytree of arrays.
      in_axes: one entry for each argument, or one for all: 0 for arguments that differ
        between runs (along their first axis), None for common ones.
      mesh: devices to use; without one all runs are on one device. The number of runs
        must be a multiple of the number of devices.
      at_once: runs that a device vectorises; others follow in sequence; all if absent. On
        an accelerator many are faster, and few need less memory. On a CPU one is
        fastest: a single small network stays in its cache, ten of them do not.

    Returns:
      A function of stacked arguments; jit it. Runs do not communicate, so results do
      not depend on the mesh.
    """
    for axis in in_axes if isinstance(in_axes, tuple) else (in_axes,):
        usable = axis is None or (isinstance(axis, int) and axis == 0)
        wanted = f"in_axes must be 0 or None per argument, got {axis!r}"
        require(usable, "over_runs", wanted)
    check_size("over_runs", optional=True, at_once=at_once)
    axes_of = lambda args: (
        in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
    )

    def in_turn(*args):
        """A loop over groups of runs; a group of one is not vmapped."""
        axes = axes_of(args)

        def one(own):
            own = iter(own)
            pairs = zip(axes, args, strict=True)
            return run(*(arg if axis is None else next(own) for axis, arg in pairs))

        differ = [arg for axis, arg in zip(axes, args, strict=True) if axis is not None]
        return jax.lax.map(one, differ, batch_size=None if at_once == 1 else at_once)

    together = jax.vmap(run, in_axes) if at_once is None else in_turn
    if mesh is None:
        return together
    spread, same = jax.P(mesh.axis_names), jax.P()

    def sharded(*args):
        specs = tuple(same if axis is None else spread for axis in axes_of(args))
        return jax.shard_map(
            together, mesh=mesh, in_specs=specs, out_specs=spread, check_vma=False
        )(*args)

    return sharded


class StreamResult(NamedTuple):
    """The final state of a stream, and its record."""

    state: PyTree
    record: PyTree  # of all tasks, on the host
    seconds: float  # of all processes that took part, up to their last checkpoint


def in_segments(
    advance: Callable[[PyTree, Int[Array, " size"]], tuple[PyTree, PyTree]],
    state: PyTree,
    *,
    num_tasks: int,
    size: int,
    folder: str | Path,
    save_every: float = 60.0,
    task_axis: int = 0,
    note: Callable[[int], None] | None = None,
) -> StreamResult:
    """Run a stream in segments of equal length, from its last checkpoint if it has one.

    The checkpoint holds the state and the record so far, so a run that was killed at any
    moment and started again ends with the same bits as one that is not interrupted.

    Args:
      advance: ``(state, numbers of tasks) -> (state, record)``, jitted; the record's
        leaves have one entry per task along ``task_axis``. It may donate the state.
      state: initial state.
      num_tasks: tasks of the stream.
      size: tasks per segment, a divisor of ``num_tasks``: one program serves all.
      folder: of the checkpoints; remove it when the results are stored.
      save_every: least seconds between two checkpoints.
      task_axis: 0 for one run, 1 for stacked runs.
      note: called with the number of the next task before each segment.

    Raises:
      ValueError: if ``size`` does not divide ``num_tasks``, or the checkpoint is that of
        another state.
    """
    require(
        size >= 1 and num_tasks % size == 0,
        "in_segments",
        f"size must divide the {num_tasks} tasks, got {size}; see segment_size",
    )
    walk = lambda state, first: advance(state, first + jnp.arange(size))

    def blank(leaf):
        shape = list(leaf.shape)
        shape[task_axis] = num_tasks
        return np.zeros(shape, leaf.dtype)

    record = jax.tree.map(blank, jax.eval_shape(lambda s: walk(s, 0)[1], state))
    done, spent = 0, np.zeros(1, np.float32)
    if steps(folder):
        done, (state, record, spent), _ = restore(folder, (state, record, spent))
        record = jax.tree.map(np.array, record)
        require(
            done % size == 0,
            "in_segments",
            f"the checkpoint in {folder} stands at task {done}, where no segment of {size} "
            "tasks begins; go on with the size it was made with",
        )
    began = saved = time.perf_counter()
    seconds = lambda: float(np.asarray(spent)[0]) + time.perf_counter() - began
    for first in range(done, num_tasks, size):
        if note is not None:
            note(first)
        state, part = walk(state, first)
        where = (*(slice(None),) * task_axis, slice(first, first + size))
        for leaf, new in zip(*map(jax.tree.leaves, (record, part)), strict=True):
            leaf[where] = np.asarray(new)
        if time.perf_counter() - saved > save_every:
            now = np.array([seconds()], np.float32)
            save(folder, first + size, (state, record, now))
            saved = time.perf_counter()
    return StreamResult(state, record, seconds())


def segment_size(num_tasks: int, wanted: int) -> int:
    """The largest divisor of ``num_tasks`` up to ``wanted``: segments of equal length."""
    check_size("segment_size", num_tasks=num_tasks, wanted=wanted)
    return max(k for k in range(1, wanted + 1) if num_tasks % k == 0)
