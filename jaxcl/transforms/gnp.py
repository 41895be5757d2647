"""Gradient norm penalty: the first-order gradient of ``L + penalty * |grad L|``."""

from typing import Any

import optax

from jaxcl.errors import check_number, is_zero, require
from jaxcl.transforms._perturb import (
    Mask,
    ScalarOrSchedule,
    at_step,
    mix,
    one_perturbation,
)
from jaxcl.tree import safe_divide


def gnp(
    r: ScalarOrSchedule,
    *,
    alpha: ScalarOrSchedule | None = None,
    penalty: ScalarOrSchedule | None = None,
    mask: Mask | None = None,
    measure: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Blend the gradient with the one at distance ``r`` along it.

    .. math::
        g' = (1 - \alpha)\, g + \alpha\, \nabla L(w + r\, g / \|g\|),
        \qquad \alpha = \lambda / r

    This is the gradient of :math:`L + \lambda \|\nabla L\|` with a finite difference
    for the Hessian-vector product; on a quadratic it is exact. ``alpha=1`` is
    :func:`jaxcl.transforms.sam`, ``alpha=0`` the plain gradient; more than 1
    extrapolates and is allowed. The authors' later code blends with the gradient's
    direction of unit length instead; this follows the paper.

    Args:
      r: radius of the perturbation in parameter units; number or schedule of the update
        count.
      alpha: weight of the perturbed gradient. A plain Python 0 saves its computation.
      penalty: ``lambda`` in units of ``r``, instead of ``alpha``. With schedules the
        two are divided at every step; where the radius is 0 the step is the plain
        gradient, without the penalty.
      mask: as in :func:`jaxcl.transforms.sam`.
      measure: as in :func:`jaxcl.transforms.sam`.

    Raises:
      ValueError: unless exactly one of ``alpha`` and ``penalty`` is given, and for a
        penalty with ``r = 0`` throughout.

    Reference: Zhao et al. 2022, arXiv:2202.03599, algorithm 1.
    """
    came = f"alpha={alpha}, penalty={penalty}"
    message = f"needs alpha (the blend) or penalty (alpha * r), got {came}"
    require((alpha is None) != (penalty is None), "gnp", message)
    strength: Any = penalty if alpha is None else alpha
    named = {"penalty" if alpha is None else "alpha": strength}
    # alpha = penalty / r needs an r that is not zero.
    check_number("gnp", above=alpha is None and is_zero(r), schedules=True, r=r)
    check_number("gnp", schedules=True, **named)

    def blend(count, grads, perturbed):
        # (1 - alpha) g + alpha g_p, with alpha = lambda / r.
        share = at_step(strength, count)
        if alpha is None:
            share = safe_divide(share, at_step(r, count))
        return mix(1.0 - share, grads, share, perturbed)

    skip = is_zero(strength)
    return one_perturbation(r, blend, mask=mask, measure=measure, skip=skip)
