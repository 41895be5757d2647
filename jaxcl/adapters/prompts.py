"""Prompts: trained embeddings before those of the tokens, over a frozen decoder.

Both methods work on ``apply(params, x, keys, prompt=[b, p, d], prompt_mask=[b, p])``, that
of :func:`jaxcl.models.decoder`, and add their own leaves to the parameters; train them by
``partition(params, "pool")`` or ``partition(params, "prompts")``. Rows depend on
themselves only.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxcl.errors import check_key, check_number, check_size, require
from jaxcl.tree import safe_divide, wide
from jaxcl.typing import Batch, Key, Loss, Outputs, Params

#: ``(params, x) -> [b, d]``: a vector of each row, by which prompts are selected.
Query = Callable[[Params, Any], Array]


# ---------------------------------------------------------------------- a pool of prompts


def add_prompt_pool(
    key: Key,
    params: Params,
    *,
    num_prompts: int = 10,
    length: int = 5,
    embedding: Array | None = None,
) -> Params:
    """Add ``pool/prompts [m, l, d]`` and ``pool/keys [m, d]`` to a decoder's parameters.

    Prompts begin as the embeddings of random tokens (Lester et al. 2021, arXiv:2104.08691,
    section 2.1), keys as numbers in (-1, 1), in float32.

    Args:
      key: draws both.
      params: of a decoder.
      num_prompts: ``m``.
      length: ``l``, of each prompt.
      embedding: ``[v, d]``; the decoder's if absent.
    """
    who = "add_prompt_pool"
    check_size(who, num_prompts=num_prompts, length=length)
    table = _table(who, key, params, "pool", embedding)
    first, second = jax.random.split(key)
    prompts = _token_embeddings(first, table, num_prompts, length)
    shape = num_prompts, table.shape[1]
    keys = jax.random.uniform(second, shape, jnp.float32, -1.0, 1.0)
    return {**params, "pool": {"prompts": prompts, "keys": keys}}


def mean_query(hidden: Callable) -> Query:
    """The mean of a row's last states without a prompt, over its real tokens.

    It costs a forward pass of the frozen network. To save it, compute it once, store it
    with the examples, and give ``lambda params, x: x["query"]`` instead.

    Args:
      hidden: ``(params, x) -> tuple`` of states ``[b, n, d]``: ``model.hidden``.
    """

    def query(params, x):
        states = wide(hidden(params, x)[-1])
        mask = x.get("mask") if isinstance(x, Mapping) else None
        real = jnp.ones(states.shape[:2]) if mask is None else mask > 0
        real = real.astype(states.dtype)[..., None]
        mean = safe_divide(jnp.sum(real * states, axis=1), jnp.sum(real, axis=1))
        return jax.lax.stop_gradient(mean)

    return query


def l2p_outputs(apply: Callable, query: Query, *, num_selected: int = 3) -> Outputs:
    """The outputs with the prompts whose keys are nearest to a row's query, for L2P.

    The nearest prompt comes first. For evaluation; :func:`l2p_loss` trains.

    Args:
      apply: of a decoder; parameters need a pool, :func:`add_prompt_pool`.
      query: such as ``mean_query(model.hidden)``.
      num_selected: prompts of a row, at most those of the pool.

    Source: Wang et al. 2022, arXiv:2112.08654, section 4.
    """
    check_size("l2p_outputs", num_selected=num_selected)

    def outputs(params, batch, keys=None):
        prompt, _ = _select(params["pool"], query(params, batch.x), num_selected)
        return apply(params, batch.x, keys, prompt=prompt)

    return outputs


def l2p_loss(
    loss: Callable[[Outputs], Loss],
    apply: Callable,
    query: Query,
    *,
    num_selected: int = 3,
    strength: ScalarLike = 0.5,
) -> Loss:
    r"""The loss of L2P, which also moves the selected keys to the queries.

    .. math:: L(f(x; P_{s_1}, \dots, P_{s_N})) + \text{strength}
       \sum_{i} (1 - \cos(q(x), k_{s_i}))

    Args:
      loss: of outputs, such as :func:`jaxcl.losses.token_cross_entropy`.
      apply: as in :func:`l2p_outputs`.
      query: likewise.
      num_selected: likewise.
      strength: loss per cosine distance; the paper's :math:`\lambda`, there 0.5.

    Selection is by distance alone; the paper's table of how often a prompt was selected in
    earlier tasks is not used.

    Source: Wang et al. 2022, arXiv:2112.08654, section 4.3.
    """
    check_size("l2p_loss", num_selected=num_selected)
    check_number("l2p_loss", strength=strength)

    def full_loss(params, batch, keys):
        found = query(params, batch.x)  # once, for both terms
        prompt, distances = _select(params["pool"], found, num_selected)
        outputs = lambda params, batch, keys=None: apply(
            params, batch.x, keys, prompt=prompt
        )
        return loss(outputs)(params, batch, keys) + strength * distances

    return full_loss


def _select(
    pool: Mapping[str, Array], query: Float[Array, "b d"], num_selected: int
) -> tuple[Float[Array, "b p d"], Float[Array, " b"]]:
    """The selected prompts of each row, one after another, and their keys' distances."""
    _, length, d = pool["prompts"].shape
    nearest, chosen = select_prompts(pool, query, num_selected)
    prompts = pool["prompts"][chosen].reshape(len(query), num_selected * length, d)
    return prompts, jnp.sum(1 - nearest, axis=1)


