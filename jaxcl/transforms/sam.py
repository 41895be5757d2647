"""Sharpness-aware minimisation (SAM), and two controls for it."""

import functools
from collections.abc import Hashable
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
from jaxcl.transforms.across_devices import across_devices
from jaxcl.tree import random_normal_like


def sam(
    rho: ScalarOrSchedule,
    *,
    adaptive: bool = False,
    eta: ScalarLike = 0.01,
    mask: Mask | None = None,
    measure: bool = False,
    axis_name: Hashable = None,
    sync: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Use the gradient at distance ``rho`` along the gradient.

    .. math::
        g' = \nabla L(w + \epsilon), \qquad \epsilon = \rho\, g / \|g\|
        \quad\text{or, adaptive,}\quad
        \epsilon = \rho\, T^2 g / \|T g\|,\; T = |w| + \eta

    ``update(grads, state, params, *, grad_fn)`` needs ``grad_fn``, the gradient on the
    same batch with the same key; other arguments are ignored. Put it first
    in a chain: ``optax.chain(sam(0.05), optax.clip_by_global_norm(1.0),
    optax.adamw(1e-3))``. It does not depend on the learning rate, and does not change
    the parameters: they are perturbed for the second gradient only. A network with batch
    statistics should keep those of the first pass.

    ``optax.chain(sam(rho), optax.MultiSteps(base, k))`` is exact m-sharpness (each part
    of the batch has its own perturbation); for one perturbation over all parts see
    :func:`jaxcl.transforms.accumulated`. ``optax.masked(sam)`` cannot work, because
    ``grad_fn`` needs all parameters: use ``mask``.

    Args:
      rho: radius in parameter units (adaptive: relative to the weights), a number,
        traced or not, or a schedule of the update count. 0 is the plain gradient; a
        plain Python 0 also saves the second gradient.
      adaptive: measure the step relative to each weight, which makes the perturbation
        invariant to rescaled layers.
      eta: added to ``|w|``, so that small weights are perturbed too; 0 in
        Create-and-Find.
      mask: leaves that are perturbed (``True``), as a tree, a prefix of one, or a function
        of the parameters; the others are not perturbed and not part of the norm. Give a
        function to ``optax.inject_hyperparams`` under ``static_args``.
      measure: also log ``perturbed_norm`` and ``alignment``, from which
        :func:`perturbation_curvature` and :func:`perturbation_rise` compute the
        sharpness. It costs two passes over the gradients, which is noticeable for a
        small network on a CPU.
      axis_name: the device axis when mapped; see :func:`across_devices`.
      sync: with ``axis_name``, one perturbation for all devices, or (m-sharpness) one
        each.

    Returns:
      A transformation whose state, :class:`PerturbationState`, holds a few scalars. Its
      gradients have the dtypes they came in; norms and the point that ``grad_fn`` gets
      are float32 or better, also for bfloat16 parameters, in which the perturbation would
      be rounded away: let the model cast what it computes with. Where the gradient is zero
      there is no perturbation.

    Raises:
      ValueError: if ``rho`` or ``eta`` is known to be negative or not finite.

    Cost: one more gradient per step.

    Reference: Foret et al. 2021, arXiv:2010.01412, equations 2 and 3; adaptive: Kwon et
    al. 2021, arXiv:2102.11600, algorithm 1.
    """
    check_number("sam", schedules=True, rho=rho)
    check_number("sam", eta=eta)
    move = functools.partial(perturb_adaptively, eta=eta) if adaptive else perturb
    alone = one_perturbation(rho, move=move, mask=mask, measure=measure)
    return alone if axis_name is None else across_devices(alone, axis_name, sync=sync)


def reverse_sam(
    rho: ScalarOrSchedule, *, mask: Mask | None = None, measure: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Use the gradient at distance ``rho`` *against* the gradient: SAM reversed.

    .. math:: g' = \nabla L(w - \rho\, g / \|g\|)

    To first order it descends :math:`L - \rho \|\nabla L\|`, so it seeks sharp minima.
    A control: an effect that it has in common with :func:`sam` is not due to flatness.

    Args:
      rho: radius in parameter units, at least 0; number or schedule.
      mask: leaves that are perturbed, as in :func:`sam`.
      measure: also log ``perturbed_norm`` and ``alignment``, as in :func:`sam`.

    Raises:
      ValueError: if ``rho`` is known to be negative.

    Cost: one more gradient per step. State: :class:`PerturbationState`, whose ``rho`` is
    the step along the gradient, ``-rho``: so :func:`perturbation_rise` is the change of
    the loss, which is negative where it decreases.
    """
    check_number("reverse_sam", schedules=True, rho=rho)
    down = lambda count: -1.0 * at_step(rho, count)
    return one_perturbation(down, mask=mask, measure=measure)


class RandomSamState(NamedTuple):
    """A key for the next directions, and the logs of the perturbation."""

    key: PRNGKeyArray  # of the next direction
    perturbation: PerturbationState


def random_sam(
    key: PRNGKeyArray,
    rho: ScalarOrSchedule,
    *,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Use the gradient at distance ``rho`` in a random direction.

    .. math:: g' = \nabla L(w + \rho\, \xi / \|\xi\|), \qquad \xi \sim N(0, I)

    A control with the same radius: it smooths the loss over a sphere but does not search
    for the worst point on it.

    Args:
      key: seeds the directions. A new state from ``init`` repeats them; for others,
        build with another key.
      rho: radius in parameter units, at least 0; number or schedule.
      mask: leaves that are perturbed, as in :func:`sam`.

    Raises:
      ValueError: if ``key`` is not one key, or ``rho`` is known to be negative.

    Cost: one more gradient and one normal draw per step.
    """
    check_key("random_sam", key)
    check_number("random_sam", schedules=True, rho=rho)

    def update(grads, state, params=None, *, grad_fn, **ignored):
        del ignored
        key_next, key_now = jax.random.split(state.key)

        def move(params, radius, ascent):
            del ascent
            noise = random_normal_like(key_now, params)
            return perturb(params, radius, masked_leaves(mask, params, noise))

        once = perturbed_update(rho, move=move, mask=mask)
        grads, seen = once(grads, state.perturbation, params, grad_fn=grad_fn)
        return grads, RandomSamState(key_next, seen)

    # A copy, because a state may be donated while the key serves the next `init`.
    def init(params):
        del params
        return RandomSamState(jnp.copy(key), empty_state(measure=False))

    return transformation(init, update)
