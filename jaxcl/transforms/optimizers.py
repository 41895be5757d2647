"""What a method needs of an optimizer: extra arguments, first state, averages."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from jaxcl.errors import InputError, shown
from jaxcl.typing import MethodState, Params, Progress

_LINE_SEARCH = (
    "take steps from the gradient, got a line search, which evaluates the loss again; "
    "give a learning rate, such as optax.lbfgs(0.1, linesearch=None)."
)
#: Modules of this package whose transformations may be, or hold, an optimizer.
_ANY = ("across_devices", "by_progress", "optimizers")
_REFUSED = {
    "LookaheadState": (
        "take plain parameters, got optax.lookahead, which takes pairs; give its inner "
        "optimizer, and average=ema(...) for the slow copy."
    ),
    "ScaleByBacktrackingLinesearchState": _LINE_SEARCH,
    "ScaleByZoomLinesearchState": _LINE_SEARCH,
}


def first_state(
    optimizer: optax.GradientTransformation, params: Params
) -> optax.OptState:
    """The optimizer's state, or a ValueError for one that does not fit."""
    try:
        state = optimizer.init(params)
    except ValueError as error:
        if "structure" not in str(error):
            raise
        msg = (
            "make_method: optimizer must fit the parameters, got a mask or labels of "
            f"another structure than params ({type(params).__name__}); give it as a "
            "function of the parameters, such as lambda params: jax.tree.map(...), or "
            "the parameters as plain dicts (flax.core.unfreeze)."
        )
        raise InputError(msg) from error
    for name, wanted in _REFUSED.items():
        if _named(name, state):
            msg = f"make_method: optimizer must {wanted}"
            raise InputError(msg)
    if any(node.cache is not None for node in _named("SAMState", state)):
        msg = (
            "make_method: optimizer must leave the parameters where they are evaluated, "
            "got optax.contrib.sam, which moves them between its two kinds of steps; give "
            "gradient=sam(rho), or optax.contrib.sam(..., opaque_mode=True)."
        )
        raise InputError(msg)
    return state


def is_schedule_free(state: optax.OptState) -> bool:
    """Whether an optimizer's state has an average of its own, beside the parameters."""
    return bool(_named("ScheduleFreeState", state))


def _named(name: str, state: optax.OptState) -> list:
    """The parts of an optimizer's state of this type, which optax does not export."""
    is_it = lambda node: type(node).__name__ == name
    return [node for node in jax.tree.leaves(state, is_leaf=is_it) if is_it(node)]


def accepting(name: str, part: Any) -> optax.GradientTransformationExtraArgs:
    """A transformation that takes any extra arguments and sees those that it names."""
    if not {"init", "update"} <= set(dir(part)):
        msg = (
            f"make_method: {name} must be an optax transformation, got {shown(part)}; "
            "build it, such as optax.sgd(0.1)."
        )
        raise InputError(msg)
    module = str(getattr(part.update, "__module__", ""))
    package, _, last = module.rpartition(".")
    if name == "optimizer" and package == "jaxcl.transforms" and last not in _ANY:
        msg = (
            "make_method: optimizer must turn a gradient into an update, got a gradient "
            "transformation, which would go uphill; give it as gradient=, or an optimizer "
            "after it: optax.chain(sam(0.05), optax.sgd(0.1))."
        )
        raise InputError(msg)
    part = optax.with_extra_args_support(part)
    if name == "gradient" and module.startswith("optax") and _reverses(part):
        msg = (
            "make_method: gradient must return a gradient, got a transformation that "
            "reverses it, as an optimizer does; give it as optimizer."
        )
        raise InputError(msg)
    named = inspect.signature(part.update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in named.values()):
        return part

    def update(updates, state, params=None, **offered):
        wanted = {key: value for key, value in offered.items() if key in named}
        return part.update(updates, state, params, **wanted)

    return optax.GradientTransformationExtraArgs(part.init, update)


def _reverses(part: optax.GradientTransformationExtraArgs) -> bool:
    """Whether a gradient of ones comes back negative; False where that is not known."""
    ones: Any = {"w": np.ones(1, np.float32)}
    gradients = lambda *_: ones
    zero: Any = np.zeros((), np.int32)
    try:
        with jax.ensure_compile_time_eval():
            changed: Any = part.update(
                ones,
                part.init(ones),
                ones,
                value=np.ones((), np.float32),
                grad_fn=gradients,
                replay_grad_fn=gradients,
                task_grad_fn=lambda *_: {"w": np.ones((1, 1), np.float32)},
                progress=Progress(zero, zero, zero),
            )[0]
            return bool(changed["w"][0] < 0)
    except Exception:  # masks of other parameters, traced numbers, other arguments
        return False


def schedule_free_average(state: MethodState) -> Params | None:
    """The averaged parameters of a schedule-free optimizer; None for any other.

    Parameters that a mask or labels leave to another optimizer are returned unchanged.
    """
    averaged, nodes = state.params, _named("ScheduleFreeState", state.optimizer)
    for node in nodes:
        # As optax.contrib.schedule_free_eval_params, which does not handle masks.
        def read(z, y, b1=node.b1):
            if isinstance(z, optax.MaskedNode):
                return y
            return ((y - (1.0 - b1) * z) / b1).astype(y.dtype)

        left_out = lambda leaf: isinstance(leaf, optax.MaskedNode)
        averaged = jax.tree.map(read, node.z, averaged, is_leaf=left_out)
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
    left_out = lambda leaf: isinstance(leaf, optax.MaskedNode)

    def mark(leaf, mask):
        if left_out(leaf) or leaf.shape == mask.shape:
            return leaf if left_out(leaf) else mask
        msg = (
            "make_method: a reset restarts the optimizer's statistics entry by entry; "
            f"expected them in the shapes of the parameters, got {leaf.shape} for "
            f"{mask.shape}; use an optimizer such as SGD or Adam."
        )
        raise InputError(msg)

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


__all__ = [
    "accepting",
    "first_state",
    "is_schedule_free",
    "restarted",
    "schedule_free_average",
]
