import jax
import numpy as np
import optax
import pytest

from jaxcl.transforms import gsam, rho_schedule, sam
from tests.test_transforms.wavy import descend, run, slope, unit


def test_gsam_takes_away_what_the_perturbed_loss_cannot_feel():
    """Oracle: the decomposition in NumPy, float64."""

    def rule(_, w, g):
        above = slope(w + 0.3 * unit(g))
        return above - 0.6 * (g - (g @ unit(above)) * unit(above))

    found, _ = run(gsam(0.3, 0.6), 4)
    np.testing.assert_allclose(found, descend(rule, 4), rtol=2e-5, atol=2e-6)


def test_what_gsam_takes_away_is_orthogonal_to_the_perturbed_gradient():
    """Law: the part along g_p is that of sam; negative control: alpha does matter."""
    above, changed = run(sam(0.3))[0][0], run(gsam(0.3, 0.6))[0][0]
    np.testing.assert_allclose(above @ (changed - above), 0.0, atol=1e-4)
    assert np.linalg.norm(changed - above) > 1e-2


def test_gsam_with_alpha_zero_is_sam():
    """Law."""
    want, got = run(sam(0.3), 3)[0], run(gsam(0.3, 0.0), 3)[0]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_radius_follows_the_learning_rate_between_its_ends():
    """Oracle: the straight line through both ends."""
    rate = optax.linear_schedule(0.1, 0.02, 4)
    rho = rho_schedule(rate, lr_max=0.1, lr_min=0.02, rho_max=0.6, rho_min=0.2)
    found = [float(rho(t)) for t in range(5)]
    np.testing.assert_allclose(found, [0.6, 0.5, 0.4, 0.3, 0.2], rtol=1e-5)
    changed, state = run(gsam(rho, lambda t: 0.1 * t), 2)
    np.testing.assert_allclose(state.rho, 0.5, rtol=1e-5)
    assert np.all(np.isfinite(changed))


def test_the_ends_of_the_learning_rate_may_be_traced():
    """Oracle: the same numbers, known; equal ends that are known are refused."""
    ends = {"lr_max": 0.1, "lr_min": 0.02, "rho_max": 0.6, "rho_min": 0.2}
    at = lambda **ends: rho_schedule(lambda t: 0.05, **ends)(0)
    np.testing.assert_allclose(jax.jit(at)(**ends), at(**ends), rtol=1e-6)
    low = jax.jit(lambda low: at(**{**ends, "lr_min": low}))(0.02)
    np.testing.assert_allclose(low, at(**ends), rtol=1e-6)
    with pytest.raises(ValueError, match="lr_max must differ"):
        at(lr_max=np.float32(0.1), lr_min=np.float32(0.1), rho_max=0.6)
