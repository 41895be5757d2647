"""Replacing units must not change what a network computes, bar what it must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models import crelu, mlp
from jaxcl.plasticity import dormancy_score, reset_units
from jaxcl.plasticity.units import mean_over_rows


def nowhere(params):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)


@pytest.mark.parametrize("activation", [jax.nn.relu, crelu], ids=["relu", "crelu"])
def test_a_network_after_reset_is_the_old_one_without_the_units(activation):
    """Law: with no reader, new units are silent: zero the old units' outgoing rows."""
    model = mlp((4, 5, 6, 3), activation=activation)
    params, fresh = (model.init(jax.random.key(seed)) for seed in (0, 1))
    masks = (jnp.arange(5) % 2 == 0, jnp.arange(6) < 3)
    xs = jax.random.normal(jax.random.key(2), (7, 4))

    @jax.jit
    def compute(params):
        new, marks = params, nowhere(params)
        for layer, mask in zip(model.units, masks, strict=True):
            new, marks = reset_units(new, marks, fresh, layer, mask)
        without = params
        for layer, mask in zip(model.units, masks, strict=True):
            rows = jnp.tile(mask, layer.copies)[:, None]
            name, leaf = layer.outgoing
            kernel = jnp.where(rows, 0.0, without[name][leaf])
            without = {**without, name: {**without[name], leaf: kernel}}
        apply = lambda p: model.apply(p, xs)
        return new, marks, apply(new), apply(without), apply(params)

    new, marks, found, expected, before = compute(params)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - before).max() > 1e-2  # control: the units did matter

    # What changed is marked; what is marked is fresh, or zero.
    changed = jax.tree.map(lambda a, b: a != b, new, params)
    for c, m in zip(jax.tree.leaves(changed), jax.tree.leaves(marks), strict=True):
        assert not np.any(c & ~m)
    kernel = new["hidden_1"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :3], fresh["hidden_1"]["kernel"][:, :3])
    lost = np.tile(masks[0], model.units[0].copies)
    assert not np.any(kernel[lost][:, 3:])
    assert np.all(kernel[~lost][:, 3:] == params["hidden_1"]["kernel"][~lost][:, 3:])


def test_units_that_never_change_are_replaced_without_a_trace():
    """Oracle: a constant activation is a bias; moving it must keep every output."""
    model = mlp((4, 5, 3))
    params = model.init(jax.random.key(0))
    mask = jnp.array([True, False, True, False, False])
    hidden = params["hidden_0"]
    constant = {
        "kernel": jnp.where(mask, 0.0, hidden["kernel"]),
        "bias": jnp.where(mask, 1.5, 0.0),
    }
    params = {**params, "hidden_0": constant}
    xs = jax.random.normal(jax.random.key(2), (7, 4))

    @jax.jit
    def compute(params):
        fresh = model.init(jax.random.key(1))
        (h,) = model.hidden(params, xs)
        mean = mean_over_rows(h, jnp.ones(7))
        moved = reset_units(params, nowhere(params), fresh, model.units[0], mask, mean)
        lost = reset_units(params, nowhere(params), fresh, model.units[0], mask)
        return [model.apply(p, xs) for p in (params, moved[0], lost[0])]

    before, moved, lost = compute(params)
    np.testing.assert_allclose(moved, before, rtol=1e-5, atol=1e-5)
    assert np.abs(lost - before).max() > 1e-2  # control: without the move it shows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"incoming": ("hidden_9", "kernel")}, "hidden_9"),
        ({"vectors": (("hidden_0", "scale"),)}, "scale"),
        ({"outgoing": ("out",)}, "bias"),
        ({"shift": ("out", "bias", "b")}, "string indexing"),
    ],
)
def test_a_path_that_leads_nowhere_fails(change, words):
    """Oracle: Python's error; control: the model's paths, with and without a bias."""
    model = mlp((4, 5, 3))
    params = model.init(jax.random.key(0))
    (layer,) = model.units
    mask, mean = jnp.zeros(5, bool), jnp.zeros(5)
    run = lambda layer: reset_units(params, nowhere(params), params, layer, mask, mean)
    with pytest.raises((KeyError, TypeError), match=words):
        run(layer._replace(**change))
    for right in (layer, layer._replace(shift=None)):
        run(right)


def test_the_mean_ignores_padding_and_runs_over_positions():
    """Oracle: numpy's mean over the real rows and all positions."""
    h = np.arange(24.0).reshape(3, 2, 2, 2)
    h[2] = 1e6
    found = mean_over_rows(jnp.asarray(h, jnp.float32), jnp.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, h[:2].mean(axis=(0, 1, 2)))
    empty = mean_over_rows(jnp.ones((2, 3)), jnp.zeros(2))
    np.testing.assert_array_equal(empty, np.zeros(3))


def test_scores_are_relative_to_the_layer_and_zero_in_silence():
    """Oracle: hand arithmetic."""
    score = dormancy_score(jnp.array([0.0, 1.0, 3.0, 0.0]))
    np.testing.assert_allclose(score, [0, 1, 3, 0])
    np.testing.assert_array_equal(dormancy_score(jnp.zeros(3)), np.zeros(3))
