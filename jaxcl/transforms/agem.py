"""A-GEM: remove the part of the gradient that would raise the loss on the replay."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxcl.transforms._perturb import cast_like, next_count, transformation
from jaxcl.tree import axpy, dot, projection, safe_divide


class ProjectionState(NamedTuple):
    """The number of updates, and what the last projection changed."""

    count: Int[Array, ""]  # updates so far
    violated: Int[Array, ""]  # constraints that the gradient violated
    moved: Float[Array, ""]  # |g' - g| / |g|; in [0, 1] without a margin


def untouched(_) -> ProjectionState:
    """The state before the first update, whatever the parameters."""
    zero = lambda dtype: jnp.zeros((), dtype)
    return ProjectionState(zero(jnp.int32), zero(jnp.int32), zero(jnp.float32))


def agem() -> optax.GradientTransformationExtraArgs:
    r"""Project the gradient so that a step does not raise the replay loss.

    .. math::
        g' = g - \min(0, \langle g, r\rangle)\, r / \|r\|^2, \qquad r = \nabla
        L_{replay}(w)

    ``update(grads, state, params, *, replay_grad_fn)`` evaluates ``r`` at the
    parameters. A zero ``r`` (empty memory) changes nothing. Put it first in a chain, or
    after a sharpness-aware transformation, whose result it then projects. Later
    transformations (momentum, Adam) may violate the constraint again.

    State: :class:`ProjectionState`.

    Reference: Chaudhry et al. 2019, arXiv:1812.00420, equation 11.
    """

    def update(grads, state, params, *, replay_grad_fn, **_):
        past = cast_like(replay_grad_fn(params), grads)
        # g - min(0, <g, r>) r / |r|^2, as in equation 11, and g itself where they agree.
        agreement, length = projection(grads, past)
        uphill = jnp.minimum(agreement, 0.0)
        projected = axpy(-uphill, past, grads)
        # A log only: not worth the care for extremes that norm takes.
        removed = safe_divide(-uphill * length, jnp.sqrt(dot(grads, grads)))
        after = ProjectionState(
            next_count(state.count),
            (agreement < 0).astype(jnp.int32),
            removed.astype(jnp.float32),
        )
        return projected, after

    return transformation(untouched, update)
