"""Surrogate-gap guided SAM: also reduce the gap between perturbed loss and loss."""

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import ScalarLike

from jaxcl.errors import check_number, require
from jaxcl.transforms._perturb import (
    Mask,
    ScalarOrSchedule,
    at_step,
    mix,
    one_perturbation,
)
from jaxcl.tree import projection


def gsam(
    rho: ScalarOrSchedule, alpha: ScalarOrSchedule, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Descend the perturbed loss, and ascend along the part of ``g`` orthogonal to it.

    .. math::
        g' = g_p - \alpha\, g_\perp, \qquad
        g_\perp = g - \frac{\langle g, g_p\rangle}{\|g_p\|^2} g_p, \qquad
        g_p = \nabla L(w + \rho\, g / \|g\|)

    The radius ``rho`` is usually 0.1 to 0.6 and ``alpha`` 0.6, numbers or schedules; the
    paper ties ``rho`` to the learning rate: see :func:`rho_schedule`. ``alpha=0`` is
    :func:`jaxcl.transforms.sam`. The decomposition runs over all leaves, whatever the
    mask. State: :class:`PerturbationState`, measured.

    Reference: Zhuang et al. 2022, arXiv:2203.08065, algorithm 1.
    """
    check_number("gsam", schedules=True, rho=rho, alpha=alpha)

    def combine(count, grads, perturbed):
        share = at_step(alpha, count)
        # g_p - alpha (g - along g_p) = (1 + alpha along) g_p - alpha g
        # By a direction of unit length: |g_p|^2 could over- or underflow.
        along, _ = projection(grads, perturbed)
        return mix(-1.0 * share, grads, 1.0 + share * along, perturbed)

    # It needs both gradients at once in any case.
    return one_perturbation(rho, combine, mask=mask, measure=True)


def rho_schedule(
    learning_rate: optax.Schedule,
    *,
    lr_max: ScalarLike,
    rho_max: ScalarLike,
    lr_min: ScalarLike = 0.0,
    rho_min: ScalarLike = 0.0,
) -> optax.Schedule:
    r"""A radius that follows the learning rate.

    .. math::
        \rho_t = \rho_{min} + (\rho_{max} - \rho_{min})
                 \frac{\eta_t - \eta_{min}}{\eta_{max} - \eta_{min}}

    ``eta_t`` is the base optimizer's schedule, between ``lr_min``, where the radius is
    ``rho_min``, and ``lr_max``, where it is ``rho_max``.

    Reference: Zhuang et al. 2022, arXiv:2203.08065, algorithm 1.
    """
    known = not any(isinstance(end, Tracer) for end in (lr_max, lr_min))
    came = f"lr_max must differ from lr_min, got {lr_max} for both"
    require(not (known and lr_max == lr_min), "rho_schedule", came)

    def rho(count):
        # (eta - eta_min) / (eta_max - eta_min)
        share = jnp.subtract(learning_rate(count), lr_min)
        share = share / jnp.subtract(lr_max, lr_min)
        return rho_min + jnp.subtract(rho_max, rho_min) * share

    return rho
