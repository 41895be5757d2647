"""ReDo against a slow loop over units."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.models import crelu, mlp, resnet
from jaxcl.plasticity import redo
from jaxcl.tree import as_batch


def redo_by_hand(params, fresh, hidden, weight, threshold, copies):
    """One loop over layers and units; returns numpy parameters and the units reset."""
    params = jax.tree.map(np.array, params)
    rows = [h[weight > 0] for h in hidden]
    names = [f"hidden_{k}" for k in range(len(hidden))] + ["out"]
    mask = []
    for k, h in enumerate(rows):
        width = h.shape[1] // copies
        activity = [np.abs(h[:, i::width]).sum(1).mean() for i in range(width)]
        for i in range(width):
            mean = np.mean(activity)
            if (activity[i] / mean if mean else 0.0) <= threshold:
                mask.append((k, i))
                params[names[k + 1]]["kernel"][i::width] = 0
                params[names[k]]["kernel"][:, i] = fresh[names[k]]["kernel"][:, i]
                params[names[k]]["bias"][i] = 0
    return params, mask


@pytest.mark.parametrize("activation", [jax.nn.relu, crelu], ids=["relu", "crelu"])
def test_redo_is_a_loop_over_dormant_units(activation):
    """Oracle: the definition, unit by unit, in numpy; padding rows count nowhere."""
    copies = 2 if activation is crelu else 1
    model = mlp((5, 8, 6, 3), activation=activation)
    params = model.init(jax.random.key(0))
    # Silence some units of both layers: small incoming weights.
    quiet = lambda leaf, where: leaf.at[:, where].multiply(1e-3)
    for name, where in [("hidden_0", jnp.array([1, 4])), ("hidden_1", jnp.array([0]))]:
        kernel = quiet(params[name]["kernel"], where)
        params = {**params, name: {**params[name], "kernel": kernel}}
    x = jax.random.normal(jax.random.key(1), (6, 5)).at[5].mul(1e4)
    weight = jnp.array([1.0, 1, 1, 1, 1, 0])
    batch = as_batch(x, jnp.zeros(6, int), weight=weight)
    reset = redo(model.hidden, model.units, model.init, threshold=0.1, period=2)
    key = jax.random.key(7)

    @jax.jit
    def twice(params):
        state, first, marks = reset.reset(key, reset.init(params, ()), params, batch)
        _, second, after = reset.reset(key, state, first, batch)
        hidden = model.hidden(params, x)
        return first, marks, second, after, hidden, model.init(key)

    first, marks, second, after, hidden, fresh = twice(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(marks))  # step 1 of 2
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)

    hidden = [np.asarray(h) for h in hidden]
    expected, mask = redo_by_hand(
        params, fresh, hidden, np.asarray(weight), 0.1, copies
    )
    assert {(0, 1), (0, 4), (1, 0)} <= set(mask)
    assert len(mask) < 14  # control: not everybody
    for a, b in zip(jax.tree.leaves(second), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for k, i in mask:
        name, reader = f"hidden_{k}", ["hidden_1", "out"][k]
        assert np.all(after[name]["kernel"][:, i])
        assert after[name]["bias"][i]
        assert np.all(after[reader]["kernel"][i])
    untouched = [i for i in range(6) if (1, i) not in mask]
    assert not np.any(after["hidden_1"]["bias"][np.array(untouched)])
    assert not np.any(after["out"]["bias"])


def test_marks_clear_an_optimizers_moments():
    """Oracle: Adam's moments read entry by entry."""
    model = mlp((3, 4, 2))
    params = model.init(jax.random.key(0))
    dead = {**params["hidden_0"], "bias": jnp.array([0.0, -99.0, 0.0, 0.0])}
    params = {**params, "hidden_0": dead}
    batch = as_batch(jnp.ones((2, 3)), jnp.zeros(2, int))
    reset = redo(model.hidden, model.units, model.init, threshold=0.0, period=1)
    optimizer = optax.adam(0.1)
    moments = jax.tree.map(jnp.ones_like, optimizer.init(params))
    _, _, mask = reset.reset(jax.random.key(0), reset.init(params, ()), params, batch)
    clear = lambda moment, fresh: jnp.where(fresh, 0.0, moment)
    cleared = optax.tree.map_params(optimizer, clear, moments, mask)[0].mu
    np.testing.assert_array_equal(cleared["hidden_0"]["kernel"][:, 1], np.zeros(3))
    np.testing.assert_array_equal(cleared["out"]["kernel"][1], np.zeros(2))
    np.testing.assert_array_equal(cleared["out"]["bias"], np.ones(2))


def test_a_silent_layer_is_reset_and_padding_resets_nothing():
    """Law: defined values at the edges; an empty batch is no evidence."""
    model = mlp((3, 4, 2))
    params = model.init(jax.random.key(0))
    silent = jax.tree.map(jnp.zeros_like, params)
    reset = redo(model.hidden, model.units, model.init, period=1)
    batch = as_batch(jnp.ones((2, 3)), jnp.zeros(2, int))
    padding = batch._replace(weight=jnp.zeros(2))
    run = jax.jit(lambda p, b: reset.reset(jax.random.key(3), jnp.array(0), p, b))
    _, new, mask = run(silent, batch)
    assert np.all(mask["hidden_0"]["kernel"])
    assert np.all(new["hidden_0"]["kernel"] != 0)
    _, new, mask = run(silent, padding)
    assert not np.any(mask["hidden_0"]["kernel"])
    assert not np.any(new["hidden_0"]["kernel"])


def test_channels_of_a_residual_block_are_units_too():
    """Law: a dead channel gets fresh weights and no reader, at any position."""
    model = resnet(2, width=4, blocks=(1,), groups=2)
    reset = redo(model.hidden, model.units, model.init, threshold=0.0, period=1)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    batch = as_batch(x, jnp.zeros(2, int))

    @jax.jit
    def compute():
        params = model.init(jax.random.key(0))
        block = params["block_0_0"]
        bias = block["norm_0"]["bias"].at[2].set(-99.0)
        block = {**block, "norm_0": {**block["norm_0"], "bias": bias}}
        params = {**params, "block_0_0": block}
        _, new, mask = reset.reset(jax.random.key(2), jnp.array(0), params, batch)
        before, after = model.apply(params, x), model.apply(new, x)
        return new["block_0_0"], mask["block_0_0"], before, after

    new, mask, before, after = compute()
    np.testing.assert_array_equal(new["conv_1"]["kernel"][:, :, 2], np.zeros((3, 3, 4)))
    assert np.all(mask["conv_0"]["kernel"][..., 2])
    assert not np.any(mask["conv_0"]["kernel"][..., 0])
    assert new["norm_0"]["bias"][2] == 0
    # Groups are channels 0, 1 and 2, 3: the new channel shifts its neighbour's statistics.
    assert np.abs(after - before).max() > 0