def select_prompts(
    pool: Mapping[str, Array], query: Float[Array, "b d"], num_selected: int
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """The cosines and the numbers of the prompts whose keys are nearest to each query."""
    size = pool["keys"].shape[0]
    wanted = f"num_selected must be at most the {size} prompts, got {num_selected}"
    require(num_selected <= size, "l2p", wanted)
    cosines = jnp.matmul(
        _unit(jax.lax.stop_gradient(query)),
        _unit(pool["keys"]).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    nearest, chosen = jax.lax.top_k(cosines, num_selected)
    return nearest, chosen


def _unit(vectors: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Vectors of length 1; zero for zero."""
    fine = wide(vectors)
    squares = jnp.sum(jnp.square(fine), axis=-1, keepdims=True)
    return fine * jnp.where(squares > 0, jax.lax.rsqrt(jnp.maximum(squares, 1e-30)), 0)


# ------------------------------------------------------------------- progressive prompts


def add_progressive_prompts(
    key: Key,
    params: Params,
    *,
    num_tasks: int,
    length: int = 10,
    bottleneck: int | None = None,
    embedding: Array | None = None,
) -> Params:
    r"""Add ``prompts``, one for each task, to a decoder's parameters.

    Their leaves are ``embedding [T, l, d]``, which begin as those of random tokens, and
    with a bottleneck ``mlp/down`` and ``mlp/up``, ``kernel [T, i, o]`` and ``bias
    [T, o]``: a network for each task by which its prompt is reparametrised,

    .. math:: P_t \leftarrow P_t + W_{up} \, \text{relu}(W_{down} P_t + b) + c

    Train them with ``regularizer=keep_slots(prompt_slots, num_tasks)``, which keeps the
    prompts of other tasks, also from momentum and weight decay.

    Args:
      key: draws them.
      params: of a decoder.
      num_tasks: ``T``, for all tasks that are to come.
      length: ``l``, of each prompt.
      bottleneck: width of the networks; none if absent.
      embedding: ``[v, d]``; the decoder's if absent.

    Source: Razdaibiedina et al. 2023, arXiv:2301.12314, section 3.
    """
    who = "add_progressive_prompts"
    check_size(who, num_tasks=num_tasks, length=length)
    check_size(who, optional=True, bottleneck=bottleneck)
    table = _table(who, key, params, "prompts", embedding)
    first, second, third = jax.random.split(key, 3)
    prompts: Any = {"embedding": _token_embeddings(first, table, num_tasks, length)}
    if bottleneck is not None:
        d = table.shape[1]
        prompts["mlp"] = {
            "down": _dense(second, num_tasks, d, bottleneck),
            "up": _dense(third, num_tasks, bottleneck, d),
        }
    return {**params, "prompts": prompts}


def prompt_slots(path: str) -> int | None:
    """The axis of the slots of progressive prompts, for :func:`keep_slots`."""
    return 0 if "prompts" in path.split("/") else None


def progressive_outputs(apply: Callable) -> Outputs:
    """The outputs of each row with the prompts of its task and of all tasks before.

    In the order ``P_t, ..., P_1, P_0, tokens``; only that of the row's own task has a
    gradient. Prompts of later tasks are hidden, so that shapes are the same in all tasks;
    a row costs that of ``T l`` more tokens. NaN for a task without a prompt.

    Args:
      apply: of a decoder; parameters need :func:`add_progressive_prompts`.

    Source: Razdaibiedina et al. 2023, arXiv:2301.12314, section 3.
    """

    def outputs(params, batch, keys=None):
        prompt, seen = _prompts_of(fixed_prompts(params["prompts"]), batch)
        found = apply(params, batch.x, keys, prompt=prompt, prompt_mask=seen)
        tasks = params["prompts"]["embedding"].shape[0]
        known = (batch.task >= 0) & (batch.task < tasks)
        known = known.reshape(-1, *[1] * (found.ndim - 1))
        return jnp.where(known, found, jnp.nan)

    return outputs


def fixed_prompts(prompts: Mapping[str, Any]) -> Float[Array, "T l d"]:
    """The prompts as they are used, reparametrised: after training, all that is needed."""
    given = prompts["embedding"]
    if "mlp" not in prompts:
        return given
    down, up = prompts["mlp"]["down"], prompts["mlp"]["up"]
    # For each task, rows times its own kernel.
    inner = jax.nn.relu(given @ down["kernel"] + down["bias"][:, None])
    return given + inner @ up["kernel"] + up["bias"][:, None]


def _prompts_of(
    prompts: Float[Array, "T l d"], batch: Batch
) -> tuple[Float[Array, "b p d"], Int[Array, "b p"]]:
    """The prompts before each row, the latest task's first, and which of them it sees."""
    tasks, length, d = prompts.shape
    slot = jnp.arange(tasks)[::-1]
    latest = prompts[::-1]
    own = (slot == batch.task[:, None])[..., None, None]
    shown = jnp.where(own, latest, jax.lax.stop_gradient(latest))
    seen = jnp.repeat(slot <= batch.task[:, None], length, axis=1)
    return shown.reshape(-1, tasks * length, d), seen.astype(jnp.int32)


# -------------------------------------------------------------------------------- shared


def _table(who: str, key: Key, params: Params, name: str, embedding: Any) -> Array:
    """The embeddings ``[v, d]`` that prompts begin from."""
    check_key(who, key)
    held = isinstance(params, Mapping) and name not in params
    require(
        held, who, f"params must be a dict without {name!r}; train the one they have"
    )
    table: Any = params.get("embedding") if embedding is None else embedding
    fits = getattr(table, "ndim", 0) == 2
    wanted = "params must have an embedding [v, d], as a decoder's"
    require(fits, who, f"{wanted}; give embedding= for other models")
    return table


def _token_embeddings(
    key: Key, table: Float[Array, "v d"], count: int, length: int
) -> Float[Array, "n l d"]:
    """Prompts of the embeddings of random tokens, in float32 or better."""
    rows = jax.random.randint(key, (count, length), 0, table.shape[0])
    return wide(jnp.asarray(table)[rows])


def _dense(key: Key, tasks: int, i: int, o: int) -> dict[str, Array]:
    """A layer for each task: kernels ``U(-1, 1) / sqrt(i)`` and biases of zero."""
    bound = 1 / math.sqrt(i)
    kernel = jax.random.uniform(key, (tasks, i, o), jnp.float32, -bound, bound)
    return {"kernel": kernel, "bias": jnp.zeros((tasks, o), jnp.float32)}
