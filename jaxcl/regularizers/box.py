"""A hard constraint: each parameter stays in a box around the last solution."""

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from jaxcl.errors import check_number
from jaxcl.regularizers.base import first_anchor, next_anchor, sum_of
from jaxcl.tree import wide
from jaxcl.typing import Regularizer


def box(radius: ScalarLike) -> Regularizer:
    r"""Clip each parameter to within ``radius * |anchor|`` of its anchor.

    .. math:: \theta \leftarrow \text{clip}(\theta, a - r |a|, a + r |a|)

    after every update, with ``a`` the parameters at the end of the last task; nothing is
    clipped before the first task ends. The box is relative: for a radius below one no
    parameter can change its sign after the first task, and one that is exactly zero
    stays zero. It moves with the anchor, so after ``k`` tasks a parameter may have
    grown by a factor of ``(1 + radius)^k``. Bounds are computed in float32 or better;
    rounding to a narrower dtype may exceed them by half a unit in the last place.

    State: :class:`AnchorState`. An infinite radius constrains nothing.

    Source: Create and Find Flatness, 2023, arXiv:2309.11305, the hard constraint.
    """
    check_number("box", infinite=True, radius=radius)

    def project(state, params):
        def clip(param, anchor):
            centre = wide(anchor)
            # An infinite radius times an anchor of zero is NaN.
            reach = jnp.where(jnp.isinf(radius), jnp.inf, radius * jnp.abs(centre))
            reach = jnp.where(state.tasks_seen > 0, reach, jnp.inf)
            kept = jnp.clip(wide(param), centre - reach, centre + reach)
            return kept.astype(param.dtype)

        return jax.tree.map(clip, params, state.anchor)

    return Regularizer(first_anchor, project=project, end_task=next_anchor)


def boxed(regularizer: Regularizer, radius: ScalarLike) -> Regularizer:
    """Any regularizer together with a box: ``sum_of(regularizer, box(radius))``.

    With :func:`~jaxcl.regularizers.ewc` inside, an adaptive SAM as the gradient, and the
    gradient of the penalty at the unperturbed parameters, this is Create-and-Find. The
    box has its own anchor, as that of separate-anchor EWC is a mean over tasks.
    """
    return sum_of(regularizer, box(radius))
