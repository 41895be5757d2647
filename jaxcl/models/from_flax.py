"""Conversion of Flax modules to pure functions."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax.core import Tracer
from jaxtyping import PyTree, ScalarLike

from jaxcl.errors import check_key, require
from jaxcl.tree import cut_like
from jaxcl.typing import Key, Model, Params, Units

Gain = Callable[[tuple[str, ...]], ScalarLike]


def from_flax(
    module: Callable[[nnx.Rngs], nnx.Module] | nnx.Module | linen.Module,
    x: PyTree | None = None,
    *,
    hidden: Callable[[Any, PyTree], tuple] | None = None,
    units: tuple[Units, ...] = (),
    gain: Gain | None = None,
    train: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
) -> Model:
    """An nnx or linen module as a :class:`jaxcl.typing.Model`.

    The module is called with a batch ``x [b, ...]`` and returns ``[b, ...]``, such as
    logits. Its parameters become a nested dict. A module with dropout is vmapped over rows
    in training, so that each row has a mask from its own key and its loss does not depend
    on other rows. ``init`` is compiled, because drawing weights eagerly takes seconds.

    Args:
      module: an nnx module by a function ``(rngs) -> module``, such as
        ``lambda rngs: Net(8, 3, rngs=rngs)``; an existing nnx module, whose weights
        ``init`` then copies for any key; or a linen module.
      x: for linen, an input of one or more rows, of which only shapes and dtypes are used.
      hidden: ``(module, x) -> tuple`` of activations ``[b, ...]``, the last one the input
        of the output layer, such as the method ``Net.hidden``.
      units: of the first activations.
      gain: ``(path) -> scalar``; kernels are then drawn by :func:`init_kernels` instead
        of by the module's initialisers, which compiles and runs faster.
      train: arguments of the call while training, such as ``{"train": True}``. A linen
        module with dropout needs them: without, it is called as for evaluation.
      evaluate: arguments of the call for evaluation.

    Raises:
      ValueError: for a module that holds arrays besides its parameters, such as running
        statistics.
    """
    bare = isinstance(module, type) and issubclass(module, linen.Module)
    made = f"got the class {getattr(module, '__name__', '')}; make an instance of it"
    require(not bare, "from_flax", f"expected a linen module, {made}")
    if isinstance(module, linen.Module):
        message = "a linen module needs inputs; give from_flax(module, x)"
        require(x is not None, "from_flax", message)
        noisy = train is not None
        draw, call, activations = _linen(module, x, hidden, evaluate or {})
    else:
        draw, call, activations, noisy = _nnx(module, hidden)
    arguments = {"train": train or {}, "eval": evaluate or {}}

    @jax.jit
    def init(key):
        check_key("model", key)
        params = draw(key)
        return params if gain is None else init_kernels(key, params, gain)

    def apply(params, x, keys=None):
        mode = "eval" if keys is None else "train"
        if keys is None or not noisy:
            return call(params, x, mode, None, arguments[mode])

        # A mask per row, from its own key: the row law.
        def row(x, key):
            one = jax.tree.map(lambda leaf: leaf[None], x)
            return call(params, one, mode, key, arguments[mode])[0]

        return jax.vmap(row)(x, keys)

    model = Model(init, apply, units=units)
    return model._replace(hidden=activations) if hidden else model


def _nnx(module, hidden):
    """``(draw, call, activations, noisy)`` of an nnx module."""
    given = isinstance(module, nnx.Module)
    build = (lambda rngs: module) if given else module
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    weights = nnx.to_pure_dict(nnx.state(module, nnx.Param)) if given else None
    modes = {}
    for mode in ("train", "eval"):
        getattr(abstract, mode)()
        modes[mode] = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
        _refuse_others(_other_arrays(modes[mode][3], abstract))
    streams = modes["train"][2]
    leaves = _paths(nnx.to_pure_dict(modes["train"][1]))

    def draw(key):
        if given:
            return jax.tree.map(jnp.array, weights)
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    # The graph is static; only parameters and random streams are arguments.
    def merged(params, mode="eval", key=None):
        _check_leaves(params, leaves)
        key = jax.random.key(0) if key is None else key
        return nnx.merge(modes[mode][0], nnx.State(params), _seeded(streams, key))

    call = lambda params, x, mode, key, given: merged(params, mode, key)(x, **given)
    activations = lambda params, x: tuple(hidden(merged(params), x))
    return draw, call, activations, bool(jax.tree.leaves(streams))


def _other_arrays(others, module):
    """State that is neither parameters nor random streams, for a message."""
    arrays = (jax.Array, jax.ShapeDtypeStruct, Tracer)
    found = {p: type(value).__name__ for p, value in nnx.to_flat_state(others)}
    for path, value in nnx.iter_graph(module):
        if isinstance(value, arrays):
            found[path] = f"{value.dtype}{list(value.shape)}"
    return [f"{'.'.join(map(str, path))} ({kind})" for path, kind in found.items()]


def _refuse_others(names) -> None:
    """Refuse arrays besides the parameters: they would be trained, or never change."""
    remedy = "replace running statistics (BatchNorm) by GroupNorm or LayerNorm"
    came = f"got {', '.join(names[:4])}; {remedy}"
    require(not names, "from_flax", f"expected params only, {came}")


def _paths(params: Params) -> list[str]:
    """The paths of the leaves, such as ``hidden/kernel``."""
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return [name(entries) for entries, _ in jax.tree.leaves_with_path(params)]


def _check_leaves(params: Params, wanted: list[str]) -> None:
    """Refuse the leaves of an adapter that the module does not have, or a part of all."""
    if len(jax.tree.leaves(params)) == len(wanted):
        return
    found = _paths(params)
    more = [path for path in found if path not in wanted]
    less = [path for path in wanted if path not in found]
    came = f"got no {', '.join(less[:3])}; combine the trained and the frozen part"
    if more:
        came = f"got {', '.join(more[:3])} besides; apply_lora puts adapters into nnx"
    require(False, "from_flax", f"params must have the leaves of the module, {came}")


def _seeded(streams, key: Key):
    """The module's random streams, each seeded with separate keys from ``key``."""
    leaves, structure = jax.tree.flatten(streams)
    begun = [
        jax.random.split(jax.random.fold_in(key, number), leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, begun)


def _linen(module, x, hidden, evaluate):
    """``(draw, call, activations)`` of a linen module."""

    def variables(key):
        # On zeros: only shapes and dtypes of the input matter for parameters.
        names = ("params", "dropout")
        rngs = dict(zip(names, jax.random.split(key), strict=True))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
        return module.init(rngs, zeros, **evaluate)

    held = jax.eval_shape(lambda: variables(jax.random.key(0)))
    _refuse_others(sorted({*held} - {"params"}))

    leaves = _paths(held["params"]) if "params" in held else []

    def call(params, x, mode, key, arguments):
        del mode
        _check_leaves(params, leaves)  # linen itself does not use others
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, x, rngs=rngs, **arguments)

    activations = lambda params, x: tuple(
        module.apply({"params": params}, x, method=hidden)
    )
    return lambda key: variables(key)["params"], call, activations


