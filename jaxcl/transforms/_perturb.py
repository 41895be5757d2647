"""Perturbations of the parameters, shared by the sharpness-aware transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from jaxcl.errors import InputError, is_zero, require
from jaxcl.tree import axpy, dot, norm, safe_divide, wide, wide_dtype
from jaxcl.typing import Params

#: A number, a traced number, or a schedule ``(count) -> number``.
ScalarOrSchedule = ScalarLike | Callable[[Any], Any]

#: ``True`` where a leaf is perturbed: a tree, a prefix of the parameters'
#: tree or ``(params) -> tree``. Leaves are booleans or boolean arrays.
Mask = PyTree | Callable[[Params], PyTree]


class PerturbationState(NamedTuple):
    """The number of updates, and measurements of the last perturbation.

    Norms and the inner product run over the leaves that are perturbed. The last two
    fields are ``None`` unless the transformation was built with ``measure=True``.
    """

    count: Int[Array, ""]  # updates so far; the argument of schedules
    rho: Float[Array, ""]  # radius of the perturbation
    grad_norm: Float[Array, ""]  # |g|, at the parameters
    perturbed_norm: Float[Array, ""] | None  # |g_p|, at the perturbed point
    alignment: Float[Array, ""] | None  # <g, g_p>


def empty_state(measure: bool) -> PerturbationState:
    """The state before the first update."""
    # A separate buffer for each, because a state may be donated.
    zero = lambda: jnp.zeros((), jnp.float32)
    more = (zero(), zero()) if measure else (None, None)
    return PerturbationState(jnp.zeros((), jnp.int32), zero(), zero(), *more)


def next_count(count) -> Int[Array, ""]:
    """One more update, up to the largest int32."""
    return jnp.asarray(optax.safe_increment(count))


def logged(count, rho, ascent, perturbed=None) -> PerturbationState:
    """The state after update ``count``; measured if ``perturbed`` (``g_p``) is given."""
    # Give it only if its fields are wanted: on a CPU, keeping the gradient g (ascent)
    # until g_p is there can cost as much as half a gradient of a small network.
    narrow = lambda value: jnp.asarray(value).astype(jnp.float32)
    below = next_count(count), narrow(rho), narrow(norm(ascent))
    if perturbed is None:
        return PerturbationState(*below, None, None)
    above = narrow(norm(perturbed)), narrow(dot(ascent, perturbed))
    return PerturbationState(*below, *above)


def at_step(value: ScalarOrSchedule, count):
    """The value of a number or schedule at an update."""
    return value(count) if callable(value) else value


def masked_leaves(mask: Mask | None, params: Params, tree: PyTree) -> PyTree:
    """The leaves of ``tree`` that are perturbed; the others are ``None`` or zero."""
    if mask is None:
        return tree
    keeps = mask(params) if callable(mask) else mask

    def pick(keep, part):
        if isinstance(keep, bool | np.bool_):
            return part if keep else None
        return jax.tree.map(lambda leaf: jnp.where(keep, leaf, 0), part)

    return jax.tree.map(pick, keeps, tree)


def step_from(params: Params, scale, direction: PyTree) -> Params:
    """``params + scale * direction``; leaves with the direction ``None`` stay."""
    # In float32 or better: a narrower dtype would round a small step away.
    return jax.tree.map(
        lambda d, p: jax.tree.map(wide, p) if d is None else axpy(scale, d, wide(p)),
        direction,
        params,
        is_leaf=lambda leaf: leaf is None,
    )


def perturb(params: Params, rho, direction: PyTree) -> Params:
    """``params + rho * direction / |direction|``; no step where the direction is zero."""
    # eps = rho g / |g|: equation 2 of arXiv:2010.01412 for the Euclidean norm.
    return step_from(params, safe_divide(rho, norm(direction)), direction)


def perturb_adaptively(params: Params, rho, direction: PyTree, eta) -> Params:
    """``params + rho T^2 d / |T d|`` with ``T = |params| + eta``, for every entry."""

    def scale_by_weight(d, p):
        if d is None:
            return None
        dtype = wide_dtype(d, p)
        return (jnp.abs(p.astype(dtype)) + eta) * d.astype(dtype)

    none = lambda leaf: leaf is None
    # once = T d and twice = T^2 d: eps = rho T^2 d / |T d|, as in arXiv:2102.11600.
    once = jax.tree.map(scale_by_weight, direction, params, is_leaf=none)
    twice = jax.tree.map(scale_by_weight, once, params, is_leaf=none)
    return step_from(params, safe_divide(rho, norm(once)), twice)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves of ``tree`` in the dtypes of ``like``; fails for other shapes."""
    cast = lambda leaf, other: leaf.astype(other.dtype).reshape(other.shape)
    return jax.tree.map(cast, tree, like)


