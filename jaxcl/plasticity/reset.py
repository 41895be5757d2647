"""Chained resets, and shrink-and-perturb."""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import ScalarLike

from jaxcl.errors import check_number, check_size
from jaxcl.lockstep import when
from jaxcl.tree import wide
from jaxcl.typing import Key, Params, Reset


def chain_resets(*parts: Reset) -> Reset:
    """Resets in order; the mask is the union of their masks."""

    def reset(key, states, params, batch):
        new_states, masks = [], []
        for k, (part, state) in enumerate(zip(parts, states, strict=True)):
            part_key = jax.random.fold_in(key, k)
            state, params, touched = part.reset(part_key, state, params, batch)
            new_states.append(state)
            masks += [] if touched is None else [touched]
        either = lambda a, b: jax.tree.map(jnp.logical_or, a, b)
        return tuple(new_states), params, reduce(either, masks) if masks else None

    def init(params, example):
        return tuple(part.init(params, example) for part in parts)

    return Reset(init, reset)


def shrink_and_perturb(
    shrink: ScalarLike,
    sigma: ScalarLike,
    init: Callable[[Key], Params],
    *,
    period: int = 1,
) -> Reset:
    r"""Shrink the parameters and add noise from the initial distribution.

    .. math:: w \leftarrow p\, w + \sigma\, \xi, \qquad \xi \sim \text{init}

    with :math:`p` = ``shrink``, after the optimizer's update. Vectors (biases, the scales
    of a normalisation) start at a constant :math:`c`; they get no noise and shrink
    towards it, :math:`w \leftarrow c + p\,(w - c)`. The optimizer's statistics are kept.

    Args:
      shrink: factor of the parameters, in [0, 1]; ``1 - 1e-4`` is usual at every step.
      sigma: scale of the noise; ``1e-2`` is usual.
      init: ``(key) -> params``, draws the noise; a model's ``init``.
      period: steps between two applications. Drawing a network takes about as long as a
        step on a small batch; with a larger ``period``, ``shrink**period`` and
        ``sigma * sqrt(period)`` have nearly the same effect at lower cost.

    References:
      Ash and Adams 2020, arXiv:1910.08475; at every step in Dohare et al. 2024, Nature 632.
    """
    check_size("shrink_and_perturb", period=period)
    check_number("shrink_and_perturb", most=1.0, shrink=shrink)
    check_number("shrink_and_perturb", sigma=sigma)

    def soften(param, fresh):
        old, drawn = wide(param), wide(fresh)  # so that bfloat16 leaves round once
        if param.ndim > 1:  # w <- p w + sigma xi
            new = shrink * old + sigma * drawn
        else:  # w <- c + p (w - c): all draws of a vector are its constant c
            new = drawn + shrink * (old - drawn)
        return new.astype(param.dtype)

    def reset(key, step, params, batch):
        del batch
        step = step + 1
        touch = lambda params: jax.tree.map(soften, params, init(key))
        if period > 1:
            return step, when(step % period == 0, touch, params), None
        return step, touch(params), None

    return Reset(lambda params, example: jnp.zeros((), jnp.int32), reset)
