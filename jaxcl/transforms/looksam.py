"""LookSAM: climb every k-th step and reuse the direction it revealed in between."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxcl.errors import check_number
from jaxcl.lockstep import when
from jaxcl.transforms._perturb import (
    Mask,
    PerturbationState,
    ScalarOrSchedule,
    at_step,
    check_update,
    empty_state,
    mix,
    next_count,
    perturbed_update,
    transformation,
)
from jaxcl.transforms.sam import take_perturbed
from jaxcl.tree import dot, norm, safe_divide, wide


class LookSamState(NamedTuple):
    """Logs of the last climb, and what it found: one tree the size of the parameters."""

    perturbation: PerturbationState  # its count goes on at every update
    direction: PyTree  # g_v, the part of g_p across g; zero before the first climb
    height: Float[Array, ""]  # |g_v|; zero where g_v is nothing but rounding


def looksam(
    rho: ScalarOrSchedule,
    *,
    k: int = 5,
    alpha: ScalarOrSchedule = 0.7,
    mask: Mask | None = None,
    measure: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware at every ``k``-th step, nearly free at the others.

    .. math::
        t \equiv 0 \pmod k:&\quad g' = g_p = \nabla L(w + \rho\, g / \|g\|), \qquad
            g_v = g_p - \langle g_p, \hat g\rangle\, \hat g \\
        \text{otherwise}:&\quad g' = g + \alpha \frac{\|g\|}{\|g_v\|}\, g_v

    The first update climbs. ``k=1`` is :func:`jaxcl.transforms.sam`. Norms are global,
    not per tensor. A ``g_v`` below the rounding of ``g_p`` counts as zero, so that
    noise is never scaled up to the length of a gradient.

    The second gradient is really skipped, also under a ``vmap`` over runs that march in
    step (see :mod:`jaxcl.lockstep`).

    Args:
      rho: radius in parameter units; number or schedule of the update count.
      k: steps from one climb to the next, at least 1; a Python int, and for
        ``optax.inject_hyperparams`` one of the ``static_args``.
      alpha: length of the reused direction relative to the gradient.
      mask: leaves that climb, as in :func:`jaxcl.transforms.sam`. Projections and norms
        run over all leaves.
      measure: also log ``perturbed_norm`` and ``alignment`` of the last climb.

    Returns:
      A transformation whose state, :class:`LookSamState`, holds ``g_v`` in
      float32 or better: unlike SAM it needs memory for one more copy of the parameters.

    Raises:
      ValueError: if ``k`` is not a positive int, a strength is known to be negative or
        not finite, or an update lacks ``params`` or ``grad_fn``.

    Cost: ``1 + 1/k`` gradients per step on average.

    Reference: Liu et al. 2022, arXiv:2203.02714, algorithm 1.
    """
    check_number("looksam", schedules=True, rho=rho)
    check_number("looksam", schedules=True, alpha=alpha)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        msg = f"looksam: k must be a Python int of at least 1, got {k!r}."
        raise ValueError(msg)

    def init(params):
        nothing = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), params)
        return LookSamState(empty_state(measure), nothing, jnp.zeros((), jnp.float32))

    options = {"mask": mask, "measure": measure}
    always = perturbed_update("looksam", rho, take_perturbed, **options)

    def update(grads, state, params=None, *, grad_fn: Any = None, **ignored):
        del ignored
        check_update("looksam", params, grad_fn=grad_fn)
        if k == 1:
            bent, logs = always(grads, state.perturbation, params, grad_fn=grad_fn)
            return bent, state._replace(perturbation=logs)
        count, size = state.perturbation.count, norm(grads)
        perturbs = count % k == 0

        def look(_):
            perturbed, logs = always(grads, state.perturbation, params, grad_fn=grad_fn)
            along = safe_divide(dot(perturbed, grads), size**2)
            rest = mix(1.0, jax.tree.map(wide, perturbed), -along, grads)
            height = norm(rest)
            real = height > 1e-6 * (jnp.abs(along) * size + height)
            height = jnp.where(real, height, 0.0).astype(jnp.float32)
            logs = logs._replace(rho=state.perturbation.rho)
            return along, jnp.ones_like(size), LookSamState(logs, rest, height)

        def reuse():
            later = state.perturbation._replace(count=next_count(count))
            share = at_step(alpha, count) * safe_divide(size, state.height)
            return jnp.ones_like(size), share, state._replace(perturbation=later)

        # Two numbers and a direction for the sum below: XLA then merges it into whatever
        # comes next, instead of writing one more tree.
        along, share, after = when(perturbs, look, reuse())
        bent = mix(along, grads, share, after.direction)
        radius = jnp.where(perturbs, at_step(rho, count), after.perturbation.rho)
        logs = after.perturbation._replace(rho=radius.astype(jnp.float32))
        return bent, after._replace(perturbation=logs)

    return transformation(init, update)


__all__ = ["LookSamState", "looksam"]
