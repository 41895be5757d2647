"""Tiny and huge gradients: squares that float32 cannot hold change no transformation.

Oracle throughout: the published formulas in NumPy and float64, on a linear gradient field.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.transforms import (
    adaptive_rho,
    agem,
    c_flat,
    friendly_sam,
    gem,
    gnp,
    gsam,
    looksam,
    reverse_sam,
    sam,
)

SCALES = (1e-30, 1e-19, 1.0, 1e20, 1e30)
RHO, SHARE = 0.3, 0.6
RANDOM = np.random.default_rng(0)
FIELD, SHIFT = RANDOM.normal(size=(5, 5)), RANDOM.normal(size=5)
START = RANDOM.normal(size=5)
# Two past gradients at right angles, both against the gradient at START.
ROWS = np.linalg.qr(RANDOM.normal(size=(5, 2)))[0].T
ROWS *= -np.sign(ROWS @ (FIELD @ START + SHIFT))[:, None]


def unit(vector):
    return vector / np.linalg.norm(vector)


def wanted_sam(slope):
    return slope(START + RHO * unit(slope(START)))


def wanted_adaptive_sam(slope):
    stretch, g = np.abs(START) + 0.01, slope(START)
    return slope(START + RHO * stretch**2 * g / np.linalg.norm(stretch * g))


def wanted_gsam(slope):
    g, perturbed = slope(START), wanted_sam(slope)
    along = unit(perturbed) * (g @ unit(perturbed))
    return perturbed - SHARE * (g - along)


def wanted_looksam(slope):
    """The second step, which reuses the direction of the first."""
    g, perturbed = slope(START), wanted_sam(slope)
    rest = perturbed - unit(g) * (perturbed @ unit(g))
    return g + SHARE * np.linalg.norm(g) * unit(rest)


def wanted_c_flat(slope):
    g0, g1 = slope(START), wanted_sam(slope)
    steep = START + RHO * unit(g1 - g0)
    g2 = slope(steep)
    return g1 + SHARE * (slope(steep + RHO * unit(g2)) - g2)


def wanted_friendly_sam(slope):
    """The second step, at the same point: a mean of one gradient is that gradient."""
    direction = unit(slope(START) * (1 - SHARE))
    return slope(START + RHO * direction)


def wanted_agem(slope):
    g = slope(START)
    return g - ROWS[0] * (g @ ROWS[0])


def wanted_gem(slope):
    return wanted_agem(slope) - ROWS[1] * (slope(START) @ ROWS[1])


CASES = {
    "sam": (lambda: sam(RHO), wanted_sam),
    "adaptive": (lambda: sam(RHO, adaptive=True), wanted_adaptive_sam),
    "reverse_sam": (
        lambda: reverse_sam(RHO),
        lambda slope: slope(START - RHO * unit(slope(START))),
    ),
    "adaptive_rho": (lambda: adaptive_rho(0.0, low=RHO), wanted_sam),
    "gnp": (
        lambda: gnp(RHO, alpha=SHARE),
        lambda slope: (1 - SHARE) * slope(START) + SHARE * wanted_sam(slope),
    ),
    "gsam": (lambda: gsam(RHO, SHARE), wanted_gsam),
    "looksam": (lambda: looksam(RHO, k=2, alpha=SHARE), wanted_looksam),
    "c_flat": (lambda: c_flat(RHO, SHARE), wanted_c_flat),
    "friendly_sam": (lambda: friendly_sam(RHO, sigma=SHARE), wanted_friendly_sam),
    "agem": (lambda: agem(), wanted_agem),
    "gem": (lambda: gem(), wanted_gem),
}


@pytest.mark.parametrize("name", CASES)
def test_a_transformation_is_right_at_every_size_of_the_gradient(name):
    """Oracle: the formula in float64. Past gradients are as long, or of length 1.

    Negative control: the plain gradient is another.
    """
    build, formula = CASES[name]

    @jax.jit
    def second_step(scale, past_scale):
        transformation, params = build(), split(jnp.float32(START))
        slope = lambda params: split(
            scale * (jnp.float32(FIELD) @ joined(params) + jnp.float32(SHIFT))
        )
        rows = past_scale * jnp.float32(ROWS)
        extras = {
            "grad_fn": slope,
            "replay_grad_fn": lambda params: split(rows[0]),
            "task_grad_fn": lambda params: jax.vmap(split)(rows),
        }
        state = transformation.init(params)
        for _ in range(2):
            grads, state = transformation.update(slope(params), state, params, **extras)
        return joined(grads)

    for scale in SCALES:
        slope = lambda point, scale=scale: scale * (FIELD @ point + SHIFT)
        want = formula(slope) / scale
        assert np.abs(want - slope(START) / scale).max() > 0.01
        for past_scale in (1.0, scale):
            found = np.float64(second_step(np.float32(scale), np.float32(past_scale)))
            np.testing.assert_allclose(found / scale, want, atol=5e-6)


def split(vector):
    return {"kernel": vector[..., :4].reshape(2, 2), "bias": vector[..., 4]}


def joined(tree):
    return jnp.append(tree["kernel"].reshape(-1), tree["bias"])


@pytest.mark.parametrize("name", CASES)
def test_complex_parameters_are_refused_where_a_state_is_made(name):
    """Oracle: the message; real parameters pass."""
    build, _ = CASES[name]
    build().init({"w": jnp.ones(2)})
    with pytest.raises(
        ValueError, match=r"params must be real, got complex64 at \['w'\]"
    ):
        build().init({"w": jnp.array([1 + 1j, 1 - 1j])})
