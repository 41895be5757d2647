"""Full-batch gradients for batches that do not fit in memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxcl.tree import safe_divide, wide_dtype
from jaxcl.typing import GradFn, Params


def accumulated(
    grad_fn: Callable[[Params, PyTree], Params],
    parts: PyTree,
    *,
    weight: Float[Array, " k"] | None = None,
) -> GradFn:
    """The mean gradient over the parts of a batch, one part at a time.

    Use it for both gradients of a sharpness-aware step, ``grads = full(params)`` and
    ``update(grads, state, params, grad_fn=full)``: then all parts share one perturbation,
    as if the batch had been processed at once. The sum is accumulated in float32 or
    better; the mean has the dtypes of ``grad_fn``, and is zero if all weights are.

    Args:
      grad_fn: ``(params, part) -> grads``, the gradient of the part's mean loss.
      parts: the parts of the batch, leaves ``[k, ...]``.
      weight: ``[k]``, the weight of each part: its number of rows if they differ,
        without padding; equal if absent.
    """

    def full(params):
        count = jax.tree.leaves(parts)[0].shape[0]
        fraction = jnp.ones(count) if weight is None else weight
        fraction = safe_divide(fraction, jnp.sum(fraction))
        shape = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))

        def add(total, item):
            amount, part = item
            grads = grad_fn(params, part)
            more = lambda t, g: t + amount.astype(t.dtype) * g.astype(t.dtype)
            return jax.tree.map(more, total, grads), None

        zeros = lambda leaf: jnp.zeros(leaf.shape, wide_dtype(leaf))
        start = jax.tree.map(zeros, shape)
        total, _ = jax.lax.scan(add, start, (fraction, parts))
        return jax.tree.map(lambda t, leaf: t.astype(leaf.dtype), total, shape)

    return full
