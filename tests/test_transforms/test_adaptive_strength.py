import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.transforms import (
    adaptive_rho,
    adaptive_strength,
    gnp,
    perturbation_curvature,
    perturbation_rise,
    reverse_sam,
    sam,
)
from tests.test_transforms.wavy import (
    CURVATURE,
    START,
    descend,
    run,
    slope,
    tree,
    unit,
)

measuring_sam = lambda rho: sam(rho, measure=True)
quadratic = lambda w: 0.5 * w @ CURVATURE @ w
quadratic_grad = lambda w: jnp.asarray(CURVATURE, jnp.float32) @ w


def step_on_the_quadratic(perturb):
    w = jnp.asarray(START, jnp.float32)
    return perturb.update(quadratic_grad(w), perturb.init(w), w, grad_fn=quadratic_grad)


def test_the_perturbation_measures_curvature_and_rise_exactly_on_a_quadratic():
    """Oracle: the Hessian form along the gradient, and the loss at both ends, in NumPy."""
    up = unit(CURVATURE @ START)
    for rho in (0.1, 1.0):
        _, state = step_on_the_quadratic(sam(rho, measure=True))
        # The curvature is a difference of slopes over rho.
        curvature = perturbation_curvature(state)
        np.testing.assert_allclose(curvature, up @ CURVATURE @ up, rtol=1e-5 / rho)
        rise = quadratic(START + rho * up) - quadratic(START)
        np.testing.assert_allclose(perturbation_rise(state), rise, rtol=1e-5)


def test_going_down_is_measured_with_its_sign():
    """Oracle: the same curvature, and a loss that falls, in NumPy."""
    down, rho = -unit(CURVATURE @ START), 0.5
    _, state = step_on_the_quadratic(reverse_sam(rho, measure=True))
    np.testing.assert_allclose(
        perturbation_curvature(state), down @ CURVATURE @ down, rtol=1e-4
    )
    rise = quadratic(START + rho * down) - quadratic(START)
    assert rise < 0
    np.testing.assert_allclose(perturbation_rise(state), rise, rtol=1e-5)


def test_no_perturbation_measures_zero():
    """Oracle: zero, at a stationary point and with no radius."""
    zero = jnp.zeros(2)
    for perturb in (sam(0.1, measure=True), sam(0.0, measure=True)):
        _, state = perturb.update(zero, perturb.init(zero), zero, grad_fn=jnp.sin)
        assert (
            float(perturbation_curvature(state))
            == float(perturbation_rise(state))
            == 0.0
        )


def test_adaptive_rho_holds_the_first_order_rise_at_its_target():
    """Oracle: the formula in NumPy over five steps; rho |g| is the target at each."""
    found, state = run(adaptive_rho(0.2), 5)
    rule = lambda _, w, g: slope(w + 0.2 / np.linalg.norm(g) * unit(g))
    np.testing.assert_allclose(found, descend(rule, 5), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(state.rho * state.grad_norm, 0.2, rtol=1e-5)


def test_adaptive_rho_stays_within_its_limits_and_stands_still_on_a_plain():
    """Oracle: the limit itself; no perturbation and no NaN at a zero gradient."""
    steep = np.linalg.norm(CURVATURE @ START)
    for target, want in ((1e3, 0.5), (1e-6, 0.01), (0.1 * steep, 0.1)):
        _, state = step_on_the_quadratic(adaptive_rho(target, low=0.01, high=0.5))
        np.testing.assert_allclose(state.rho, want, rtol=1e-5)
    zero = jnp.zeros(2)
    perturb = adaptive_rho(0.1)
    update = lambda w: perturb.update(w, perturb.init(zero), w, grad_fn=lambda w: w)[0]
    np.testing.assert_array_equal(update(zero), zero)
    assert np.all(np.isfinite(jax.jacobian(update)(zero)))


@pytest.mark.parametrize("power", [1.0, -1.0, 0.5])
def test_a_strength_follows_the_running_mean_of_the_measured_curvature(power):
    """Oracle: the recursion in NumPy on a landscape whose curvature changes."""
    perturb = adaptive_strength(
        measuring_sam, 0.3, reference=2.0, power=power, decay=0.7, limits=(0.5, 1.5)
    )
    found, state = run(perturb, 5)
    mean, radii = [2.0], [0.3]

    def rule(_, w, g):
        above = slope(w + radii[-1] * unit(g))
        curvature = (above @ unit(g) - np.linalg.norm(g)) / radii[-1]
        mean.append(0.7 * mean[-1] + 0.3 * max(curvature, 0.0))
        radii.append(0.3 * np.clip((mean[-1] / 2.0) ** power, 0.5, 1.5))
        return above

    np.testing.assert_allclose(found, descend(rule, 5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state.measured, mean[-1], rtol=1e-4)
    np.testing.assert_allclose(state.strength, radii[-1], rtol=1e-4)
    assert len(set(np.round(radii, 4))) > 2


def test_on_an_isotropic_quadratic_the_strength_settles_where_the_formula_says():
    """Oracle: curvature c everywhere, so the mean tends to c and lambda to base c / ref."""
    build = lambda strength: gnp(0.05, penalty=strength, measure=True)
    perturb = adaptive_strength(build, 0.01, reference=2.0, decay=0.5)
    isotropic = lambda params: jax.tree.map(lambda p: 6.0 * p, params)
    _, state = run(perturb, 15, 0.01, isotropic)
    np.testing.assert_allclose(state.measured, 6.0, rtol=1e-3)
    np.testing.assert_allclose(state.strength, 0.01 * 3.0, rtol=1e-3)


def test_power_zero_is_the_fixed_strength():
    """Law, with the negative control that another power is not."""
    fixed = run(sam(0.3), 4)[0]
    still = run(adaptive_strength(measuring_sam, 0.3, reference=1.0, power=0.0), 4)[0]
    np.testing.assert_allclose(still, fixed, rtol=1e-6)
    moving = run(adaptive_strength(measuring_sam, 0.3, reference=1.0), 4)[0]
    assert np.max(np.abs(moving - fixed)) > 1e-3


def test_a_step_that_measures_nothing_leaves_the_strength_as_it_was():
    """Oracle: the strength before."""
    perturb = adaptive_strength(measuring_sam, 0.3, reference=1.5)
    zero = jax.tree.map(jnp.zeros_like, tree(START))
    _, state = perturb.update(zero, perturb.init(zero), zero, grad_fn=lambda p: p)
    np.testing.assert_allclose([state.strength, state.measured], [0.3, 1.5], rtol=1e-6)


def test_a_radius_is_warmed_up_again_when_the_state_is_made_anew():
    """Oracle: the schedule at counts 0, 1, 2, 0, 1, 2."""
    perturb = sam(lambda t: 0.1 * (t + 1))
    radii, w = [], jnp.asarray(START, jnp.float32)
    for _ in range(2):
        state = perturb.init(w)
        for _ in range(3):
            _, state = perturb.update(w, state, w, grad_fn=jnp.sin)
            radii.append(state.rho)
    np.testing.assert_allclose(radii, [0.1, 0.2, 0.3] * 2, rtol=1e-6)
