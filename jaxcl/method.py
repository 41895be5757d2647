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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.random import split
from jaxtyping import Array, Float, PyTree, ScalarLike

from jaxcl.errors import check_key, check_kind, check_number, check_size, require
from jaxcl.losses.replay import (
    FromAverage,
    ReplayWeight,
    by_rows,
    replayed_loss,
    step_loss,
)
from jaxcl.memory import after, no_memory
from jaxcl.parts import noted, part_of
from jaxcl.sequences import at_needed_width
from jaxcl.sharding import split_rows
from jaxcl.transforms.optimizers import (
    accepting,
    first_state,
    is_schedule_free,
    restarted,
    schedule_free_average,
)
from jaxcl.tree import (
    axpy,
    check_batch,
    check_params,
    flat_rows,
    norm,
    num_rows,
    subtract,
)
from jaxcl.typing import (
    Average,
    Batch,
    Context,
    Key,
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
    no_projection,
)

#: ``{name: (state, step) -> scalar}``: computed after every step from the new state and the
#: :class:`~jaxcl.typing.StepRecord`.
StepMetrics = Mapping[str, Callable[[MethodState, StepRecord], Float[Array, ""]]]

#: Names that steps and the lines of the host loop have already.
_REPORTED = {
    *("at", "examples_per_second", "finite", "grad_norm", "loss", "not_finite"),
    *("penalty", "results", "seconds", "step", "task", "valid"),
}


