"""Flax modules turned into pure functions, once, at the border."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import ScalarLike

from jaxcl.typing import Batch, Key, Model, Params, Units


def purify(
    build: Callable[[nnx.Rngs], nnx.Module],
    units: tuple[Units, ...] = (),
    *,
    gain: Callable[[tuple[str, ...]], ScalarLike] | None = None,
) -> Model:
    """A module as a :class:`jaxcl.typing.Model`: pure functions of a nested dict.

    Args:
      build: ``(rngs) -> module``. Called with one input, the module returns
        ``(features, logits)``: the tuple of its hidden activations, and ``[c]``. Whatever
        it holds besides its parameters must be static: no dropout, no running statistics.
      units: where the units behind the first features live.
      gain: ``(path) -> scalar``; kernels are then drawn by :func:`draw_kernels` instead
        of by the module's initialisers, which compiles and runs faster.

    Returns:
      A model whose parameters are the module's ``nnx.Param``s. Building it allocates
      nothing. ``init`` is compiled, because drawing weights eagerly takes seconds; the
      other functions are plain and work under any transformation.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)

    @jax.jit
    def init(key):
        params = nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))
        return params if gain is None else draw_kernels(key, params, gain)

    def run(params, x):
        if isinstance(x, Batch):
            msg = (
                "model: apply takes params and ONE input, got a Batch; where logits of "
                "an example are wanted give single_head(model.apply)."
            )
            raise ValueError(msg)
        return nnx.merge(graph, nnx.State(params))(x)

    def apply(params, x):
        return run(params, x)[1]

    def features(params, x):
        return run(params, x)[0]

    return Model(init, apply, features, units)


def draw_kernels(
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


__all__ = ["draw_kernels", "purify"]
