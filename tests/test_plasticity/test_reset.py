"""Nothing, shrink-and-perturb, and chained resets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models import mlp
from jaxcl.plasticity import chain_resets, redo, shrink_and_perturb
from jaxcl.tree import as_batch
from jaxcl.typing import Reset

MODEL = mlp((3, 4, 2), layer_norm=True)
BATCH = as_batch(jnp.ones((2, 3)), jnp.zeros(2, int))


def start():
    """Parameters away from where they are drawn."""
    return jax.tree.map(lambda leaf: leaf + 0.5, MODEL.init(jax.random.key(0)))


def assert_equal(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 1e-6, "atol": 1e-7}
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_no_reset_changes_nothing():
    """Law: neutral element; the state is empty."""
    reset = Reset()
    params = start()
    state, new, mask = reset.reset(
        jax.random.key(0), reset.init(params, ()), params, BATCH
    )
    assert state == ()
    assert new is params
    assert mask is None


def test_shrink_and_perturb_follows_its_formula():
    """Oracle: p w + sigma xi with the model's own draw; vectors shrink to constants."""
    reset = shrink_and_perturb(0.9, 0.2, MODEL.init)
    params, key = start(), jax.random.key(5)
    step, new, mask = jax.jit(reset.reset)(key, reset.init(params, ()), params, BATCH)
    xi = MODEL.init(key)
    for name in ("hidden_0", "out"):
        kernel = 0.9 * params[name]["kernel"] + 0.2 * xi[name]["kernel"]
        np.testing.assert_allclose(new[name]["kernel"], kernel, rtol=1e-6)
        np.testing.assert_allclose(new[name]["bias"], 0.9 * params[name]["bias"])
    np.testing.assert_allclose(new["norm_0"]["scale"], 1 + 0.9 * 0.5, rtol=1e-6)
    assert mask is None
    assert step == 1


def test_neutral_strengths_are_neutral_and_traced_strengths_work():
    """Law: shrink=1 and sigma=0 change nothing; both may come from a vmap."""
    params = start()

    def once(shrink, sigma):
        reset = shrink_and_perturb(shrink, sigma, MODEL.init)
        return reset.reset(jax.random.key(1), reset.init(params, ()), params, BATCH)[1]

    grid = jax.jit(jax.vmap(once))(jnp.array([1.0, 0.5]), jnp.array([0.0, 0.0]))
    assert_equal(jax.tree.map(lambda leaf: leaf[0], grid), params)
    half = grid["out"]["kernel"][1]
    np.testing.assert_allclose(half, 0.5 * params["out"]["kernel"], rtol=1e-6)


def test_a_period_waits_and_then_acts_once():
    """Oracle: the reset at every step, called by hand at steps 3 and 6 only."""
    slow = shrink_and_perturb(0.5, 0.1, MODEL.init, period=3)
    fast = shrink_and_perturb(0.5, 0.1, MODEL.init)
    params, keys = start(), jax.random.split(jax.random.key(2), 7)

    @jax.jit
    def walk(params):
        def body(carry, key):
            state, params = carry
            state, params, _ = slow.reset(key, state, params, BATCH)
            return (state, params), params

        found = jax.lax.scan(body, (slow.init(params, ()), params), keys)[1]
        expected = [params]
        for k, acts in enumerate([0, 0, 1, 0, 0, 1, 0]):
            state, last = fast.init(params, ()), expected[-1]
            new = fast.reset(keys[k], state, last, BATCH)[1]
            expected.append(new if acts else last)
        return found, jax.tree.map(lambda *rows: jnp.stack(rows), *expected[1:])

    found, expected = walk(params)
    assert_equal(found, expected)


def test_periodic_work_stays_conditional_under_vmap():
    """Law: the program of vmapped runs still branches, also with a batched counter."""
    reset = shrink_and_perturb(0.5, 0.1, MODEL.init, period=3)
    params = start()
    many = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), tree)
    keys = jax.random.split(jax.random.key(0), 2)
    run = lambda key, state, params: reset.reset(key, state, params, BATCH)[1]
    program = jax.jit(jax.vmap(run)).lower(keys, jnp.array([1, 2]), many(params))
    assert "stablehlo.case" in program.as_text()

    new = program.compile()(keys, jnp.array([1, 2]), many(params))
    assert_equal(jax.tree.map(lambda leaf: leaf[0], new), params)  # step 2: not due
    moved = jax.tree.map(lambda leaf: leaf[1], new)
    assert_equal(moved, run(keys[1], jnp.array(2), params))  # step 3: due
    assert np.abs(moved["out"]["kernel"] - params["out"]["kernel"]).max() > 0.1


def test_a_chain_is_one_after_another_with_its_own_keys():
    """Oracle: the parts called by hand; marks of any part are marks of the chain."""
    parts = (
        Reset(),
        shrink_and_perturb(0.5, 0.1, MODEL.init),
        redo(MODEL.hidden, MODEL.units, MODEL.init, period=1),
        shrink_and_perturb(0.5, 0.1, MODEL.init),
    )
    chain, key, params = chain_resets(*parts), jax.random.key(0), start()
    # Unit 0 is dead on this batch: its norm gives -5 at most.
    norm = {"scale": jnp.ones(4).at[0].set(0.0), "bias": jnp.ones(4).at[0].set(-5.0)}
    params = {**params, "norm_0": norm}

    @jax.jit
    def compare(params):
        chained = chain.reset(key, chain.init(params, ()), params, BATCH)
        by_hand = params
        for k, part in enumerate(parts):
            part_key = jax.random.fold_in(key, k)
            state = part.init(by_hand, ())
            _, by_hand, marks = part.reset(part_key, state, by_hand, BATCH)
            if k == 2:
                touched = marks
        return chained, by_hand, touched

    (_, new, mask), by_hand, touched = compare(params)
    assert_equal(new, by_hand)
    assert_equal(mask, touched)
    assert np.all(mask["hidden_0"]["kernel"][:, 0])
    assert chain_resets().reset(key, (), params, BATCH)[2] is None


@pytest.mark.parametrize("shape", [(8, 8), (64,)])
def test_bfloat16_parameters_round_once(shape):
    """Oracle: the formula in NumPy, float32, rounded at its end."""
    draw = lambda seed: jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)
    reset = shrink_and_perturb(0.99, 0.3, lambda key: draw(1))
    old = draw(0)
    _, new, _ = reset.reset(jax.random.key(2), reset.init(old, ()), old, BATCH)
    w, xi = np.asarray(old, np.float32), np.asarray(draw(1), np.float32)
    p, sigma = np.float32(0.99), np.float32(0.3)
    exact = p * w + sigma * xi if len(shape) > 1 else xi + p * (w - xi)
    assert new.dtype == jnp.bfloat16
    np.testing.assert_array_equal(new, exact.astype(jnp.bfloat16))
