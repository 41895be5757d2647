"""A second copy of the parameters, averaged or interpolated."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, ScalarLike

from jaxcl.errors import check_number, check_size
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


def ema_of_products(decay: ScalarLike) -> Average:
    r"""Exponential moving average of the products of LoRA's factors.

    .. math:: A_t B_t \approx d\, A_{t-1} B_{t-1} + (1 - d)\, A B

    An average of the factors is not that of what they add to the kernel: it has the cross
    terms :math:`d (1 - d) (A_{t-1} B + A B_{t-1})`. The sum here has up to twice the rank,
    of which the nearest product of the rank of the factors is kept (Eckart and Young 1936).
    Leaves without a partner are averaged as by :func:`ema`.

    The state is as large as the factors. Each step costs two QR decompositions of ``[i, 2
    k]`` and ``[o, 2 k]`` and a singular value decomposition of ``[2 k, 2 k]`` for each
    kernel ``[i, o]`` with factors of rank ``k``; no kernel is formed.

    Args:
      decay: ``d`` in [0, 1]; may be traced.
    """
    check_number("ema_of_products", most=1.0, decay=decay)
    plain = ema(decay)

    def observe(key, state, step, params):
        moved = plain.observe(key, state, step, params)
        average = _with_products(decay, state.average, params, moved.average)
        return moved._replace(average=average)

    return plain._replace(observe=observe)


def _with_products(decay, slow: PyTree, fast: PyTree, moved: PyTree) -> PyTree:
    """``moved``, a tree of nested dicts, with other averages of its pairs of factors."""
    if not isinstance(fast, dict):
        return moved
    new = {
        name: _with_products(decay, slow[name], fast[name], moved[name])
        for name in fast
    }
    if {"lora_a", "lora_b"} <= fast.keys():
        pair = lambda held: (held["lora_a"], held["lora_b"])
        new["lora_a"], new["lora_b"] = _mean_product(decay, pair(slow), pair(fast))
    return new


def _mean_product(decay, slow, fast):
    """Factors of ``d A_s B_s + (1 - d) A B``, cut to the rank of ``A``."""
    (a, b), (own_a, own_b) = slow, fast
    left = jnp.concatenate([a, own_a.astype(a.dtype)], axis=-1)
    right = jnp.concatenate([decay * b, (1 - decay) * own_b.astype(b.dtype)], axis=-2)
    # U V = Q_u (R_u R_v^T) Q_v^T, and the inner matrix is small.
    q_left, r_left = jnp.linalg.qr(left)
    q_right, r_right = jnp.linalg.qr(jnp.matrix_transpose(right))
    p, sizes, w = jnp.linalg.svd(r_left @ jnp.matrix_transpose(r_right))
    rank = a.shape[-1]
    roots = jnp.sqrt(sizes[..., None, :rank])
    a = q_left @ (p[..., :rank] * roots)
    b = jnp.matrix_transpose(roots) * (w[..., :rank, :] @ jnp.matrix_transpose(q_right))
    return a, b


def starting_after(num_tasks: int, average: Average) -> Average:
    """The parameters themselves until so many tasks have ended, then an average.

    I-LoRA's slow learner begins as a copy of the fast one at the end of the first task.
    Costs one more pass over the state of the average per step.

    Args:
      num_tasks: 0 starts at once.
      average: such as :func:`ema`.
    """
    check_size("starting_after", least=0, num_tasks=num_tasks)

    def started(state):
        return state[1] >= num_tasks

    def init(params, example):
        return average.init(params, example), jnp.zeros((), jnp.int32)

    def observe(key, state, step, params):
        new = average.observe(key, state[0], step, params)
        return _chosen(started(state), new, state[0]), state[1]

    def read(state, params):
        return _chosen(started(state), average.read(state[0], params), params)

    def end_task(key, state, params, data):
        inner, after = average.end_task(key, state[0], params, data)
        after = _chosen(started(state), after, params)
        inner = _chosen(started(state), inner, average.init(params, data))
        return (inner, state[1] + 1), after

    return Average(init, read, observe, end_task)


def _chosen(condition, new: PyTree, old: PyTree) -> PyTree:
    """One tree or another of the same form."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


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
