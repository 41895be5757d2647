"""Decoders for language: Llama and the families that are built like it."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcl.errors import check_key, check_kind, check_number, check_size, require
from jaxcl.models.inputs import text_inputs
from jaxcl.models.layers import (
    Rope,
    attend,
    check_depth,
    dense,
    embed,
    fold_in,
    leaf_names,
    recomputing,
    rms_norm,
    rotate,
    unstacked,
)
from jaxcl.typing import Key, Model, Params


class DecoderConfig(NamedTuple):
    """The sizes of a decoder, under the names of a Hugging Face ``config.json``.

    Families differ in a few fields: Llama 3 in ``rope``, Mistral in ``sliding_window``,
    Qwen2 in ``qkv_bias``, Qwen3 in ``qk_norm``; SmolLM2 and small Qwens have
    ``tie_word_embeddings``.
    """

    vocab_size: int
    hidden_size: int  # d
    intermediate_size: int  # of the gated units
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # fewer for grouped-query attention
    head_dim: int | None = None  # hidden_size / num_attention_heads if absent
    rope: Rope = Rope()
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False  # whether output weights are the embedding
    initializer_range: float = 0.02  # standard deviation of all kernels at the start
    sliding_window: int | None = None  # latest positions attended to; all if absent
    qkv_bias: bool = False  # of the projections to queries, keys and values
    qk_norm: bool = False  # RMSNorm of each head's queries and keys
    max_position_embeddings: int | None = (
        None  # tokens it was trained for, for messages
    )

    @property
    def heads(self) -> tuple[int, int, int]:
        """The numbers of query and key heads, and the size of a head."""
        queries = self.num_attention_heads
        keys = self.num_key_value_heads or queries
        return queries, keys, self.head_dim or self.hidden_size // queries


def decoder(
    config: DecoderConfig, *, scan: bool = True, checkpoint: bool = False
) -> Model:
    r"""A decoder with rotary positions, grouped queries, RMSNorm and SwiGLU.

    .. math:: h \leftarrow h + \text{attention}(\text{norm}(h)), \quad
       h \leftarrow h + W_d (\text{silu}(W_g z) \odot W_u z), \; z = \text{norm}(h)

    Its input ``x`` is ``tokens [b, n]``, or a dict of them with one or both of ``mask
    [b, n]`` (0 for padding, on either side) and ``segments [b, n]`` (numbers of packed
    sequences; a token attends to its own only). Padding on the right needs no mask, as
    attention is causal: give its labels no weight.

    Args:
      config: sizes.
      scan: compile one block and scan over layers, which compiles fast and stores little
        for the gradient: products and attention, from which the rest is computed again.
        Otherwise the layers are unrolled: at twice the memory on a CPU, and a few per
        cent faster if they are small, slower if not. The parameters are the same:
        stacked, leaves ``[layers, ...]``.
      checkpoint: store only the input of each block for the gradient and recompute the
        rest: memory of one block instead of all, for about a third more work.

    Returns:
      A model with ``apply(params, x, keys=None, *, prompt=None, prompt_mask=None,
      at=None) -> logits [b, n, v]``, in float32 or wider: those at position ``i`` depend on
      tokens up to ``i`` and predict the next one. ``at [b, k]`` are the positions of each
      row of which logits ``[b, k, v]`` are computed, those of all tokens if absent.
      ``prompt``, ``[p, d]`` or ``[b, p, d]``, are embeddings before those of the tokens, of
      which a row attends to those that ``prompt_mask [b, p]`` marks, to all without it;
      hide the first ones of a row, as padding. With a prompt, pad tokens on the right and
      do not pack: what is between the two moves a sequence away from its prompt. ``keys``
      are for the dropout of adapters.
      ``hidden`` are the states ``[b, n, d]``: the embeddings, those after each block but
      the last, and the normalised last ones, from which the logits are computed.

    Sources: Touvron et al. 2023, arXiv:2302.13971; Ainslie et al. 2023, arXiv:2305.13245
    (grouped queries); Shazeer 2020, arXiv:2002.05202 (SwiGLU); Zhang and Sennrich 2019,
    arXiv:1910.07467 (RMSNorm); Jiang et al. 2023, arXiv:2310.06825 (sliding window).
    """
    check_decoder(config)
    walk = partial(_states, config, scan=scan, checkpoint=checkpoint)

    def apply(params, x, keys=None, *, prompt=None, prompt_mask=None, at=None):
        states = walk(params, x, keys, prompt, prompt_mask)[0]
        if at is not None:
            states = jnp.take_along_axis(states, at[..., None], axis=1)
        return logits(params, states, keys)

    def hidden(params, x, keys=None):
        last, inputs = walk(params, x, keys)
        return (*inputs, last)

    return Model(jax.jit(partial(_init, config)), apply, hidden)


def check_decoder(config: DecoderConfig) -> None:
    """Refuse sizes that do not fit together, before anything is built."""
    other = "give the configuration of a decoder, such as Llama's"
    check_kind("decoder", DecoderConfig, other, config=config)
    named = lambda *names: {name: getattr(config, name) for name in names}
    check_size("decoder", **named("vocab_size", "hidden_size", "intermediate_size"))
    check_size("decoder", **named("num_hidden_layers", "num_attention_heads"))
    maybe = named("num_key_value_heads", "head_dim", "sliding_window")
    check_size("decoder", optional=True, **maybe)
    eps, deviation = config.rms_norm_eps, config.initializer_range
    check_number("decoder", rms_norm_eps=eps, initializer_range=deviation)
    queries, keys, size = config.heads
    rest = 0 if config.head_dim else config.hidden_size % queries
    wanted = "key heads must divide query heads, these hidden_size, each head be even"
    came = f"got {keys}, {queries}, {config.hidden_size} and heads of {size}"
    require(not (queries % keys or rest or size % 2), "decoder", f"{wanted}, {came}")
    _check_rope(config.rope)


def _check_rope(rope: Rope) -> None:
    """Refuse rotations of another kind, and those without a finite frequency."""
    kinds = "default", "linear", "llama3"
    known = f"rope must be one of {', '.join(kinds)}, got {rope.kind!r}"
    require(rope.kind in kinds, "decoder", known)
    numbers = {"theta": rope.theta, "factor": rope.factor}
    numbers = {f"rope_{name}": value for name, value in numbers.items()}
    check_number("decoder", least=1, **numbers)
    if rope.kind == "llama3":
        low, high = rope.low_freq_factor, rope.high_freq_factor
        name = "original_max_position_embeddings"
        check_size("decoder", **{name: getattr(rope, name)})
        check_number("decoder", low_freq_factor=low)
        above = f"high_freq_factor must be above low_freq_factor, got {high} and {low}"
        require(high > low, "decoder", above)


# -------------------------------------------------------------------------- parameters


def _init(config: DecoderConfig, key: Key) -> Params:
    """Normal kernels and embeddings of one deviation; scales 1 and biases 0."""
    check_key("decoder", key)
    normal = partial(_normal, config)
    keys = (jax.random.fold_in(key, number) for number in count())
    embedding = normal(next(keys), config.vocab_size, config.hidden_size)
    layers = jax.random.split(next(keys), config.num_hidden_layers)
    params = {
        "embedding": embedding,
        "layers": jax.vmap(partial(_init_block, config))(layers),
        "norm": {"scale": jnp.ones(config.hidden_size, jnp.float32)},
    }
    if not config.tie_word_embeddings:
        kernel = normal(next(keys), config.hidden_size, config.vocab_size)
        params["out"] = {"kernel": kernel}
    return params


def _init_block(config: DecoderConfig, key: Key) -> Params:
    """The parameters of one block."""
    d, units = config.hidden_size, config.intermediate_size
    queries, keys, size = config.heads
    drawn = (jax.random.fold_in(key, number) for number in count())
    kernel = lambda *shape: {"kernel": _normal(config, next(drawn), *shape)}
    ones = lambda size: {"scale": jnp.ones(size, jnp.float32)}
    attention = {
        "q_proj": kernel(d, queries * size),
        "k_proj": kernel(d, keys * size),
        "v_proj": kernel(d, keys * size),
        "o_proj": kernel(queries * size, d),
    }
    if config.qkv_bias:
        for name in ("q_proj", "k_proj", "v_proj"):
            width = attention[name]["kernel"].shape[1]
            attention[name]["bias"] = jnp.zeros(width, jnp.float32)
    if config.qk_norm:
        attention |= {"q_norm": ones(size), "k_norm": ones(size)}
    return {
        "attention": attention,
        "gate_proj": kernel(d, units),
        "up_proj": kernel(d, units),
        "down_proj": kernel(units, d),
        "norm_0": ones(d),
        "norm_1": ones(d),
    }


def _normal(config: DecoderConfig, key: Key, *shape: int) -> Array:
    return config.initializer_range * jax.random.normal(key, shape, jnp.float32)


# ------------------------------------------------------------------------------ forward


def _states(config, params, x, keys, prompt=None, seen=None, *, scan, checkpoint):
    """The input of the output layer, ``[b, n, d]``, and those of all blocks."""
    tokens, (mask, segments) = text_inputs("decoder", x, "mask", "segments")
    b, n = tokens.shape
    h = embed(params["embedding"], tokens)
    begin = 0
    _check_prompt(config, b, prompt, seen)
    if prompt is not None:
        prompt = jnp.broadcast_to(prompt, (b, *prompt.shape[-2:])).astype(h.dtype)
        h, begin = jnp.concatenate([prompt, h], axis=1), prompt.shape[1]
    shape = b, begin + n
    if seen is not None:  # a mask of all positions
        seen = jnp.concatenate([seen > 0, jnp.ones((b, n), bool)], axis=1)
    allowed = _allowed(mask, segments, begin, seen)
    turns = config.rope.turns(shape[1], config.heads[2])
    attention = partial(attend, mask=allowed, causal=True, window=config.sliding_window)

    def step(h, given):
        layer, own = given
        mixed = lambda *qkv: (attention(*qkv), None)
        return block(config, layer, h, turns, mixed, shape=shape, keys=own)[0]

    depth, own = config.num_hidden_layers, None
    check_depth("decoder", params["layers"], depth)
    if keys is not None and "lora_dropout" in leaf_names(params["layers"]):
        own = jax.vmap(lambda key: jax.random.split(key, depth), out_axes=1)(keys)
    step = recomputing(step, scan=scan, everything=checkpoint)
    h, layers = h.reshape(-1, h.shape[-1]), (params["layers"], own)
    if scan:
        h, inputs = jax.lax.scan(lambda h, given: (step(h, given), h), h, layers)
    else:
        inputs = []
        for given in unstacked(layers, depth):
            inputs.append(h)
            h = step(h, given)
    rows = lambda h: h.reshape(*shape, -1)[:, begin:]
    h = rms_norm(params["norm"], h, config.rms_norm_eps)
    return rows(h), [rows(h) for h in inputs]


def _check_prompt(config: DecoderConfig, b: int, prompt, mask) -> None:
    """Refuse embeddings and a mask that do not fit each other and ``b`` rows."""
    shape, marks = (() if part is None else jnp.shape(part) for part in (prompt, mask))
    d = config.hidden_size
    if prompt is not None:
        fits = shape[-1:] == (d,) and (len(shape) == 2 or shape[:-2] in ((1,), (b,)))
        wanted = f"prompt must be [p, {d}] or [{b}, p, {d}], got {list(shape)}"
        require(fits, "decoder", f"{wanted}; see decoder")
    if mask is not None:
        wanted = f"prompt_mask must be [{b}, p] beside a prompt of p vectors"
        came = f"got {list(marks)} beside {list(shape)}; see decoder"
        fits = prompt is not None and marks == (b, *shape[-2:-1])
        require(fits, "decoder", f"{wanted}, {came}")


def block(
    config: DecoderConfig,
    layer: Any,
    h: Float[Array, "r d"],
    turns: Any,
    attention: Callable,
    *,
    shape: tuple[int, int],
    keys: Any = None,
) -> tuple[Float[Array, "r d"], Any]:
    """One block on the rows of ``shape`` ``(b, n)`` sequences.

    ``attention(q, k, v)`` returns the mixed values and anything else, which is returned
    beside the new rows.
    """
    eps, size = config.rms_norm_eps, config.heads[2]
    part = layer["attention"]
    own = lambda number: (
        None
        if keys is None
        else jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    )
    z = rms_norm(layer["norm_0"], h, eps)
    q, k, v = (
        dense(part[name], z, own(number)).reshape(*shape, -1, size)
        for number, name in enumerate(("q_proj", "k_proj", "v_proj"))
    )
    if config.qk_norm:
        q, k = rms_norm(part["q_norm"], q, eps), rms_norm(part["k_norm"], k, eps)
    mixed, other = attention(rotate(q, turns), rotate(k, turns), v)
    h = h + dense(part["o_proj"], mixed.reshape(h.shape[0], -1), own(3))
    z = rms_norm(layer["norm_1"], h, eps)
    gate = jax.nn.silu(dense(layer["gate_proj"], z, own(4)))
    units = gate * dense(layer["up_proj"], z, own(5))
    return h + dense(layer["down_proj"], units, own(6)), other


def logits(
    params: Params, states: Float[Array, "*b d"], keys: Any = None
) -> Float[Array, "*b v"]:
    """The output layer, in float32 or wider; with ``keys`` for the dropout of adapters."""
    x = states.reshape(-1, states.shape[-1])
    fine = jnp.promote_types(x.dtype, jnp.float32)
    if "out" in params:
        own = None
        if keys is not None and "lora_dropout" in params["out"]:
            own = fold_in(keys, 0)
        scores = dense(params["out"], x, own, dtype=fine)
    else:
        scores = jnp.matmul(x, params["embedding"].T, preferred_element_type=fine)
    return scores.reshape(*states.shape[:-1], -1)


def _allowed(mask, segments, begin: int, seen) -> Bool[Array, "b 1 _ m"] | None:
    """Which keys a query may attend to besides the causal order; None for all.

    ``mask`` and ``segments`` are of the tokens, ``seen`` also of the prompt before them.
    """
    if mask is None and segments is None:
        return None if seen is None else seen[:, None, None, :]
    real = True if mask is None else (mask > 0)[:, None, None, :]
    same = True
    if segments is not None:
        same = segments[:, None, :, None] == segments[:, None, None, :]
    allowed = jnp.logical_and(real, same)
    # All rows see the prompt; with segments it has rows of its own, else they broadcast.
    above = begin if segments is not None else 0
    pads = ((0, 0), (0, 0), (above, 0), (begin, 0))
    allowed = jnp.pad(allowed, pads, constant_values=True)
    return allowed if seen is None else allowed & seen[:, None, None, :]
