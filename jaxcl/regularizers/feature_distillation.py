"""Feature distillation from averaged parameters, as in I-LoRA."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from jaxcl.errors import check_number, check_size
from jaxcl.regularizers.base import mean_over_rows
from jaxcl.tree import wide
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
    rows; of sequences whose ``x`` has a ``mask [b, n]``, over the real tokens of features
    ``[b, n, ...]``. Features of the averaged (slow) parameters are not differentiated.
    Without an average or without replay it is zero. A step costs one more forward pass.

    Args:
      hidden: ``(params, x [b, ...]) -> [b, ...]``, or a tree of such arrays:
        ``model.hidden`` for all layers, ``lambda *args: model.hidden(*args)[-1]`` for
        the last.
      strength: loss per squared feature; the paper's gamma.
      rows: which rows of the context to use, the replay if absent.
      chunk_size: rows whose activations are held at once; all if absent.

    Source: I-LoRA, arXiv:2402.18865, the second term of its loss.
    """
    check_number("feature_distillation", strength=strength)
    check_size("feature_distillation", optional=True, chunk_size=chunk_size)

    def penalty(_state, params, context):

        def gap(batch):
            average = hidden(context.average, batch.x)
            return feature_gap(hidden(params, batch.x), average, batch.x)

        batch = rows(context)
        return strength * mean_over_rows(gap, batch, batch.weight, chunk_size)

    return Regularizer(penalty=penalty)


def feature_gap(
    features: PyTree[Array], average: PyTree[Array], x: PyTree
) -> Float[Array, " b"]:
    """The mean squared distance of each row's features to those of the average.

    As in :func:`feature_distillation`, for losses that have the features already. The
    average is not differentiated.
    """
    average = jax.lax.stop_gradient(average)
    # In float32: a mean of squares in bfloat16 keeps two or three digits.
    square = lambda a, b: _mean_of_rows(jnp.square(wide(a - b)), x)
    gaps = jax.tree.map(square, features, average)
    return jnp.mean(jnp.stack(jax.tree.leaves(gaps)), axis=0)


def _mean_of_rows(values: Float[Array, "b ..."], x: PyTree) -> Float[Array, " b"]:
    """The mean of each row's values ``[b, ...]``, padding left out."""
    mask = x.get("mask") if isinstance(x, Mapping) else None
    if mask is None or values.ndim < 3 or values.shape[1] != mask.shape[1]:
        return jnp.mean(values, axis=tuple(range(1, values.ndim)))
    of_tokens, real = jnp.mean(values, axis=tuple(range(2, values.ndim))), mask > 0
    total = jnp.sum(jnp.where(real, of_tokens, 0), axis=1)
    return total / jnp.maximum(jnp.sum(real, axis=1), 1)
