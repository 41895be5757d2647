"""The multilayer perceptron against plain matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, uniform

from jaxcl.models import crelu, init_like_torch, mlp


def by_hand(params, x, *, activation, layer_norm):
    """The same network for one input in numpy, a line per operation."""
    hidden, h, k = [], np.asarray(x, np.float64).reshape(-1), 0
    while f"hidden_{k}" in params:
        layer = params[f"hidden_{k}"]
        h = h @ np.asarray(layer["kernel"], np.float64) + layer.get("bias", 0.0)
        if layer_norm:
            norm = params[f"norm_{k}"]
            h = (h - h.mean()) / np.sqrt(h.var() + 1e-6)
            h = h * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
        h = activation(h)
        hidden.append(h)
        k += 1
    out = params["out"]
    return hidden, h @ np.asarray(out["kernel"], np.float64) + out.get("bias", 0.0)


def relu(h):
    return np.maximum(h, 0)


def both_halves(h):
    return np.concatenate([np.maximum(h, 0), np.maximum(-h, 0)])


CASES = [
    ("relu", {}, {"activation": relu, "layer_norm": False}),
    ("crelu", {"activation": crelu}, {"activation": both_halves, "layer_norm": False}),
    ("norm", {"layer_norm": True}, {"activation": relu, "layer_norm": True}),
    ("no bias", {"bias": False}, {"activation": relu, "layer_norm": False}),
    (
        "norm, no bias",
        {"layer_norm": True, "bias": False},
        {"activation": relu, "layer_norm": True},
    ),
]


@pytest.mark.parametrize(
    ("options", "plain"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_apply_and_hidden_activations_are_matrix_products(options, plain):
    """Oracle: the network written out in numpy, float64, with moved biases and scales."""
    model = mlp((12, 6, 5, 3), **options)
    params = model.init(jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    shifted = [leaf + 0.1 * (k + 1) for k, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(structure, shifted)
    xs = jax.random.normal(jax.random.key(2), (4, 3, 4))

    both = lambda x: (model.hidden(params, x), model.apply(params, x))
    hidden, logits = jax.jit(both)(xs)
    assert len(hidden) == 2
    for row, x in enumerate(xs):
        layers, expected = by_hand(params, x, **plain)
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-5)
        for found, wanted in zip(hidden, layers, strict=True):
            np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5)


def test_the_default_law_is_kaiming_within_and_lecun_at_the_end():
    """Oracle: moments and bounds of a uniform law of variance gain^2 / fan_in."""
    params = mlp((400, 300, 200)).init(jax.random.key(0))
    for name, fan_in, variance in [("hidden_0", 400, 2 / 400), ("out", 300, 1 / 300)]:
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.shape[0] == fan_in
        # 60 000 draws: relative standard error of a uniform law's variance is 0.4 %.
        np.testing.assert_allclose(kernel.var(), variance, rtol=0.02)
        np.testing.assert_allclose(
            np.abs(kernel).max(), (3 * variance) ** 0.5, rtol=0.01
        )
        assert not np.any(params[name]["bias"])
    lecun = mlp((400, 300, 200), gain=1.0).init(jax.random.key(0))
    np.testing.assert_allclose(lecun["hidden_0"]["kernel"].var(), 1 / 400, rtol=0.02)


def test_init_like_torch_is_one_uniform_law_for_kernels_and_biases():
    """Oracles: bounds and variance in closed form, Kolmogorov-Smirnov against the law.

    Control: the default gains fail the same test, and their biases are zero.
    """
    sizes = (300, 400, 200)
    drawn, plain = (
        mlp(sizes, **options).init(jax.random.key(0))
        for options in ({"init": init_like_torch}, {})
    )
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, plain)

    def p_value(numbers, bound):
        return kstest(np.ravel(numbers) / bound, uniform(loc=-1, scale=2).cdf).pvalue

    for name, fan_in in (("hidden_0", 300), ("out", 400)):
        bound = fan_in**-0.5
        for leaf in drawn[name].values():
            numbers = np.asarray(leaf, np.float64)
            # The largest of n draws is below 1 - 7 / n by a chance of exp(-7).
            assert 1 - 7 / numbers.size < np.abs(numbers).max() / bound <= 1 + 1e-6
            error = 5 * np.sqrt(0.8 / numbers.size)  # of a uniform law's variance
            np.testing.assert_allclose(numbers.var(), bound**2 / 3, rtol=error)
            assert p_value(numbers, bound) > 1e-3
        assert p_value(plain[name]["kernel"], bound) < 1e-9
        assert not np.any(plain[name]["bias"])
    kernel, bias = (np.asarray(drawn["hidden_0"][leaf]) for leaf in ("kernel", "bias"))
    assert not set(bias.tolist()) <= set(kernel.ravel().tolist())  # draws of their own


def test_init_like_torch_keeps_norms_and_reads_convolutions():
    """Oracle: a convolution reads all axes of its kernel but the last; norms are known."""
    normed = mlp((4, 3, 2), layer_norm=True, bias=False, init=init_like_torch)
    params = normed.init(jax.random.key(0))
    assert params["norm_0"]["scale"].tolist() == [1.0] * 3
    assert params["norm_0"]["bias"].tolist() == [0.0] * 3
    assert set(params["hidden_0"]) == {"kernel"}
    conv = {"a": {"kernel": jnp.zeros((3, 3, 8, 100)), "bias": jnp.ones(100)}}
    drawn = init_like_torch(jax.random.key(1), conv | {"b": {"embedding": jnp.ones(2)}})
    for leaf in drawn["a"].values():
        assert 0.9 < np.abs(leaf).max() * 72**0.5 <= 1 + 1e-6
    assert drawn["b"]["embedding"].tolist() == [1.0, 1.0]


def test_init_may_be_any_function_of_the_shapes():
    """Oracle: ones everywhere; a row of ones then counts its inputs. Gains are refused."""
    ones = lambda key, params: jax.tree.map(jnp.ones_like, params)
    model = mlp((3, 2), init=ones, bias=False)
    found = model.apply(model.init(jax.random.key(0)), jnp.ones((1, 3)))
    assert found.tolist() == [[3.0, 3.0]]
    with pytest.raises(
        ValueError, match="mlp: expected either init or gains, got both"
    ):
        mlp((3, 2), init=ones, gain=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_norm": True},
        {"activation": crelu},
        {"bias": False},
        {"bias": False, "layer_norm": True},
    ],
)
def test_units_name_everything_but_the_last_bias(options):
    """Oracle: shapes, and the list of all leaves of the network."""
    model = mlp((7, 5, 4, 3), **options)
    params = model.init(jax.random.key(0))
    at = lambda path: params[path[0]][path[1]]
    named = set()
    for layer, width in zip(model.units, (5, 4), strict=True):
        assert layer.width == at(layer.incoming).shape[-1] == width
        assert layer.width * layer.copies == at(layer.outgoing).shape[0]
        if layer.shift:
            assert at(layer.shift).shape == at(layer.outgoing).shape[1:]
        assert all(at(path).shape == (width,) for path in layer.vectors)
        named |= {layer.incoming, layer.outgoing, *layer.vectors}
    every = {(layer, leaf) for layer in params for leaf in params[layer]}
    assert every - named == ({("out", "bias")} & every)
    biases = {leaf for leaf in every if leaf[1] == "bias" and leaf[0][:4] != "norm"}
    assert bool(biases) == options.get("bias", True)
    assert all(bool(layer.shift) == bool(biases) for layer in model.units)


def test_seeds_under_vmap_are_seeds_one_by_one():
    """Law: vmap over keys equals a loop, for init and for per-example gradients."""
    model = mlp((6, 4, 2))
    x = jnp.arange(6.0)[None] / 6
    run = lambda key: jax.grad(lambda p: model.apply(p, x)[0, 0])(model.init(key))
    keys = jax.random.split(jax.random.key(3), 2)
    together = jax.jit(jax.vmap(run))(keys)
    one = jax.jit(run)(keys[1])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-6)
    first = together["hidden_0"]["kernel"]
    assert not np.allclose(first[0], first[1])  # control: keys do matter


def test_a_network_without_hidden_layers_is_linear():
    """Oracle: x W + b; there is nothing hidden."""
    model = mlp((4, 3))
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 2, 2))
    expected = x.reshape(5, 4) @ params["out"]["kernel"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-5)
    assert model.hidden(params, x) == ()
    assert model.units == ()
