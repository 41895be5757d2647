"""Full-batch gradients from batches that do not fit at once."""

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

    Use it for both gradients of a sharpness-aware step, ``grads = whole(params)`` and
    ``update(grads, state, params, grad_fn=whole)``: then all parts share one climb, as
    if the batch had been held at once. (``chain(sam(rho), MultiSteps(base, k))``
    instead lets every part have its own climb, which is m-sharpness.)

    Args:
      grad_fn: ``(params, part) -> grads``, the gradient of the part's mean loss.
      parts: what the batch is made of, leaves ``[k, ...]``.
      weight: ``[k]``, how much each part counts: its number of rows if they differ,
        with padding left out; equal if absent.

    Returns:
      ``(params) -> grads``: the weighted mean, accumulated in float32 or better and in
      the dtypes of ``grad_fn``; zero if all weights are zero.

    Cost: ``k`` gradients one after the other; memory for one, and for the sum.
    """

    def whole(params):
        count = jax.tree.leaves(parts)[0].shape[0]
        share = jnp.ones(count) if weight is None else weight
        share = safe_divide(share, jnp.sum(share))
        shape = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], parts))

        def add(total, item):
            amount, part = item
            grads = grad_fn(params, part)
            more = lambda t, g: t + amount.astype(t.dtype) * g.astype(t.dtype)
            return jax.tree.map(more, total, grads), None

        start = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, wide_dtype(leaf)), shape
        )
        total, _ = jax.lax.scan(add, start, (share, parts))
        return jax.tree.map(lambda t, leaf: t.astype(leaf.dtype), total, shape)

    return whole


__all__ = ["accumulated"]
