"""Fully connected networks."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, ScalarLike

from jaxcl.errors import check_number, check_size, require
from jaxcl.models.from_flax import from_flax
from jaxcl.typing import Key, Model, Params, Units

#: ``(x [*b, d]) -> [*b, k]``: ``k`` is ``d``, or ``2 d`` for :func:`crelu`.
Activation = Callable[[Float[Array, "*b d"]], Float[Array, "*b k"]]


def crelu(x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
    """Concatenated ReLU, ``[max(x, 0), max(-x, 0)]``: ``[..., d]`` becomes ``[..., 2 d]``.

    One of the two always has a gradient, so a unit cannot die.

    Reference: Shang et al. 2016, arXiv:1603.05201; for plasticity Abbas et al. 2023,
    arXiv:2303.07507.
    """
    return jnp.concatenate([nnx.relu(x), nnx.relu(-x)], axis=-1)


class _Mlp(nnx.Module):
    """Layers of linear, optional LayerNorm and activation; then a linear output."""

    def __init__(self, sizes, copies, activation, layer_norm, bias, *, rngs):
        self.sizes, self.activation, self.layer_norm = sizes, activation, layer_norm
        # With CReLU a layer of w units has 2 w outputs.
        reads = [sizes[0], *(copies * width for width in sizes[1:-1])]
        linear = functools.partial(nnx.Linear, use_bias=bias, rngs=rngs)
        for k, width in enumerate(sizes[1:-1]):
            setattr(self, f"hidden_{k}", linear(reads[k], width))
            if layer_norm:
                setattr(self, f"norm_{k}", nnx.LayerNorm(width, rngs=rngs))
        self.out = linear(reads[-1], sizes[-1])

    def forward(self, x):
        """Hidden activations and outputs, each ``[b, ...]``."""
        hidden, h = [], x.reshape(x.shape[0], self.sizes[0])
        for k in range(len(self.sizes) - 2):
            h = getattr(self, f"hidden_{k}")(h)
            if self.layer_norm:
                h = getattr(self, f"norm_{k}")(h)
            h = self.activation(h)
            hidden.append(h)
        return tuple(hidden), self.out(h)

    def __call__(self, x):
        return self.forward(x)[1]


def mlp(
    sizes: Sequence[int],
    *,
    activation: Activation = nnx.relu,
    layer_norm: bool = False,
    bias: bool = True,
    gain: ScalarLike | None = None,
    out_gain: ScalarLike | None = None,
    init: Callable[[Key, Params], Params] | None = None,
) -> Model:
    """A multilayer perceptron that flattens its input.

    Layer ``k`` is ``h = activation(norm(W h + b))``; the output layer is linear. Its
    parameters are ``hidden_0``, ``hidden_1``, ... and ``out`` (``kernel [d, width]`` and
    ``bias``), with ``norm_0``, ... (``scale`` and ``bias``) under ``layer_norm``.

    Args:
      sizes: widths from input to output, such as ``(784, 100, 100, 10)``.
      activation: ``[b, d] -> [b, d]``, row by row; :func:`crelu` gives ``[b, 2 d]``, which
        doubles the inputs of the next layer.
      layer_norm: normalise before each activation (arXiv:1607.06450), the most robust
        single remedy for lost plasticity in arXiv:2303.01486.
      bias: whether linear layers have a ``bias``; LayerNorm always has one.
      gain: hidden kernels are uniform with variance ``gain**2 / fan_in``: ``sqrt(2)``, the
        default, is Kaiming initialisation for ReLU, 1 that of LeCun. Biases start at zero.
      out_gain: the same for the last kernel, 1 by default. Both defaults are those of
        Dohare et al. 2024 (Nature 632, 768).
      init: ``(key, params) -> params`` instead of the gains, such as
        :func:`init_like_torch`; it replaces values of its argument.

    Returns:
      A model for rows of ``sizes[0]`` numbers in any shape, with one entry of ``hidden``
      ``[b, width]`` (``[b, 2 width]`` with CReLU) per hidden layer, and its ``units``.
    """
    numbers: Any = {f"sizes[{k}]": size for k, size in enumerate(sizes)}
    check_size("mlp", **numbers)
    check_size("mlp", least=2, len_sizes=len(sizes))
    sizes = tuple(map(int, sizes))
    check_number("mlp", optional=True, gain=gain, out_gain=out_gain)
    both = init is not None and not (gain is None and out_gain is None)
    message = "expected either init or gains, got both; leave one of them out"
    require(not both, "mlp", message)

    copies = _copies(activation)
    names = [f"hidden_{k}" for k in range(len(sizes) - 2)] + ["out"]
    vectors = [("hidden", "bias")] if bias else []
    vectors += [("norm", "scale"), ("norm", "bias")] if layer_norm else []
    units = tuple(
        Units(
            incoming=(name, "kernel"),
            vectors=tuple((f"{layer}_{k}", vector) for layer, vector in vectors),
            outgoing=(reader, "kernel"),
            shift=(reader, "bias") if bias else None,
            width=sizes[k + 1],
            copies=copies,
        )
        for k, (name, reader) in enumerate(itertools.pairwise(names))
    )
    gain = 2**0.5 if gain is None else gain
    out_gain = 1.0 if out_gain is None else out_gain
    kernel_gain = lambda path: out_gain if path[0] == "out" else gain
    hidden = lambda module, x: module.forward(x)[0]
    layers = sizes, copies, activation, layer_norm, bias
    build = lambda rngs: _Mlp(*layers, rngs=rngs)
    model = from_flax(build, hidden=hidden, units=units, gain=kernel_gain)
    if init is None:
        return model
    return model._replace(init=jax.jit(lambda key: init(key, model.init(key))))


def _copies(activation):
    """The number of outputs of an activation per input."""
    probe = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    shape = jax.eval_shape(activation, probe).shape
    fits = shape[:-1] == (2,) and shape[-1] % 6 == 0 and shape[-1]
    came = f"got {shape} from (2, 6)"
    require(fits, "mlp", f"activation must map [b, d] to [b, k * d], {came}")
    return shape[1] // 6
