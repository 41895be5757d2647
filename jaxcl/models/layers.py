"""Layers of transformers, as functions of a dict of arrays and of rows ``[rows, d]``.

All tokens of all sequences are the rows of one matrix: the gradient of a kernel is then
one product over rows, not one over two axes, which is slower. A projection that holds the
factors of an adapter (``lora_a``, ``lora_b``, ``lora_scale``; see
:mod:`jaxcl.adapters.lora`) adds their product, without merging it into the kernel.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, PyTree
from jaxtyping import Key as Keys

from jaxcl.errors import require
from jaxcl.tree import wide

#: A dict of arrays, of one layer or of many that are stacked.
Layer = Mapping[str, Array]

_STORED = "stored"


def recomputing(
    step: Callable, *, scan: bool, everything: bool = False
) -> Callable[..., Any]:
    """``step``, a block of a network, with less stored for its gradient.

    Stored are its inputs, the results of :func:`dense` and of attention, and the masks of
    dropout. Norms, rotations, activations and attention weights are computed again in the
    backward pass: that needs less than half of the memory, and no more time.

    Args:
      step: any function of arrays.
      scan: whether it is the body of a scan, which needs no barrier against a compiler
        that shares what is to be computed twice.
      everything: store the inputs only, for about a third more work.
    """
    some = jax.checkpoint_policies.save_only_these_names(_STORED)
    return jax.checkpoint(
        step, policy=None if everything else some, prevent_cse=not scan
    )


def _stored(x: Array) -> Array:
    """The same, marked as something that :func:`recomputing` stores."""
    return checkpoint_name(x, _STORED)


def embed(table: Float[Array, "v d"], tokens: Array) -> Array:
    """The vectors of tokens ``[*b]``; NaN for those that the table does not have.

    Indexing would take the last vector for them, which nobody would notice.
    """
    return table.at[tokens].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )


def dense(
    layer: Layer,
    x: Float[Array, "r i"],
    keys: Keys[Array, " b"] | None = None,
    *,
    dtype: Any = None,
) -> Float[Array, "r o"]:
    r"""A projection, with its adapter if it has one.

    .. math:: y = x W + b + s \, (\text{dropout}(x) A) B

    ``W`` is ``kernel [i, o]``; ``bias``, ``lora_a [i, k]`` with ``lora_b [k, o]``, and
    their ``lora_dropout`` are optional. Factors are cast to the dtype of ``x``, so that
    they may be float32 over a base in bfloat16, and so may a kernel that is trained fully.
    The result has the dtype of ``x``, or ``dtype``.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    dtype = x.dtype if dtype is None else dtype
    fine = jnp.promote_types(dtype, layer["kernel"].dtype)
    y = jnp.matmul(x, layer["kernel"], preferred_element_type=fine)
    if "bias" in layer:
        y = y + layer["bias"]
    if "lora_a" not in layer:
        return _stored(y.astype(dtype))
    a, b, scale = (
        layer[f"lora_{name}"].astype(x.dtype) for name in ("a", "b", "scale")
    )
    if keys is not None and "lora_dropout" in layer:
        x = dropout(keys, x, layer["lora_dropout"])
    y = y + scale * (_stored(_narrowed(x, a)) @ b)
    return _stored(y.astype(dtype))


def _narrowed(x: Float[Array, "r i"], a: Float[Array, "i k"]) -> Float[Array, "r k"]:
    """``x A`` for few columns.

    The gradient of ``A`` is a product with as few columns, or rows if transposed, which a
    CPU computes several times as fast. XLA would undo that without the barrier.
    """
    rows = jax.lax.optimization_barrier(a.T)
    return jax.lax.dot_general(x, rows, (((1,), (1,)), ((), ())))


def plain_kernel(who: str, layer: Layer) -> Array:
    """A kernel that is used without :func:`dense`; refuse an adapter beside it."""
    message = "params have an adapter on a layer that does not apply any"
    remedy = "call it with merge_lora(params), or leave the layer out of targets"
    require("lora_a" not in layer, who, f"{message}; {remedy}")
    return layer["kernel"]


def dropout(
    keys: Keys[Array, " b"], x: Float[Array, "r d"], rate: Array | float
) -> Float[Array, "r d"]:
    """Zero entries with probability ``rate`` and divide the others by ``1 - rate``.

    Each of the ``b`` sequences, of ``r / b`` rows, has a mask from its own key, so that its
    loss does not depend on its neighbours.
    """
    shape = x.shape[0] // keys.shape[0], x.shape[1]
    draw = lambda key: jax.random.bernoulli(key, 1 - rate, shape)
    keep = _stored(jax.vmap(draw)(keys))
    return jnp.where(keep.reshape(x.shape), x / (1 - rate), 0).astype(x.dtype)


