"""A second copy of the parameters, averaged or interpolated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, ScalarLike

from jaxcl.errors import check_number
from jaxcl.tree import copied, wide_dtype
from jaxcl.typing import Average, Params


class EmaState(NamedTuple):
    """The running average and the number of its updates."""

    average: Params  # in float32 or better
    num_steps: Int[Array, ""]  # observations so far; int32


def ema(decay: ScalarLike, *, warm_up: bool = False) -> Average:
    r"""Exponential moving average of the parameters.

    .. math:: s_0 = \theta_0, \qquad s_t = d\, s_{t-1} + (1 - d)\, \theta_t

    The average is kept in float32 or better (in bfloat16 a decay of 0.999 would never
    change it), cast to the parameters' dtypes when it is read, and continues across tasks.
    Its memory is about ``1 / (1 - d)`` steps. It costs one pass over the parameters per
    step.

    Args:
      decay: ``d`` in [0, 1]; may be traced.
      warm_up: use ``min(d, (1 + t) / (10 + t))`` at step ``t`` (from 1), so that a long
        average does not stay near the start.

    Reference: Polyak and Juditsky 1992 (averaging); Arani et al. 2022, arXiv:2201.12604
    (a slow copy of a continual learner); the warm-up is that of TensorFlow's
    ``ExponentialMovingAverage``.
    """
    check_number("ema", most=1.0, decay=decay)

    def init(params, example):
        del example
        # Copies, so that no buffer is donated twice with the state.
        copy = lambda leaf: jnp.array(leaf, wide_dtype(leaf), copy=True)
        return EmaState(jax.tree.map(copy, params), jnp.zeros((), jnp.int32))

    def observe(key, state, step, params):
        del key, step
        count = state.num_steps + 1
        kept = jnp.minimum(decay, (1 + count) / (10 + count)) if warm_up else decay
        # s <- d s + (1 - d) theta
        move = lambda average, fast: _blend(kept, average, fast, average.dtype)
        return EmaState(jax.tree.map(move, state.average, params), count)

    def read(state, params):
        cast = lambda average, param: average.astype(param.dtype)
        return jax.tree.map(cast, state.average, params)

    return Average(init, read, observe)


def interpolate(alpha: ScalarLike) -> Average:
    r"""At the end of each task, interpolate between its initial and final parameters.

    .. math:: \theta \leftarrow (1 - \alpha)\, \theta_{start} + \alpha\, \theta_{end}

    Training continues from there, and it is the start of the next task. During a task the
    parameters themselves are read. ``alpha`` is in [0, 1]: 1 changes nothing, 0 discards
    the task. Costs nothing per step and one copy of the parameters.

    Reference: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903, equation 1, applied once
    per task.
    """
    check_number("interpolate", most=1.0, alpha=alpha)

    def end_task(key, start, params, data):
        del key, data
        mixed = _mix(alpha, start, params)
        return copied(mixed), mixed

    return Average(lambda params, example: copied(params), end_task=end_task)


def wise_ft(alpha: ScalarLike) -> Average:
    r"""Evaluate between the initial and the current parameters.

    .. math:: s = (1 - \alpha)\, \theta_0 + \alpha\, \theta

    Only evaluation changes: training continues from the parameters themselves. With
    pretrained parameters and a single task this is WiSE-FT as published. ``alpha`` is in
    [0, 1]. Costs one copy of the parameters, and one pass over them per evaluation.

    Reference: Wortsman et al. 2022 (WiSE-FT), arXiv:2109.01903, equation 1.
    """
    check_number("wise_ft", most=1.0, alpha=alpha)
    read = lambda start, params: _mix(alpha, start, params)
    return Average(lambda params, example: copied(params), read)


def _mix(alpha, start: PyTree, end: PyTree) -> PyTree:
    """``(1 - alpha) * start + alpha * end``, in the dtypes of ``end``."""
    return jax.tree.map(lambda a, b: _blend(alpha, b, a, b.dtype), start, end)


def _blend(weight, a, b, dtype):
    """``weight * a + (1 - weight) * b``, summed in float32 or better."""
    wide = wide_dtype(a, b)
    return (weight * a.astype(wide) + (1 - weight) * b.astype(wide)).astype(dtype)
