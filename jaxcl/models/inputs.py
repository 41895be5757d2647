"""What networks for text read: numbers of tokens, and which of them are real."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxcl.errors import require


def text_inputs(who: str, x: Any, *others: str) -> tuple[Int[Array, "b n"], list[Any]]:
    """The tokens of an input, and its other parts ``[b, n]``, None where absent.

    Args:
      who: asks, for messages.
      x: ``tokens [b, n]``, or a dict with them.
      others: names that the dict may have besides, such as ``mask``.

    Raises:
      ValueError: for other names, other shapes, and numbers that are not integers.
    """
    held = x if isinstance(x, Mapping) else {"tokens": x}
    known = ("tokens", *others)
    fits = "tokens" in held and set(held) <= set(known)
    wanted = f"x must be tokens or a dict of {', '.join(known)}"
    require(fits, who, f"{wanted}, got {sorted(map(str, held))}; rename its parts")
    shape = jnp.shape(held["tokens"])
    for name, part in held.items():
        kind = jnp.result_type(part)
        numbers = jnp.issubdtype(kind, jnp.integer) or jnp.issubdtype(kind, jnp.bool_)
        fits = len(shape) == 2 and jnp.shape(part) == shape and numbers
        came = f"{name} {kind}{list(jnp.shape(part))}"
        require(fits, who, f"x must hold integers [b, n] in one shape, got {came}")
    arrays = {name: jnp.asarray(part) for name, part in held.items()}
    return arrays["tokens"], [arrays.get(name) for name in others]
