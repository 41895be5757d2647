"""A slot for each task: parts of leaves, of which only the current task's is trained.

A leaf has equal parts along one axis, a part for each task. Shapes do not depend on the
task, so that one compiled program serves all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxcl.adapters.paths import path_of
from jaxcl.errors import check_size, require
from jaxcl.tree import copied
from jaxcl.typing import Params, Regularizer

#: ``(path) -> axis``: the axis along which a leaf has slots, counted from the last one or
#: from the first; None for a leaf without slots, which every task trains.
SlotAxis = Callable[[str], int | None]


class SlotState(NamedTuple):
    """The slots as the last task left them."""

    kept: Params  # the parameters at the end of the last task
    tasks_seen: Int[Array, ""]  # the number of the current task's slot


def keep_slots(axis_of: SlotAxis, num_tasks: int) -> Regularizer:
    """After every update, restore the slots of all tasks but the current one.

    So past slots stay as their tasks left them, and later ones as they were initialised,
    whatever momentum, weight decay or a penalty would do. The projection costs a pass over
    the parameters, the state is a copy of them. A task beyond ``num_tasks`` trains the last
    slot further.

    Args:
      axis_of: the axis of a leaf's slots, by its path.
      num_tasks: slots, for all tasks that are to come.
    """
    check_size("keep_slots", num_tasks=num_tasks)

    def init(params, example):
        del example
        _check_slots("keep_slots", axis_of, num_tasks, params)
        return SlotState(copied(params), jnp.zeros((), jnp.int32))

    def project(state, params):
        masks = _current(axis_of, num_tasks, params, state.tasks_seen)
        return jax.tree.map(jnp.where, masks, params, state.kept)

    def end_task(key, state, params, data):
        del key, data
        return SlotState(copied(params), state.tasks_seen + 1)

    return Regularizer(init, project=project, end_task=end_task)


def in_current_slot(
    axis_of: SlotAxis,
    num_tasks: int,
    gradient: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A gradient transformation that is given the gradient of the current slot only.

    Gradients of other slots are zero, also those that ``gradient`` asks for: SAM perturbs
    the current slot alone, and a clipped norm is that of the current slot.

    Args:
      axis_of: as in :func:`keep_slots`.
      num_tasks: likewise.
      gradient: what to do with the gradient; nothing else if absent.
    """
    check_size("in_current_slot", num_tasks=num_tasks)
    own = optax.with_extra_args_support(gradient or optax.identity())

    def update(grads, state, params=None, *, progress: Any, **extra: Any):
        masks = _current(axis_of, num_tasks, grads, progress.task)
        # A gradient per task has one more axis in front, which masks are broadcast over.
        masked = lambda tree: jax.tree.map(
            lambda mask, leaf: jnp.where(mask, leaf, 0), masks, tree
        )
        for name in ("grad_fn", "replay_grad_fn", "task_grad_fn"):
            if (function := extra.get(name)) is not None:
                extra[name] = _then(masked, function)
        return own.update(masked(grads), state, params, progress=progress, **extra)

    full: Any = update
    return optax.GradientTransformationExtraArgs(own.init, full)


def _then(last: Callable, first: Callable) -> Callable:
    return lambda *arguments: last(first(*arguments))


def _current(axis_of: SlotAxis, num_tasks: int, tree: Params, task: Any) -> Params:
    """Masks of the current slot: of the leaf's rank, all true for leaves without slots."""

    def mask(path, leaf):
        axis = axis_of(path_of(path))
        if axis is None:
            return jnp.ones((1,) * leaf.ndim, bool)
        size = leaf.shape[axis]
        slot = jnp.arange(size) // (size // num_tasks)
        shape = [1] * leaf.ndim
        shape[axis] = size
        return (slot == jnp.minimum(task, num_tasks - 1)).reshape(shape)

    return jax.tree_util.tree_map_with_path(mask, tree)


def _check_slots(who: str, axis_of: SlotAxis, num_tasks: int, params: Params) -> None:
    """Refuse leaves that cannot be cut into slots, and a tree without any."""
    found = False
    for entries, leaf in jax.tree.leaves_with_path(params):
        path = path_of(entries)
        if (axis := axis_of(path)) is None:
            continue
        found, size = True, leaf.shape[axis]
        wanted = f"{path} must have a multiple of {num_tasks} along axis {axis}"
        remedy = "make it for num_tasks tasks"
        require(size % num_tasks == 0, who, f"{wanted}, got {size}; {remedy}")
    require(
        found, who, "params must have leaves with slots, got none; partition others"
    )
