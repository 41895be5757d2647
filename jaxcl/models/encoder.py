"""Encoders for language: BERT and what is built like it."""

import math
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcl.errors import check_key, check_kind, check_number, check_size, require
from jaxcl.models.inputs import text_inputs
from jaxcl.models.layers import (
    attend,
    attend_with_dropout,
    check_depth,
    dense,
    dropout,
    embed,
    fold_in,
    layer_norm,
    leaf_names,
    recomputing,
    unstacked,
)
from jaxcl.tree import safe_divide, wide
from jaxcl.typing import Key, Model, Params


def gelu(x: Array) -> Array:
    r"""``x \Phi(x)`` with the normal distribution function, not its approximation.

    By ``erf`` as in PyTorch: a third of the time of ``erfc`` on a CPU. In float32 or wider,
    as ``1 + erf`` of a negative number has few digits.
    """
    fine = wide(x)
    return (0.5 * fine * (1 + jax.lax.erf(fine * math.sqrt(0.5)))).astype(x.dtype)


#: Activations by their names in a ``config.json``.
ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


class EncoderConfig(NamedTuple):
    """The sizes of an encoder, under the names of a Hugging Face ``config.json``.

    The last three say which layers it has besides, and what its files hold.
    """

    vocab_size: int
    hidden_size: int  # d
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # kinds of segments: first and second sentence
    hidden_act: str = "gelu"  # also gelu_new (by tanh) and relu
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1  # of embeddings and of what each layer adds
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # of a head; hidden_dropout_prob if absent
    initializer_range: float = 0.02  # standard deviation of all kernels at the start
    pooler: bool = True  # whether it has the layer of :func:`pooled`
    classifier: str | None = None  # in files: of "texts" or of "tokens", if it has one
    labels: tuple[str, ...] = ()  # in files: the names of a classifier's outputs


def encoder(
    config: EncoderConfig, *, scan: bool = True, checkpoint: bool = False
) -> Model:
    r"""An encoder with learned positions, LayerNorm after each part, and dropout.

    .. math:: h \leftarrow \text{norm}(h + \text{attention}(h)), \quad
       h \leftarrow \text{norm}(h + W_o \, \text{gelu}(W_i h))

    Its input ``x`` is ``tokens [b, n]``, or a dict of them with one or both of ``mask
    [b, n]`` (0 for padding, which nothing attends to) and ``types [b, n]`` (of segments;
    all 0 if absent). States at padding are of no use.

    Args:
      config: sizes and rates. A rate of 0 costs nothing.
      scan: compile one layer and scan over layers, which compiles fast and stores little
        for the gradient; otherwise they are unrolled, see :func:`.decoder`. The
        parameters are the same: stacked, leaves ``[layers, ...]``.
      checkpoint: store only the input of each layer for the gradient and recompute the
        rest, for about a third more work.

    Returns:
      A model with ``apply(params, x, keys=None) -> states [b, n, d]``. ``keys [b]`` are for
      dropout: masks of a row depend on its key only, neither on its neighbours nor on the
      padding on its right. ``hidden`` are all states: the embeddings, and those after each
      layer. Projections may have adapters, beside their kernels.

    Source: Devlin et al. 2019, arXiv:1810.04805.
    """
    check_encoder(config)
    walk = partial(_states, config, scan=scan, checkpoint=checkpoint)
    last = lambda params, x, keys=None: walk(params, x, keys, every=False)[0]

    def hidden(params, x, keys=None):
        last, inputs = walk(params, x, keys, every=True)
        return (*inputs, last)

    return Model(jax.jit(partial(_init, config)), last, hidden)


