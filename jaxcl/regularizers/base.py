"""The neutral regularizer, and what makes regularizers an algebra."""

import jax.numpy as jnp
from jaxtyping import ScalarLike

from jaxcl.errors import check_kind, check_number
from jaxcl.typing import Regularizer


def no_regularizer() -> Regularizer:
    """Nothing pulls: an empty state, penalty zero, parameters as they are."""

    def penalty(state, params, context):
        del state, params, context
        return jnp.zeros(())

    def project(state, params):
        del state
        return params

    def end_task(key, state, params, task):
        del key, params, task
        return state

    def init(params):
        del params
        return ()

    return Regularizer(init, penalty, project, end_task)


def sum_of(*parts: Regularizer) -> Regularizer:
    """All the pulls at once: penalties add, projections follow one another.

    Regularizers form a monoid under ``sum_of``, with :func:`no_regularizer` (or
    ``sum_of()``) as its neutral element; projections commute only where they agree.
    The state is the tuple of the parts' states. Every part gets the same key at
    ``end_task``, so that how a sum is bracketed changes nothing.

    Args:
      *parts: in the order in which their projections act.
    """
    for part in parts:
        check_kind("sum_of", Regularizer, "give built ones, one by one", part=part)

    def init(params):
        return tuple(part.init(params) for part in parts)

    def penalty(states, params, context):
        pairs = zip(parts, states, strict=True)
        return sum((p.penalty(s, params, context) for p, s in pairs), jnp.zeros(()))

    def project(states, params):
        for part, state in zip(parts, states, strict=True):
            params = part.project(state, params)
        return params

    def end_task(key, states, params, task):
        pairs = zip(parts, states, strict=True)
        return tuple(part.end_task(key, s, params, task) for part, s in pairs)

    return Regularizer(init, penalty, project, end_task)


def scaled(factor: ScalarLike, regularizer: Regularizer) -> Regularizer:
    """The same regularizer with its penalty times ``factor``; projection unchanged.

    Raises:
      ValueError: if ``factor`` is known to be negative or not finite.
    """
    check_number("scaled", factor=factor)

    def penalty(state, params, context):
        return factor * regularizer.penalty(state, params, context)

    return regularizer._replace(penalty=penalty)


__all__ = ["no_regularizer", "scaled", "sum_of"]
