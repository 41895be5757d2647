"""Distillation: keep the outputs of the network at the end of the last task."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from jaxcl.errors import check_number, check_size
from jaxcl.losses.outputs import evaluated
from jaxcl.regularizers.base import first_anchor, mean_over_rows, next_anchor
from jaxcl.typing import Batch, Context, Outputs, Regularizer


def distill(
    outputs: Outputs,
    strength: ScalarLike,
    *,
    temperature: ScalarLike = 2.0,
    rows: Callable[[Context], Batch] = lambda context: context.batch,
    chunk_size: int | None = None,
) -> Regularizer:
    r"""Keep the outputs on the current rows close to those of the last task's network.

    .. math:: \text{strength} \cdot t^2 \,
       \text{KL}(\text{softmax}(z_a / t) \,\|\, \text{softmax}(z / t))

    with ``z_a`` the logits at the anchor, averaged over the rows. The factor ``t^2`` keeps
    the size of the gradient when the temperature rises. On the current batch this is
    Learning without Forgetting with ``lambda_o = strength * t^2`` (its authors have no
    such factor), up to the entropy of ``z_a``, which is constant.

    Args:
      outputs: ``(params, batch) -> [b, c]`` (or ``[b, l, c]``, averaged over ``l``): what
        to keep, without dropout; of several heads those of the earlier tasks,
        :func:`jaxcl.losses.past_heads`. Entries of -inf are ignored, and of tokens those
        whose label ``y [b, l]`` is below zero, as in the loss: padding, or a prompt.
      strength: nats per nat.
      temperature: above zero; softens both distributions.
      rows: which rows of the context to use, the current batch if absent; distillation
        over a memory is ``lambda context: context.replay``.
      chunk_size: rows whose activations are held at once; all if absent.

    State: :class:`AnchorState`. A step costs one more forward pass, and the penalty is
    zero before the first task ends, or without rows.

    Sources: Li and Hoiem 2016, arXiv:1606.09282, equation 2; Hinton et al. 2015,
    arXiv:1503.02531, section 2, for the factor.
    """
    check_number("distill", strength=strength)
    check_number("distill", above=True, temperature=temperature)
    check_size("distill", optional=True, chunk_size=chunk_size)

    def penalty(state, params, context):
        def divergence(batch):
            logits = lambda params: evaluated(outputs, params, batch) / temperature
            soft = lambda params: jax.nn.log_softmax(logits(params))
            kept, now = jax.lax.stop_gradient(soft(state.anchor)), soft(params)
            given = kept > -jnp.inf
            gaps = jnp.where(given, kept, 0.0) - jnp.where(given, now, 0.0)
            # KL(p_a || p) = sum p_a (log p_a - log p)
            sums = jnp.sum(jnp.exp(kept) * gaps, axis=-1)
            return _mean_of_rows(sums, batch.y)

        batch = rows(context)
        weight = batch.weight * (state.tasks_seen > 0)
        mean = mean_over_rows(divergence, batch, weight, chunk_size)
        return strength * temperature**2 * mean

    return Regularizer(first_anchor, penalty, end_task=next_anchor)


def _mean_of_rows(values: Float[Array, "b ..."], labels) -> Float[Array, " b"]:
    """The mean of each row's values ``[b, ...]``, of tokens those with a label."""
    counts = jnp.ones_like(values, bool)
    of_tokens = getattr(labels, "ndim", 0) == 2 and values.ndim > 1
    if of_tokens and labels.shape[1] == values.shape[-1]:
        places = labels.reshape(len(labels), *[1] * (values.ndim - 2), -1)
        counts = jnp.broadcast_to(places >= 0, values.shape)
    inner = tuple(range(1, values.ndim))
    total = jnp.sum(jnp.where(counts, values, 0), axis=inner)
    return total / jnp.maximum(jnp.sum(counts, axis=inner), 1)
