"""Measures of plasticity, the ability to learn, on a fixed probe batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, ScalarLike

from jaxcl import tree
from jaxcl.curvature.sharpness import sam_sharpness
from jaxcl.errors import check_number, require
from jaxcl.losses import mean_loss
from jaxcl.plasticity.units import dormancy_score, mean_over_rows
from jaxcl.typing import Batch, Key, Loss, Params

Features = tuple[Float[Array, "b ..."], ...]


def dead_fraction(features: Features, weight: Float[Array, " b"]) -> Float[Array, ""]:
    """Fraction of units, over all layers, whose activation is zero on every row.

    Such a ReLU unit passes no gradient back on this batch. On a batch of padding the
    fraction is 1. ``features`` are the activations ``[b, ..., units]`` of each layer.
    """
    activity = jnp.concatenate([mean_over_rows(jnp.abs(h), weight) for h in features])
    return _fraction(activity == 0, activity)


def dormant_fraction(
    features: Features, weight: Float[Array, " b"], tau: ScalarLike
) -> Float[Array, ""]:
    """Fraction of units, over all layers, with :func:`dormancy_score` of at most ``tau``.

    Reference: Sokar et al. 2023, arXiv:2302.12902, definition 3.1.
    """
    check_number("dormant_fraction", tau=tau)
    scores = [dormancy_score(mean_over_rows(jnp.abs(h), weight)) for h in features]
    score = jnp.concatenate(scores)
    return _fraction(score <= tau, score)


def _fraction(flags, values):
    """The fraction of flags; NaN if a value is NaN, as in a network that has diverged."""
    share = jnp.mean(flags, dtype=jnp.float32)
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, share)


def singular_values(
    matrix: Float[Array, "b d"], weight: Float[Array, " b"]
) -> Float[Array, " k"]:
    """Singular values of rows scaled by ``sqrt(weight)`` but not centred, descending."""
    scaled = matrix.astype(jnp.float32) * jnp.sqrt(weight)[:, None]
    return jnp.linalg.svd(scaled, compute_uv=False)


def effective_rank(values: Float[Array, " k"]) -> Float[Array, ""]:
    r"""``exp(entropy)`` of the singular values: :math:`\exp(-\sum p_i \log p_i)`.

    With :math:`p_i = s_i / \sum s`; from 1 to k, and 0 if all are zero.

    Reference: Roy and Vetterli 2007, "The effective rank".
    """
    _check_values("effective_rank", values)
    # exp(-sum p log p) with p = s / sum s, and 0 log 0 = 0.
    share = tree.safe_divide(values, jnp.sum(values))
    entropy = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)))
    return jnp.where(jnp.sum(values) == 0, 0.0, jnp.exp(entropy))


def stable_rank(values: Float[Array, " k"]) -> Float[Array, ""]:
    r"""Squared Frobenius norm over squared spectral norm: :math:`\sum s_i^2 / s_1^2`.

    From 1 to k, and 0 if all are zero.

    Reference: Rudelson and Vershynin 2007, arXiv:math/0503442.
    """
    _check_values("stable_rank", values)
    # sum (s / s_1)^2: the squares themselves could overflow.
    relative = tree.safe_divide(values, jnp.max(values))
    return jnp.sum(jnp.square(relative))


def srank(values: Float[Array, " k"], *, delta: ScalarLike = 0.01) -> Float[Array, ""]:
    r"""The number of singular values that make up a fraction ``1 - delta`` of their sum.

    The least k with :math:`\sum_{i \le k} s_i \ge (1 - \delta) \sum s`; 0 if all are zero.

    Reference: Kumar et al. 2021, arXiv:2010.14498, definition 1.
    """
    check_number("srank", most=1.0, delta=delta)
    _check_values("srank", values)
    total = jnp.sum(values)
    # The least k whose sum reaches (1 - delta) sum s: one more than those that do not.
    short = jnp.cumsum(values) < (1 - delta) * total
    rank = jnp.where(total == 0, 0.0, jnp.sum(short) + 1.0)
    return jnp.where(jnp.isnan(total), jnp.nan, rank)


def _check_values(who, values):
    """Refuse a matrix of features, for which the formulas would also give a number."""
    came = f"shape {jnp.shape(values)}; give singular_values(matrix, weight)"
    message = f"values must be singular values [k], got {came}"
    require(jnp.ndim(values) == 1, who, message)


def measure(
    key: Key,
    loss: Loss,
    hidden: Callable[[Params, PyTree], tuple[Array, ...]],
    params: Params,
    start: Params,
    batch: Batch,
    *,
    rho: ScalarLike = 0.05,
    tau: ScalarLike = 0.025,
) -> dict[str, Float[Array, ""]]:
    """Every measure of this module at one point, and the sharpness there.

    Args:
      key: for the loss; the same for all its evaluations.
      loss: ``(params, batch, keys [b]) -> [b]``.
      hidden: such as ``model.hidden``. Ranks are those of the last activation, ``[b, d]``.
      params: the point to evaluate at.
      start: initial parameters, for ``distance``.
      batch: the probe, rows ``[b, ...]``.
      rho: radius of ``sam_sharpness``, in units of the parameters.
      tau: threshold of ``dormant_fraction``.

    Returns:
      The float32 scalars ``loss``, ``dead_fraction``, ``dormant_fraction``,
      ``effective_rank``, ``stable_rank``, ``srank``, ``weight_norm``, ``distance``,
      ``grad_norm`` and ``sam_sharpness``. Costs a singular value decomposition of
      ``[b, d]`` and a few passes over the batch.
    """
    activations = hidden(params, batch.x)
    mean = lambda params: mean_loss(loss, params, batch, key)
    value, grads = jax.value_and_grad(mean)(params)
    last = activations[-1]
    values = singular_values(last.reshape(last.shape[0], -1), batch.weight)
    found = {
        "loss": value,
        "dead_fraction": dead_fraction(activations, batch.weight),
        "dormant_fraction": dormant_fraction(activations, batch.weight, tau),
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        "srank": srank(values),
        "weight_norm": tree.norm(params),
        "distance": tree.norm(tree.subtract(params, start)),
        "grad_norm": tree.norm(grads),
        "sam_sharpness": sam_sharpness(mean, params, rho),
    }
    return {name: figure.astype(jnp.float32) for name, figure in found.items()}
