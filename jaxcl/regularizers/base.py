"""Sums and multiples of regularizers."""

import jax.numpy as jnp
from jaxtyping import ScalarLike

from jaxcl.errors import check_number
from jaxcl.typing import Regularizer, no_penalty, no_projection


def sum_of(*parts: Regularizer) -> Regularizer:
    """The sum of regularizers: penalties add, projections are applied in order.

    Regularizers form a monoid under ``sum_of``, with ``Regularizer()`` (or ``sum_of()``)
    as its neutral element; projections commute only where they agree. The state is the
    tuple of the parts' states. Every part gets the same keys, so that ``sum_of`` is
    associative.

    Args:
      *parts: in the order in which their projections act.
    """

    def init(params, example):
        return tuple(part.init(params, example) for part in parts)

    def penalty(states, params, context):
        pairs = zip(parts, states, strict=True)
        costs = (part.penalty(s, params, context) for part, s in pairs)
        return sum(costs, jnp.zeros((), jnp.float32))

    def project(states, params):
        for part, state in zip(parts, states, strict=True):
            params = part.project(state, params)
        return params

    def observe(key, states, step, params):
        pairs = zip(parts, states, strict=True)
        return tuple(part.observe(key, s, step, params) for part, s in pairs)

    def end_task(key, states, params, data):
        pairs = zip(parts, states, strict=True)
        return tuple(part.end_task(key, s, params, data) for part, s in pairs)

    # Neutral if all parts are: a method then computes no second gradient.
    free = all(part.penalty is no_penalty for part in parts)
    bare = all(part.project is no_projection for part in parts)
    functions = no_penalty if free else penalty, no_projection if bare else project
    return Regularizer(init, *functions, observe, end_task)


def scaled(factor: ScalarLike, regularizer: Regularizer) -> Regularizer:
    """The same regularizer with its penalty times ``factor``; projection unchanged.

    Raises:
      ValueError: if ``factor`` is known to be negative or not finite.
    """
    check_number("scaled", factor=factor)
    if regularizer.penalty is no_penalty:
        return regularizer

    def penalty(state, params, context):
        return factor * regularizer.penalty(state, params, context)

    return regularizer._replace(penalty=penalty)
