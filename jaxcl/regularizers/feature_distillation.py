"""Feature distillation from averaged parameters, as in I-LoRA."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, ScalarLike

from jaxcl.errors import check_number, check_size
from jaxcl.tree import by_chunks, weighted_mean
from jaxcl.typing import Batch, Context, Params, Regularizer


def feature_distillation(
    hidden: Callable[[Params, PyTree], PyTree[Array]],
    strength: ScalarLike,
    *,
    rows: Callable[[Context], Batch] = lambda context: context.replay,
    chunk_size: int | None = None,
) -> Regularizer:
    r"""On replayed inputs, keep features close to those of the averaged parameters.

    .. math:: \text{strength} \cdot
       \text{mean} \, (h(x; \theta) - h(x; \theta_{slow}))^2

    The mean is over the entries of each feature array, then over arrays, then over
    rows. Features of the averaged (slow) parameters are not differentiated. Without an
    average the slow parameters are the parameters, and without replay there are no
    rows: both give zero.

    Args:
      hidden: ``(params, x [b, ...]) -> [b, ...]``, or a tree of such arrays:
        ``model.hidden`` for all layers, ``lambda *args: model.hidden(*args)[-1]`` for
        the last.
      strength: loss per squared feature; the paper's gamma.
      rows: which rows of the context to use, the replay if absent.
      chunk_size: rows whose activations are held at once; all if absent.

    Returns:
      A regularizer without state; a step costs one more forward pass over the rows.

    Raises:
      ValueError: if ``strength`` is a negative number or ``chunk_size`` not an int of at
        least 1.

    Source: I-LoRA, arXiv:2402.18865, the second term of its loss.
    """
    check_number("feature_distillation", strength=strength)
    check_size("feature_distillation", optional=True, chunk_size=chunk_size)

    def penalty(state, params, context):
        del state
        batch = rows(context)
        if batch.weight.shape[0] == 0:
            return jnp.zeros((), jnp.float32)

        def gap(x):
            average = jax.lax.stop_gradient(hidden(context.average, x))
            per_row = lambda leaf: jnp.mean(leaf, axis=tuple(range(1, leaf.ndim)))
            square = lambda a, b: per_row(jnp.square(a - b))
            gaps = jax.tree.leaves(jax.tree.map(square, hidden(params, x), average))
            return jnp.mean(jnp.stack(gaps), axis=0)

        gaps = by_chunks(gap, (batch.x,), chunk_size, recompute=True)
        return strength * weighted_mean(gaps, batch.weight)

    return Regularizer(penalty=penalty)
