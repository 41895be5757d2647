"""LookSAM: climb every k-th step and reuse the direction it revealed in between."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, ScalarLike

from jaxcl.transforms._climb import (
    ClimbState,
    Mask,
    ScalarOrSchedule,
    at_step,
    check_strength,
    check_update,
    climb,
    climbers,
    empty_state,
    gradient_at,
    is_zero,
    length,
    measured,
    mix,
    next_count,
    transformation,
)
from jaxcl.tree import dot, safe_divide


class LookSamState(NamedTuple):
    """Logs of the last climb, and what it found: one tree the size of the parameters."""

    climb: ClimbState  # its count goes on at every update
    direction: PyTree  # g_v, the part of g_p across g; zero before the first climb


def looksam(
    rho: ScalarOrSchedule,
    *,
    k: int = 5,
    alpha: ScalarOrSchedule = 0.7,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware at every ``k``-th step, nearly free at the others.

    .. math::
        t \equiv 0 \pmod k:&\quad g' = g_p = \nabla L(w + \rho\, g / \|g\|), \qquad
            g_v = g_p - \langle g_p, \hat g\rangle\, \hat g \\
        \text{otherwise}:&\quad g' = g + \alpha \frac{\|g\|}{\|g_v\|}\, g_v

    The first update climbs. ``k=1`` is :func:`jaxcl.transforms.sam`. Norms are global,
    not per tensor. A ``g_v`` below the rounding of ``g_p`` counts as zero, so that
    noise is never scaled up to the length of a gradient.

    The second gradient is skipped by ``lax.cond``: its cost is really saved wherever
    the count is not mapped over, also with a whole training loop inside a ``vmap`` over
    seeds. With states stacked from outside and mapped over, ``cond`` becomes a select
    and both gradients run at every step.

    Args:
      rho: radius in parameter units; number or schedule of the update count.
      k: steps from one climb to the next, at least 1; a Python int.
      alpha: length of the reused direction relative to the gradient.
      mask: leaves that climb, as in :func:`jaxcl.transforms.sam`. Projections and norms
        run over all leaves.

    Returns:
      A transformation whose state, :class:`LookSamState`, holds ``g_v`` in the
      parameters' dtypes: unlike SAM it needs memory for one more copy of the parameters.

    Raises:
      ValueError: if ``k`` is not a positive int, a strength is known to be negative or
        not finite, or an update lacks ``params`` or ``grad_fn``.

    Cost: ``1 + 1/k`` gradients per step on average.

    Reference: Liu et al. 2022, arXiv:2203.02714, algorithm 1.
    """
    check_strength("looksam", "rho", rho)
    check_strength("looksam", "alpha", alpha)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        msg = f"looksam: k must be a Python int of at least 1, got {k!r}."
        raise ValueError(msg)

    def init(params):
        return LookSamState(empty_state(), jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None, *, grad_fn: Any = None, **ignored):
        del ignored
        check_update("looksam", params, grad_fn=grad_fn)
        count = state.climb.count
        radius, climbs = at_step(rho, count), count % k == 0

        def look():
            ascent = climbers("looksam", mask, params, grads)
            climbed = grads
            if not is_zero(radius):
                point = climb(params, radius, ascent)
                climbed = gradient_at("looksam", grad_fn, point, grads)
            seen = climbers("looksam", mask, params, climbed)
            logs = measured(count, state.climb.rho, ascent, seen)
            return climbed, LookSamState(logs, across(climbed, grads, state.direction))

        def reuse():
            scale = safe_divide(length(grads), length(state.direction))
            ahead = mix(1.0, grads, at_step(alpha, count) * scale, state.direction)
            later = state.climb._replace(count=next_count(count))
            return ahead, state._replace(climb=later)

        bent, after = look() if k == 1 else jax.lax.cond(climbs, look, reuse)
        rho_now = jnp.where(climbs, radius, state.climb.rho).astype(jnp.float32)
        return bent, after._replace(climb=after.climb._replace(rho=rho_now))

    return transformation(init, update)


def across(climbed: PyTree, grads: PyTree, like: PyTree) -> PyTree:
    """The part of ``climbed`` orthogonal to ``grads``; zero if that is only rounding."""
    along = safe_divide(dot(climbed, grads), dot(grads, grads))
    rest = mix(1.0, climbed, -along, grads)
    real: ScalarLike = length(rest) > 1e-6 * length(climbed)
    return jax.tree.map(lambda r, d: jnp.where(real, r, 0).astype(d.dtype), rest, like)


__all__ = ["LookSamState", "looksam"]
