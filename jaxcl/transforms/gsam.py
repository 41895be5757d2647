"""Surrogate-gap guided SAM: also reduce the gap between perturbed loss and loss."""

import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import ScalarLike

from jaxcl.errors import InputError, check_number
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

    ``alpha=0`` is :func:`jaxcl.transforms.sam`. Chains, masks and zero gradients: as
    there. The decomposition runs over all leaves, whatever the mask.

    Args:
      rho: radius in parameter units (usually 0.1 to 0.6); number or schedule. The paper
        ties it to the learning rate: see :func:`rho_schedule`.
      alpha: multiple of the orthogonal part that is subtracted (usually 0.6).
      mask: leaves that are perturbed.

    Raises:
      ValueError: if a strength is known to be negative or not finite.

    Cost: one more gradient per step. State: :class:`PerturbationState`, measured.

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

    Args:
      learning_rate: the base optimizer's schedule.
      lr_max: its largest value, where the radius is ``rho_max``.
      rho_max: largest radius.
      lr_min: its smallest value, where the radius is ``rho_min``.
      rho_min: smallest radius.

    Raises:
      ValueError: if ``lr_max`` is known to equal ``lr_min``.

    Reference: Zhuang et al. 2022, arXiv:2203.08065, algorithm 1.
    """
    traced = any(isinstance(end, Tracer) for end in (lr_max, lr_min))
    if not traced and lr_max == lr_min:
        msg = f"rho_schedule: lr_max must differ from lr_min, got {lr_max} for both."
        raise InputError(msg)

    def rho(count):
        share = jnp.subtract(learning_rate(count), lr_min) / jnp.subtract(
            lr_max, lr_min
        )
        return rho_min + jnp.subtract(rho_max, rho_min) * share

    return rho
