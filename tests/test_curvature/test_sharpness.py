"""Sharpness against closed forms and dense Hessians."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.curvature.sharpness import sam_sharpness, top_eigenvalue


def quadratic(eigenvalues, seed):
    """Loss and Hessian with chosen eigenvalues, over a tree of two leaves."""
    size = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    hessian = jnp.asarray(basis @ np.diag(eigenvalues) @ basis.T, jnp.float32)
    flat = lambda params: jax.flatten_util.ravel_pytree(params)[0]
    return lambda params: 0.5 * flat(params) @ hessian @ flat(params)


PARAMS = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([-1.0])}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "spectrum", [(3.0, 1.0, 0.5), (-4.0, 2.0, 1.0)], ids=["minimum", "saddle"]
)
def test_top_eigenvalue_recovers_a_chosen_spectrum(spectrum, seed):
    """Oracle: a quadratic whose Hessian we built from its eigenvalues."""
    loss = quadratic(spectrum, seed)
    found = jax.jit(lambda key: top_eigenvalue(key, loss, PARAMS, num_steps=60))(
        jax.random.key(seed)
    )
    np.testing.assert_allclose(found, spectrum[0], rtol=1e-4)


def test_top_eigenvalue_of_a_network_is_that_of_its_dense_hessian():
    """Oracle: numpy's eigenvalues of jax.hessian, where the loss is no quadratic."""
    x = jax.random.normal(jax.random.key(0), (6, 2))
    y = jnp.sin(x[:, 0])

    def loss(params):
        hidden = jnp.tanh(x @ params["w"])
        return jnp.mean(jnp.square(hidden @ params["v"] - y))

    params = {
        "v": jax.random.normal(jax.random.key(1), (3,)),
        "w": jax.random.normal(jax.random.key(2), (2, 3)),
    }
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def both(key):
        dense = jax.hessian(lambda flat: loss(unravel(flat)))(flat)
        return dense, top_eigenvalue(key, loss, params, num_steps=200)

    dense, found = both(jax.random.key(3))
    values = np.linalg.eigvalsh(np.asarray(dense, np.float64))
    largest = values[np.argmax(np.abs(values))]
    np.testing.assert_allclose(found, largest, rtol=1e-3)


def test_sam_sharpness_of_a_quadratic_has_a_closed_form():
    """Oracle: on |x|^2 / 2 the rise is rho |x| + rho^2 / 2."""
    quadratic = lambda params: 0.5 * sum(jnp.sum(leaf**2) for leaf in params.values())
    rise = jax.jit(jax.vmap(lambda rho: sam_sharpness(quadratic, PARAMS, rho)))
    rho = jnp.array([0.0, 0.1, 1.0])
    np.testing.assert_allclose(rise(rho), rho * 6**0.5 + rho**2 / 2, rtol=1e-5)


def test_flat_ground_is_not_sharp():
    """Law: zero gradient and zero Hessian give zero, not NaN."""
    flat = lambda params: 0.0 * jnp.sum(params["a"])
    assert sam_sharpness(flat, PARAMS, 0.1) == 0
    assert top_eigenvalue(jax.random.key(0), flat, PARAMS, num_steps=2) == 0
