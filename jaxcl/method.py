"""A method: gradient x optimizer x regularizer x memory x average x renewal.

One step, in the order of the code::

    replay  = memory.sample(key, memory_state)
    L(p)    = (loss(p, batch) + w * loss(p, replay)) / (1 + w)    w = 0 while empty
    R(p)    = regularizer.penalty(state, p, Context(batch, replay, slow, key))
    perturb_penalty:   g = gradient.update(grad L + grad R, grad_fn = both, ...)
    otherwise:         g = gradient.update(grad L, grad_fn = grad L, ...) + grad R
    params  = regularizer.project(state, params + optimizer.update(g))
    params  = renewal.renew(key, state, params, batch)
    memory and average observe

Two conditions on the caller. *Build inside*: construct the method inside the function that
is compiled, from arguments; strengths are then traced (a grid is a ``vmap``) and frozen
weights are arguments instead of literals in the program. *Gate by data*: an empty memory
has weight zero and a first task has zero importance; no part needs an ``if``.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.random import split
from jaxtyping import ScalarLike

from jaxcl.averages import no_average
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
from jaxcl.plasticity import no_reset
from jaxcl.regularizers import no_regularizer
from jaxcl.tree import axpy, check_batch, norm, num_rows, safe_divide
from jaxcl.typing import (
    Average,
    Batch,
    Context,
    Loss,
    Memory,
    Method,
    MethodState,
    Regularizer,
    Reset,
    StepInfo,
)


def make_method(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    gradient: optax.GradientTransformation | None = None,
    regularizer: Regularizer | None = None,
    memory: Memory | None = None,
    average: Average | None = None,
    reset: Reset | None = None,
    replay_weight: ScalarLike = 1.0,
    chunk_size: int | None = None,
    perturb_penalty: bool = True,
    reset_optimizer: bool = True,
    reset_gradient: bool = False,
) -> Method:
    """Compose independent parts into one learner.

    Args:
      loss: ``(params, batch, keys [b]) -> [b]``, one number per example.
      optimizer: turns the final gradient into an update; any optax transformation but
        a line search, which would have to move along the gradient of the loss itself.
      gradient: a transformation of the raw gradient that may call ``grad_fn(params)``,
        ``replay_grad_fn(params)`` or ``task_grad_fn(params)`` (SAM, GNP, A-GEM, GEM).
        All see the same batch and replay, and each row the same key. The identity if
        absent.
      regularizer: what pulls towards the past.
      memory: which examples come back.
      average: the slower copy that is evaluated.
      reset: what touches parameters after the update to keep them able to learn.
      replay_weight: how much the replayed loss counts next to the current one; the
        Python number 0 for methods that only look at its gradient (A-GEM, GEM).
      chunk_size: rows whose activations are held at once: gradient accumulation, for
        every gradient of the loss; all if absent. See
        :func:`jaxcl.losses.example_losses`. A regularizer that looks at rows has a
        ``chunk_size`` of its own.
      perturb_penalty: whether the gradient transformation sees the penalty (SAM on
        loss + penalty), or the penalty's gradient is added afterwards, taken at the
        unperturbed parameters (as Create-and-Find does).
      reset_optimizer: start the optimizer anew at the end of each task.
      reset_gradient: likewise the gradient transformation, so that schedules inside it
        count from the start of the task.

    Returns:
      A :class:`~jaxcl.typing.Method`. Parts that are absent leave nothing in the state
      and nothing in the compiled program.
    """
    check_number("make_method", replay_weight=replay_weight)
    check_size("make_method", optional=True, chunk_size=chunk_size)
    check_kind("make_method", Callable, "such as cross_entropy(outputs)", loss=loss)
    check_function("make_method", "params, batch, keys", loss=loss)
    part = partial(check_kind, "make_method", optional=True)
    part(Regularizer, "build it, and add several by sum_of", regularizer=regularizer)
    part(Memory, "build it, such as reservoir(...)", memory=memory)
    part(Average, "build it, such as ema(...)", average=average)
    part(Reset, "build it, and join several by chain_resets", reset=reset)
    gradient = _transformation("gradient", gradient or optax.identity())
    optimizer = _transformation("optimizer", optimizer)
    penalised = regularizer is not None
    regularizer = regularizer or no_regularizer()
    memory = memory or no_memory()
    average = average or no_average()
    reset = reset or no_reset()
    losses = _losses(loss, replay_weight, chunk_size)

    def init(params, example):
        check_batch("init", example)
        for leaf in jax.tree.leaves(params):
            if not hasattr(leaf, "dtype"):
                msg = f"init: params must be a tree of arrays, got {shown(leaf)} in it."
                raise ValueError(msg)
        return MethodState(
            params,
            gradient.init(params),
            optimizer.init(params),
            regularizer.init(params),
            memory.init(example),
            average.init(params),
            reset.init(params),
        )

    def step(key, state, batch):
        check_kind("step", MethodState, "call step(key, state, batch)", state=state)
        key = as_key("step", key)
        check_batch("step", batch)
        check_size("step", rows=num_rows(batch))
        key_loss, key_sample, key_observe, key_reset, key_replay = split(key, 5)
        params = state.params
        groups = _filled(memory.sample(key_sample, state.memory), batch)
        keys = split(key_replay, groups.weight.shape)
        replay, replay_keys = _flat(groups), keys.reshape(-1)
        averaged = average.read(state.average, params)
        context = Context(batch, replay, averaged, key_loss)

        def penalty(params):
            return regularizer.penalty(state.regularizer, params, context)

        def objective(params):
            now = batch, split(key_loss, num_rows(batch))
            return losses.data(params, *now, replay, replay_keys)

        # Taken apart and added: one program for both is up to twice as slow on a CPU.
        def grad_fn(params):
            grads = jax.grad(objective)(params)
            if not (penalised and perturb_penalty):
                return grads
            return axpy(1.0, jax.grad(penalty)(params), grads)

        past = jax.grad(losses.replay)
        value, raw = jax.value_and_grad(objective)(params)
        if penalised:
            cost, penalty_grads = jax.value_and_grad(penalty)(params)
            if perturb_penalty:
                value, raw = value + cost, axpy(1.0, penalty_grads, raw)
        grads, gradient_state = gradient.update(
            raw,
            state.gradient,
            params,
            value=value,
            grad_fn=grad_fn,
            replay_grad_fn=lambda params: past(params, replay, replay_keys),
            task_grad_fn=lambda params: _by_task(past, params, groups, keys),
        )
        if penalised and not perturb_penalty:
            grads = axpy(1.0, penalty_grads, grads)
        updates, optimizer_state = optimizer.update(
            grads, state.optimizer, params, value=value
        )
        params = optax.apply_updates(params, updates)
        params = regularizer.project(state.regularizer, params)
        reset_state, params, mask = reset.reset(key_reset, state.reset, params, batch)
        return MethodState(
            params,
            gradient_state,
            _restarted(optimizer, optimizer_state, params, mask),
            state.regularizer,
            memory.observe(
                key_observe, state.memory, after((params, value, norm(raw)), batch)
            ),
            average.observe(state.average, params),
            reset_state,
        ), StepInfo(value, jnp.isfinite(value), norm(raw))

    def end_task(key, state, task):
        check_kind(
            "end_task", MethodState, "call end_task(key, state, task)", state=state
        )
        key = as_key("end_task", key)
        check_batch("end_task", task)
        key_regularizer, key_memory = split(key)
        average_state, params = average.end_task(state.average, state.params)
        return MethodState(
            params,
            gradient.init(params) if reset_gradient else state.gradient,
            optimizer.init(params) if reset_optimizer else state.optimizer,
            regularizer.end_task(key_regularizer, state.regularizer, params, task),
            memory.end_task(key_memory, state.memory, params, task),
            average_state,
            state.reset,
        )

    def eval_params(state):
        return average.read(state.average, state.params)

    return Method(init, step, end_task, eval_params)


class _Losses(NamedTuple):
    """The losses of the data; every row has a key of its own, the same in both."""

    data: Callable  # (params, batch, keys, replay, replay_keys) -> L(p)
    replay: Callable  # (params, replay, replay_keys) -> its weighted mean


def _losses(loss, replay_weight, chunk_size) -> _Losses:
    def data(params, batch, keys, replay, replay_keys):
        """L(p) over both parts in one pass, each row with its share of the mean."""
        shares, rows = _shares(batch), batch
        if num_rows(replay) and not is_zero(replay_weight):
            weight = replay_weight * jnp.any(replay.weight > 0)
            both = jnp.concatenate([shares, weight * _shares(replay)])
            shares = both / (1 + weight)
            join = lambda a, b: jnp.concatenate([a, b])
            rows, keys = jax.tree.map(join, (batch, keys), (replay, replay_keys))
        return jnp.sum(shares * losses_of(params, rows, keys))

    def replayed(params, replay, replay_keys):
        return jnp.sum(_shares(replay) * losses_of(params, replay, replay_keys))

    losses_of = partial(example_losses, loss, chunk_size=chunk_size)
    return _Losses(data, replayed)


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


def _filled(groups: Batch, batch: Batch) -> Batch:
    """Rows of the batch in the empty slots of a replay, of weight zero as before.

    They are computed with, whatever their weight, and zero times NaN is NaN: what a
    network makes of a slot's zeros would be a NaN if it divides by the norm of its input.
    """

    def fill(kept, here):
        real = jnp.expand_dims(groups.weight > 0, range(groups.weight.ndim, kept.ndim))
        return jnp.where(real, kept, jnp.resize(here, kept.shape))

    parts = (groups.x, groups.y, groups.task), (batch.x, batch.y, batch.task)
    x, y, task = jax.tree.map(fill, *parts)
    return Batch(x, y, groups.weight, task)


def _transformation(name, part):
    """An optax transformation that takes extra arguments, or a ValueError."""
    if not {"init", "update"} <= set(dir(part)):
        msg = (
            f"make_method: {name} must be an optax transformation, got {shown(part)}; "
            "build it, such as optax.sgd(0.1)."
        )
        raise ValueError(msg)
    return optax.with_extra_args_support(part)


def _shares(batch: Batch):
    """What each row counts in the weighted mean; zeros for a batch of padding."""
    return safe_divide(batch.weight, jnp.sum(batch.weight))


def _flat(replay: Batch) -> Batch:
    """Rows [b, ...] of a replay that may be grouped by task, [T, m, ...]."""
    if replay.weight.ndim == 1:
        return replay
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), replay)


def _restarted(optimizer, state, params, mask):
    """The optimizer's statistics as at the start, where parameters were renewed."""
    if mask is None:
        return state
    left_out = lambda leaf: isinstance(leaf, optax.MaskedNode)

    def mark(leaf, mask):
        if left_out(leaf) or leaf.shape == mask.shape:
            return leaf if left_out(leaf) else mask
        msg = (
            "make_method: a renewal restarts the optimizer's statistics entry by entry; "
            f"expected them in the shapes of the parameters, got {leaf.shape} for "
            f"{mask.shape}; use an optimizer such as SGD or Adam."
        )
        raise ValueError(msg)

    marks = optax.tree.map_params(
        optimizer,
        mark,
        state,
        mask,
        transform_non_params=lambda _: False,
        is_leaf=left_out,
    )
    pick = lambda mark, fresh, old: jnp.where(mark, fresh, old).astype(old.dtype)
    return jax.tree.map(pick, marks, optimizer.init(params), state)


__all__ = ["make_method"]
