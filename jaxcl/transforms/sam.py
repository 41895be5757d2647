"""Sharpness-aware minimisation (SAM), and two controls for it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray, ScalarLike

from jaxcl.errors import check_key, check_number
from jaxcl.transforms._perturb import (
    Mask,
    PerturbationState,
    ScalarOrSchedule,
    at_step,
    empty_state,
    masked_leaves,
    one_perturbation,
    perturb,
    perturb_adaptively,
    perturbed_update,
    transformation,
)
from jaxcl.tree import random_normal_like


def sam(
    rho: ScalarOrSchedule,
    *,
    adaptive: bool = False,
    eta: ScalarLike = 0.01,
    mask: Mask | None = None,
    measure: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Use the gradient at distance ``rho`` along the gradient.

    .. math::
        g' = \nabla L(w + \epsilon), \qquad \epsilon = \rho\, g / \|g\|
        \quad\text{or, adaptive,}\quad
        \epsilon = \rho\, T^2 g / \|T g\|,\; T = |w| + \eta

    The parameters themselves do not change: they are perturbed for the second gradient
    only. A network with batch statistics should keep those of the first pass.

    ``optax.chain(sam(rho), optax.MultiSteps(base, k))`` is exact m-sharpness (each part
    of the batch has its own perturbation); for one perturbation over all parts see
    :func:`jaxcl.transforms.accumulated`, and over devices
    :func:`jaxcl.transforms.across_devices`. ``optax.masked(sam)`` cannot work, because
    ``grad_fn`` needs all parameters: use ``mask``.

    Args:
      rho: radius in parameter units (adaptive: relative to the weights), a number,
        traced or not, or a schedule of the update count. 0 is the plain gradient; a
        plain Python 0 also saves the second gradient.
      adaptive: measure the step relative to each weight, which makes the perturbation
        invariant to rescaled layers.
      eta: added to ``|w|``, so that small weights are perturbed too; 0 in
        Create-and-Find.
      mask: leaves that are perturbed (``True``) and part of the norm: a tree, a prefix of
        one, or a function of the parameters, for ``optax.inject_hyperparams`` one of the
        ``static_args``.
      measure: also log ``perturbed_norm`` and ``alignment``, from which
        :func:`perturbation_curvature` and :func:`perturbation_rise` compute the
        sharpness. It costs two passes over the gradients.

    Gradients have the dtypes they came in; norms and the point that ``grad_fn`` gets are
    float32 or better, also for bfloat16 parameters, in which the perturbation would be
    rounded away: let the model cast what it computes with. Where the gradient is zero
    nothing is perturbed. State: :class:`PerturbationState`.

    Reference: Foret et al. 2021, arXiv:2010.01412, equations 2 and 3; adaptive: Kwon et
    al. 2021, arXiv:2102.11600, algorithm 1.
    """
    check_number("sam", schedules=True, rho=rho)
    check_number("sam", eta=eta)
    move = functools.partial(perturb_adaptively, eta=eta) if adaptive else perturb
    return one_perturbation(rho, move=move, mask=mask, measure=measure)


def reverse_sam(
    rho: ScalarOrSchedule, *, mask: Mask | None = None, measure: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Use the gradient at distance ``rho`` *against* the gradient: SAM reversed.

    .. math:: g' = \nabla L(w - \rho\, g / \|g\|)

    To first order it descends :math:`L - \rho \|\nabla L\|`, so it seeks sharp minima.
    A control: an effect that it has in common with :func:`sam` is not due to flatness.

    Arguments as in :func:`sam`. In the state ``rho`` is the step along the gradient,
    ``-rho``: so :func:`perturbation_rise` is negative where the loss decreases.
    """
    check_number("reverse_sam", schedules=True, rho=rho)
    down = lambda count: -1.0 * at_step(rho, count)
    return one_perturbation(down, mask=mask, measure=measure)


class RandomSamState(NamedTuple):
    """A key for the next directions, and the logs of the perturbation."""

    key: PRNGKeyArray  # of the next direction
    perturbation: PerturbationState


def random_sam(
    key: PRNGKeyArray, rho: ScalarOrSchedule, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Use the gradient at distance ``rho`` in a random direction.

    .. math:: g' = \nabla L(w + \rho\, \xi / \|\xi\|), \qquad \xi \sim N(0, I)

    A control with the same radius: it smooths the loss over a sphere but does not search
    for the worst point on it.

    ``key`` seeds the directions: a new state from ``init`` repeats them; for others, build
    with another key. Other arguments as in :func:`sam`.
    """
    check_key("random_sam", key)
    check_number("random_sam", schedules=True, rho=rho)

    # A copy, because a state may be donated while the key serves the next `init`.
    def init(_params):
        return RandomSamState(jnp.copy(key), empty_state(measure=False))

    def update(grads, state, params, *, grad_fn, **_):
        key_next, key_now = jax.random.split(state.key)

        def move(params, radius, _):
            noise = random_normal_like(key_now, params)
            return perturb(params, radius, masked_leaves(mask, params, noise))

        once = perturbed_update(rho, move=move, mask=mask)
        grads, seen = once(grads, state.perturbation, params, grad_fn=grad_fn)
        return grads, RandomSamState(key_next, seen)

    return transformation(init, update)
