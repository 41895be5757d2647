"""Any nnx module as pure functions, and the one draw of all kernels."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxcl.models import draw_kernels, purify


class Tiny(nnx.Module):
    """One hidden layer, written as a user would."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.first(x))
        return (h,), self.last(h)


def test_a_module_and_its_pure_functions_agree():
    """Oracle: the module itself, called the ordinary way with the same key."""
    model = purify(lambda rngs: Tiny(rngs))
    x = jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    def compare(key):
        params = model.init(key)
        hidden, logits = Tiny(nnx.Rngs(key))(x)
        pure = (model.features(params, x), model.apply(params, x))
        return (hidden, logits), pure

    ordinary, pure = compare(jax.random.key(4))
    for a, b in zip(jax.tree.leaves(ordinary), jax.tree.leaves(pure), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.units == ()


def test_kernels_are_drawn_and_everything_else_is_kept():
    """Oracle: bounds of the uniform law; vectors bit for bit; dtypes."""
    params = {
        "a": {"kernel": jnp.zeros((3, 3, 5, 40)), "bias": jnp.full(40, 7.0)},
        "b": {"kernel": jnp.zeros((60, 30), jnp.bfloat16), "scale": jnp.ones(30)},
    }
    gain = lambda path: 2.0 if path == ("a", "kernel") else 1.0
    drawn = jax.jit(lambda key: draw_kernels(key, params, gain))(jax.random.key(0))
    np.testing.assert_array_equal(drawn["a"]["bias"], params["a"]["bias"])
    np.testing.assert_array_equal(drawn["b"]["scale"], params["b"]["scale"])
    assert drawn["b"]["kernel"].dtype == jnp.bfloat16
    for name, variance in [("a", 4 / 45), ("b", 1 / 60)]:
        kernel = np.asarray(drawn[name]["kernel"], np.float64)
        # 1 800 draws: relative standard error of the variance is 2 %.
        np.testing.assert_allclose(kernel.var(), variance, rtol=0.08)
        assert np.abs(kernel).max() <= (3 * variance) ** 0.5 * 1.005
    both = np.corrcoef(
        np.ravel(drawn["a"]["kernel"])[:1800],
        np.ravel(drawn["b"]["kernel"]).astype(np.float64),
    )
    assert abs(both[0, 1]) < 0.1  # the two are cut from different places of the draw
