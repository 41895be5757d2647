"""What a method needs of an optimizer: extra arguments, first state, averages."""

import inspect
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxcl.errors import require, shown
from jaxcl.typing import MethodState, Params, Progress


def first_state(
    optimizer: optax.GradientTransformation, params: Params
) -> optax.OptState:
    """The optimizer's state, or a ValueError for a SAM that would be wrong in silence."""
    state = optimizer.init(params)
    # An opaque SAM keeps no cache: it takes both of its steps at once.
    opaque = all(node.cache is None for node in _named("SAMState", state))
    remedy = "gradient=sam(rho), or optax.contrib.sam(..., opaque_mode=True)"
    came = "optax.contrib.sam, which moves the parameters that are evaluated"
    message = f"optimizer must be one of plain parameters, got {came}; give {remedy}"
    require(opaque, "make_method", message)
    return state


def is_schedule_free(state: optax.OptState) -> bool:
    """Whether an optimizer's state has an average of its own, beside the parameters."""
    return bool(_named("ScheduleFreeState", state))


def _named(name: str, state: optax.OptState) -> list:
    """The parts of an optimizer's state of this type, which optax does not export."""
    is_it = lambda node: type(node).__name__ == name
    return [node for node in jax.tree.leaves(state, is_leaf=is_it) if is_it(node)]


def _is_left_out(leaf: Any) -> bool:
    """Whether a mask or labels leave the leaf to another optimizer."""
    return isinstance(leaf, optax.MaskedNode)


def accepting(name: str, part: Any) -> optax.GradientTransformationExtraArgs:
    """A transformation that takes any extra arguments and sees those that it names."""
    wrong_way, message = _WRONG[name]
    such = {"optimizer": "optax.sgd(0.1)", "gradient": "sam(0.05)"}[name]
    wanted = f"{name} must be an optax transformation, such as {such}"
    fits = callable(getattr(part, "update", None)) and hasattr(part, "init")
    require(fits, "make_method", f"{wanted}, got {shown(part)}")
    # Not tried: gradient transformations of this library, which would take seconds, and
    # other people's code, which may do more than return an update.
    known = ("optax", "jaxcl") if name == "optimizer" else ("optax",)
    tried = part.update.__module__.startswith(known) and not _holds_others(part.update)
    part = optax.with_extra_args_support(part)
    wrong = tried and _direction(part) == wrong_way
    require(not wrong, "make_method", f"{name} must {message}")
    named = inspect.signature(part.update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in named.values()):
        return part

    def update(updates, state, params=None, **offered):
        wanted = {key: value for key, value in offered.items() if key in named}
        return part.update(updates, state, params, **wanted)

    return optax.GradientTransformationExtraArgs(part.init, update)


def _holds_others(value: Any) -> bool:
    """Whether a function closes over functions of neither optax nor this library."""
    if isinstance(value, tuple | list):
        return any(map(_holds_others, value))
    if not inspect.isfunction(value):
        return False
    held = []
    for cell in value.__closure__ or ():
        with suppress(
            ValueError
        ):  # a variable of a recursive closure may have no value
            held.append(cell.cell_contents)
    module = value.__module__ or "jax"  # none: made by a decorator of its own
    return not module.startswith(("optax", "jax")) or _holds_others(held)


#: The direction in which a part must not point, and the message if it does.
_WRONG = {
    "optimizer": (
        1,
        "turn a gradient into a step downhill, got a transformation that goes uphill; "
        "give it as gradient=, or before an optimizer: optax.chain(sam(0.05), "
        "optax.sgd(0.1))",
    ),
    "gradient": (
        -1,
        "return a gradient, got a transformation that reverses it, as an optimizer does; "
        "give it as optimizer",
    ),
}


def _direction(part: optax.GradientTransformationExtraArgs) -> int:
    """1 if the first update points along a small gradient, -1 if against it, else 0.

    Of a gradient of 1 and of -1, because noise or a decay of weights can outweigh one of
    them, but not both. 0 for a rate that starts at zero, and where it cannot be known: with
    masks, which may leave these parameters out, traced numbers or other arguments.
    """

    def along(sign: int) -> float:
        grads, params = ({"w": np.full(1, x, np.float32)} for x in (sign, 1))
        state = part.init(params)
        if _named("MaskedState", state):
            return 0.0
        zero: Any = np.zeros((), np.int32)
        offered: Any = {
            "value": np.ones((), np.float32),
            "grad_fn": lambda *_: grads,
            "replay_grad_fn": lambda *_: grads,
            "task_grad_fn": lambda *_: {"w": grads["w"][None]},
            "progress": Progress(zero, zero, zero),
        }
        updates: Any = part.update(grads, state, params, **offered)[0]
        return float(sign * updates["w"][0])

    try:
        # On the host: an accelerator would compile each operation for tenths of a second.
        with jax.ensure_compile_time_eval(), jax.default_device(jax.devices("cpu")[0]):
            found = along(1), along(-1)
    except Exception:
        return 0
    return int(min(found) > 0) - int(max(found) < 0)


def schedule_free_average(state: MethodState) -> Params | None:
    """The averaged parameters of a schedule-free optimizer; None for any other.

    Parameters that a mask or labels leave to another optimizer are returned unchanged.
    """
    averaged, nodes = state.params, _named("ScheduleFreeState", state.optimizer)
    for node in nodes:
        # As optax.contrib.schedule_free_eval_params, which does not handle masks.
        def read(z, y, b1=node.b1):
            return y if _is_left_out(z) else ((y - (1.0 - b1) * z) / b1).astype(y.dtype)

        averaged = jax.tree.map(read, node.z, averaged, is_leaf=_is_left_out)
    return averaged if nodes else None


def restarted(
    optimizer: optax.GradientTransformation,
    state: optax.OptState,
    params: Params,
    mask: PyTree | None,
) -> optax.OptState:
    """The optimizer's statistics as at the start, where parameters were reset."""
    if mask is None:
        return state

    def mark(leaf, mask):
        if _is_left_out(leaf):
            return leaf
        shapes = f"{leaf.shape} for {mask.shape}; use one such as SGD or Adam"
        message = f"optimizer statistics with a reset cannot be {shapes}"
        require(leaf.shape == mask.shape, "make_method", message)
        return mask

    marks = optax.tree.map_params(
        optimizer,
        mark,
        state,
        mask,
        transform_non_params=lambda _: False,
        is_leaf=_is_left_out,
    )
    pick = lambda mark, fresh, old: jnp.where(mark, fresh, old).astype(old.dtype)
    return jax.tree.map(pick, marks, optimizer.init(params), state)