def fold_in(keys: Keys[Array, " b"], number: int) -> Keys[Array, " b"]:
    """Other keys of the same sequences, for another use."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def rms_norm(layer: Layer, x: Array, eps: float) -> Array:
    """``scale * x / sqrt(mean(x^2) + eps)`` over the last axis, in float32 or better."""
    fine = wide(x)
    square = jnp.mean(jnp.square(fine), axis=-1, keepdims=True)
    unit = (fine * jax.lax.rsqrt(square + eps)).astype(x.dtype)
    return (layer["scale"] * unit).astype(x.dtype)


def layer_norm(layer: Layer, x: Array, eps: float) -> Array:
    """``scale * (x - mean) / sqrt(variance + eps) + bias``, in float32 or better."""
    fine = wide(x)
    centred = fine - jnp.mean(fine, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    unit = (centred * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
    return (layer["scale"] * unit + layer["bias"]).astype(x.dtype)


def attend(
    q: Float[Array, "b n h s"],
    k: Float[Array, "b m kv s"],
    v: Float[Array, "b m kv s"],
    *,
    mask: Bool[Array, "b _ _ m"] | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Float[Array, "b n h s"]:
    """Scaled dot-product attention; groups of query heads share keys and values.

    On a GPU, in 16 bits and without a mask, by cuDNN's fused kernel where that has one for
    these shapes. It takes a mask only as a bias for every pair of positions, and no odd
    numbers of them in training.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: which keys each query attends to.
      causal: only keys up to the query's own position.
      window: only so many latest keys, the own one included; needs ``causal``.
    """
    fused = jax.default_backend() == "gpu" and q.dtype.itemsize == 2
    fused = fused and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and mask is None
    kind = q.dtype
    if kind == jnp.float16 and jax.default_backend() == "cpu":
        # Its products of float16 in float32, which JAX asks for there, do not exist.
        q, k, v = (part.astype(jnp.float32) for part in (q, k, v))
    mixed = jax.nn.dot_product_attention(
        *(q, k, v),
        mask=mask,
        is_causal=causal,
        local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn" if fused else "xla",
    )
    return _stored(mixed.astype(kind))


def attend_with_dropout(
    q: Float[Array, "b n h s"],
    k: Float[Array, "b m h s"],
    v: Float[Array, "b m h s"],
    keys: Keys[Array, " b"],
    rate: float,
    *,
    mask: Bool[Array, "b _ _ m"] | None = None,
) -> Float[Array, "b n h s"]:
    """Attention whose weights, of all keys to a query, are subject to :func:`dropout`.

    Each query of each head draws from a key of its own, which does not depend on the
    number of positions: padding on the right changes nothing.
    """
    b, n, h, size = q.shape
    fine = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bnhs,bmhs->bhnm", q, k, preferred_element_type=fine)
    scores = scores / np.sqrt(size).astype(fine)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(fine).min)
    weights = jax.nn.softmax(scores)
    places = (jnp.arange(h)[:, None] + h * jnp.arange(n)).ravel()
    own = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(places))(keys)
    kept = dropout(own.ravel(), weights.reshape(b * h * n, -1), rate)
    kept = kept.reshape(weights.shape).astype(v.dtype)
    return _stored(jnp.einsum("bhnm,bmhs->bnhs", kept, v))


class Rope(NamedTuple):
    """Rotary position embedding: the frequencies of a head's rotations.

    ``kind`` is ``default``; ``linear``, which divides positions by ``factor``; or
    ``llama3``, which divides low frequencies only, those with fewer than
    ``low_freq_factor`` turns over the original context.

    Sources: Su et al. 2021, arXiv:2104.09864; Chen et al. 2023, arXiv:2306.15595 (linear);
    the model card and code of Llama 3.1 (llama3).
    """

    theta: float = 10_000.0  # base of the wave lengths
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def frequencies(self, size: int) -> Float[np.ndarray, " half"]:
        """``theta ** (-2 k / size)``, scaled by kind."""
        found = self.theta ** -(np.arange(0, size, 2) / size)
        if self.kind == "linear":
            return found / self.factor
        if self.kind == "llama3":
            # 1 keeps a frequency, 0 divides it; between the two bounds a mix of both.
            turns = self.original_max_position_embeddings * found / (2 * np.pi)
            low, high = self.low_freq_factor, self.high_freq_factor
            kept = np.clip((turns - low) / (high - low), 0, 1)
            return kept * found + (1 - kept) * found / self.factor
        return found

    def turns(self, length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosine and sine of each position's angles, ``[length, size / 2]`` float32."""
        angles = np.outer(np.arange(length), self.frequencies(size))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
    x: Float[Array, "b n h s"], turns: Sequence[Array | np.ndarray]
) -> Float[Array, "b n h s"]:
    """Rotate the pairs ``(x[k], x[k + s/2])`` of each head by the angles of its position.

    ``turns`` are cosine and sine ``[n, s/2]``, or ``[b, n, s/2]`` where positions differ by
    row. Only the distance of two positions matters for the product of a rotated query and
    a rotated key.
    """
    cos, sin = (jnp.asarray(turn)[..., None, :].astype(x.dtype) for turn in turns)
    # (a + ib) e^(i angle), with the halves of a head as real and imaginary parts.
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def leaf_names(tree: PyTree) -> set[str]:
    """The names of the leaves of nested dicts."""
    return {path[-1].key for path, _ in jax.tree.leaves_with_path(tree)}


def check_depth(who: str, layers: PyTree, depth: int) -> None:
    """Refuse stacked layers of another model: a scan would take as many as there are."""
    held = {len(leaf) for leaf in jax.tree.leaves(layers)}
    wanted = f"params must have the {depth} layers of config, got {sorted(held)}"
    require(held == {depth}, who, f"{wanted}; give both of one model")


def unstacked(layers, depth: int):
    """Stacked layers as a list; by a split, whose gradient is one concatenation."""
    leaves, structure = jax.tree.flatten(layers)
    parts = [jax.lax.split(leaf, [1] * depth) for leaf in leaves]
    for some in zip(*parts, strict=True):
        yield jax.tree.unflatten(structure, [part[0] for part in some])
