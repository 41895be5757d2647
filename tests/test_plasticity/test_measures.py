"""Plasticity measures against numpy, hand-built activations and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import cross_entropy, single_head
from jaxcl.models import mlp
from jaxcl.plasticity import (
    dead_fraction,
    dormant_fraction,
    effective_rank,
    measure,
    singular_values,
    srank,
    stable_rank,
)
from jaxcl.tree import as_batch


def test_dead_and_dormant_units_are_counted():
    """Oracle: activations built by hand, with a padding row that would wake everybody."""
    first = jnp.array(
        [[0.0, 1.0, 0.01, 3.0], [0.0, 2.0, 0.0, 2.0], [9.0, 9.0, 9.0, 9.0]]
    )
    second = jnp.zeros((3, 2, 2, 1)).at[0, 1, 0, 0].set(1.0)  # one bright position
    weight = jnp.array([1.0, 1.0, 0.0])
    hidden = (first, second)
    assert dead_fraction(hidden, weight) == pytest.approx(1 / 5)
    assert dormant_fraction(hidden, weight, 0.0) == pytest.approx(1 / 5)
    assert dormant_fraction(hidden, weight, 0.01) == pytest.approx(2 / 5)
    assert dead_fraction(hidden, jnp.ones(3)) == 0  # control: the third row lights all
    assert dead_fraction(hidden, jnp.zeros(3)) == 1


def test_ranks_are_those_of_a_matrix_with_chosen_singular_values():
    """Oracle: the definitions on a spectrum we chose, and numpy's dense SVD."""
    rng = np.random.default_rng(0)
    spectrum = np.array([4.0, 2.0, 1.0, 0.05, 0.0])
    left = np.linalg.qr(rng.normal(size=(8, 5)))[0]
    right = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix = np.zeros((10, 5), np.float32)
    matrix[:8] = left @ np.diag(spectrum) @ right
    matrix[8:] = 100.0  # padding
    weight = np.r_[np.ones(8), np.zeros(2)].astype(np.float32)

    @jax.jit
    def compute(matrix, weight):
        values = singular_values(matrix, weight)
        return values, effective_rank(values), stable_rank(values), srank(values)

    values, effective, stable, count = compute(matrix, weight)
    np.testing.assert_allclose(values, spectrum, atol=1e-5)
    dense = np.linalg.svd(matrix[:8].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(values, dense, atol=1e-5)
    share = spectrum[:4] / spectrum.sum()
    np.testing.assert_allclose(
        effective, np.exp(-np.sum(share * np.log(share))), rtol=1e-4
    )
    np.testing.assert_allclose(stable, np.sum(spectrum**2) / 16, rtol=1e-5)
    assert count == 3  # 7 of 7.05 is 99.3 %


def test_singular_values_weigh_a_row_by_the_root_of_its_weight():
    """Oracle: numpy's SVD of rows scaled by 2 and 0.5, for weights of 4 and 0.25."""
    matrix = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
    weight = np.array([4.0, 0.25, 1.0, 4.0, 0.25, 0.0], np.float32)
    scale = np.array([2.0, 0.5, 1.0, 2.0, 0.5, 0.0])
    want = np.linalg.svd(scale[:, None] * matrix.astype(np.float64), compute_uv=False)
    found = jax.jit(singular_values)(matrix, weight)
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_equal_directions_count_as_their_number(rank):
    """Oracle: r equal singular values have rank r by every definition."""
    values = jnp.r_[jnp.full(rank, 2.5), jnp.zeros(6 - rank)]
    for function in (effective_rank, stable_rank, srank):
        np.testing.assert_allclose(function(values), rank, rtol=1e-6)
        assert function(jnp.zeros(6)) == 0
    assert srank(jnp.array([9.0, 0.5, 0.5]), delta=0.1) == 1  # control: delta matters
    assert srank(jnp.array([9.0, 0.5, 0.5])) == 3


def test_measure_agrees_with_each_figure_by_itself():
    """Oracle: numpy and the loss written out."""
    model = mlp((3, 6, 5, 2))
    loss = cross_entropy(single_head(model.apply))
    x = jax.random.normal(jax.random.key(1), (7, 3)).at[5:].mul(50.0)
    weight = jnp.array([1.0, 1, 1, 1, 1, 0, 0])
    batch = as_batch(x, jnp.array([0, 1, 0, 1, 1, 0, 0]), weight=weight)

    def run(seed):
        start = model.init(jax.random.key(1))
        params = model.init(jax.random.key(seed))
        found = measure(
            jax.random.key(0),
            loss,
            model.hidden,
            params,
            start,
            batch,
            rho=0.1,
            tau=0.2,
        )
        return found, params, start

    many, params, start = jax.jit(jax.vmap(run))(jnp.array([0, 2]))
    assert all(figure.dtype == jnp.float32 for figure in many.values())
    params, start = (jax.tree.map(lambda leaf: leaf[1], p) for p in (params, start))
    found = {name: float(figure[1]) for name, figure in many.items()}

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    rows = np.flatnonzero(weight)

    @jax.jit
    def plain(flat):
        logits = model.apply(unravel(flat), x[rows])
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(5), batch.y[rows]])

    grad = np.asarray(jax.jit(jax.grad(plain))(flat))
    norm = np.linalg.norm(grad)
    rise = float(plain(flat + 0.1 * grad / norm)) - float(plain(flat))
    hidden = jax.jit(model.hidden)(params, x[rows])
    scores = [np.abs(h).mean(0) / np.abs(h).mean() for h in hidden]
    dense = np.linalg.svd(np.asarray(hidden[-1], np.float64), compute_uv=False)
    expected = {
        "loss": float(plain(flat)),
        "dead_fraction": np.mean(np.concatenate(scores) == 0),
        "dormant_fraction": np.mean(np.concatenate(scores) <= 0.2),
        "effective_rank": float(effective_rank(jnp.asarray(dense, jnp.float32))),
        "stable_rank": np.sum(dense**2) / dense[0] ** 2,
        "srank": np.searchsorted(np.cumsum(dense), 0.99 * dense.sum()) + 1,
        "weight_norm": np.linalg.norm(flat),
        "distance": np.linalg.norm(flat - jax.flatten_util.ravel_pytree(start)[0]),
        "grad_norm": norm,
        "sam_sharpness": rise,
    }
    assert found.keys() == expected.keys()
    for name, figure in expected.items():
        np.testing.assert_allclose(found[name], figure, rtol=1e-3, err_msg=name)
    assert found["sam_sharpness"] > 0


def test_a_diverged_network_has_no_measures_rather_than_good_ones():
    """Oracle: NaN in, NaN out; zero activations are a defined case."""
    weight = jnp.ones(4)
    bad = (jnp.full((4, 3), jnp.nan),)
    values = jnp.array([jnp.nan, 1.0])
    for figure in (
        dead_fraction(bad, weight),
        dormant_fraction(bad, weight, 0.1),
        effective_rank(values),
        stable_rank(values),
        srank(values),
    ):
        assert jnp.isnan(figure)
    zero = (jnp.zeros((4, 3)),)
    assert dead_fraction(zero, weight) == 1.0
    assert effective_rank(jnp.zeros(3)) == srank(jnp.zeros(3)) == 0.0
