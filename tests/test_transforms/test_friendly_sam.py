import numpy as np

from jaxcl.transforms import friendly_sam, sam
from tests.test_transforms.wavy import descend, flat, run, slope, unit


def friendly(rho, sigma, decay):
    """F-SAM in NumPy, with the running mean kept in a list."""
    means = []

    def rule(_, w, g):
        special = g - sigma * means[-1] if means else g
        means.append(decay * means[-1] + (1 - decay) * g if means else g)
        return slope(w + rho * unit(special))

    return rule, means


def test_friendly_sam_perturbs_along_the_gradient_less_its_running_mean():
    """Oracle: NumPy, five steps, and the mean that is left."""
    rule, means = friendly(0.2, 0.9, 0.6)
    found, state = run(friendly_sam(0.2, sigma=0.9, decay=0.6), 5)
    np.testing.assert_allclose(found, descend(rule, 5), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(flat(state.momentum), means[-1], rtol=1e-4, atol=1e-4)


def test_friendly_sam_without_sigma_is_sam():
    """Law, with the negative control that sigma matters from the second step on."""
    want, other = run(sam(0.2), 3)[0], run(friendly_sam(0.2), 3)[0]
    np.testing.assert_allclose(run(friendly_sam(0.2, sigma=0.0), 3)[0], want, rtol=1e-5)
    np.testing.assert_allclose(other[0], want[0], rtol=1e-5)
    assert np.max(np.abs(other[1] - want[1])) > 1e-3


def test_a_gradient_equal_to_its_mean_is_not_perturbed():
    """Oracle: where g never changes, g - m = 0 from the second step on, so g' = g."""
    steady = lambda params: {name: leaf * 0 + 1.0 for name, leaf in params.items()}
    found, state = run(friendly_sam(0.2), 3, grad_fn=steady)
    np.testing.assert_array_equal(found, 1.0)
    np.testing.assert_allclose(flat(state.momentum), 1.0, rtol=1e-6)
