"""Computing in a narrow type what is kept in a wide one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.errors import check_kind


def cast_compute(dtype, apply: Callable) -> Callable:
    """The same network, computed in another floating type.

    Parameters and inputs are cast on the way in and outputs to float32 on the way out, so
    losses and gradients are float32 and optimizers see master parameters: a step that
    is lost to rounding in bfloat16 is not lost in them.

    Args:
      dtype: such as ``jnp.bfloat16``, which an accelerator computes faster than float32.
        A CPU does not.
      apply: ``(params, x, keys=None) -> outputs``; integers stay what they are.

    Raises:
      ValueError: if ``dtype`` is no floating type.
    """
    check_kind("cast_compute", Callable, "give model.apply", apply=apply)
    if not jnp.issubdtype(dtype, jnp.floating):
        msg = (
            f"cast_compute: dtype must be a floating type, got {dtype}; give "
            "jnp.bfloat16."
        )
        raise ValueError(msg)

    def cast(tree, dtype):
        change = lambda leaf: (
            leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        )
        return jax.tree.map(change, tree)

    return lambda params, x, keys=None: cast(
        apply(cast(params, dtype), cast(x, dtype), keys), jnp.float32
    )


__all__ = ["cast_compute"]
