"""What a method asks of an optimizer: extra arguments, its first state, its averages."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxcl.errors import shown
from jaxcl.typing import MethodState, Params


def first_state(
    optimizer: optax.GradientTransformation, params: Params
) -> optax.OptState:
    """The optimizer's state, or a ValueError for one that wants other parameters."""
    try:
        return optimizer.init(params)
    except AttributeError as error:
        if "fast" not in str(error):
            raise
        msg = (
            "make_method: optimizer must take plain parameters, got optax.lookahead, "
            "which takes pairs; give its inner optimizer, and average=ema(...) for the "
            "slow copy."
        )
        raise ValueError(msg) from error


def accepting(name: str, part: Any) -> optax.GradientTransformationExtraArgs:
    """A transformation that takes any extra arguments and sees those that it names."""
    if not {"init", "update"} <= set(dir(part)):
        msg = (
            f"make_method: {name} must be an optax transformation, got {shown(part)}; "
            "build it, such as optax.sgd(0.1)."
        )
        raise ValueError(msg)
    part = optax.with_extra_args_support(part)
    named = inspect.signature(part.update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in named.values()):
        return part

    def update(updates, state, params=None, **offered):
        wanted = {key: value for key, value in offered.items() if key in named}
        return part.update(updates, state, params, **wanted)

    return optax.GradientTransformationExtraArgs(part.init, update)


def schedule_free_average(state: MethodState) -> Params | None:
    """The averaged parameters of a schedule-free optimizer; None for any other."""
    is_it = lambda node: type(node).__name__ == "ScheduleFreeState"
    for node in jax.tree.leaves(state.optimizer, is_leaf=is_it):
        if is_it(node):
            return optax.contrib.schedule_free_eval_params(node, state.params)
    return None


def restarted(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    params: Params,
    mask: PyTree | None,
) -> optax.OptState:
    """The optimizer's statistics as at the start, where parameters were reset."""
    if mask is None:
        return state
    left_out = lambda leaf: isinstance(leaf, optax.MaskedNode)

    def mark(leaf, mask):
        if left_out(leaf) or leaf.shape == mask.shape:
            return leaf if left_out(leaf) else mask
        msg = (
            "make_method: a reset restarts the optimizer's statistics entry by entry; "
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


__all__ = ["accepting", "first_state", "restarted", "schedule_free_average"]
