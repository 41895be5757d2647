"""Importance weights for EWC-like penalties, in place of a Fisher or derived from one.

Each function here configures a :data:`~jaxcl.curvature.Fisher`. They are controls
for the role of the Fisher in a method: its scale (:func:`normalised`), its pattern
(:func:`shuffled`), or both (:func:`uniform_importance`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcl.curvature.fisher import Fisher
from jaxcl.tree import safe_divide, wide_dtype
from jaxcl.typing import Params


def trace(fisher: Params) -> Float[Array, ""]:
    """Sum of all entries: the expected squared norm of a per-example gradient."""
    sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(fisher)]
    return sum(sums, jnp.zeros((), jnp.float32))


def mean_entry(fisher: Params) -> Float[Array, ""]:
    """Mean of all entries; zero for a tree without entries."""
    return trace(fisher) / max(sum(leaf.size for leaf in jax.tree.leaves(fisher)), 1)


def largest_entry(fisher: Params) -> Float[Array, ""]:
    """Largest of all entries, which bounds the step size; zero for an empty tree."""
    tops = [jnp.max(leaf, initial=0) for leaf in jax.tree.leaves(fisher)]
    return jnp.max(jnp.stack(tops), initial=0) if tops else jnp.zeros((), jnp.float32)


def normalised(
    fisher: Fisher, size: Callable[[Params], Float[Array, ""]] = mean_entry
) -> Fisher:
    """A Fisher divided by its own size, so that strengths can be compared.

    Sharpness-aware methods also shrink the Fisher that weights their penalty (SAM can make
    it several times smaller), so that equal strengths are not comparable. In return every
    task has the same weight, whereas in the Laplace approximation a task with low curvature
    has less. Papers do not divide; nor does the library by default.

    Divisors, and the meaning of the strength:

    - :func:`mean_entry` (default): the average entry is 1, so the strength is that
      of an L2 penalty with the same average curvature, for any model size. Use this to
      compare gradients, models or tasks.
    - :func:`largest_entry`: the largest entry is 1, so one task's penalty is stable under
      SGD while ``learning_rate * strength < 2``. One outlier sets the scale.
    - :func:`trace`: the entries sum to 1, so that in a model with more parameters each of
      them is penalised less.

    Zero stays zero.
    """

    def normal(key, params, task):
        entries = fisher(key, params, task)
        return jax.tree.map(lambda leaf: safe_divide(leaf, size(entries)), entries)

    return normal


def uniform_importance() -> Fisher:
    """Ones for all parameters. EWC becomes L2 towards past solutions."""

    def ones(_key, params, _task):
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, wide_dtype(leaf)), params)

    return ones


def shuffled(fisher: Fisher) -> Fisher:
    """The same entries, permuted at random within each leaf: only the scale is kept.

    The control for the question whether it matters *which* parameters are penalised.
    """

    def permuted(key, params, task):
        key_fisher, key_order = jax.random.split(key)
        leaves, tree = jax.tree.flatten(fisher(key_fisher, params, task))
        keys = jax.random.split(key_order, max(len(leaves), 1))
        mix = lambda key, leaf: jax.random.permutation(
            key, leaf.reshape(-1), independent=True
        ).reshape(leaf.shape)
        # An empty tree has one key and no leaf.
        return jax.tree.unflatten(tree, map(mix, keys, leaves))

    return permuted
