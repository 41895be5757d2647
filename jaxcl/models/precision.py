"""Mixed precision: compute in a narrow dtype with parameters in a wide one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.errors import require


def cast_compute(dtype, apply: Callable) -> Callable:
    """The same network, computed in another floating dtype.

    Parameters and inputs are cast to ``dtype`` and outputs to float32, so that losses and
    gradients are float32 and optimizers update master parameters: a step that is lost to
    rounding in bfloat16 is not lost in them.

    Args:
      dtype: such as ``jnp.bfloat16``, which an accelerator computes faster than float32.
        A CPU does not.
      apply: ``(params, x, keys=None) -> outputs``; integers are not cast.
    """
    came = f"got {dtype}; give jnp.bfloat16"
    floating = lambda kind: jnp.issubdtype(kind, jnp.floating)
    require(floating(dtype), "cast_compute", f"dtype must be floating, {came}")

    def cast(tree, dtype):
        change = lambda leaf: leaf.astype(dtype) if floating(leaf.dtype) else leaf
        return jax.tree.map(change, tree)

    def computed(params, x, keys=None):
        return cast(apply(cast(params, dtype), cast(x, dtype), keys), jnp.float32)

    return computed
