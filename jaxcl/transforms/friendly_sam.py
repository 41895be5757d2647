"""Friendly SAM: perturb along the batch-specific part of the gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxcl.errors import check_number
from jaxcl.transforms._perturb import (
    Mask,
    PerturbationState,
    ScalarOrSchedule,
    at_step,
    empty_state,
    masked_leaves,
    mix,
    perturb,
    perturbed_update,
    transformation,
)
from jaxcl.tree import wide


class FriendlySamState(NamedTuple):
    """Logs of the perturbation, and the running mean: one tree like the parameters."""

    perturbation: PerturbationState
    momentum: PyTree  # m, the mean of past gradients; zero before the first update


def friendly_sam(
    rho: ScalarOrSchedule,
    *,
    sigma: ScalarOrSchedule = 1.0,
    decay: ScalarOrSchedule = 0.6,
    mask: Mask | None = None,
    measure: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Perturb along the gradient minus its running mean.

    .. math::
        d = g - \sigma m, \qquad g' = \nabla L(w + \rho\, d / \|d\|), \qquad
        m \leftarrow \lambda m + (1 - \lambda)\, g

    ``m`` is read before it is updated. The first update perturbs along ``g`` and
    stores it. Both are as in the authors' code. ``sigma=0`` is
    :func:`jaxcl.transforms.sam`.

    Args:
      rho: radius in parameter units (usually 0.2); number or schedule.
      sigma: multiple of the mean that is subtracted.
      decay: fraction of the mean kept per update, ``lambda`` above.
      mask: as in :func:`jaxcl.transforms.sam`.
      measure: as in :func:`jaxcl.transforms.sam`; ``alignment`` with ``g``, not with ``d``.

    State: :class:`FriendlySamState`, which holds ``m`` in float32 or better, the size of
    the parameters.

    Reference: Li et al. 2024, arXiv:2403.12350, algorithm 1.
    """
    check_number("friendly_sam", schedules=True, rho=rho, sigma=sigma)
    check_number("friendly_sam", most=1.0, schedules=True, decay=decay)

    def init(params):
        nothing = jax.tree.map(lambda leaf: jnp.zeros_like(wide(leaf)), params)
        return FriendlySamState(empty_state(measure), nothing)

    def update(grads, state, params, *, grad_fn, **_):
        count = state.perturbation.count

        def stray(params, radius, _):
            taken = -1.0 * at_step(sigma, count)
            # d = g - sigma m, with m before this update.
            special = mix(1.0, jax.tree.map(wide, grads), taken, state.momentum)
            return perturb(params, radius, masked_leaves(mask, params, special))

        once = perturbed_update(rho, move=stray, mask=mask, measure=measure)
        perturbed, logs = once(grads, state.perturbation, params, grad_fn=grad_fn)
        keep = jnp.where(count > 0, at_step(decay, count), 0.0)
        momentum = mix(keep, state.momentum, 1.0 - keep, grads)
        return perturbed, FriendlySamState(logs, momentum)

    return transformation(init, update)