def mix(weight_a, a: PyTree, weight_b, b: PyTree) -> PyTree:
    """``weight_a * a + weight_b * b`` in float32 or better, in the dtypes of ``a``."""

    def leaf(x, y):
        dtype = wide_dtype(x, y)
        return (weight_a * x.astype(dtype) + weight_b * y.astype(dtype)).astype(x.dtype)

    return jax.tree.map(leaf, a, b)


def transformation(
    init: Callable[[Params], Any],
    update: Callable[..., Any],
    *,
    needs_params: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """The pair, as optax wants it; refuses complex parameters, and absent ones."""

    def checked_init(params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if jnp.iscomplexobj(leaf):  # norms and products would take the real part
                came = f"{leaf.dtype} at {jax.tree_util.keystr(path) or 'its root'}"
                msg = f"init: params must be real, got {came}; make two leaves of each."
                raise InputError(msg)
        return init(params)

    def checked_update(updates, state, params=None, **extra):
        hidden = lambda leaf: isinstance(leaf, optax.MaskedNode)
        leaves = jax.tree.leaves(params, is_leaf=hidden)
        require(
            params is not None and not any(map(hidden, leaves)),
            "update",
            "expected all params, got none, or some hidden by optax.masked or "
            "optax.partition; pass them, and give the transformation itself a mask",
        )
        return update(updates, state, params, **extra)

    last: Any = checked_update if needs_params else update
    return optax.GradientTransformationExtraArgs(checked_init, last)


def perturbed_update(
    rho: ScalarOrSchedule,
    combine: Callable[[Any, PyTree, PyTree], PyTree] | None = None,
    *,
    move: Callable[[Params, Any, PyTree], Params] = perturb,
    mask: Mask | None = None,
    measure: bool = False,
    skip: bool = False,
) -> Callable[..., Any]:
    """``(grads, state, params, *, grad_fn)`` that perturbs once and combines ``g, g_p``.

    Args:
      rho: radius.
      combine: ``(count, g, g_p) -> grads``; ``g_p`` if absent.
      move: ``(params, rho, ascent) -> params``.
      mask: which leaves are perturbed.
      measure: whether the state also holds what needs both gradients.
      skip: use ``g`` as ``g_p``, for strengths that do not use the second gradient.
    """

    def update(grads, state, params, *, grad_fn, **_):
        radius = at_step(rho, state.count)
        ascent = masked_leaves(mask, params, grads)
        if skip or is_zero(radius):
            perturbed = grads
        else:
            perturbed = cast_like(grad_fn(move(params, radius, ascent)), grads)
        seen = masked_leaves(mask, params, perturbed) if measure else None
        after = logged(state.count, radius, ascent, seen)
        return combine(state.count, grads, perturbed) if combine else perturbed, after

    return update


def one_perturbation(
    rho: ScalarOrSchedule, *combine, measure: bool = False, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """The transformation whose update is :func:`perturbed_update`."""
    update = perturbed_update(rho, *combine, measure=measure, **options)
    return transformation(lambda _: empty_state(measure), update)
