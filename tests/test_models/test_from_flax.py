"""nnx and linen modules as pure functions of a batch, and the one draw of all kernels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxcl.losses import check_rows_independent, cross_entropy, single_head
from jaxcl.models import from_flax, init_kernels
from jaxcl.tree import as_batch

KEY = jax.random.key(4)
X = jax.random.normal(jax.random.key(5), (6, 3))


class Net(nnx.Module):
    """One hidden layer, written as a user would."""

    def __init__(self, rngs, **parts):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)
        for name, part in parts.items():
            setattr(self, name, part)

    def hidden(self, x):
        return (nnx.relu(self.first(x)),)

    def __call__(self, x, scale=1.0):
        return scale * self.last(*self.hidden(x))


class LinenNet(linen.Module):
    """The same in linen."""

    def setup(self):
        self.first, self.last = linen.Dense(4), linen.Dense(2)

    def hidden(self, x):
        return (linen.relu(self.first(x)),)

    def __call__(self, x, scale=1.0):
        return scale * self.last(*self.hidden(x))


def test_an_nnx_module_and_its_pure_functions_agree():
    """Oracle: the module itself, called the ordinary way with the same key."""
    model = from_flax(lambda rngs: Net(rngs), hidden=Net.hidden)

    @jax.jit
    def compare(key):
        params, module = model.init(key), Net(nnx.Rngs(key))
        pure = model.apply(params, X), model.hidden(params, X)
        return (module(X), module.hidden(X)), pure

    chex.assert_trees_all_equal(*compare(KEY))
    assert model.units == ()
    assert from_flax(Net).init(KEY).keys() == {"first", "last"}  # a class builds, too


def test_a_finished_nnx_module_gives_its_weights_whatever_the_key():
    """Oracle: the module itself, which stays as it was: its mode, counts and weights."""
    module = Net(
        nnx.Rngs(1), drop=nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(2))
    )
    model = from_flax(module, hidden=Net.hidden)
    params = model.init(KEY)
    chex.assert_trees_all_equal(params["first"]["kernel"], module.first.kernel[...])
    chex.assert_trees_all_equal(params, model.init(jax.random.key(0)))
    np.testing.assert_allclose(model.apply(params, X), module(X), rtol=1e-6)
    np.testing.assert_allclose(*model.hidden(params, X), *module.hidden(X), rtol=1e-6)
    assert module.drop.deterministic is True
    assert module.drop.rngs.count[...] == 0
    jax.jit(lambda tree: tree, donate_argnums=0)(params)  # given away: a copy
    assert np.isfinite(module(X)).all()


def test_a_linen_module_and_its_pure_functions_agree():
    """Oracle: the module itself; one row shows shapes as well as many, or none of it."""
    module = LinenNet()
    shapes = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    for shown in (X, X[:1], shapes):
        model = from_flax(module, shown, hidden=LinenNet.hidden)
        params = model.init(KEY)
        assert params.keys() == {"first", "last"}
        variables = {"params": params}
        chex.assert_trees_all_equal(model.apply(params, X), module.apply(variables, X))
        seen = module.apply(variables, X, method="hidden")
        chex.assert_trees_all_equal(model.hidden(params, X), seen)
    assert not np.array_equal(
        params["first"]["kernel"], model.init(jax.random.key(0))["first"]["kernel"]
    )
    variance = np.var(
        from_flax(linen.Dense(400), jnp.ones((1, 300))).init(KEY)["kernel"]
    )
    np.testing.assert_allclose(variance, 1 / 300, rtol=0.02)  # linen's own initialiser


@pytest.mark.parametrize("which", ["nnx", "linen"])
def test_arguments_of_a_call_are_those_of_its_mode(which):
    """Oracle: the network's outputs, doubled while training and halved for evaluation."""
    modes = {"train": {"scale": 2.0}, "evaluate": {"scale": 0.5}}
    if which == "nnx":
        plain, scaled = from_flax(Net), from_flax(Net, **modes)
    else:
        plain, scaled = from_flax(LinenNet(), X), from_flax(LinenNet(), X, **modes)
    params, keys = plain.init(KEY), jax.random.split(KEY, 6)
    usual = plain.apply(params, X)
    np.testing.assert_allclose(scaled.apply(params, X), 0.5 * usual, rtol=1e-6)
    trained = scaled.apply(params, X, keys)
    np.testing.assert_allclose(trained, 2.0 * usual, rtol=1e-5)


def test_kernels_are_drawn_by_the_law_that_is_asked_for():
    """Oracle: init_kernels on what the module drew; a finished module's, too."""
    gain = lambda path: 2.0 if path[0] == "first" else 0.5
    for module in (Net, Net(nnx.Rngs(3))):
        drawn = from_flax(module, gain=gain).init(KEY)
        plain = from_flax(module).init(KEY)
        wanted = init_kernels(KEY, plain, gain)
        np.testing.assert_allclose(
            drawn["first"]["kernel"], wanted["first"]["kernel"], rtol=1e-6
        )
        assert not np.allclose(drawn["first"]["kernel"], plain["first"]["kernel"])


