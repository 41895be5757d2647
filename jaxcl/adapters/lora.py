r"""Low-rank adapters (LoRA) on the projections of a parameter tree.

.. math:: y = x W + b + s \, (\text{dropout}(x) A) B, \qquad s = \alpha / k
   \ \text{ or } \ \alpha / \sqrt{k}

Beside ``kernel [..., i, o]`` a projection then holds ``lora_a [..., i, k]`` and ``lora_b
[..., k, o]`` in float32, whatever the dtype of the kernel, and the constants ``lora_scale``
(``s``) and perhaps ``lora_dropout`` (a rate): one number, or one for each layer of a
stacked kernel ``[layers, i, o]``. ``jaxcl.models.layers.dense`` applies them, and so
do the library's transformers. Flax modules get :func:`jaxcl.adapters.apply_lora`; any other
network can be called with ``merge_lora(params)``, which costs a kernel per projection.

Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ScalarLike

from jaxcl.adapters._targets import sizes, targeted
from jaxcl.adapters.partition import combine, partition
from jaxcl.adapters.paths import leaves_by_path, nested, path_of, select
from jaxcl.errors import check_key, require
from jaxcl.tree import wide, wide_dtype
from jaxcl.typing import Key, Params

#: Kernels, or what is beside them, by the entries of the paths of their projections.
Projections = dict[tuple[Any, ...], Any]


def lora_rule(path: str) -> bool:
    """Select the factors ``lora_a`` and ``lora_b``, for :func:`partition`.

    With a head that is trained fully: ``partition(params, [lora_rule, "out"])``.
    """
    return path.rsplit("/", 1)[-1] in ("lora_a", "lora_b")


def add_lora(
    key: Key,
    params: Params,
    *,
    rank: int = 8,
    alpha: ScalarLike = 16,
    targets: str | Sequence[str] = ("q_proj", "v_proj"),
    rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, ScalarLike] | None = None,
    extra: str | Sequence[str] = (),
) -> Params:
    r"""Add the factors of a low-rank adapter beside the kernels of projections.

    ``A`` is drawn from :math:`U(-1 / \sqrt{i}, 1 / \sqrt{i})`, PEFT's
    ``kaiming_uniform_(a=sqrt(5))``, and ``B`` is zero: outputs do not change. Kernels are
    shared with ``params``, not copied. May be traced, over many keys too.

    Args:
      key: draws the factors.
      params: nested dicts; projections are those with a ``kernel`` ``[i, o]`` or
        ``[layers, i, o]`` of floats.
      rank: ``k``, at most the smaller side of a kernel.
      alpha: above 0; the scale is ``alpha / rank``.
      targets: regular expressions for the last name or names of projections' paths, such
        as ``q_proj`` or ``layers/attention/.*``; or ``"all-linear"``, all but an output
        layer (``out``, ``head``, ``lm_head``, ``classifier``, ``score``).
      rslora: scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023, arXiv:2312.03732).
      dropout: rate in [0, 1) on the inputs of ``A``, in calls with keys.
      rank_pattern: ranks of some projections, by regular expressions like those of
        ``targets``; the first that matches counts.
      alpha_pattern: likewise for ``alpha``.
      extra: modules that are trained fully, such as a head ``out``: their leaves are
        copied, to float32 or better. Name them for :func:`partition` too.

    Raises:
      ValueError: for targets that match no projection, with the nearest names; for a rank
        above the smaller side of a kernel; if there is an adapter already.
    """
    check_key("add_lora", key)
    held = sorted({path_of(entries) for entries in adapters_of(params)})
    already = f"params have an adapter already, at {', '.join(held[:3])}"
    remedy = "merge it by merge_lora, or train that one"
    require(not held, "add_lora", f"{already}; {remedy}")
    leaves = {
        path_of(entries): leaf for entries, leaf in leaves_by_path(params).items()
    }
    kernels = projections(params)
    found = targeted("add_lora", targets, [*map(path_of, kernels)], leaves)
    chosen = {e: kernel for e, kernel in kernels.items() if path_of(e) in found}
    size = sizes(
        "add_lora",
        {path_of(entries): kernel.shape for entries, kernel in chosen.items()},
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        dropout=dropout,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    ranks = {entries: size[path_of(entries)].rank for entries in chosen}
    added = _factors(key, chosen, ranks)
    for entries, kernel in chosen.items():
        full = lambda value, layers: jnp.full(layers, value, jnp.float32)
        scale = size[path_of(entries)].scale
        added[(*entries, "lora_scale")] = full(scale, kernel.shape[:-2])
        if dropout > 0:
            added[(*entries, "lora_dropout")] = full(dropout, kernel.shape[:-2])
    return combine(nested(added | _trained_fully(extra, params)), params)


def _factors(key: Key, chosen: Projections, ranks: Projections) -> Projections:
    """``A`` uniform and ``B`` zero; all are slices of one draw, which compiles once."""
    shapes = [
        (*kernel.shape[:-1], ranks[entries]) for entries, kernel in chosen.items()
    ]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    numbers = jax.random.uniform(key, (ends[-1],), jnp.float32, -1.0, 1.0)
    parts = jnp.split(numbers, ends[:-1])
    leaves: Projections = {}
    for (entries, kernel), part, shape in zip(
        chosen.items(), parts, shapes, strict=True
    ):
        *layers, i, o = kernel.shape
        leaves[(*entries, "lora_a")] = part.reshape(shape) / math.sqrt(i)
        zeros = jnp.zeros((*layers, shape[-1], o), jnp.float32)
        leaves[(*entries, "lora_b")] = zeros
    return leaves


def _trained_fully(extra: str | Sequence[str], params: Params) -> Projections:
    """Copies of the leaves of modules, in float32 or better."""
    if not extra:
        return {}
    leaves = leaves_by_path(params)
    found = select("add_lora: extra", extra, [*map(path_of, leaves)])
    wide_copy = lambda leaf: jnp.array(leaf, wide_dtype(leaf), copy=True)
    return {e: wide_copy(leaf) for e, leaf in leaves.items() if path_of(e) in found}


def projections(params: Params) -> Projections:
    """The kernels ``[i, o]`` or ``[layers, i, o]`` of floats, by their modules' paths."""
    return {
        entries[:-1]: leaf
        for entries, leaf in leaves_by_path(params).items()
        if path_of(entries[-1:]) == "kernel"
        and np.ndim(leaf) in (2, 3)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def adapters_of(params: Params) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The leaves ``lora_*`` of each projection, by name, by the projections' paths."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entries, leaf in leaves_by_path(params).items():
        if _is_adapter(name := path_of(entries[-1:])):
            found.setdefault(entries[:-1], {})[name] = leaf
    return found


def _is_adapter(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith("lora_")


# --------------------------------------------------------------------------- merging


def merge_lora(params: Params, *, donate: bool = False) -> Params:
    r"""The same network without adapter leaves: kernels :math:`W + s A B`.

    Computed in float32 or better and cast back to the kernel's dtype, on the host, one
    layer of one tensor at a time; merged kernels are NumPy arrays. Under a transformation
    (``jit``, ``grad``) it is part of the program.

    Args:
      params: with an adapter, :func:`combine` of both parts.
      donate: give the kernels up as they are merged, written over or deleted: the peak of
        memory is then one tensor more than the parameters, instead of a copy of all
        kernels that have an adapter.

    Raises:
      ValueError: if there is no adapter, or only a part of one.
    """
    moved = _moved("merge_lora", params, params, 1.0, donate)
    return combine(moved, partition(params, _is_adapter)[1])


def unmerge_lora(params: Params, adapter: Params, *, donate: bool = False) -> Params:
    r"""The inverse of :func:`merge_lora`: kernels :math:`W - s A B`, the adapter beside.

    In float32 the kernels return within rounding; in a narrower dtype within a unit in the
    last place.

    Args:
      params: without adapter leaves.
      adapter: a tree with all leaves of the adapter, such as what was merged.
      donate: as in :func:`merge_lora`.
    """
    message = "params have an adapter already; give the tree that merge_lora made"
    require(not adapters_of(params), "unmerge_lora", message)
    moved = _moved("unmerge_lora", params, adapter, -1.0, donate)
    return combine(combine(moved, partition(adapter, _is_adapter)[0]), params)


def _moved(who: str, params: Params, adapter: Params, sign: float, donate: bool):
    """The kernels that have an adapter, plus ``sign s A B``, in nested dicts."""
    adapters = adapters_of(adapter)
    require(adapters, who, "expected an adapter, leaves lora_a, got none; see add_lora")
    kernels = {path_of(entries): k for entries, k in projections(params).items()}
    moved = {}
    for entries, held in adapters.items():
        path = path_of(entries)
        fits = path in kernels and {"lora_a", "lora_b", "lora_scale"} <= {*held}
        wanted = "kernel, lora_a, lora_b and lora_scale; combine both parts first"
        require(fits, who, f"{path} must have {wanted}")
        delta = held["lora_a"], held["lora_b"], sign * held["lora_scale"]
        moved[(*entries, "kernel")] = _add(kernels[path], *delta, donate)
    return nested(moved)


def _add(kernel, a, b, scale, donate: bool):
    """``kernel + scale a b``, summed in float32 or better, in the dtype of the kernel."""
    dtype = wide_dtype(kernel, a)
    if any(isinstance(leaf, Tracer) for leaf in (kernel, a, b, scale)):
        product = jnp.matmul(wide(a), wide(b), precision=jax.lax.Precision.HIGHEST)
        moved = kernel.astype(dtype) + jnp.asarray(scale)[..., None, None] * product
        return moved.astype(kernel.dtype)
    a, b, scale = (np.asarray(leaf).astype(dtype) for leaf in (a, b, scale))
    result = kernel
    if not (donate and isinstance(kernel, np.ndarray) and kernel.flags.writeable):
        result = np.array(kernel)
        if donate and isinstance(kernel, jax.Array):
            kernel.delete()
    for layer in np.ndindex(result.shape[:-2]):
        moved = result[layer].astype(dtype) + scale[layer] * (a[layer] @ b[layer])
        result[layer] = moved.astype(result.dtype)
    return result
