"""Mixed precision: compute in a narrow dtype with parameters in a wide one."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcl.errors import InputError


def cast_compute(dtype, apply: Callable) -> Callable:
    """The same network, computed in another floating dtype.

    Parameters and inputs are cast to ``dtype`` and outputs to float32, so that losses and
    gradients are float32 and optimizers update master parameters: a step that is lost to
    rounding in bfloat16 is not lost in them.

    Args:
      dtype: such as ``jnp.bfloat16``, which an accelerator computes faster than float32.
        A CPU does not.
      apply: ``(params, x, keys=None) -> outputs``; integers are not cast.

    Raises:
      ValueError: if ``dtype`` is not a floating dtype.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        msg = f"cast_compute: dtype must be floating, got {dtype}; give jnp.bfloat16."
        raise InputError(msg)

    def cast(tree, dtype):
        change = lambda leaf: (
            leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        )
        return jax.tree.map(change, tree)

    return lambda params, x, keys=None: cast(
        apply(cast(params, dtype), cast(x, dtype), keys), jnp.float32
    )
