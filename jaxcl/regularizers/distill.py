"""Distillation: keep answering as the network did when the last task ended."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike

from jaxcl.checks import check_number
from jaxcl.losses import Logits
from jaxcl.regularizers.base import no_regularizer
from jaxcl.tree import copied, weighted_mean
from jaxcl.typing import Batch, Context, Params, Regularizer


class DistillState(NamedTuple):
    """The network whose answers are kept."""

    anchor: Params  # the parameters at the end of the last task
    tasks_seen: Int[Array, ""]  # no penalty while this is zero


def distill(
    logits: Logits,
    strength: ScalarLike,
    *,
    temperature: ScalarLike = 2.0,
    rows: Callable[[Context], Batch] = lambda context: context.batch,
) -> Regularizer:
    r"""Keep the outputs on the rows at hand close to those of the last task's network.

    .. math:: \text{strength} \cdot t^2 \,
       \text{KL}(\text{softmax}(z_a / t) \,\|\, \text{softmax}(z / t))

    with ``z_a`` the logits at the anchor, averaged over the rows. The factor ``t^2`` keeps
    the size of the gradient when the temperature rises. On the current batch this is
    Learning without Forgetting, up to the entropy of ``z_a``, which is constant; on the
    replay it is distillation over a memory.

    Args:
      logits: ``(params, example) -> [c]`` (or ``[l, c]``, averaged over ``l``): what to
        keep. With several heads give those of the earlier tasks, not the current one.
      strength: nats per nat.
      temperature: above zero; softens both distributions.
      rows: which rows of the context to look at, the current batch if absent; the replay
        is ``lambda context: context.replay``.

    Returns:
      A regularizer with :class:`DistillState`; a step costs one more forward pass, and
      the penalty is zero before the first task ends, or without rows.

    Raises:
      ValueError: if ``strength`` is a negative number or ``temperature`` not positive.

    Sources: Li and Hoiem 2016, arXiv:1606.09282, equation 2; Hinton et al. 2015,
    arXiv:1503.02531, section 2, for the factor.
    """
    check_number("distill", strength=strength)
    check_number("distill", above=True, temperature=temperature)

    def init(params):
        return DistillState(copied(params), jnp.zeros((), jnp.int32))

    def penalty(state, params, context):
        def divergence(example):
            soft = lambda params: jax.nn.log_softmax(
                logits(params, example) / temperature
            )
            kept, now = jax.lax.stop_gradient(soft(state.anchor)), soft(params)
            return jnp.mean(jnp.sum(jnp.exp(kept) * (kept - now), axis=-1))

        batch = rows(context)
        weight = batch.weight * (state.tasks_seen > 0)
        gap = weighted_mean(jax.vmap(divergence)(batch), weight)
        return strength * temperature**2 * gap

    def consolidate(key, state, params, task):
        del key, task
        return DistillState(copied(params), state.tasks_seen + 1)

    return no_regularizer()._replace(
        init=init, penalty=penalty, consolidate=consolidate
    )


__all__ = ["DistillState", "distill"]
