"""A method: gradient x optimizer x regularizer x memory x average x reset.

One step, in the order of the code::

    replay  = memory.sample(key, memory_state)
    L(p)    = (loss(p, batch) + w * loss(p, replay)) / (1 + w)    w = 0 while empty
              loss(p, batch) + w * replay_loss(p, replay)         with a loss of its own
    R(p)    = regularizer.penalty(state, p, Context(batch, replay, keys, average, ...))
    perturb_penalty:   g = gradient.update(grad L + grad R, grad_fn = both, ...)
    otherwise:         g = gradient.update(grad L, grad_fn = grad L, ...) + grad R
    params  = regularizer.project(state, params + optimizer.update(g))
    params  = reset.reset(key, state, params, batch)
    regularizer, memory and average observe the StepRecord

Two rules. *Build inside*: construct the method inside the function that is compiled, from
its arguments; strengths are then traced (a grid is a ``vmap``) and frozen weights are
arguments instead of constants of the program. *Gate by data*: an empty memory has weight
zero and before the first task ends importances are zero, so that no part needs an ``if``.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.random import split
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from jaxcl.errors import (
    as_key,
    check_function,
    check_kind,
    check_number,
    check_size,
    is_zero,
    shown,
)
from jaxcl.losses import example_losses
from jaxcl.memory import after, no_memory
from jaxcl.transforms.optimizers import (
    accepting,
    first_state,
    restarted,
    schedule_free_average,
)
from jaxcl.tree import axpy, check_batch, norm, num_rows, safe_divide, subtract
from jaxcl.typing import (
    Average,
    Batch,
    Context,
    Loss,
    Memory,
    Method,
    MethodState,
    Params,
    Progress,
    Regularizer,
    Reset,
    StepInfo,
    StepRecord,
    no_penalty,
)

#: ``{name: (state, step) -> scalar}``: computed after every step from the new state and the
#: :class:`~jaxcl.typing.StepRecord`.
StepMetrics = Mapping[str, Callable[[MethodState, StepRecord], Float[Array, ""]]]

#: ``(batch, replay, progress) -> scalar``: the weight of the replay relative to the batch.
ReplayWeight = Callable[[Batch, Batch, Progress], Float[ArrayLike, ""]]


def by_rows(batch: Batch, replay: Batch, progress: Progress) -> Float[Array, ""]:
    """Equal weight for every row, replayed or new: the loss of one joined batch.

    A :data:`ReplayWeight`: the rows of the replay per row of the batch, by their weights.
    """
    del progress
    return safe_divide(jnp.sum(replay.weight), jnp.sum(batch.weight))


def by_tasks(batch: Batch, replay: Batch, progress: Progress) -> Float[Array, ""]:
    """Equal weight for every task: that of the replay is the number of past tasks.

    A :data:`ReplayWeight`, as in van de Ven and Tolias 2018, arXiv:1809.10635, where the
    current task has weight ``1 / t``.
    """
    del batch, replay
    return progress.task.astype(jnp.float32)


def make_method(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    gradient: optax.GradientTransformation | None = None,
    regularizer: Regularizer | None = None,
    memory: Memory | None = None,
    average: Average | None = None,
    reset: Reset | None = None,
    replay_loss: Loss | None = None,
    replay_weight: ScalarLike | ReplayWeight = 1.0,
    chunk_size: int | None = None,
    perturb_penalty: bool = True,
    reset_optimizer: bool = True,
    reset_gradient: bool = False,
    metrics: StepMetrics | None = None,
    learners: Callable[[MethodState], Mapping[str, PyTree]] | None = None,
) -> Method:
    """Compose independent parts into one learner.

    Args:
      loss: ``(params, batch, keys [b]) -> [b]``, one number per example.
      optimizer: turns the final gradient into an update; any optax transformation except
        a line search, which needs the gradient of the loss itself. It gets ``value``,
        ``grad_fn(params)`` (of loss and penalty) and ``progress``. The averaged parameters
        of a schedule-free optimizer are the default learner, and training continues from
        them after a task.
      gradient: a transformation of the raw gradient that may call ``grad_fn(params)``,
        ``replay_grad_fn(params)`` or ``task_grad_fn(params)`` (SAM, GNP, A-GEM, GEM).
        All use the same batch and replay, and for each row the same key. The identity if
        absent.
      regularizer: keeps parameters near past solutions.
      memory: stores and replays examples.
      average: the slower copy that is evaluated.
      reset: changes parameters after the update to maintain plasticity.
      replay_loss: the loss of replayed rows if it differs from that of new ones (DER).
        It is added, not averaged with the other; each then needs a separate pass.
      replay_weight: the weight of the replay loss relative to the current one, or a
        function of the step, such as :func:`by_rows` or :func:`by_tasks`; the Python
        number 0 for methods that use only its gradient (A-GEM, GEM).
      chunk_size: rows whose activations are held at once: gradient accumulation, for
        every gradient of the loss; all if absent. See
        :func:`jaxcl.losses.example_losses`. A regularizer that uses rows has its own
        ``chunk_size``.
      perturb_penalty: whether the gradient transformation includes the penalty (SAM on
        loss + penalty), or the penalty's gradient is added afterwards, taken at the
        unperturbed parameters (as in Create-and-Find).
      reset_optimizer: reset the optimizer to its initial state at the end of each task.
      reset_gradient: likewise the gradient transformation, so that schedules inside it
        count from the start of the task, and LookSAM reuses no direction of another task.
      metrics: further scalars for :class:`~jaxcl.typing.StepInfo`.
      learners: what is evaluated, by name and the default first; if absent the average,
        if there is one, and the parameters.

    Returns:
      A :class:`~jaxcl.typing.Method`. Parts that are absent have no state and add nothing
      to the compiled program.
    """
    if not callable(replay_weight):
        check_number("make_method", replay_weight=replay_weight)
    check_size("make_method", optional=True, chunk_size=chunk_size)
    check_kind("make_method", Callable, "such as cross_entropy(outputs)", loss=loss)
    check_function("make_method", "params, batch, keys", loss=loss)
    part = partial(check_kind, "make_method", optional=True)
    part(Regularizer, "build it, and add several by sum_of", regularizer=regularizer)
    part(Memory, "build it, such as reservoir(...)", memory=memory)
    part(Average, "build it, such as ema(...)", average=average)
    part(Reset, "build it, and join several by chain_resets", reset=reset)
    check_kind("make_method", Callable, optional=True, learners=learners)
    for name in {"grad_norm", "penalty"} & set(metrics or ()):
        msg = (
            f"make_method: metrics has {name!r}, which steps report anyway; rename it."
        )
        raise ValueError(msg)
    if callable(replay_weight):
        check_function("make_method", "batch, replay, progress", weight=replay_weight)
    if replay_loss is not None:
        check_kind("make_method", Callable, replay_loss=replay_loss)
        check_function("make_method", "params, batch, keys", replay_loss=replay_loss)
    if replay_loss is not None and memory is None:
        msg = "make_method: replay_loss needs a memory, got none; give memory= as well."
        raise ValueError(msg)
    gradient = accepting("gradient", gradient or optax.identity())
    optimizer = accepting("optimizer", optimizer)
    regularizer, memory = regularizer or Regularizer(), memory or no_memory()
    average, reset = average or Average(), reset or Reset()
    penalised = regularizer.penalty is not no_penalty
    data_loss = _data_loss(loss, replay_loss, replay_weight, chunk_size)
    replayed_loss = _replayed_loss(replay_loss or loss, chunk_size)

    def init(params, example):
        check_batch("init", example)
        _check_params(params)
        return MethodState(
            params,
            gradient.init(params),
            first_state(optimizer, params),
            regularizer.init(params, example),
            memory.init(params, example),
            average.init(params, example),
            reset.init(params, example),
            Progress(*(jnp.zeros((), jnp.int32) for _ in Progress._fields)),
        )

    def step(key, state, batch):
        check_kind("step", MethodState, "call step(key, state, batch)", state=state)
        key = as_key("step", key)
        check_batch("step", batch)
        check_size("step", rows=num_rows(batch))
        # Append new uses of keys: the first five are those of committed runs.
        key_loss, key_sample, key_memory, key_reset, key_replay, *more = split(key, 7)
        params, progress = state.params, state.progress
        groups = memory.sample(key_sample, state.memory)
        group_keys = split(key_replay, groups.weight.shape)
        rows = batch, split(key_loss, num_rows(batch))
        replay = _flat(groups), group_keys.reshape(-1)
        averaged = average.read(state.average, params)
        context = Context(batch, replay[0], rows[1], replay[1], averaged, progress)

        def objective(params):
            return data_loss(params, *rows, *replay, progress)

        def penalty(params):
            return regularizer.penalty(state.regularizer, params, context)

        # Two gradients, added: one program for both is up to twice as slow on a CPU.
        def data_grad(params, *ignored):
            del ignored  # optax.contrib.sam passes the number of its inner step
            return jax.grad(objective, has_aux=True)(params)[0]

        def full_grad(params, *ignored):
            grads = data_grad(params, *ignored)
            return axpy(1.0, jax.grad(penalty)(params), grads) if penalised else grads

        (value, losses), data_grads = jax.value_and_grad(objective, has_aux=True)(
            params
        )
        raw, total, logged = data_grads, value, {}
        if penalised:
            cost, penalty_grads = jax.value_and_grad(penalty)(params)
            total, logged = value + cost, {"penalty": cost}
        if penalised and perturb_penalty:
            raw = axpy(1.0, penalty_grads, raw)
        past, length = jax.grad(replayed_loss), norm(raw)
        grads, gradient_state = gradient.update(
            raw,
            state.gradient,
            params,
            value=total if perturb_penalty else value,
            grad_fn=full_grad if perturb_penalty else data_grad,
            replay_grad_fn=lambda params: past(params, *replay),
            task_grad_fn=lambda params: _by_task(past, params, groups, group_keys),
            progress=progress,
        )
        if penalised and not perturb_penalty:
            grads = axpy(1.0, penalty_grads, grads)
        updates, optimizer_state = optimizer.update(
            grads,
            state.optimizer,
            params,
            value=total,
            grad_fn=full_grad,
            progress=progress,
        )
        new = optax.apply_updates(params, updates)
        new = regularizer.project(state.regularizer, new)
        reset_state, new, mask = reset.reset(key_reset, state.reset, new, batch)
        record = StepRecord(
            params,
            data_grads,
            subtract(new, params),
            after((new, value, length), batch),  # a write to the memory comes last
            replay[0],
            losses,
            progress,
        )
        state = MethodState(
            new,
            gradient_state,
            restarted(optimizer, optimizer_state, new, mask),
            regularizer.observe(more[0], state.regularizer, record, new),
            memory.observe(key_memory, state.memory, record, new),
            average.observe(more[1], state.average, record, new),
            reset_state,
            progress._replace(step=progress.step + 1),
        )
        logged |= {"grad_norm": length}
        logged |= {name: read(state, record) for name, read in (metrics or {}).items()}
        return state, StepInfo(value, jnp.isfinite(total), logged)

    def end_task(key, state, data):
        check_kind(
            "end_task", MethodState, "call end_task(key, state, data)", state=state
        )
        key = as_key("end_task", key)
        check_batch("end_task", data)
        key_regularizer, key_memory, key_average = split(key, 3)
        params = schedule_free_average(state) if reset_optimizer else None
        params = state.params if params is None else params
        average_state, params = average.end_task(
            key_average, state.average, params, data
        )
        return MethodState(
            params,
            gradient.init(params) if reset_gradient else state.gradient,
            optimizer.init(params) if reset_optimizer else state.optimizer,
            regularizer.end_task(key_regularizer, state.regularizer, params, data),
            memory.end_task(key_memory, state.memory, params, data),
            average_state,
            state.reset,
            Progress(
                state.progress.task + 1,
                jnp.zeros((), jnp.int32),
                state.progress.num_steps,
            ),
        )

    def usual_learners(state):
        found = {"params": state.params}
        averaged = schedule_free_average(state)
        if average.read is not Average().read:
            averaged = average.read(state.average, state.params)
        return found if averaged is None else {"average": averaged, **found}

    def named_learners(state):
        found = (learners or usual_learners)(state)
        named = isinstance(found, Mapping) and all(isinstance(n, str) for n in found)
        if not named or not found:
            msg = (
                f"make_method: learners must return a dict {{name: parameters}}, got "
                f"{shown(found)}; the first one is the default."
            )
            raise ValueError(msg)
        return found

    return Method(init, step, end_task, named_learners)


def default_learner(method: Method, state: MethodState) -> PyTree:
    """The default learner of a method: the first one."""
    return next(iter(method.learners(state).values()))


def _data_loss(loss, replay_loss, replay_weight: Any, chunk_size):
    """``(params, batch, keys, replay, replay_keys, progress) -> (L, losses [b])``."""
    losses_of = partial(example_losses, chunk_size=chunk_size)
    scheduled = callable(replay_weight)
    weight_of: Any = replay_weight if scheduled else lambda *given: replay_weight

    def data(params, batch, keys, replay, replay_keys, progress):
        shares, size = _shares(batch), num_rows(batch)
        if not num_rows(replay) or (not scheduled and is_zero(replay_weight)):
            losses = losses_of(loss, params, batch, keys)
            return jnp.sum(shares * losses), losses
        weight = jnp.any(replay.weight > 0) * weight_of(batch, replay, progress)
        past_shares = weight * _shares(replay)
        if replay_loss is None and not jax.tree.leaves(batch.stored):
            replay = replay._replace(stored=batch.stored)
        if replay_loss is None and _alike(batch, replay):
            # In one pass: two passes cost half as much again.
            join = lambda a, b: jnp.concatenate([a, b])
            both = jax.tree.map(join, (batch, keys), (replay, replay_keys))
            shares = join(shares, past_shares) / (1 + weight)
            losses = losses_of(loss, params, *both)
            return jnp.sum(shares * losses), losses[:size]
        losses = losses_of(loss, params, batch, keys)
        past = losses_of(replay_loss or loss, params, replay, replay_keys)
        total = jnp.sum(shares * losses) + jnp.sum(past_shares * past)
        return total if replay_loss else total / (1 + weight), losses

    return data


def _alike(batch: Batch, replay: Batch) -> bool:
    """Whether rows of both have one structure, and the same shapes and dtypes."""
    look = lambda rows: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows
    )
    return look(batch) == look(replay)


def _replayed_loss(loss, chunk_size):
    """``(params, replay, keys) -> scalar``: the weighted mean over replayed rows."""

    def replayed(params, replay, keys):
        losses = example_losses(loss, params, replay, keys, chunk_size=chunk_size)
        return jnp.sum(_shares(replay) * losses)

    return replayed


def _by_task(past, params, groups: Batch, keys):
    """The gradient on each task's part of the replay, leaves [T, ...]."""
    if groups.weight.ndim != 2:
        msg = (
            "make_method: task_grad_fn needs replay grouped by task, leaves [T, m, ...], "
            f"got weights of shape {groups.weight.shape}; use "
            "jaxcl.memory.episodic(..., grouped=True)."
        )
        raise ValueError(msg)
    return jax.vmap(past, in_axes=(None, 0, 0))(params, groups, keys)


def _check_params(params: Params) -> None:
    """Refuse leaves that cannot be trained, naming their path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if "'batch_stats'" in jax.tree_util.keystr(path):
            msg = (
                "init: params must be trained, got running statistics (batch_stats), "
                "which depend on the batch; use GroupNorm or LayerNorm, or "
                "variables['params'] alone."
            )
            raise ValueError(msg)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            msg = (
                "init: params must be a tree of real arrays, got "
                f"{shown(leaf) if dtype is None else dtype} at "
                f"{jax.tree_util.keystr(path) or 'its root'}; keep out of params what is "
                "not trained, and give build what it needs (frozen=)."
            )
            raise ValueError(msg)


def _shares(batch: Batch):
    """The normalised weights of rows; zeros for a batch of padding."""
    return safe_divide(batch.weight, jnp.sum(batch.weight))


def _flat(replay: Batch) -> Batch:
    """Rows [b, ...] of a replay that may be grouped by task, [T, m, ...]."""
    if replay.weight.ndim == 1:
        return replay
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), replay)


__all__ = [
    "ReplayWeight",
    "StepMetrics",
    "by_rows",
    "by_tasks",
    "default_learner",
    "make_method",
]
