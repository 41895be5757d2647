"""A recurrent classifier of texts."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcl.errors import check_key, check_number, check_size
from jaxcl.models.inputs import text_inputs
from jaxcl.models.layers import dense, dropout, embed, plain_kernel
from jaxcl.typing import Model


def lstm(
    vocab_size: int,
    num_classes: int,
    *,
    embedding_size: int = 128,
    hidden_size: int = 128,
    bidirectional: bool = True,
    dropout_rate: float = 0.5,
) -> Model:
    r"""An LSTM over embeddings, and a linear layer on its last states.

    .. math:: (i, f, g, o) = W x_t + U h_{t-1} + b, \quad
       c_t = \sigma(f) \, c_{t-1} + \sigma(i) \tanh g, \quad h_t = \sigma(o) \tanh c_t

    Padding, on either side, leaves the state as it is. Both directions are one scan over
    positions, the second over the reversed text.

    Its input ``x`` is ``tokens [b, n]``, or a dict of them with ``mask [b, n]`` (0 for
    padding).

    Args:
      vocab_size: number of tokens.
      num_classes: number of outputs.
      embedding_size: of each token.
      hidden_size: of the state of each direction, ``h``.
      bidirectional: also read from the end; outputs are then those of both states.
      dropout_rate: of the last states; its masks depend on the key of a row only.

    Returns:
      A model with ``apply(params, x, keys=None) -> logits [b, num_classes]``, in float32 or
      wider. ``hidden`` are the last states ``[b, directions * h]``. The parameters of both
      directions are stacked: ``input/kernel [directions, e, 4 h]``, ``input/bias``,
      ``state/kernel [directions, h, 4 h]``. Kernels begin uniform in ``+- 1 / sqrt(h)``,
      biases at 1 for the forget gate (Jozefowicz et al. 2015), else at 0.

    Source: Hochreiter and Schmidhuber 1997, with the forget gates of Gers et al. 2000.
    """
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "num_classes": num_classes}
    check_size("lstm", embedding_size=embedding_size, hidden_size=hidden_size, **sizes)
    check_number("lstm", most=0.999, dropout_rate=dropout_rate)
    directions = 2 if bidirectional else 1

    @jax.jit
    def init(key):
        check_key("lstm", key)
        keys = jax.random.split(key, 4)
        shape, h = (vocab_size, embedding_size), hidden_size
        bound = h**-0.5
        uniform = lambda key, *shape: jax.random.uniform(
            key, shape, jnp.float32, -bound, bound
        )
        bias = jnp.zeros((directions, 4 * h), jnp.float32).at[:, h : 2 * h].set(1)
        kernel = uniform(keys[1], directions, embedding_size, 4 * h)
        out = uniform(keys[3], directions * h, num_classes)
        return {
            "embedding": jax.random.normal(keys[0], shape, jnp.float32),
            "input": {"kernel": kernel, "bias": bias},
            "state": {"kernel": uniform(keys[2], directions, h, 4 * h)},
            "out": {"kernel": out, "bias": jnp.zeros(num_classes, jnp.float32)},
        }

    def last(params, x):
        tokens, (mask,) = text_inputs("lstm", x, "mask")
        real = jnp.ones(tokens.shape, bool) if mask is None else mask > 0
        return _last_states(params, embed(params["embedding"], tokens), real)

    def apply(params, x, keys=None):
        h = last(params, x)
        if keys is not None and dropout_rate:
            h = dropout(keys, h, dropout_rate)
        return dense(params["out"], h, dtype=jnp.promote_types(h.dtype, jnp.float32))

    return Model(init, apply, lambda params, x: (last(params, x),))


def _last_states(
    params, e: Float[Array, "b n e"], real: Bool[Array, "b n"]
) -> Float[Array, "b s"]:
    """The states after the last real token of each direction, side by side."""
    (b, n, d), layer = e.shape, params["input"]
    into, kernel = (plain_kernel("lstm", params[name]) for name in ("input", "state"))
    directions, size = kernel.shape[:2]
    # The inputs of all gates at once, [directions, b, n, 4 h]; time goes first.
    gates = jnp.einsum("rd,kdg->krg", e.reshape(b * n, d), into)
    gates = (gates + layer["bias"][:, None]).reshape(directions, b, n, 4 * size)
    both = jnp.broadcast_to(real, (directions, b, n))
    turn = lambda x: jnp.concatenate([x[:1], jnp.flip(x[1:], axis=2)])
    over_time = jnp.moveaxis(turn(gates), 2, 0), jnp.moveaxis(turn(both), 2, 0)

    def step(state, given):
        h, c = state
        drive, counts = given
        i, f, g, o = jnp.split(
            drive + jnp.einsum("kbh,khg->kbg", h, kernel), 4, axis=-1
        )
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        keep = counts[..., None]
        return (jnp.where(keep, new_h, h), jnp.where(keep, new_c, c)), None

    begin = jnp.zeros((directions, b, size), jnp.result_type(gates, kernel))
    (h, _), _ = jax.lax.scan(step, (begin, begin), over_time)
    return jnp.moveaxis(h, 0, 1).reshape(b, -1)
