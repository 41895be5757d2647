"""Hidden units: their activity, and how to reset some of them."""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxcl.errors import require
from jaxcl.tree import safe_divide
from jaxcl.typing import Params, Units


def mean_over_rows(
    values: Float[Array, "b *positions k"], weight: Float[Array, " b"]
) -> Float[Array, " k"]:
    """Weighted mean over rows and positions; zero for a batch of padding."""
    per_row = jnp.mean(values, axis=tuple(range(1, values.ndim - 1)))
    return safe_divide(weight @ per_row, jnp.sum(weight))


def dormancy_score(activity: Float[Array, " k"]) -> Float[Array, " k"]:
    """Activity of each unit relative to its layer, ``a_i / mean_k a_k``; zeros for zeros.

    With ``activity`` the mean of ``|h_i|`` over a batch this is equation 1 of Sokar et al.
    2023 (arXiv:2302.12902), where a unit is *tau-dormant* if its score is at most ``tau``.
    """
    return safe_divide(activity, jnp.mean(activity))


def nowhere(params: Params) -> PyTree:
    """The mask of a reset that resets nothing."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)


def leaf(params: Params, path: tuple[str, ...]) -> Array:
    """The array at ``path`` of a nested dict."""
    return functools.reduce(operator.getitem, path, params)


def _replace_leaf(params: Params, path: tuple[str, ...], value: Array) -> Params:
    """The same nested dict with another array at ``path``."""
    head, *rest = path
    inner = _replace_leaf(params[head], tuple(rest), value) if rest else value
    return {**params, head: inner}


def reset_units(
    params: Params,
    mask: PyTree,
    fresh: Params,
    units: Units,
    chosen: Bool[Array, " width"],
    mean: Float[Array, " k"] | None = None,
) -> tuple[Params, PyTree]:
    """Reset the chosen units of one layer.

    Their outgoing weights become zero, so the network computes what it would without
    the old units; their incoming weights, biases and scales come from ``fresh``. Reset
    several layers from input to output: new units may then be inputs of new units, and
    the outputs do not change (up to the statistics of a normalisation over the layer).

    Args:
      params: nested dict of arrays.
      mask: booleans like ``params``; entries that were reset so far, returned with the
        new ones.
      fresh: a newly drawn network.
      units: where the layer's units are in ``params``.
      chosen: [width], true for units to reset.
      mean: [copies * width] mean activations. If given, the mean contribution of the
        chosen units is added to the next layer's bias, where it has one.
    """
    read = jnp.tile(chosen, units.copies)
    outgoing = leaf(params, units.outgoing)
    if mean is not None and units.shift is not None:
        # The mean that the next layer loses goes into its bias, which is not reset.
        passed = jnp.where(read, mean, 0.0) @ outgoing
        bias = leaf(params, units.shift)
        bias = bias + passed.reshape(-1, bias.size).sum(axis=0).astype(bias.dtype)
        params = _replace_leaf(params, units.shift, bias)

    zeros = jnp.zeros((), outgoing.dtype)
    new = {units.outgoing: (read[:, None], zeros)}
    new |= {
        path: (chosen, leaf(fresh, path)) for path in (units.incoming, *units.vectors)
    }
    for path, (where, values) in new.items():
        old = leaf(params, path)
        values = jnp.where(where, values.astype(old.dtype), old)
        params = _replace_leaf(params, path, values)
        mask = _replace_leaf(mask, path, leaf(mask, path) | where)
    return params, mask


def check_units(who: str, units: tuple[Units, ...]) -> None:
    """Refuse a model that does not describe its units."""
    message = "units must name a hidden layer, got none; take those of a model"
    require(units, who, message)
