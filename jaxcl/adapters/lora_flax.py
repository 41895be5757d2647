"""Low-rank adapters (LoRA) on the linear layers of Flax modules (nnx)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ScalarLike

from jaxcl.adapters._targets import Size, sizes, targeted
from jaxcl.errors import check_kind, require


class LoRALinear(nnx.Linear):
    r"""An ``nnx.Linear`` with a low-rank adapter.

    .. math:: y = x W + b + s \, (\text{dropout}(x) A) B

    Its parameters are those of :mod:`jaxcl.adapters.lora`: ``kernel``, ``bias``, ``lora_a``
    and ``lora_b`` (``nnx.LoRAParam`` in float32, cast to the dtype of the output) and the
    constant ``lora_scale``, which gets no gradient. So
    ``partition(from_flax(module).init(key), lora_rule)`` and ``merge_lora`` work as for
    the library's own networks.

    Args:
      in_features: of the inputs.
      out_features: of the outputs.
      rank: of the adapter, at most the smaller number of features.
      alpha: the scale is ``alpha / rank``.
      rslora: or ``alpha / sqrt(rank)``.
      dropout: rate in [0, 1) of ``nnx.Dropout`` on the inputs of ``A``.
      rngs: draws the parameters and the dropout.
      **options: of ``nnx.Linear``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int = 8,
        alpha: ScalarLike = 16,
        rslora: bool = False,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
        **options,
    ):
        super().__init__(in_features, out_features, rngs=rngs, **options)
        options = {"rank": rank, "alpha": alpha, "rslora": rslora, "dropout": dropout}
        found = sizes("LoRALinear", {"it": (in_features, out_features)}, **options)
        self._adapt(found["it"], dropout, rngs)

    def _adapt(self, size: Size, dropout: float, rngs: nnx.Rngs) -> None:
        """``A`` uniform, ``B`` zero, the scale, and dropout if there is any."""
        *stack, i, o = self.kernel.shape
        shape, bound = (*stack, i, size.rank), 1 / math.sqrt(i)
        a = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        self.lora_a = nnx.LoRAParam(a)
        self.lora_b = nnx.LoRAParam(jnp.zeros((*stack, size.rank, o), jnp.float32))
        self.lora_scale = nnx.Param(jnp.full(stack, size.scale, jnp.float32))
        self.dropout = _dropout(dropout, tuple(stack), rngs) if dropout > 0 else None

    def __call__(self, inputs: Array, out_sharding=None) -> Array:
        """Apply the layer along the last axis."""
        y = super().__call__(inputs, out_sharding=out_sharding)
        scale = jax.lax.stop_gradient(self.lora_scale[...])
        a, b, scale = (
            leaf.astype(y.dtype) for leaf in (self.lora_a[...], self.lora_b[...], scale)
        )
        x = inputs.astype(y.dtype)
        x = x if self.dropout is None else self.dropout(x)
        return y + scale * ((x @ a) @ b)


def _dropout(rate: float, stack: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Dropout:
    """Dropout with streams of its own, one for each layer of a stack."""
    draw = lambda key: nnx.Dropout(rate, rngs=nnx.Rngs(dropout=key))
    for _ in stack:
        draw = jax.vmap(draw)
    return draw(jax.random.split(rngs.dropout(), stack))


def apply_lora(
    module: nnx.Module,
    *,
    rngs: nnx.Rngs,
    rank: int = 8,
    alpha: ScalarLike = 16,
    targets: str | Sequence[str] = "all-linear",
    rslora: bool = False,
    dropout: float = 0.0,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, ScalarLike] | None = None,
) -> nnx.Module:
    """A copy of a module in which linear layers are :class:`LoRALinear`.

    Weights are shared with ``module``, which does not change; outputs are the same until
    the adapter is trained. Layers stacked by ``vmap``, with kernels ``[layers, i, o]``, get
    stacked factors.

    Args:
      module: with layers of type ``nnx.Linear``, at any depth.
      rngs: draws the factors and the dropout.
      rank: of the adapters, at most the smaller side of a kernel.
      alpha: the scale is ``alpha / rank``.
      targets: regular expressions for the last name or names of layers' paths, such as
        ``query`` or ``blocks/.*/mlp/up``; or ``"all-linear"``, all but an output layer
        (``out``, ``head``, ``lm_head``, ``classifier``, ``score``).
      rslora: scale by ``alpha / sqrt(rank)``.
      dropout: rate in [0, 1) on the inputs of ``A``, in training mode.
      rank_pattern: ranks of some layers, by regular expressions like those of
        ``targets``; the first that matches counts.
      alpha_pattern: likewise for ``alpha``.

    Raises:
      ValueError: for targets that match no linear layer, with the nearest names; for a
        rank above the smaller side of a kernel; if there is an adapter already.
    """
    who = "apply_lora"
    check_kind(who, nnx.Module, "give a built nnx module", module=module)
    module = nnx.clone(module)
    layers = {"/".join(map(str, path)): part for path, part in nnx.iter_modules(module)}
    held = [path for path, layer in layers.items() if isinstance(layer, LoRALinear)]
    already = f"the module has an adapter already, at {', '.join(held[:3])}"
    require(not held, who, f"{already}; train that one")
    linear = {
        path: layer for path, layer in layers.items() if type(layer) is nnx.Linear
    }
    chosen = targeted(who, targets, [*linear], _leaves(module))
    kernels = {
        path: layer.kernel.shape for path, layer in linear.items() if path in chosen
    }
    found = sizes(
        who,
        kernels,
        rank=rank,
        alpha=alpha,
        rslora=rslora,
        dropout=dropout,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    for path, size in found.items():
        layer: Any = linear[path]
        # The copy keeps its variables and options, whatever the version of Flax.
        layer.__class__ = LoRALinear
        layer._adapt(size, dropout, rngs)
    return module


def _leaves(module: nnx.Module) -> dict[str, Array]:
    """All variables of a module by their paths, for messages."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): value[...] for path, value in flat}
