"""Sums and multiples of regularizers, and what several of them share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxcl.errors import check_number
from jaxcl.tree import by_chunks, copied, dot, num_rows, subtract, weighted_mean, wide
from jaxcl.typing import Params, Regularizer, no_penalty, no_projection


def sum_of(*parts: Regularizer) -> Regularizer:
    """The sum of regularizers: penalties add, projections are applied in order.

    Regularizers form a monoid under ``sum_of``, with ``Regularizer()`` (or ``sum_of()``)
    as its neutral element; projections commute only where they agree. The state is the
    tuple of the parts' states. Every part gets the same keys, so ``sum_of`` is associative.
    """

    def init(params, example):
        return tuple(part.init(params, example) for part in parts)

    pairs = lambda states: zip(parts, states, strict=True)

    def penalty(states, params, context):
        costs = (part.penalty(s, params, context) for part, s in pairs(states))
        return sum(costs, jnp.zeros((), jnp.float32))

    def project(states, params):
        for part, state in pairs(states):
            params = part.project(state, params)
        return params

    def observe(key, states, step, params):
        return tuple(part.observe(key, s, step, params) for part, s in pairs(states))

    def end_task(key, states, params, data):
        return tuple(part.end_task(key, s, params, data) for part, s in pairs(states))

    # Neutral if all parts are: a method then computes no second gradient.
    free = all(part.penalty is no_penalty for part in parts)
    bare = all(part.project is no_projection for part in parts)
    functions = no_penalty if free else penalty, no_projection if bare else project
    return Regularizer(init, *functions, observe, end_task)


def scaled(factor: ScalarLike, regularizer: Regularizer) -> Regularizer:
    """The same regularizer with its penalty times ``factor``; projection unchanged."""
    check_number("scaled", factor=factor)
    if regularizer.penalty is no_penalty:
        return regularizer

    def penalty(state, params, context):
        return factor * regularizer.penalty(state, params, context)

    return regularizer._replace(penalty=penalty)


class AnchorState(NamedTuple):
    """The last solution: the centre of a box, or the teacher of a distillation."""

    anchor: Params  # the parameters at the end of the last task
    tasks_seen: Int[Array, ""]  # no box and no penalty while this is zero


def first_anchor(params, example) -> AnchorState:
    """The state before the first task."""
    del example
    return AnchorState(copied(params), jnp.zeros((), jnp.int32))


def next_anchor(key, state, params, data) -> AnchorState:
    """The state after a task."""
    del key, data
    return AnchorState(copied(params), state.tasks_seen + 1)


def wide_copy(params: Params) -> Params:
    """The parameters in float32 or better, in buffers of their own."""
    return copied(jax.tree.map(wide, params))


def zeros_of(tree: Params) -> Params:
    """Zeros in the shapes and dtypes of a tree."""
    return jax.tree.map(jnp.zeros_like, tree)


def weighted_distance(importance: Params, params: Params, anchor: Params):
    """``sum_i importance_i (params - anchor)_i^2``."""
    return dot(importance, jax.tree.map(jnp.square, subtract(params, anchor)))


def mean_over_rows(function, batch, weight, chunk_size) -> Float[Array, ""]:
    """The weighted mean of ``function(batch) [b]``; zero without rows."""
    if num_rows(batch) == 0:
        return jnp.zeros((), jnp.float32)
    return weighted_mean(
        by_chunks(function, (batch,), chunk_size, recompute=True), weight
    )