def init_kernels(key: Key, params: Params, gain: Gain) -> Params:
    """Replace every kernel by ``gain * U(-1, 1) * sqrt(3 / fan_in)``; keep the rest.

    A kernel is a leaf of two or more axes, ``[..., fan_out]``, of a nested dict, and
    ``fan_in`` is the product of all its axes but the last: the variance is
    ``gain**2 / fan_in``. ``gain(path)`` of ``sqrt(2)`` is Kaiming initialisation for ReLU
    (He et al. 2015, arXiv:1502.01852), 1 that of LeCun.
    """

    def bound(names, leaf):
        # U(-a, a) has variance a^2 / 3, so a = gain sqrt(3 / fan_in).
        return gain(names) * math.sqrt(3.0 / _fan_in(leaf)) if leaf.ndim > 1 else None

    return _draw_uniform(key, params, bound)


def init_like_torch(key: Key, params: Params) -> Params:
    r"""Draw kernels and biases as PyTorch's ``nn.Linear`` and ``nn.Conv2d`` do by default.

    .. math:: W, b \sim U\left(-1 / \sqrt{\text{fan\_in}}, 1 / \sqrt{\text{fan\_in}}\right)

    The variance is ``1 / (3 fan_in)``, a sixth of that of Kaiming initialisation for ReLU:
    ``kaiming_uniform_(a=sqrt(5))``. ``mlp`` takes it as ``init``; for another model use
    ``model._replace(init=lambda key: init_like_torch(key, model.init(key)))``.

    Of a nested dict, leaves named ``kernel [..., fan_out]`` and the ``bias`` of the same
    layer are replaced, others (norms, embeddings) kept.

    Source: ``reset_parameters`` of ``torch.nn.Linear`` and ``torch.nn.Conv2d``.
    """
    fan_in = {
        _names(path)[:-1]: _fan_in(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
        if _names(path)[-1] == "kernel"
    }

    def bound(names, leaf):
        del leaf
        # U(-a, a) with a = 1 / sqrt(fan_in), for a bias that of the kernel beside it.
        beside = names[-1] in ("kernel", "bias") and names[:-1] in fan_in
        return 1 / math.sqrt(fan_in[names[:-1]]) if beside else None

    return _draw_uniform(key, params, bound)


def _draw_uniform(key: Key, params: Params, bound: Callable) -> Params:
    """Leaves ``bound(names, leaf) * U(-1, 1)``, kept where it is None.

    They are slices of one draw: each draw costs about a second to compile on a CPU.
    """
    leaves, structure = jax.tree.flatten_with_path(params)
    pairs = [(leaf, bound(_names(path), leaf)) for path, leaf in leaves]
    chosen = [leaf for leaf, a in pairs if a is not None]
    size = sum(leaf.size for leaf in chosen)
    numbers = jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0)
    parts = iter(cut_like(numbers, chosen))
    drawn = [
        leaf if a is None else (a * next(parts)).astype(leaf.dtype) for leaf, a in pairs
    ]
    return jax.tree.unflatten(structure, drawn)


def _names(path) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _fan_in(kernel) -> float:
    """The number of inputs of each output of a kernel ``[..., fan_out]``."""
    return kernel.size / kernel.shape[-1]
