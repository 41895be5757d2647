"""A hard constraint: each parameter stays in a box around the last solution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike

from jaxcl.errors import check_number
from jaxcl.regularizers.base import sum_of
from jaxcl.tree import copied, wide
from jaxcl.typing import Params, Regularizer


class BoxState(NamedTuple):
    """The centre of the box."""

    anchor: Params  # the parameters at the end of the last task
    tasks_seen: Int[Array, ""]  # nothing is clipped while this is zero


def box(radius: ScalarLike) -> Regularizer:
    r"""Clip each parameter to within ``radius * |anchor|`` of its anchor.

    .. math:: \theta \leftarrow \text{clip}(\theta, a - r |a|, a + r |a|)

    after every update, with ``a`` the parameters at the end of the last task; nothing is
    clipped before the first task ends. The box is relative: for a radius below one no
    parameter can change its sign after the first task, and one that is exactly zero
    stays zero. It moves with the anchor, so after ``k`` tasks a parameter may have
    grown by a factor of ``(1 + radius)^k``. Bounds are computed in float32 or better;
    rounding to a narrower dtype may exceed them by half a unit in the last place.

    Args:
      radius: relative half width; infinite for no constraint.

    Returns:
      A regularizer with penalty zero and :class:`BoxState`.

    Raises:
      ValueError: if ``radius`` is a negative number.

    Source: Create and Find Flatness, 2023, arXiv:2309.11305, the hard constraint.
    """
    check_number("box", infinite=True, radius=radius)

    def init(params, example):
        del example
        return BoxState(copied(params), jnp.zeros((), jnp.int32))

    def project(state, params):
        def clip(param, anchor):
            centre = wide(anchor)
            # An infinite radius times an anchor of zero is NaN.
            reach = jnp.where(jnp.isinf(radius), jnp.inf, radius * jnp.abs(centre))
            reach = jnp.where(state.tasks_seen > 0, reach, jnp.inf)
            kept = jnp.clip(wide(param), centre - reach, centre + reach)
            return kept.astype(param.dtype)

        return jax.tree.map(clip, params, state.anchor)

    def end_task(key, state, params, data):
        del key, data
        return BoxState(copied(params), state.tasks_seen + 1)

    return Regularizer(init, project=project, end_task=end_task)


def boxed(regularizer: Regularizer, radius: ScalarLike) -> Regularizer:
    """Any regularizer together with a box: ``sum_of(regularizer, box(radius))``.

    With :func:`~jaxcl.regularizers.ewc` inside, an adaptive SAM as the gradient, and the
    gradient of the penalty at the unperturbed parameters, this is Create-and-Find. The
    box keeps its own anchor (one copy of the parameters), because that of
    separate-anchor EWC is a mean over tasks and not the last solution.

    Args:
      regularizer: the penalty.
      radius: see :func:`box`.
    """
    return sum_of(regularizer, box(radius))
