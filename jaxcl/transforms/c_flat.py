"""C-Flat: zeroth- and first-order flatness, for continual learning."""

import optax

from jaxcl.errors import check_number, is_zero
from jaxcl.transforms._perturb import (
    Mask,
    ScalarOrSchedule,
    at_step,
    cast_like,
    check_update,
    logged,
    masked_leaves,
    mix,
    perturb,
    perturbation_transform,
)
from jaxcl.tree import subtract


def c_flat(
    rho: ScalarOrSchedule = 0.2,
    strength: ScalarOrSchedule = 0.2,
    *,
    mask: Mask | None = None,
    measure: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SAM's gradient, plus that of the largest gradient norm nearby.

    With :math:`\hat v = v / \|v\|` and :math:`g_0` the gradient at :math:`w`,

    .. math::
        g_1 &= \nabla L(w + \rho\, \hat g_0), \qquad h = g_1 - g_0, \\
        g_2 &= \nabla L(w + \rho\, \hat h), \qquad
        g_3 = \nabla L(w + \rho\, \hat h + \rho\, \hat g_2), \\
        g' &= g_1 + \lambda\, (g_3 - g_2)

    ``strength=0`` is :func:`jaxcl.transforms.sam`. Where ``g_0`` or ``h`` vanishes
    there is no perturbation along it. Chains and masks: as in
    :func:`jaxcl.transforms.sam`.

    Args:
      rho: radius of all perturbations in parameter units; number or schedule. A plain
        Python 0 is the plain gradient and saves all others.
      strength: ``lambda`` above; a plain Python 0 saves two gradients.
      mask: leaves that are perturbed.
      measure: also log ``perturbed_norm`` and ``alignment``, of ``g_0`` and ``g_1``.

    Raises:
      ValueError: if a strength is known to be negative or not finite.

    Cost: three more gradients per step. State: :class:`PerturbationState` of the first
    perturbation, scalars.

    Reference: Bian et al. 2024, arXiv:2404.00986, algorithm 1.
    """
    check_number("c_flat", schedules=True, rho=rho, strength=strength)

    def update(grads, state, params=None, *, grad_fn, **ignored):
        del ignored
        check_update(params)
        radius = at_step(rho, state.count)
        choose = lambda tree: masked_leaves(mask, params, tree)
        uphill = lambda start, direction: perturb(start, radius, choose(direction))
        gradient = lambda point: cast_like(grad_fn(point), grads)

        # g_1 = grad L(w + rho g_0 / |g_0|)
        first = grads if is_zero(radius) else gradient(uphill(params, grads))
        seen = choose(first) if measure else None
        after = logged(state.count, radius, choose(grads), seen)
        if is_zero(radius) or is_zero(strength):
            return first, after
        # h = g_1 - g_0; g_2 = grad L(w + rho h / |h|); g_3 a step along g_2 further.
        steep = uphill(params, subtract(first, grads))
        second = gradient(steep)
        third = gradient(uphill(steep, second))
        weight = at_step(strength, state.count)
        return mix(1.0, first, weight, subtract(third, second)), after

    return perturbation_transform(update, measure)