def make_method(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    gradient: optax.GradientTransformation | None = None,
    regularizer: Regularizer | None = None,
    memory: Memory | None = None,
    average: Average | None = None,
    reset: Reset | None = None,
    replay_loss: Loss | FromAverage | None = None,
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
      optimizer: any optax transformation except a line search, which needs the gradient
        of the loss itself. It gets ``value``, ``grad_fn(params)`` (of loss and penalty)
        and ``progress``. The averaged parameters of a schedule-free optimizer are the
        default learner and what a task ends with; with ``reset_optimizer`` training
        continues from them.
      gradient: a transformation of the raw gradient that may call ``grad_fn(params)``,
        ``replay_grad_fn(params)`` or ``task_grad_fn(params)`` (SAM, GNP, A-GEM, GEM).
        All use the same batch and replay, and for each row the same key. It also gets
        ``weight``, ``replay_weight`` and ``task_weight``, the sums of the rows' weights.
      regularizer: keeps parameters near past solutions.
      memory: stores and replays examples. Replayed sequences wider than the batch are cut
        where only padding follows, and a step is compiled for a few widths of them.
      average: the slower copy that is evaluated.
      reset: changes parameters after the update to maintain plasticity.
      replay_loss: the loss of replayed rows if it differs from that of new ones (DER);
        added, not averaged with the other, in a separate pass. One that also depends on
        the average, :class:`jaxcl.losses.FromAverage`, is averaged with the other.
      replay_weight: the weight of the replay loss relative to the current one, or a
        function of the step, such as :func:`jaxcl.losses.by_rows` and ``by_tasks``;
        the Python number 0 for methods that use only its gradient (A-GEM, GEM).
      chunk_size: rows whose activations are held at once, for every gradient of the loss
        (:func:`jaxcl.losses.example_losses`); a regularizer has its own ``chunk_size``.
      perturb_penalty: whether the gradient transformation includes the penalty (SAM on
        loss + penalty), or the penalty's gradient is added afterwards, taken at the
        unperturbed parameters (as in Create-and-Find).
      reset_optimizer: reset the optimizer to its initial state at the end of each task.
      reset_gradient: likewise the gradient transformation, so that schedules inside it
        count from the start of the task, and LookSAM reuses no direction of another task.
      metrics: further scalars for the info, which the host loop writes down.
      learners: what is evaluated, by name and the default first; if absent the average,
        if there is one, and the parameters.

    Returns:
      A method. Parts that are absent have no state and add nothing to the compiled
      program. An error inside a part has a note that names the part.
    """
    flags: Any = {
        "perturb_penalty": perturb_penalty,
        "reset_optimizer": reset_optimizer,
        "reset_gradient": reset_gradient,
    }
    check_kind("make_method", bool, "True or False", **flags)
    check_size("make_method", optional=True, chunk_size=chunk_size)
    if callable(replay_weight):
        replay_weight = noted("replay_weight", replay_weight, by_rows)
    else:
        check_number("make_method", replay_weight=replay_weight)
    alone = replay_loss is not None and memory is None
    remedy = "give memory= as well"
    require(not alone, "make_method", f"replay_loss needs a memory, got none; {remedy}")
    taken = min(_REPORTED & set(metrics or {}), default=None)
    came = f"metrics has {taken!r}, which steps report; rename it"
    require(taken is None, "make_method", came)
    loss = noted("loss", loss)
    past: Any = replay_loss
    if isinstance(replay_loss, FromAverage):
        past = FromAverage(noted("replay_loss", replay_loss.build))
    elif replay_loss is not None:
        past = noted("replay_loss", replay_loss)
    parts = _Parts(
        accepting("gradient", optax.identity() if gradient is None else gradient),
        accepting("optimizer", optimizer),
        part_of("regularizer", regularizer, Regularizer()),
        part_of("memory", memory, no_memory()),
        part_of("average", average, Average()),
        part_of("reset", reset, Reset()),
        step_loss(loss, past, replay_weight, chunk_size),
        replayed_loss(past or loss, chunk_size),
        {
            name: noted(f"metrics[{name!r}]", of, lambda state, step: None)
            for name, of in (metrics or {}).items()
        },
        learners and noted("learners", learners),
        **flags,
    )
    return Method(
        partial(_init, parts),
        partial(_step, parts),
        partial(_end_task, parts),
        partial(_named_learners, parts),
    )


class _Parts(NamedTuple):
    """What a method is composed of; absent parts are neutral ones."""

    gradient: optax.GradientTransformationExtraArgs
    optimizer: optax.GradientTransformationExtraArgs
    regularizer: Regularizer
    memory: Memory
    average: Average
    reset: Reset
    loss: Callable[..., Any]  # see step_loss
    replayed: Callable[..., Any]  # see replayed_loss
    metrics: StepMetrics
    learners: Callable[[MethodState], Mapping[str, PyTree]] | None
    perturb_penalty: bool
    reset_optimizer: bool
    reset_gradient: bool


def _init(parts: _Parts, params: Params, example: Batch) -> MethodState:
    check_batch("init", example)
    check_params("init", params)
    optimizer_state = first_state(parts.optimizer, params)
    if is_schedule_free(optimizer_state):
        # It has an average of its own, and a box would hold for what it trains.
        boxed = parts.regularizer.project is not no_projection
        message = "a schedule-free optimizer takes no average= and no box"
        require(not boxed and parts.average == Average(), "make_method", message)
    return MethodState(
        params,
        parts.gradient.init(params),
        optimizer_state,
        parts.regularizer.init(params, example),
        parts.memory.init(params, example),
        parts.average.init(params, example),
        parts.reset.init(params, example),
        Progress(*(jnp.zeros((), jnp.int32) for _ in Progress._fields)),
    )


def _step(
    parts: _Parts, key: Key, state: MethodState, batch: Batch
) -> tuple[MethodState, StepInfo]:
    key = check_key("step", key)
    check_batch("step", batch)
    check_size("step", rows=num_rows(batch))
    # Append new uses of keys: the first five are those of committed runs.
    key_loss, key_sample, key_memory, key_reset, key_replay, *more = split(key, 7)
    params, progress = state.params, state.progress
    groups = parts.memory.sample(key_sample, state.memory)
    group_keys = split(key_replay, groups.weight.shape)
    context = Context(
        batch,
        split_rows(flat_rows(groups)),
        split(key_loss, num_rows(batch)),
        group_keys.reshape(-1),
        parts.average.read(state.average, params),
        progress,
    )
    change = _update(parts, state, context, groups, group_keys)
    new = optax.apply_updates(params, change.updates)
    new = parts.regularizer.project(state.regularizer, new)
    reset_state, new, mask = parts.reset.reset(key_reset, state.reset, new, batch)
    record = StepRecord(
        params,
        change.grads,
        subtract(new, params),
        # A write to the memory comes last.
        after((new, change.info.loss, change.info.metrics["grad_norm"]), batch),
        context.replay,
        change.losses,
        progress,
    )
    state = MethodState(
        new,
        change.gradient,
        restarted(parts.optimizer, change.optimizer, new, mask),
        parts.regularizer.observe(more[0], state.regularizer, record, new),
        parts.memory.observe(key_memory, state.memory, record, new),
        parts.average.observe(more[1], state.average, record, new),
        reset_state,
        progress._replace(step=progress.step + 1),
    )
    own = {name: read(state, record) for name, read in parts.metrics.items()}
    return state, change.info._replace(metrics={**change.info.metrics, **own})


class _Change(NamedTuple):
    """What the gradient transformation and the optimizer make of a batch."""

    updates: Params
    gradient: optax.OptState
    optimizer: optax.OptState
    grads: Params  # of the data loss
    losses: PyTree  # [b]
    info: StepInfo  # without the user's own metrics


def _update(
    parts: _Parts, state: MethodState, context: Context, groups: Batch, group_keys
) -> _Change:
    """The update of a step, from the gradients of the loss and of the penalty."""
    params, progress = state.params, context.progress
    penalised = parts.regularizer.penalty is not no_penalty
    # Around the gradients, not inside of the losses: what a loss keeps for its gradient
    # would have a place for each width.
    narrow = partial(at_needed_width, rows=context.replay, like=context.batch)

    def objective(params, replay):
        rows = context.batch, context.keys, replay, context.replay_keys
        return parts.loss(params, *rows, progress, context.average)

    def penalty(params, replay):
        seen = context._replace(replay=replay)
        return parts.regularizer.penalty(state.regularizer, params, seen)

    # Two gradients, added: one program for both is up to twice as slow on a CPU.
    def data_grad(params, *ignored):
        del ignored  # optax.contrib.sam passes the number of its inner step
        derive = jax.grad(objective, has_aux=True)
        return narrow(lambda replay: derive(params, replay)[0])

    def full_grad(params, *ignored):
        grads = data_grad(params, *ignored)
        if not penalised:
            return grads
        return axpy(1.0, narrow(partial(jax.grad(penalty), params)), grads)

    def replay_grad(params):
        message = "gradient needs replayed rows, got none; give memory="
        require(num_rows(context.replay), "make_method", message)
        derive = partial(jax.grad(parts.replayed), params)
        rest = context.replay_keys, context.average
        return narrow(lambda replay: derive(replay, *rest))

    def task_grad(params):
        given = {"keys": group_keys, "average": context.average}
        derive = partial(_by_task, parts, params, **given)
        return at_needed_width(derive, groups, context.batch)

    derive: Any = jax.value_and_grad(objective, has_aux=True)
    (value, losses), data_grads = narrow(partial(derive, params))
    raw, total, logged = data_grads, value, {}
    if penalised:
        # Noted again: a penalty of another shape fails outside of its own function.
        derive = noted("regularizer.penalty", jax.value_and_grad(penalty))
        cost, penalty_grads = narrow(partial(derive, params))
        total, logged = value + cost, {"penalty": cost}
        raw = axpy(1.0, penalty_grads, raw) if parts.perturb_penalty else raw
    logged |= {"grad_norm": norm(raw)}
    grads, gradient_state = parts.gradient.update(
        raw,
        state.gradient,
        params,
        value=total if parts.perturb_penalty else value,
        grad_fn=full_grad if parts.perturb_penalty else data_grad,
        replay_grad_fn=replay_grad,
        task_grad_fn=task_grad,
        weight=jnp.sum(context.batch.weight),
        replay_weight=jnp.sum(context.replay.weight),
        task_weight=jnp.sum(groups.weight, axis=-1),
        progress=progress,
    )
    if penalised and not parts.perturb_penalty:
        grads = axpy(1.0, penalty_grads, grads)
    extra: Any = {"value": total, "grad_fn": full_grad, "progress": progress}
    stepped = parts.optimizer.update(grads, state.optimizer, params, **extra)
    updates, optimizer_state = stepped
    info = StepInfo(value, jnp.isfinite(total), logged)
    return _Change(updates, gradient_state, optimizer_state, data_grads, losses, info)


def _end_task(parts: _Parts, key: Key, state: MethodState, data: Batch) -> MethodState:
    key = check_key("end_task", key)
    check_batch("end_task", data)
    key_regularizer, key_memory, key_average = split(key, 3)
    fresh, averaged = parts.reset_optimizer, schedule_free_average(state)
    # A schedule-free average is the solution, also where training goes on beside it.
    params = state.params if averaged is None else averaged
    ended = parts.average.end_task(key_average, state.average, params, data)
    average_state, params = ended
    end, task = parts.regularizer.end_task, state.progress.task
    return MethodState(
        params if fresh or averaged is None else state.params,
        parts.gradient.init(params) if parts.reset_gradient else state.gradient,
        parts.optimizer.init(params) if fresh else state.optimizer,
        end(key_regularizer, state.regularizer, params, data),
        parts.memory.end_task(key_memory, state.memory, params, data),
        average_state,
        state.reset,
        Progress(task + 1, jnp.zeros((), jnp.int32), state.progress.num_steps),
    )


def _named_learners(parts: _Parts, state: MethodState) -> Mapping[str, PyTree]:
    """What is evaluated; by default the average, if there is one, and the parameters."""
    if parts.learners:
        return parts.learners(state)
    averaged = schedule_free_average(state)
    if parts.average.read is not Average().read:
        averaged = parts.average.read(state.average, state.params)
    found = {"params": state.params}
    return found if averaged is None else {"average": averaged, **found}


def default_learner(method: Method, state: MethodState) -> PyTree:
    """The default learner of a method: the first one."""
    return next(iter(method.learners(state).values()))


def _by_task(parts: _Parts, params: Params, groups: Batch, keys, average) -> PyTree:
    """The gradient on each task's part of the replay, leaves [T, ...]."""
    remedy = "give memory=episodic(..., grouped=True)"
    message = f"gradient needs replay by task, got mixed rows; {remedy}"
    require(groups.weight.ndim == 2, "make_method", message)
    one = jax.grad(parts.replayed)
    axes = (None, 0, 0, None)
    return jax.vmap(one, in_axes=axes)(params, groups, keys, average)
