r"""O-LoRA: a low-rank adapter for each task, in directions orthogonal to earlier ones.

The factors of ``T`` tasks, each of rank ``k``, stand side by side in one adapter of rank
``T k``: columns ``t k .. (t + 1) k`` of ``lora_a`` and rows of ``lora_b`` are the slot of
task ``t``. So the sum of all tasks' products is the product of the leaves, past ones
included, and what applies or merges an adapter needs not know of tasks::

    rank, alpha, T = 8, 16, 5
    params = add_lora(key, params, rank=T * rank, alpha=T * alpha)
    trainable, frozen = partition(params, lora_rule)

    def build(frozen):
        loss = token_cross_entropy(single_head(with_frozen(model.apply, frozen)))
        return make_method(
            loss,
            optax.adamw(1e-4),
            gradient=in_current_slot(lora_slots, T),  # or (lora_slots, T, sam(0.05))
            regularizer=olora(0.5, num_tasks=T),
        )

A forward pass costs that of an adapter of rank ``T k`` from the first task on.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from jaxcl.adapters.paths import path_of
from jaxcl.adapters.slots import keep_slots
from jaxcl.errors import check_number, check_size
from jaxcl.tree import wide
from jaxcl.typing import Regularizer


def lora_slots(path: str) -> int | None:
    """The axis of an adapter's slots: columns of ``lora_a``, rows of ``lora_b``."""
    return {"lora_a": -1, "lora_b": -2}.get(path.rsplit("/", 1)[-1])


def olora(strength: ScalarLike, *, num_tasks: int) -> Regularizer:
    r"""Penalise the overlap of the current task's ``A`` with those of past tasks.

    .. math:: \text{strength} \sum_{s < t} \sum_{\text{projections}} |A_s^\top A_t|^2

    The squares of all entries are added, over layers too. Slots of other tasks are restored
    after every update (:func:`jaxcl.adapters.keep_slots`); leaves other than factors, such
    as a head, are trained by all tasks. The penalty is zero during the first task and costs
    a product ``[T k, i] [i, k]`` for each projection. State:
    :class:`jaxcl.adapters.SlotState`.

    Args:
      strength: loss per squared entry; the paper's :math:`\lambda_1`, there 0.5. The
        authors' code adds absolute values instead of squares.
      num_tasks: ``T``, for all tasks that are to come; it divides the rank.

    Source: Wang et al. 2023, arXiv:2310.14152, section 3.
    """
    check_number("olora", strength=strength)
    check_size("olora", num_tasks=num_tasks)
    kept = keep_slots(lora_slots, num_tasks)

    def penalty(state, params, context):
        del context
        task = jnp.minimum(state.tasks_seen, num_tasks - 1)
        total = jnp.zeros((), jnp.float32)
        for entries, leaf in jax.tree.leaves_with_path(params):
            if path_of(entries[-1:]) == "lora_a":
                total = total + _overlap(leaf, task, num_tasks)
        return strength * total

    return kept._replace(penalty=penalty)


def _overlap(a: Float[Array, "*layers i k"], task, num_tasks: int) -> Float[Array, ""]:
    """``|A_past^T A_now|^2``, without a gradient for the past."""
    a = wide(a)
    size = a.shape[-1] // num_tasks
    past = jnp.arange(a.shape[-1]) < task * size
    before = jax.lax.stop_gradient(jnp.where(past, a, 0))
    now = jax.lax.dynamic_slice_in_dim(a, task * size, size, axis=-1)
    full = jax.lax.Precision.HIGHEST
    products = jnp.einsum("...ip,...in->...pn", before, now, precision=full)
    return jnp.sum(jnp.square(products))
