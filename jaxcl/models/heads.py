"""Classifiers of texts and of tokens, and embeddings of sentences, over an encoder.

Parameters are those of the encoder, with ``classifier`` beside them: those of a pretrained
encoder take their place in ``{**model.init(key), **pretrained}``.

- One head for all tasks: ``losses.single_head(model.apply)``.
- A head for each task, of any widths: ``sizes`` of the model are those of
  ``losses.heads(model.apply, sizes)``, for texts and for tokens.
- A head that grows, such as one of tags with new kinds of entities in each task: build it
  with all tags, and mask those not seen yet, which get no probability and no gradient:
  ``losses.class_mask(single_head(model.apply), np.arange(c) < seen[:, None])``, where the
  first ``seen[t]`` of ``c`` tags are those of tasks up to ``t``. Weight decay shrinks their
  weights nevertheless.

Losses and metrics of tokens, such as :func:`jaxcl.losses.token_cross_entropy` and
:func:`jaxcl.metrics.tokens`, ignore labels below 0: give them to padding, special tokens
and continuations of words.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcl.errors import check_key, check_size, is_whole, require
from jaxcl.models.encoder import (
    HEAD,
    HEAD_ADAPTER,
    POOLER,
    EncoderConfig,
    check_encoder,
    drop,
    encoder,
    encoder_inputs,
    init_dense,
    mean_pooled,
    pooled,
)
from jaxcl.models.layers import dense, fold_in
from jaxcl.typing import Key, Model, Params

POOLINGS = ("pooler", "heads", "first", "mean")


def sequence_classifier(
    config: EncoderConfig,
    sizes: int | Sequence[int] | None = None,
    *,
    pooling: str = "pooler",
    scan: bool = True,
    checkpoint: bool = False,
) -> Model:
    r"""An encoder with a linear layer on a vector of each text.

    Args:
      config: of the encoder; the vector has dropout at the rate ``classifier_dropout``.
      sizes: number of outputs, or the outputs of each head; one for each of the config's
        labels if absent.
      pooling: ``pooler``, the encoder's :func:`pooled`, as in Hugging Face's
        ``BertForSequenceClassification``; ``heads``, a pooler of its own for each head
        (``Linear``, ``tanh``, ``Linear``, as in Create and Find); ``first``, the state of
        the first token; ``mean``, that of all real tokens.
      scan: as in :func:`encoder`.
      checkpoint: as in :func:`encoder`.

    Returns:
      A model with ``apply(params, x, keys=None) -> logits [b, sum(sizes)]``, in float32 or
      wider; the linear layer is ``params["classifier"]``. ``hidden`` are all states, and
      last the vectors ``[b, d]`` (``[b, heads, d]``).
    """
    widths = _widths("sequence_classifier", config, sizes)
    known = f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}"
    require(pooling in POOLINGS, "sequence_classifier", known)
    config = config._replace(pooler=pooling == "pooler")
    base = encoder(config, scan=scan, checkpoint=checkpoint)
    pool = partial(_pool, pooling)

    def init(key):
        check_key("sequence_classifier", key)
        first, second, third = jax.random.split(key, 3)
        params = base.init(first) | _init_classifier(config, second, sum(widths))
        if pooling == "heads":
            shape = len(widths), config.hidden_size, config.hidden_size
            params["poolers"] = {"dense": init_dense(config, third, *shape)}
        return params

    def apply(params, x, keys=None):
        states = base.apply(params, x, keys)
        features = pool(params, x, states, keys)
        return classify(config, params, features, keys, widths)

    def hidden(params, x):
        states = base.hidden(params, x)
        return (*states, pool(params, x, states[-1], None))

    return Model(jax.jit(init), apply, hidden)


def token_classifier(
    config: EncoderConfig,
    sizes: int | Sequence[int] | None = None,
    *,
    scan: bool = True,
    checkpoint: bool = False,
) -> Model:
    """An encoder with a linear layer on the state of each token.

    As Hugging Face's ``BertForTokenClassification``, with the arguments of
    :func:`sequence_classifier`.

    Returns:
      A model with ``apply(params, x, keys=None) -> logits [b, n, sum(sizes)]``, in float32
      or wider. ``hidden`` are the encoder's.
    """
    widths = _widths("token_classifier", config, sizes)
    config = config._replace(pooler=False)
    base = encoder(config, scan=scan, checkpoint=checkpoint)

    def init(key):
        check_key("token_classifier", key)
        first, second = jax.random.split(key)
        return base.init(first) | _init_classifier(config, second, sum(widths))

    def apply(params, x, keys=None):
        states = base.apply(params, x, keys)
        b, n, d = states.shape
        scores = classify(config, params, states.reshape(-1, d), keys, widths)
        return scores.reshape(b, n, -1)

    return Model(jax.jit(init), apply, base.hidden)


def sentence_encoder(
    config: EncoderConfig,
    *,
    normalise: bool = True,
    scan: bool = True,
    checkpoint: bool = False,
) -> Model:
    """An encoder whose outputs are the mean states of real tokens, as MiniLM's sentences.

    Args:
      config: of the encoder, which has no pooler.
      normalise: to length 1, so that products are cosines.
      scan: as in :func:`encoder`.
      checkpoint: as in :func:`encoder`.

    Returns:
      A model with ``apply(params, x, keys=None) -> [b, d]``, in float32 or wider.

    Source: Reimers and Gurevych 2019, arXiv:1908.10084.
    """
    check_encoder(config, "sentence_encoder")
    config = config._replace(pooler=False)
    base = encoder(config, scan=scan, checkpoint=checkpoint)

    def apply(params, x, keys=None):
        vectors = _pool("mean", params, x, base.apply(params, x, keys), keys)
        if not normalise:
            return vectors
        squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
        return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))

    return Model(base.init, apply, base.hidden)


def classify(
    config: EncoderConfig,
    params: Params,
    features: Float[Array, "r d"] | Float[Array, "r t d"],
    keys: Any,
    widths: Sequence[int],
) -> Float[Array, "r c"]:
    """The logits of rows; of ``[r, t, d]`` those of ``t`` heads of these widths."""
    layer = params["classifier"]
    rate = config.classifier_dropout
    rate = config.hidden_dropout_prob if rate is None else rate
    flat = features.reshape(features.shape[0], -1)
    flat = drop(keys, HEAD, flat, rate)
    fine = jnp.promote_types(flat.dtype, jnp.float32)
    own = None
    if keys is not None and "lora_dropout" in layer:
        own = fold_in(keys, HEAD_ADAPTER)
    apply = partial(dense, keys=own, dtype=fine)
    if features.ndim == 2:
        return apply(layer, flat)
    # Each head has columns of the layer, and reads a vector of its own.
    ends = list(itertools.accumulate(widths))[:-1]
    wide = [name for name in ("kernel", "bias", "lora_b") if name in layer]
    columns = (jnp.split(layer[name], ends, axis=-1) for name in wide)
    vectors = jnp.split(flat, len(widths), axis=1)
    scores = [
        apply({**layer, **dict(zip(wide, some, strict=True))}, x)
        for x, some in zip(vectors, zip(*columns, strict=True), strict=True)
    ]
    return jnp.concatenate(scores, axis=1)


def _pool(pooling: str, params, x, states, keys) -> Array:
    """The vector of each text, ``[b, d]``, or one for each head, ``[b, t, d]``."""
    if pooling == "pooler":
        return pooled(params, states, keys)
    if pooling == "mean":
        _, (mask, _) = encoder_inputs(x)
        return mean_pooled(states, mask)
    first = states[:, 0]
    if pooling == "first":
        return first
    layer, own = params["poolers"]["dense"], None
    if keys is not None and "lora_dropout" in layer:
        own = fold_in(keys, POOLER)
    every = jax.vmap(lambda layer: dense(layer, first, own), out_axes=1)(layer)
    return jnp.tanh(every)


def _init_classifier(config: EncoderConfig, key: Key, total: int) -> dict[str, Any]:
    return {"classifier": init_dense(config, key, config.hidden_size, total)}


def _widths(who: str, config: EncoderConfig, sizes: Any) -> list[int]:
    """The outputs of each head."""
    check_encoder(config, who)
    sizes = len(config.labels) if sizes is None else sizes
    widths = [sizes] if is_whole(sizes) else list(sizes)
    check_size(who, len_sizes=len(widths))
    check_size(who, **{f"sizes[{k}]": size for k, size in enumerate(widths)})
    return widths
