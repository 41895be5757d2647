"""C-Flat: zeroth- and first-order flatness, for continual learning."""

from functools import partial

import optax

from jaxcl.errors import check_number, is_zero
from jaxcl.transforms._perturb import (
    Mask,
    ScalarOrSchedule,
    at_step,
    cast_like,
    empty_state,
    logged,
    masked_leaves,
    mix,
    perturb,
    transformation,
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
    nothing is perturbed along it.

    Args:
      rho: radius of all perturbations in parameter units; number or schedule. A plain
        Python 0 is the plain gradient and saves all others.
      strength: ``lambda`` above; a plain Python 0 saves two gradients.
      mask: as in :func:`jaxcl.transforms.sam`.
      measure: as in :func:`jaxcl.transforms.sam`.

    State: :class:`PerturbationState` of the first perturbation.

    Reference: Bian et al. 2024, arXiv:2404.00986, algorithm 1.
    """
    check_number("c_flat", schedules=True, rho=rho, strength=strength)

    def update(grads, state, params, *, grad_fn, **_):
        radius = at_step(rho, state.count)
        choose = partial(masked_leaves, mask, params)
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

    return transformation(lambda _: empty_state(measure), update)
