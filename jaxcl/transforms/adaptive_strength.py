"""Strengths that follow the measured sharpness: the radius, or any other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, ScalarLike

from jaxcl.errors import check_number, require
from jaxcl.transforms._perturb import (
    Mask,
    PerturbationState,
    ScalarOrSchedule,
    at_step,
    empty_state,
    masked_leaves,
    perturbed_update,
    transformation,
)
from jaxcl.tree import norm, safe_divide


def _both_gradients(state: PerturbationState) -> tuple[Array, Array]:
    """The slope along the gradient before and after the perturbation."""
    came = "expected a measured state; build it with measure=True"
    require(state.alignment is not None, "sharpness", came)
    return state.grad_norm, safe_divide(state.alignment, state.grad_norm)


def perturbation_curvature(state: PerturbationState) -> Float[Array, ""]:
    r"""The curvature along the last perturbation: :math:`\hat g^T H \hat g`.

    .. math:: (\langle g_p, \hat g\rangle - \|g\|) / \rho

    Exact on a quadratic for a plain perturbation along ``g`` (not the adaptive one).
    Units: loss per squared parameter. Zero where nothing was perturbed. A state without
    ``measure=True`` is refused by a ValueError, here and in :func:`perturbation_rise`.
    """
    below, above = _both_gradients(state)
    return safe_divide(above - below, state.rho)


def perturbation_rise(state: PerturbationState) -> Float[Array, ""]:
    r"""The rise of the loss over the last perturbation, by the trapezoid rule.

    This estimates SAM's sharpness:

    .. math:: \rho\, (\|g\| + \langle g_p, \hat g\rangle) / 2 \approx L(w + \epsilon) - L(w)

    Exact on a quadratic for a plain perturbation along ``g``. Units: loss.
    """
    below, above = _both_gradients(state)
    return state.rho * (below + above) / 2


def adaptive_rho(
    target: ScalarOrSchedule,
    *,
    low: ScalarLike = 0.0,
    high: ScalarLike = 1.0,
    mask: Mask | None = None,
    measure: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SAM whose radius holds the first-order sharpness at ``target``.

    .. math:: \rho_t = \mathrm{clip}(target / \|g_t\|,\; low,\; high)

    so that :math:`\rho_t \|g_t\|`, the rise of the loss to first order, is ``target``
    at every step where the limits allow: the radius is large where the gradient is
    small. The radius of each step is ``state.rho``.

    Args:
      target: target rise in units of loss; number or schedule of the update count.
      low: smallest radius.
      high: largest radius, also where the gradient vanishes.
      mask: as in :func:`jaxcl.transforms.sam`.
      measure: as in :func:`jaxcl.transforms.sam`.
    """
    check_number("adaptive_rho", schedules=True, target=target)
    check_number("adaptive_rho", low=low)
    check_number("adaptive_rho", least=low, high=high)

    def update(grads, state, params, *, grad_fn, **_):
        slope = norm(masked_leaves(mask, params, grads))
        wanted = at_step(target, state.count) / jnp.where(slope > 0, slope, 1.0)
        radius = jnp.where(slope > 0, jnp.clip(wanted, low, high), high)
        once = perturbed_update(radius, mask=mask, measure=measure)
        return once(grads, state, params, grad_fn=grad_fn)

    return transformation(lambda _: empty_state(measure), update)


class AdaptiveStrengthState(NamedTuple):
    """The next strength, the measurement it follows, and the inner state."""

    strength: Float[Array, ""]  # of the next update
    measured: Float[Array, ""]  # running mean of the measured sharpness
    inner: Any


def adaptive_strength(
    build: Callable[[ScalarLike], optax.GradientTransformationExtraArgs],
    base: ScalarLike,
    *,
    reference: ScalarLike,
    power: ScalarLike = 1.0,
    decay: ScalarLike = 0.9,
    limits: tuple[ScalarLike, ScalarLike] = (0.1, 10.0),
    sharpness: Callable[[PerturbationState], Any] = perturbation_curvature,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale a strength by the sharpness that the transformation itself measures.

    .. math::
        s_{t+1} = base \cdot \mathrm{clip}\big((S_t / reference)^{power}, limits\big),
        \qquad S_t = decay \cdot S_{t-1} + (1 - decay)\, sharpness_t, \quad S_0 = reference

    ``power=1`` increases the strength where the loss is sharper, ``power=-1`` decreases
    it, and 0 is the fixed strength. For the radius of SAM, and the penalty of GNP:

        adaptive_strength(lambda s: sam(s, measure=True), 0.05, reference=2.0)
        build = lambda s: gnp(0.05, penalty=s, measure=True)
        adaptive_strength(build, 0.01, reference=2.0)

    Args:
      build: ``(strength) -> transformation`` whose state is a measured
        :class:`PerturbationState`. For ``optax.inject_hyperparams`` it and ``sharpness``
        are ``static_args``.
      base: the strength while the measurement equals ``reference``; the first one.
      reference: the sharpness at which the strength is ``base``, above 0.
      power: exponent of the relative sharpness.
      decay: fraction of the running mean kept per step.
      limits: smallest and largest multiple of ``base``. The smallest should be above 0,
        because nothing is measured with a radius of 0.
      sharpness: ``(PerturbationState) -> scalar``, :func:`perturbation_curvature` or
        :func:`perturbation_rise`; negative values count as zero.

    A step with a zero gradient or a measurement that is not finite does not change the
    running mean. A ``build`` that does not measure is refused by a ValueError.
    """
    check_number("adaptive_strength", base=base, lower_limit=limits[0])
    check_number("adaptive_strength", most=1.0, decay=decay)
    check_number("adaptive_strength", above=True, reference=reference)
    check_number("adaptive_strength", least=limits[0], upper_limit=limits[1])
    number = lambda value: jnp.array(value, jnp.float32)  # a copy

    def init(params):
        inner = build(base).init(params)
        return AdaptiveStrengthState(number(base), number(reference), inner)

    def update(grads, state, params=None, **extra):
        inner: Any
        now = build(state.strength)
        grads, inner = now.update(grads, state.inner, params, **extra)
        seen = jnp.maximum(sharpness(inner), 0.0)
        known = jnp.isfinite(seen) & (inner.grad_norm > 0)
        mean = decay * state.measured + (1.0 - decay) * jnp.where(known, seen, 0.0)
        mean = jnp.where(known, mean, state.measured)
        factor = jnp.clip((mean / reference) ** power, *limits)
        return grads, AdaptiveStrengthState(number(base * factor), number(mean), inner)

    return transformation(init, update)
