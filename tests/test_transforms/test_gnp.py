import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.transforms import gnp, sam
from tests.test_transforms.wavy import CURVATURE, START, descend, run, slope, unit

close = dict(rtol=2e-5, atol=2e-6)  # float32 against float64


@pytest.mark.parametrize("alpha", [0.3, 1.7])
def test_gnp_blends_the_gradient_with_the_perturbed_one(alpha):
    """Oracle: the formula in NumPy, float64, five steps of descent."""
    found, _ = run(gnp(0.2, alpha=alpha), 5)
    blend = lambda _, w, g: (1 - alpha) * g + alpha * slope(w + 0.2 * unit(g))
    np.testing.assert_allclose(found, descend(blend, 5), **close)


def test_gnp_with_alpha_one_is_sam_and_with_alpha_zero_plain():
    """Law, with the negative control that the two ends differ."""
    (uphill, _), (plain, _) = run(sam(0.2), 3), run(gnp(0.2, alpha=0), 3)
    np.testing.assert_array_equal(run(gnp(0.2, alpha=1.0), 3)[0], uphill)
    np.testing.assert_allclose(plain, descend(lambda _, __, g: g, 3), **close)
    assert np.max(np.abs(uphill - plain)) > 1e-2


def test_gnp_with_alpha_zero_asks_for_no_second_gradient():
    """Oracle: the number of calls."""
    asked = []
    ask = lambda params: asked.append(1) or params
    for alpha, calls in ((0, 0), (0.0, 0), (0.5, 1)):
        transform = gnp(0.2, alpha=alpha)
        transform.update(
            jnp.ones(2), transform.init(jnp.ones(2)), jnp.ones(2), grad_fn=ask
        )
        assert len(asked) == calls


def test_gnp_on_a_quadratic_is_the_gradient_of_loss_plus_penalised_norm(x64):
    """Oracle: automatic differentiation of L + lambda |grad L|, in 64 bits."""
    del x64
    hessian = jnp.asarray(CURVATURE)
    loss = lambda w: 0.5 * w @ hessian @ w
    whole = lambda w: loss(w) + 0.13 * jnp.linalg.norm(jax.grad(loss)(w))
    w = jnp.asarray(START)
    want = jax.grad(whole)(w)
    for r in (0.01, 0.1, 2.0):  # the radius does not matter on a quadratic
        transform = gnp(r, penalty=0.13)
        found, _ = transform.update(
            jax.grad(loss)(w), transform.init(w), w, grad_fn=jax.grad(loss)
        )
        np.testing.assert_allclose(found, want, rtol=1e-10)


def test_a_penalty_is_alpha_times_r_at_every_step():
    """Oracle: NumPy with both schedules evaluated by hand."""
    r, penalty = (lambda t: 0.1 * (t + 1)), (lambda t: 0.05 * (t + 2))
    found, state = run(gnp(r, penalty=penalty), 3)

    def rule(t, w, g):
        alpha = penalty(t) / r(t)
        return (1 - alpha) * g + alpha * slope(w + r(t) * unit(g))

    np.testing.assert_allclose(found, descend(rule, 3), **close)
    np.testing.assert_allclose(state.rho, 0.3, rtol=1e-6)
    found, _ = run(gnp(0.1, alpha=penalty), 3)
    rule = lambda t, w, g: (
        g + penalty(t) * (slope(w + 0.1 * unit(g)) - g)  # the same blend, rearranged
    )
    np.testing.assert_allclose(found, descend(rule, 3), **close)


def test_strengths_of_gnp_can_be_injected():
    """Oracle: the same numbers given directly."""
    by_penalty = optax.inject_hyperparams(gnp)(0.2, penalty=0.06)
    by_alpha = optax.inject_hyperparams(gnp)(0.2, alpha=0.3)
    want, _ = run(gnp(0.2, alpha=0.3), 2)
    np.testing.assert_allclose(run(by_penalty, 2)[0], want, **close)
    np.testing.assert_allclose(run(by_alpha, 2)[0], want, **close)


@pytest.mark.parametrize("r", [jnp.float32(0.0), lambda count: 0.01 * count])
def test_a_radius_of_zero_that_is_not_known_is_the_plain_gradient(r):
    """Oracle: the gradient that was given; a radius may warm up from zero."""
    perturb = gnp(r, penalty=0.1)
    params = jnp.array([1.0, -2.0])
    state = perturb.init(params)
    found, _ = perturb.update(2 * params, state, params, grad_fn=lambda p: 2 * p)
    np.testing.assert_array_equal(found, 2 * params)