def check_encoder(config: EncoderConfig, who: str = "encoder") -> None:
    """Refuse sizes that do not fit together, before anything is built."""
    other = "give the configuration of an encoder, such as BERT's"
    check_kind(who, EncoderConfig, other, config=config)
    named = lambda *names: {name: getattr(config, name) for name in names}
    check_size("encoder", **named("vocab_size", "hidden_size", "intermediate_size"))
    check_size("encoder", **named("num_hidden_layers", "num_attention_heads"))
    check_size("encoder", **named("max_position_embeddings", "type_vocab_size"))
    check_number("encoder", **named("layer_norm_eps", "initializer_range"))
    rates = "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"
    check_number("encoder", most=0.999, optional=True, **named(*rates))
    d, heads = config.hidden_size, config.num_attention_heads
    wanted = "num_attention_heads must divide hidden_size"
    require(d % heads == 0, "encoder", f"{wanted}, got {heads} and {d}")
    known = f"one of {', '.join(ACTIVATIONS)}, got {config.hidden_act!r}"
    fits = config.hidden_act in ACTIVATIONS
    require(fits, "encoder", f"hidden_act must be {known}")
    known = f"None, texts or tokens, got {config.classifier!r}"
    fits = config.classifier in (None, "texts", "tokens")
    require(fits, "encoder", f"classifier must be {known}")


def pooled(
    params: Params, states: Float[Array, "b n d"], keys: Any = None
) -> Float[Array, "b d"]:
    """The pooler: ``tanh`` of a projection of the first token's state."""
    message = "params must have a pooler, got none; set it in the EncoderConfig"
    require("pooler" in params, "pooled", message)
    layer, own = params["pooler"]["dense"], None
    if keys is not None and "lora_dropout" in layer:
        own = fold_in(keys, POOLER)
    return jnp.tanh(dense(layer, states[:, 0], own))


def mean_pooled(
    states: Float[Array, "b n d"], mask: Int[Array, "b n"] | None = None
) -> Float[Array, "b d"]:
    """The mean over real tokens, in float32 or wider; over all without a mask."""
    fine = wide(states)
    if mask is None:
        return jnp.mean(fine, axis=1)
    real = (mask > 0).astype(fine.dtype)
    total = jnp.einsum("bn,bnd->bd", real, fine, precision="highest")
    return safe_divide(total, jnp.sum(real, axis=1, keepdims=True))


# -------------------------------------------------------------------------- parameters


def _init(config: EncoderConfig, key: Key) -> Params:
    """Normal kernels and embeddings of one deviation; scales 1 and biases 0."""
    check_key("encoder", key)
    keys = (jax.random.fold_in(key, number) for number in count())
    d = config.hidden_size
    table = lambda size: normal(config, next(keys), size, d)
    embeddings = {
        "word": table(config.vocab_size),
        "position": table(config.max_position_embeddings),
        "type": table(config.type_vocab_size),
        "norm": _init_norm(d),
    }
    layers = jax.random.split(next(keys), config.num_hidden_layers)
    params = {
        "embeddings": embeddings,
        "layers": jax.vmap(partial(_init_layer, config))(layers),
    }
    if config.pooler:
        params["pooler"] = {"dense": init_dense(config, next(keys), d, d)}
    return params


def _init_layer(config: EncoderConfig, key: Key) -> Params:
    """The parameters of one layer."""
    d, units = config.hidden_size, config.intermediate_size
    keys = (jax.random.fold_in(key, number) for number in count())
    made = lambda *shape: init_dense(config, next(keys), *shape)
    attention = {name: made(d, d) for name in ("query", "key", "value")}
    return {
        "attention": {
            **attention,
            "output": {"dense": made(d, d), "norm": _init_norm(d)},
        },
        "intermediate": {"dense": made(d, units)},
        "output": {"dense": made(units, d), "norm": _init_norm(d)},
    }


def init_dense(config: EncoderConfig, key: Key, *shape: int) -> dict[str, Array]:
    """A normal kernel of this shape, ``[..., i, o]``, and a bias of zeros ``[..., o]``."""
    bias = jnp.zeros((*shape[:-2], shape[-1]), jnp.float32)
    return {"kernel": normal(config, key, *shape), "bias": bias}


def normal(config: EncoderConfig, key: Key, *shape: int) -> Array:
    """Normal numbers of deviation ``initializer_range``."""
    return config.initializer_range * jax.random.normal(key, shape, jnp.float32)


def _init_norm(d: int) -> dict[str, Array]:
    return {"scale": jnp.ones(d, jnp.float32), "bias": jnp.zeros(d, jnp.float32)}


# ------------------------------------------------------------------------------ forward

