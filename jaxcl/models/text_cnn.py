"""A convolutional classifier of texts."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcl.errors import check_key, check_number, check_size
from jaxcl.models.from_flax import init_kernels
from jaxcl.models.inputs import text_inputs
from jaxcl.models.layers import dense, dropout, embed, plain_kernel
from jaxcl.typing import Model


def text_cnn(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_size: int = 128,
    widths: Sequence[int] = (3, 4, 5),
    filters: int = 100,
    dropout_rate: float = 0.5,
) -> Model:
    r"""Convolutions of several widths over embeddings, and the maximum of each over time.

    .. math:: c_w = \max_i \, \text{relu}(\textstyle\sum_{k<w} W_{w,k} \, e_{i+k} + b_w),
       \quad z = W_o \, \text{dropout}([c_w]_w) + b_o

    Every window that holds a real token counts, with zeros for the positions around the
    text: a text shorter than a window has features, and padding changes none.

    Its input ``x`` is ``tokens [b, n]``, or a dict of them with ``mask [b, n]`` (0 for
    padding).

    Args:
      vocab_size: number of tokens.
      num_classes: number of outputs.
      embedding_size: 300 in the paper, of pretrained vectors.
      widths: of the windows, in tokens.
      filters: features of each width.
      dropout_rate: of the features; its masks depend on the key of a row only.

    Returns:
      A model with ``apply(params, x, keys=None) -> logits [b, num_classes]``, in float32 or
      wider. ``hidden`` are the features ``[b, len(widths) * filters]``. Embeddings begin
      uniform in [-0.25, 0.25]; the paper's bound on the norm of output weights is not
      applied.

    Source: Kim 2014, arXiv:1408.5882.
    """
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "num_classes": num_classes,
        "filters": filters,
    }
    check_size("text_cnn", embedding_size=embedding_size, **sizes)
    widths = tuple(widths)
    each: dict[str, Any] = {f"widths[{k}]": width for k, width in enumerate(widths)}
    check_size("text_cnn", len_widths=len(widths), **each)
    check_number("text_cnn", most=0.999, dropout_rate=dropout_rate)

    @jax.jit
    def init(key):
        check_key("text_cnn", key)
        first, second = jax.random.split(key)
        shape = vocab_size, embedding_size
        zeros = lambda *shape: {
            "kernel": jnp.zeros(shape, jnp.float32),
            "bias": jnp.zeros(shape[-1], jnp.float32),
        }
        layers = {f"conv_{w}": zeros(w, embedding_size, filters) for w in widths}
        layers["out"] = zeros(len(widths) * filters, num_classes)
        gain = lambda path: 1.0 if path[0] == "out" else 2**0.5
        embedding = jax.random.uniform(first, shape, jnp.float32, -0.25, 0.25)
        return {"embedding": embedding, **init_kernels(second, layers, gain)}

    def features(params, x):
        tokens, (mask,) = text_inputs("text_cnn", x, "mask")
        real = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
        h = jnp.where(real[..., None], embed(params["embedding"], tokens), 0)
        every = [_convolve_and_pool(params[f"conv_{w}"], h, real) for w in widths]
        return jnp.concatenate(every, axis=1)

    def apply(params, x, keys=None):
        h = features(params, x)
        if keys is not None and dropout_rate:
            h = dropout(keys, h, dropout_rate)
        return dense(params["out"], h, dtype=jnp.promote_types(h.dtype, jnp.float32))

    return Model(init, apply, lambda params, x: (features(params, x),))


def _convolve_and_pool(layer: Any, h: Float[Array, "b n d"], real) -> Array:
    """The maximum over all windows that hold a real token, ``[b, filters]``."""
    kernel = plain_kernel("text_cnn", layer)
    (b, n, d), width = h.shape, kernel.shape[0]
    # One product of all tokens with all taps of the kernel; then each window adds up its
    # own: the window at i reads tap k at i + k - (width - 1).
    taps = h.reshape(b * n, d) @ jnp.moveaxis(kernel, 0, 1).reshape(d, -1)
    taps = jnp.split(taps.reshape(b, n, -1), width, axis=2)
    pads = [(width - 1 - k, k) for k in range(width)]
    sums = sum(
        jnp.pad(tap, ((0, 0), pad, (0, 0))) for tap, pad in zip(taps, pads, strict=True)
    )
    held = [jnp.pad(real, ((0, 0), pad)) for pad in pads]
    some = jnp.any(jnp.stack(held), axis=0)
    # An activation is never below zero, so that zeros cannot win.
    found = jnp.where(some[..., None], jax.nn.relu(sums + layer["bias"]), 0)
    return jnp.max(found, axis=1)
