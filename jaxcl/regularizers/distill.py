"""Distillation: keep the outputs of the network at the end of the last task."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike

from jaxcl.errors import check_number, check_size
from jaxcl.tree import by_chunks, copied, weighted_mean
from jaxcl.typing import Batch, Context, Outputs, Params, Regularizer


class DistillState(NamedTuple):
    """The teacher: the network at the end of the last task."""

    anchor: Params  # the parameters at the end of the last task
    tasks_seen: Int[Array, ""]  # no penalty while this is zero


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
    such factor), up to the entropy of ``z_a``, which is constant; on the replay it is
    distillation over a memory.

    Args:
      outputs: ``(params, batch) -> [b, c]`` (or ``[b, l, c]``, averaged over ``l``): what
        to keep, in evaluation mode (without dropout). With several heads give those of
        the earlier tasks, not the current one:
        :func:`jaxcl.losses.past_heads`. Entries of -inf are ignored.
      strength: nats per nat.
      temperature: above zero; softens both distributions.
      rows: which rows of the context to use, the current batch if absent; the replay
        is ``lambda context: context.replay``.
      chunk_size: rows whose activations are held at once; all if absent.

    Returns:
      A regularizer with :class:`DistillState`; a step costs one more forward pass, and
      the penalty is zero before the first task ends, or without rows.

    Raises:
      ValueError: if ``strength`` is a negative number, ``temperature`` not positive or
        ``chunk_size`` not an int of at least 1.

    Sources: Li and Hoiem 2016, arXiv:1606.09282, equation 2; Hinton et al. 2015,
    arXiv:1503.02531, section 2, for the factor.
    """
    check_number("distill", strength=strength)
    check_number("distill", above=True, temperature=temperature)
    check_size("distill", optional=True, chunk_size=chunk_size)

    def init(params, example):
        del example
        return DistillState(copied(params), jnp.zeros((), jnp.int32))

    def penalty(state, params, context):
        def divergence(batch):
            soft = lambda params: jax.nn.log_softmax(
                outputs(params, batch) / temperature
            )
            kept, now = jax.lax.stop_gradient(soft(state.anchor)), soft(params)
            given = kept > -jnp.inf
            gaps = jnp.where(given, kept, 0.0) - jnp.where(given, now, 0.0)
            # KL(p_a || p) = sum p_a (log p_a - log p)
            sums = jnp.sum(jnp.exp(kept) * gaps, axis=-1)
            return jnp.mean(sums, axis=tuple(range(1, sums.ndim)))

        batch = rows(context)
        if batch.weight.shape[0] == 0:
            return jnp.zeros((), jnp.float32)
        weight = batch.weight * (state.tasks_seen > 0)
        gaps = by_chunks(divergence, (batch,), chunk_size, recompute=True)
        return strength * temperature**2 * weighted_mean(gaps, weight)

    def end_task(key, state, params, data):
        del key, data
        return DistillState(copied(params), state.tasks_seen + 1)

    return Regularizer(init, penalty, end_task=end_task)
