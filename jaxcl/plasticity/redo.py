"""ReDo: reset dormant units."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, PyTree, ScalarLike

from jaxcl.errors import check_number, check_size
from jaxcl.lockstep import when
from jaxcl.plasticity.units import (
    check_units,
    dormancy_score,
    mean_over_rows,
    nowhere,
    reset_units,
)
from jaxcl.typing import Key, Params, Reset, Units


def redo(
    hidden: Callable[[Params, PyTree], tuple[Array, ...]],
    units: tuple[Units, ...],
    init: Callable[[Key], Params],
    *,
    threshold: ScalarLike = 0.025,
    period: int = 625,
) -> Reset:
    r"""Reset dormant units every ``period`` steps.

    .. math:: s_i = a_i \,/\, \mathrm{mean}_k\, a_k, \qquad a_i = \mathrm{mean}_x |h_i(x)|

    Units with :math:`s_i \le` ``threshold`` on the batch of that step get new incoming
    weights and bias and zero outgoing weights; the optimizer's statistics of those weights
    are cleared. The activity of a unit with two activations (CReLU) is their sum; that of a
    channel of a convolution its mean over positions.

    Args:
      hidden: ``(params, x [b, ...]) -> tuple`` of hidden activations ``[b, ...]``.
      units: where the units of the first ``len(units)`` activations live.
      init: ``(key) -> params``, draws a new network.
      threshold: largest score of a dormant unit; 0 resets dead units only.
      period: steps between two resets, which cost a forward pass and a new network.

    Reference: Sokar et al. 2023, arXiv:2302.12902, algorithm 1.
    """
    check_units("redo", units)
    check_size("redo", period=period)
    check_number("redo", threshold=threshold)

    def recycle(key, operand, batch):
        (params, mask), fresh = operand, init(key)
        for layer, h in zip(units, hidden(params, batch.x), strict=False):
            activity = mean_over_rows(jnp.abs(h), batch.weight)
            activity = activity.reshape(layer.copies, layer.width).sum(axis=0)
            # s_i = a_i / mean_k a_k <= tau; a batch of padding has no activity.
            dormant = dormancy_score(activity) <= threshold
            dormant &= jnp.sum(batch.weight) > 0
            params, mask = reset_units(params, mask, fresh, layer, dormant)
        return params, mask

    def reset(key, step, params, batch):
        step = step + 1
        touch = lambda operand: recycle(key, operand, batch)
        params, mask = when(step % period == 0, touch, (params, nowhere(params)))
        return step, params, mask

    return Reset(lambda params, example: jnp.zeros((), jnp.int32), reset)