# Uses of a row's key.
EMBEDDINGS, LAYERS, POOLER, HEAD, HEAD_ADAPTER = range(5)


def _states(config, params, x, keys, *, scan, checkpoint, every):
    """The last states ``[b, n, d]``; with ``every`` also the inputs of all layers."""
    tokens, (mask, types) = encoder_inputs(x)
    shape = tokens.shape
    h = _embed(config, params["embeddings"], tokens, types, keys)
    allowed = None if mask is None else (mask > 0)[:, None, None, :]

    def step(h, given):
        layer, own = given
        return _layer(config, layer, h, allowed, shape=shape, keys=own)

    depth, own = config.num_hidden_layers, None
    check_depth("encoder", params["layers"], depth)
    if keys is not None and _is_noisy(config, params["layers"]):
        split = lambda key: jax.random.split(key, depth)
        own = jax.vmap(split, out_axes=1)(fold_in(keys, LAYERS))
    step = recomputing(step, scan=scan, everything=checkpoint)
    layers: Any = params["layers"], own
    inputs: Any = []
    if scan:
        walk = lambda h, given: (step(h, given), h if every else None)
        h, inputs = jax.lax.scan(walk, h, layers)
    else:
        for given in unstacked(layers, depth):
            inputs.append(h)
            h = step(h, given)
    rows = lambda h: h.reshape(*shape, -1)
    return rows(h), [rows(h) for h in inputs] if every else []


def encoder_inputs(x: Any) -> tuple[Array, Any]:
    """The tokens ``[b, n]`` of an input, and its mask and types, None where absent."""
    return text_inputs("encoder", x, "mask", "types")


def _is_noisy(config, layers) -> bool:
    """Whether layers draw anything: otherwise their keys need not be computed."""
    rates = config.hidden_dropout_prob, config.attention_probs_dropout_prob
    return any(rates) or "lora_dropout" in leaf_names(layers)


def _embed(config, layer, tokens, types, keys) -> Float[Array, "r d"]:
    """The sum of the embeddings of words, positions and types, as rows."""
    n, most = tokens.shape[1], config.max_position_embeddings
    wanted = f"x must have at most {most} tokens a row (max_position_embeddings)"
    require(n <= most, "encoder", f"{wanted}, got {n}; cut the rows")
    kind = layer["type"][0] if types is None else layer["type"][types]
    h = embed(layer["word"], tokens) + kind + layer["position"][:n]
    h = layer_norm(layer["norm"], h.reshape(-1, h.shape[-1]), config.layer_norm_eps)
    return drop(keys, EMBEDDINGS, h, config.hidden_dropout_prob)


def _layer(config, layer, h, allowed, *, shape, keys) -> Float[Array, "r d"]:
    """One layer on the rows of ``shape`` ``(b, n)`` sequences."""
    part, rate = layer["attention"], config.attention_probs_dropout_prob
    own: Any = lambda number: None if keys is None else fold_in(keys, number)
    size = config.hidden_size // config.num_attention_heads
    q, k, v = (
        dense(part[name], h, own(number)).reshape(*shape, -1, size)
        for number, name in enumerate(("query", "key", "value"))
    )
    if keys is None or not rate:
        mixed = attend(q, k, v, mask=allowed)
    else:
        mixed = attend_with_dropout(q, k, v, own(3), rate, mask=allowed)
    # Each sum is normalised: h = norm(h + dropout(W x)).
    norm = partial(layer_norm, eps=config.layer_norm_eps)
    rate = config.hidden_dropout_prob
    more = dense(part["output"]["dense"], mixed.reshape(h.shape), own(4))
    h = norm(part["output"]["norm"], h + drop(keys, 5, more, rate))
    units = dense(layer["intermediate"]["dense"], h, own(6))
    units = ACTIVATIONS[config.hidden_act](units)
    more = dense(layer["output"]["dense"], units, own(7))
    return norm(layer["output"]["norm"], h + drop(keys, 8, more, rate))


def drop(keys: Any, use: int, x: Float[Array, "r d"], rate: float) -> Array:
    """Dropout with other keys for each use; nothing without keys, or at a rate of 0."""
    return x if keys is None or not rate else dropout(fold_in(keys, use), x, rate)
