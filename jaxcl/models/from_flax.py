"""Flax modules turned into pure functions, once, at the border."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import ScalarLike

from jaxcl.errors import check_key, check_kind
from jaxcl.typing import Batch, Key, Model, Params, Units


def from_flax(
    build: Callable[[nnx.Rngs], nnx.Module],
    units: tuple[Units, ...] = (),
    *,
    gain: Callable[[tuple[str, ...]], ScalarLike] | None = None,
) -> Model:
    """A module as a :class:`jaxcl.typing.Model`: pure functions of a nested dict.

    Args:
      build: ``(rngs) -> module``. Called with one input, the module returns
        ``(hidden, logits)``: the tuple of its hidden activations, ``()`` for none, and
        ``[c]``. Whatever it holds besides its parameters must be static: no dropout, no
        running statistics.
      units: where the units behind the first features live.
      gain: ``(path) -> scalar``; kernels are then drawn by :func:`init_kernels` instead
        of by the module's initialisers, which compiles and runs faster.

    Returns:
      A model whose parameters are the module's ``nnx.Param``s. Building it allocates
      nothing. ``init`` is compiled, because drawing weights eagerly takes seconds; the
      other functions are plain and work under any transformation.

    Raises:
      ValueError: if ``build`` is no function, returns no module, or one that holds
        variables besides its parameters. Applying raises it if the module returns
        anything but ``(hidden, logits)``.
    """
    graph = _static_part(build)

    @jax.jit
    def init(key):
        check_key("model", key)
        params = nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))
        return params if gain is None else init_kernels(key, params, gain)

    def run(params, x):
        if isinstance(x, Batch):
            msg = (
                "model: apply takes params and ONE input, got a Batch; where logits of "
                "an example are wanted give single_head(model.apply)."
            )
            raise ValueError(msg)
        return _check_outputs(nnx.merge(graph, nnx.State(params))(x))

    def apply(params, x):
        return run(params, x)[1]

    def hidden(params, x):
        return run(params, x)[0]

    return Model(init, apply, hidden, units)


def _static_part(build: Callable):
    """All of a module but its parameters, which has to be static."""
    if isinstance(build, nnx.Module) or not callable(build):
        msg = (
            f"from_flax: build must be a function (rngs) -> module, got {_outline(build)}; "
            "give lambda rngs: Net(..., rngs=rngs)."
        )
        raise ValueError(msg)

    def draw():
        module = build(nnx.Rngs(0))
        check_kind(
            "from_flax", nnx.Module, "build must return an nnx one", module=module
        )
        return module

    module = nnx.eval_shape(draw)
    arrays = (nnx.Variable, jax.ShapeDtypeStruct, Tracer)  # a bare array is a tracer
    others = [
        f"{'.'.join(map(str, path))} ({_outline(value)})"
        for path, value in nnx.iter_graph(module)
        if isinstance(value, arrays) and not isinstance(value, nnx.Param)
    ]
    if others:
        msg = (
            "from_flax: a module may hold no arrays but in nnx.Param, got "
            f"{', '.join(others[:4])}; leave out dropout and running statistics."
        )
        raise ValueError(msg)
    return nnx.split(module, nnx.Param)[0]


def _check_outputs(outputs):
    """Refuse logits alone, of which the second would be taken for all of them."""
    pair = isinstance(outputs, tuple) and len(outputs) == 2
    if pair and isinstance(outputs[0], tuple | list):
        return outputs
    msg = (
        "model: the module must return (features, logits), features a tuple of arrays, "
        f"got {_outline(outputs)}; return (), logits for no features."
    )
    raise ValueError(msg)


def _outline(value):
    """An array as ``float32[3, 4]``, tuples part by part, other things by their type."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_outline, value))})"
    if isinstance(value, jax.Array | jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


def init_kernels(
    key: Key, params: Params, gain: Callable[[tuple[str, ...]], ScalarLike]
) -> Params:
    """Replace every kernel by ``gain * U(-1, 1) * sqrt(3 / fan_in)``; keep the rest.

    A kernel is a leaf of two or more axes, ``[..., fan_out]``, and ``fan_in`` is the
    product of all its axes but the last: the variance is ``gain**2 / fan_in``. All of
    them are cut from one draw, because each draw in a program costs about a second of
    compilation on a CPU.

    Args:
      key: draws the numbers.
      params: nested dict; gives shapes and dtypes, and the values of what is no kernel.
      gain: ``(path) -> scalar``; ``sqrt(2)`` is the Kaiming law for ReLU (He et al. 2015,
        arXiv:1502.01852), 1 the law of LeCun.
    """
    leaves, structure = jax.tree.flatten_with_path(params)
    sizes = [leaf.size if leaf.ndim > 1 else 0 for _, leaf in leaves]
    numbers = jax.random.uniform(key, (sum(sizes),), minval=-1.0, maxval=1.0)
    drawn, start = [], 0
    for (path, leaf), size in zip(leaves, sizes, strict=True):
        if size:
            names = tuple(entry.key for entry in path)
            bound = gain(names) * math.sqrt(3.0 / (leaf.size / leaf.shape[-1]))
            piece = jnp.reshape(numbers[start : start + size], leaf.shape)
            leaf = (bound * piece).astype(leaf.dtype)
        drawn.append(leaf)
        start += size
    return jax.tree.unflatten(structure, drawn)


__all__ = ["from_flax", "init_kernels"]
