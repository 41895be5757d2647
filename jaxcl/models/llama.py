"""A decoder for language: blocks of attention and gated units, as in Llama."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from jaxcl.errors import check_number, check_size, require
from jaxcl.models.from_flax import from_flax
from jaxcl.tree import wide
from jaxcl.typing import Model


class LlamaConfig(NamedTuple):
    """The sizes of a decoder, under the names of a Hugging Face ``config.json``."""

    vocab_size: int
    hidden_size: int  # d
    intermediate_size: int  # of the gated units
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # fewer for grouped-query attention
    head_dim: int | None = None  # hidden_size / num_attention_heads if absent
    rope_theta: float = 10_000.0  # base of the rotations' wave lengths
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False  # whether output weights are the embedding
    initializer_range: float = 0.02  # standard deviation of all kernels at the start


def llama(config: LlamaConfig, *, scan: bool = True, checkpoint: bool = False) -> Model:
    r"""A decoder with rotary positions, grouped queries, RMSNorm and SwiGLU.

    .. math:: h \leftarrow h + \text{attention}(\text{norm}(h)), \quad
       h \leftarrow h + W_d (\text{silu}(W_g z) \odot W_u z), \; z = \text{norm}(h)

    Pad sequences on the right: attention is causal, so that padding does not change
    earlier positions; give its labels no weight.

    Args:
      config: sizes.
      scan: compile one block and scan over layers, which compiles fast; otherwise the
        layers are unrolled, which runs faster on a CPU. The parameters are the same:
        stacked, leaves ``[layers, ...]``.
      checkpoint: store only the input of each block for the gradient and recompute the
        rest: memory of one block instead of all, for about a third more work.

    Returns:
      A model with ``apply(params, tokens [b, n]) -> logits [b, n, v]``: those at position
      ``i`` depend on tokens up to ``i`` and predict the next one. ``hidden`` are the states
      ``[b, n, d]`` before the output layer. No layer has a bias.

    Sources: Touvron et al. 2023, arXiv:2302.13971; Su et al. 2021, arXiv:2104.09864
    (rotation of halves); Ainslie et al. 2023, arXiv:2305.13245 (grouped queries); Shazeer
    2020, arXiv:2002.05202 (SwiGLU); Zhang and Sennrich 2019, arXiv:1910.07467 (RMSNorm).
    """
    _check(config)
    build = lambda rngs: _Llama(config, scan=scan, checkpoint=checkpoint, rngs=rngs)
    return from_flax(build, hidden=lambda module, tokens: (module.states(tokens),))


def _check(config: LlamaConfig) -> None:
    """Refuse sizes that do not fit together, before anything is built."""
    named = lambda *names: {name: getattr(config, name) for name in names}
    check_size("llama", **named("vocab_size", "hidden_size", "intermediate_size"))
    check_size("llama", **named("num_hidden_layers", "num_attention_heads"))
    maybe = named("num_key_value_heads", "head_dim")
    check_size("llama", optional=True, **maybe)
    check_number("llama", above=True, rope_theta=config.rope_theta)
    eps, deviation = config.rms_norm_eps, config.initializer_range
    check_number("llama", rms_norm_eps=eps, initializer_range=deviation)
    queries, keys, size = _heads(config)
    rest = 0 if config.head_dim else config.hidden_size % queries
    wanted = "key heads must divide query heads, these hidden_size, each head be even"
    came = f"got {keys}, {queries}, {config.hidden_size} and heads of {size}"
    require(not (queries % keys or rest or size % 2), "llama", f"{wanted}, {came}")


def _heads(config: LlamaConfig) -> tuple[int, int, int]:
    """The numbers of query and key heads, and the size of a head."""
    queries = config.num_attention_heads
    keys = config.num_key_value_heads or queries
    return queries, keys, config.head_dim or config.hidden_size // queries


def _linear(c: LlamaConfig, rngs):
    """A maker of layers ``x @ kernel`` on rows ``[rows, num_in]``."""
    kernels = nnx.initializers.normal(c.initializer_range)
    return partial(nnx.Linear, use_bias=False, kernel_init=kernels, rngs=rngs)


class _RMSNorm(nnx.Module):
    """``scale * x / sqrt(mean(x^2) + eps)``, the mean in float32 or better."""

    def __init__(self, size, eps):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.eps = eps

    def __call__(self, x):
        fine = wide(x)
        square = jnp.mean(jnp.square(fine), axis=-1, keepdims=True)
        unit = (fine * jax.lax.rsqrt(square + self.eps)).astype(x.dtype)
        return self.scale[...] * unit


class _Attention(nnx.Module):
    """Causal attention; each group of queries has one key and one value."""

    def __init__(self, c: LlamaConfig, *, rngs):
        make = _linear(c, rngs)
        queries, keys, self.size = _heads(c)
        self.q = make(c.hidden_size, queries * self.size)
        self.k = make(c.hidden_size, keys * self.size)
        self.v = make(c.hidden_size, keys * self.size)
        self.o = make(queries * self.size, c.hidden_size)

    def __call__(self, x, shape, turns):
        heads = lambda rows: rows.reshape(*shape, -1, self.size)
        q, k, v = (heads(project(x)) for project in (self.q, self.k, self.v))
        mixed = jax.nn.dot_product_attention(
            _turned(q, turns), _turned(k, turns), v, is_causal=True
        )
        return self.o(mixed.reshape(x.shape[0], -1))


class _Block(nnx.Module):
    """Attention and gated units, each with pre-normalisation and a residual connection."""

    def __init__(self, c: LlamaConfig, *, rngs):
        make = _linear(c, rngs)
        norm = partial(_RMSNorm, c.hidden_size, c.rms_norm_eps)
        self.norm_0, self.norm_1 = norm(), norm()
        self.attention = _Attention(c, rngs=rngs)
        self.gate = make(c.hidden_size, c.intermediate_size)
        self.up = make(c.hidden_size, c.intermediate_size)
        self.down = make(c.intermediate_size, c.hidden_size)

    def __call__(self, x, shape, turns):
        x = x + self.attention(self.norm_0(x), shape, turns)
        normed = self.norm_1(x)
        return x + self.down(nnx.silu(self.gate(normed)) * self.up(normed))


class _Llama(nnx.Module):
    """Embedding, blocks, norm, logits of the next token."""

    def __init__(self, c: LlamaConfig, *, scan, checkpoint, rngs):
        size = (c.vocab_size, c.hidden_size)
        drawn = jax.random.normal(rngs.params(), size, jnp.float32)
        self.embedding = nnx.Param(c.initializer_range * drawn)
        keys = jax.random.split(rngs.params(), c.num_hidden_layers)
        self.layers = jax.vmap(lambda key: _Block(c, rngs=nnx.Rngs(key)))(keys)
        self.norm = _RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.tied = c.tie_word_embeddings
        if not self.tied:
            self.out = _linear(c, rngs)(*size[::-1])
        self.depth, self.size, self.theta = keys.size, _heads(c)[2], c.rope_theta
        self.scan, self.checkpoint = scan, checkpoint

    def states(self, tokens):
        """The input of the output layer, ``[b, n, d]``."""
        shape = jnp.shape(tokens)
        message = f"x must be integer tokens [b, n], got shape {shape}"
        require(len(shape) == 2, "llama", message)
        turns = rotations(shape[1], self.size, self.theta)
        step = lambda x, layer: layer(x, shape, turns)
        if self.checkpoint:
            step = jax.checkpoint(step, prevent_cse=not self.scan)
        # All tokens of all sequences are the rows of one matrix: the gradient of a
        # kernel is then one product over rows, not one over two axes, which is slower.
        x = self.embedding[...][tokens.reshape(-1)]
        if self.scan:
            x, _ = jax.lax.scan(lambda x, layer: (step(x, layer), None), x, self.layers)
        else:
            for layer in _unstacked(self.layers, self.depth):
                x = step(x, layer)
        return self.norm(x).reshape(*shape, -1)

    def __call__(self, tokens):
        states = self.states(tokens)
        x = states.reshape(-1, states.shape[-1])
        scores = x @ self.embedding[...].T if self.tied else self.out(x)
        return scores.reshape(*states.shape[:-1], -1)


def _unstacked(layers, depth):
    """The blocks as a list; by a split, whose gradient is one concatenation."""
    leaves, structure = jax.tree.flatten(layers)
    parts = [jax.lax.split(leaf, [1] * depth) for leaf in leaves]
    for some in zip(*parts, strict=True):
        yield jax.tree.unflatten(structure, [part[0] for part in some])


def rotations(
    length: int, size: int, theta: float
) -> tuple[Float[np.ndarray, "n half"], Float[np.ndarray, "n half"]]:
    """Cosine and sine of position ``i`` times frequency ``theta ** (-2 k / size)``."""
    frequencies = theta ** -(np.arange(0, size, 2) / size)
    angles = np.outer(np.arange(length), frequencies)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _turned(x, turns):
    """Rotate the pairs ``(x[k], x[k + half])`` of each head ``[b, n, heads, size]``."""
    cos, sin = (turn[:, None, :].astype(x.dtype) for turn in turns)
    # (a + ib) e^(i angle), with the halves of a head as real and imaginary parts.
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
