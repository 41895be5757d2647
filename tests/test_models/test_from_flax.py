"""Any nnx module as pure functions, and the one draw of all kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcl.models import from_flax, init_kernels


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
    model = from_flax(lambda rngs: Tiny(rngs))
    x = jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    def compare(key):
        params = model.init(key)
        hidden, logits = Tiny(nnx.Rngs(key))(x)
        pure = (model.hidden(params, x), model.apply(params, x))
        return (hidden, logits), pure

    ordinary, pure = compare(jax.random.key(4))
    for a, b in zip(jax.tree.leaves(ordinary), jax.tree.leaves(pure), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.units == ()


class Other(Tiny):
    """Tiny with one thing changed."""

    def __init__(self, rngs, result=None, **parts):
        super().__init__(rngs)
        self.result = result
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x):
        return self.result(*super().__call__(x))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Tiny(nnx.Rngs(0)), r"function \(rngs\) -> module, got Tiny; give lambda rngs"),
        (
            lambda rngs: nnx.relu,
            "module must be of type Module, got .*return an nnx one",
        ),
        (lambda rngs: Other(rngs, drop=nnx.Dropout(0.5, rngs=rngs)), r"drop.*RngCount"),
        (
            lambda rngs: Other(rngs, norm=nnx.BatchNorm(4, rngs=rngs)),
            r"norm.mean \(BatchStat\), norm.var .*; leave out dropout and running",
        ),
        (lambda rngs: Other(rngs, scale=jnp.ones(2)), r"got scale \(float32\[2\]\);"),
        (lambda rngs: Other(rngs, k=nnx.data(jnp.ones(3))), r"got k \(float32\[3\]\);"),
    ],
)
def test_what_cannot_be_a_pure_function_is_refused_when_it_is_built(build, words):
    """Oracle: the message, in one line; the other tests build what can."""
    with pytest.raises(ValueError, match=words) as error:
        from_flax(build)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda hidden, logits: logits, r"got float32\[2\]; return \(\), logits"),
        (lambda hidden, logits: (hidden[0], logits), r"\(float32\[4\], float32\[2\]\)"),
        (lambda hidden, logits: (*hidden, *hidden, logits), r"got \(float32\[4\], f"),
    ],
)
def test_a_module_without_features_says_so(result, words):
    """Oracle: the message, traced or not; control: no features at all are welcome."""
    x = jnp.ones(3)
    model = from_flax(lambda rngs: Other(rngs, result))
    params = model.init(jax.random.key(0))
    for function in (model.apply, model.hidden, jax.jit(model.apply)):
        with pytest.raises(ValueError, match=words):
            function(params, x)
    with pytest.raises(ValueError, match=words):
        jax.vmap(model.apply, (None, 0))(params, x[None])
    none = from_flax(lambda rngs: Other(rngs, lambda hidden, logits: ((), logits)))
    assert none.hidden(params, x) == ()
    whole = from_flax(Tiny).apply(params, x)
    np.testing.assert_array_equal(none.apply(params, x), whole)


def test_kernels_are_drawn_and_everything_else_is_kept():
    """Oracle: bounds of the uniform law; vectors bit for bit; dtypes."""
    params = {
        "a": {"kernel": jnp.zeros((3, 3, 5, 40)), "bias": jnp.full(40, 7.0)},
        "b": {"kernel": jnp.zeros((60, 30), jnp.bfloat16), "scale": jnp.ones(30)},
    }
    gain = lambda path: 2.0 if path == ("a", "kernel") else 1.0
    drawn = jax.jit(lambda key: init_kernels(key, params, gain))(jax.random.key(0))
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
