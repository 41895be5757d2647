"""Periodic work that is skipped at other steps, even under ``vmap`` over runs.

``lax.cond`` with a predicate that differs between runs becomes a ``select``: both sides
are computed at every step. The step counters of runs under one ``vmap`` are equal,
however. :func:`when` asks whether *any* run is due, so that one ``cond`` decides for all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, PyTree


def when(due: Bool[Array, ""], then: Callable[[PyTree], PyTree], operand: PyTree):
    """``then(operand)`` where ``due``, and ``operand`` unchanged elsewhere.

    Under ``vmap`` the work is done for all runs as soon as one is due (the others keep
    their values), and for none if none is. The result of ``then`` has the structure,
    shapes and dtypes of its argument.
    """

    def work(operand):
        keep = lambda new, old: jnp.where(due, new, old)
        return jax.tree.map(keep, then(operand), operand)

    return jax.lax.cond(any_run(due), work, lambda operand: operand, operand)


@custom_vmap
def any_run(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """The flag; under ``vmap`` one for all runs, true if that of any run is."""
    return flag


@any_run.def_vmap
def _(axis_size, in_batched, flag):
    del axis_size
    return any_run(jnp.any(flag, axis=0) if in_batched[0] else flag), False
