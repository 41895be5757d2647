import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.transforms import c_flat, sam
from tests.test_transforms.wavy import START, descend, grad_fn, run, slope, tree, unit


def test_c_flat_adds_the_gradient_of_the_largest_slope_nearby():
    """Oracle: the four gradients in NumPy, float64."""

    def rule(_, w, g):
        first = slope(w + 0.2 * unit(g))
        steep = w + 0.2 * unit(first - g)
        second = slope(steep)
        return first + 0.3 * (slope(steep + 0.2 * unit(second)) - second)

    found, _ = run(c_flat(0.2, 0.3), 4)
    np.testing.assert_allclose(found, descend(rule, 4), rtol=1e-4, atol=1e-4)


def test_c_flat_without_strength_is_sam_and_without_radius_plain():
    """Laws, with the negative control that the strength matters."""
    want = run(sam(0.2), 2)[0]
    np.testing.assert_allclose(run(c_flat(0.2, 0.0), 2)[0], want, rtol=1e-6)
    np.testing.assert_allclose(run(c_flat(0.2, lambda _: 0.0), 2)[0], want, rtol=1e-5)
    plain = descend(lambda _, __, g: g, 2)
    np.testing.assert_allclose(run(c_flat(0.0), 2)[0], plain, rtol=2e-5, atol=2e-6)
    assert np.max(np.abs(run(c_flat(), 2)[0] - want)) > 1e-2


@pytest.mark.parametrize(
    ("strengths", "calls"), [((0.2, 0.2), 3), ((0.2, 0), 1), ((0, 1.0), 0)]
)
def test_c_flat_asks_for_no_gradient_that_it_does_not_use(strengths, calls):
    """Oracle: the number of calls."""
    asked = []
    ask = lambda params: asked.append(1) or grad_fn(params)
    transform = c_flat(*strengths)
    first = lambda w: transform.update(grad_fn(w), transform.init(w), w, grad_fn=ask)
    jax.make_jaxpr(first)(tree(START))
    assert len(asked) == calls


def test_c_flat_moves_only_what_its_mask_lets_it():
    """Oracle: the points where gradients were asked for."""
    seen = []
    note = lambda params: seen.append(params) or jax.tree.map(jnp.sin, params)
    transform = c_flat(0.2, 0.2, mask={"bias": False, "kernel": True})
    w = tree(START)
    transform.update(w, transform.init(w), w, grad_fn=note)
    assert len(seen) == 3
    for point in seen:
        np.testing.assert_array_equal(point["bias"], w["bias"])
        assert np.any(point["kernel"] != w["kernel"])