def test_a_module_without_dropout_is_never_taken_row_by_row():
    """Oracle: the shapes in the program; equal bits, whatever the keys."""
    keys = jax.random.split(KEY, 6)
    for model in (from_flax(Net), from_flax(LinenNet(), X)):
        params = model.init(KEY)
        chex.assert_trees_all_equal(
            model.apply(params, X, keys), model.apply(params, X)
        )
        program = str(jax.make_jaxpr(model.apply)(params, X, keys))
        assert "f32[6,4]" in program
        assert "f32[6,1,4]" not in program


# dropout


class Dropping(nnx.Module):
    """Two layers without activations, and units that are left out between and after."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 40, rngs=rngs)
        self.last = nnx.Linear(40, 2, rngs=rngs)
        self.between = nnx.Dropout(0.5, rngs=rngs)
        self.after = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.after(self.last(self.between(self.first(x))))


class LinenDropping(linen.Module):
    """The same in linen."""

    @linen.compact
    def __call__(self, x, train=False):
        drop = lambda rate, h: linen.Dropout(rate, deterministic=not train)(h)
        h = drop(0.5, linen.Dense(40, name="first")(x))
        return drop(0.2, linen.Dense(2, name="last")(h))


MODES = {"train": {"train": True}, "evaluate": {"train": False}}
DROPPING = {
    "nnx": lambda: from_flax(Dropping),
    "finished nnx": lambda: from_flax(Dropping(nnx.Rngs(0))),
    "linen": lambda: from_flax(LinenDropping(), X, **MODES),
}
dropping = pytest.mark.parametrize("name", DROPPING)


@dropping
def test_a_row_s_mask_is_that_of_its_key_alone(name):
    """Laws: same keys, same masks; neighbours do not matter; a batch of one is the row."""
    model = DROPPING[name]()
    params, keys = model.init(KEY), jax.random.split(KEY, 6)
    apply = jax.jit(model.apply)
    usual = apply(params, X, keys)
    chex.assert_trees_all_equal(apply(params, X, keys), usual)
    others = apply(params, X.at[1:].multiply(-3.0), keys.at[1:].set(KEY))
    chex.assert_trees_all_equal(others[0], usual[0])
    for row in range(6):
        part = slice(row, row + 1)
        alone = apply(params, X[part], keys[part])
        np.testing.assert_allclose(alone[0], usual[row], rtol=1e-5, atol=1e-6)
    loss = cross_entropy(single_head(model.apply))
    batch = as_batch(X, jnp.array([0, 1, 1, 0, 0, 1]))
    check_rows_independent(loss, params, batch, KEY)

    # Controls: other keys are other masks, and equal rows with unequal keys differ.
    assert np.all(np.any(apply(params, X, keys[::-1]) != usual, axis=1))
    same = apply(params, jnp.ones((6, 3)), keys)
    assert len(set(map(tuple, np.asarray(same)))) > 1


@dropping
def test_without_keys_the_network_is_evaluated(name):
    """Oracle: the module in its own evaluation mode."""
    model = DROPPING[name]()
    params = model.init(KEY)
    if name == "linen":
        wanted = LinenDropping().apply({"params": params}, X, train=False)
    else:
        module = Dropping(nnx.Rngs(KEY) if name == "nnx" else nnx.Rngs(0))
        module.eval()
        wanted = module(X)
    np.testing.assert_allclose(model.apply(params, X), wanted, rtol=1e-5, atol=1e-6)


@dropping
def test_the_mean_over_masks_of_a_linear_network_is_its_evaluation(name):
    """Oracle: dropout keeps means; five standard errors of 4000 draws. Control: one."""
    model = DROPPING[name]()
    params, keys = model.init(KEY), jax.random.split(jax.random.key(6), 4000)
    rows = jnp.tile(X[:1], (4000, 1))
    drawn = np.asarray(jax.jit(model.apply)(params, rows, keys), np.float64)
    error = drawn.std(axis=0) / 4000**0.5
    wanted = np.asarray(model.apply(params, X[:1])[0])
    assert np.all(np.abs(drawn.mean(axis=0) - wanted) < 5 * error)
    assert np.all(error > 0)
    # The last layer's units are left out a fifth of the time, each by itself.
    left_out = drawn == 0
    np.testing.assert_allclose(left_out.mean(axis=0), 0.2, atol=5 * 0.4 / 4000**0.5)
    both = left_out.all(axis=1).mean()
    np.testing.assert_allclose(both, 0.04, atol=5 * (0.04 * 0.96 / 4000) ** 0.5)


def test_every_dropout_of_a_module_has_masks_of_its_own():
    """Oracle: masks of ones read off the outputs: two by name, and a stack of layers."""

    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))

            @nnx.split_rngs(splits=3)
            @nnx.vmap
            def stacked(rngs):
                return nnx.Dropout(0.5, rngs=rngs)

            self.stack = stacked(rngs)

        def __call__(self, x):
            each = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))
            return jnp.stack([self.one(x), self.two(x), *each(self.stack, x)], axis=1)

    model, ones = from_flax(Pair), jnp.ones((1, 200))
    params = model.init(KEY)
    chex.assert_trees_all_equal(model.apply(params, ones), jnp.ones((1, 5, 200)))
    masks = np.asarray(model.apply(params, ones, KEY[None])[0])
    assert set(np.unique(masks)) == {0.0, 2.0}
    for k, mask in enumerate(masks):
        for other in masks[:k]:  # 200 fair coins agree on 100, give or take 7
            assert 60 < np.sum(mask == other) < 140


# what is refused


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
