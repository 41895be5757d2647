"""Continual backpropagation against a slow loop over steps, layers and units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models import crelu, mlp
from jaxcl.plasticity import adaptable_contribution, continual_backprop, contribution
from jaxcl.tree import as_batch


def walk_by_hand(params, batches, freshes, look, *, copies, plain, rate, maturity, eta):
    """The algorithm as published, a unit at a time, in float64."""
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float64), params)
    names = [*sorted(name for name in params if name.startswith("hidden")), "out"]
    widths = [params[name]["bias"].size for name in names[:-1]]
    zeros = lambda: [np.zeros(w) for w in widths]
    u, age, pending = zeros(), zeros(), [0.0 for _ in widths]
    f = [np.zeros(copies * w) for w in widths]
    born = []
    for t, (x, weight) in enumerate(batches):
        hidden = [np.asarray(h, np.float64) for h in look(params, x)]
        for k, width in enumerate(widths):
            h = hidden[k][weight > 0]
            w_in, w_out = params[names[k]]["kernel"], params[names[k + 1]]["kernel"]
            age[k] += 1
            for i in range(width):
                correct = 1 - eta ** age[k][i]
                worth = 0.0
                for j in range(i, copies * width, width):
                    f[k][j] = eta * f[k][j] + (1 - eta) * h[:, j].mean()
                    away = h[:, j] if plain else h[:, j] - f[k][j] / correct
                    value = np.abs(w_out[j]).mean() * np.abs(away).mean()
                    worth += value if plain else value / np.abs(w_in[:, i]).mean()
                u[k][i] = eta * u[k][i] + (1 - eta) * worth
            pending[k] += rate * np.sum(age[k] > maturity)
        for k, width in enumerate(widths):
            w_in, w_out = params[names[k]]["kernel"], params[names[k + 1]]["kernel"]
            while pending[k] >= 1 and np.any(age[k] > maturity):
                corrected = u[k] / (1 - eta ** np.maximum(age[k], 1))
                i = int(np.argmin(np.where(age[k] > maturity, corrected, np.inf)))
                for j in range(i, copies * width, width):
                    mean = f[k][j] / (1 - eta ** age[k][i])
                    params[names[k + 1]]["bias"] += mean * w_out[j]
                    w_out[j] = 0
                    f[k][j] = 0
                w_in[:, i] = freshes[t][names[k]]["kernel"][:, i]
                params[names[k]]["bias"][i] = 0
                u[k][i], age[k][i] = 0, 0
                pending[k] -= 1
                born.append((t, k, i))
    return params, born


CASES = {
    "relu, many at once": (jax.nn.relu, adaptable_contribution, 0.5),
    "crelu": (crelu, adaptable_contribution, 0.1),
    "plain": (jax.nn.relu, contribution, 0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_published_loop(name):
    """Oracle: a float64 loop over steps, layers and units, padding left out."""
    activation, utility, rate = CASES[name]
    settings = {"rate": rate, "maturity": 2}
    model = mlp((4, 6, 5, 3), activation=activation)
    reset = continual_backprop(
        model.hidden, model.units, model.init, decay=0.95, utility=utility, **settings
    )
    steps = 14
    xs = jax.random.normal(jax.random.key(1), (steps, 6, 4))
    weight = jnp.array([1.0, 1, 1, 1, 1, 0])
    xs = xs.at[:, 5].mul(1e3)  # padding with large numbers
    keys = jax.random.split(jax.random.key(2), steps)

    @jax.jit
    def walk(params):
        def body(carry, item):
            key, x = item
            state, params = carry
            batch = as_batch(x, jnp.zeros(6, int), weight=weight)
            state, params, mask = reset.reset(key, state, params, batch)
            return (state, params), jax.tree.map(jnp.any, mask)

        carry = (reset.init(params, ()), params)
        (state, last), touched = jax.lax.scan(body, carry, (keys, xs))
        return state, last, touched, jax.vmap(model.init)(keys)

    params = model.init(jax.random.key(0))
    state, last, touched, fresh = walk(params)
    freshes = [jax.tree.map(lambda leaf, t=t: leaf[t], fresh) for t in range(steps)]
    hidden = jax.jit(model.hidden)
    narrow = lambda params, x: hidden(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params), x
    )
    expected, born = walk_by_hand(
        params,
        [(np.asarray(x), np.asarray(weight)) for x in xs],
        freshes,
        narrow,
        copies=2 if activation is crelu else 1,
        plain=utility is contribution,
        eta=0.95,
        **settings,
    )
    assert {k for _, k, _ in born} == {0, 1}  # control: units of both layers were reset
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    times = sorted({t for t, _, _ in born})
    assert np.flatnonzero(touched["hidden_1"]["kernel"]).tolist() == times
    assert min(times) >= 2  # no unit is mature before
    for traces, width in zip(state, (6, 5), strict=True):
        assert traces.age.shape == (width,)
        assert np.all(traces.pending < 1)


def test_rate_zero_touches_nothing_and_states_keep_their_shapes():
    """Law: neutral rate; structure, shapes and dtypes are those of init."""
    model = mlp((3, 4, 2))
    batch = as_batch(jnp.ones((2, 3)), jnp.zeros(2, int))
    params = model.init(jax.random.key(0))

    def run(rate):
        reset = continual_backprop(
            model.hidden, model.units, model.init, rate=rate, maturity=0
        )
        state = reset.init(params, ())
        after, new, mask = reset.reset(jax.random.key(1), state, params, batch)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        return new, mask

    new, mask = jax.jit(jax.vmap(run))(jnp.array([0.0, 0.5]))  # rates may be traced
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a[0], b)
    assert not any(np.any(leaf[0]) for leaf in jax.tree.leaves(mask))
    # Control: half of four units is two, at once.
    assert np.sum(np.all(mask["out"]["kernel"][1], axis=-1)) == 2


def test_seeds_under_vmap_are_seeds_one_by_one():
    """Law: a vmapped reset equals single ones, also when only one of them is due."""
    model = mlp((3, 4, 2))
    reset = continual_backprop(
        model.hidden, model.units, model.init, rate=0.1, maturity=1
    )
    x = jax.random.normal(jax.random.key(5), (3, 3))
    batch = as_batch(x, jnp.zeros(3, int))

    def run(key, pending):
        params = model.init(key)
        (traces,) = reset.init(params, ())
        traces = traces._replace(pending=pending, age=traces.age + 5)
        return reset.reset(key, (traces,), params, batch)

    keys, pending = jax.random.split(jax.random.key(6), 2), jnp.array([0.0, 0.9])
    program = jax.jit(jax.vmap(run)).lower(keys, pending)
    assert "stablehlo.case" in program.as_text()  # skipped when no run is due
    together = program.compile()(keys, pending)
    for k in range(2):
        alone = jax.jit(run)(keys[k], pending[k])
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-5, atol=1e-7)
    assert not np.any(together[2]["out"]["kernel"][0])
    assert np.any(together[2]["out"]["kernel"][1])


@pytest.mark.usefixtures("x64")
def test_64_bit_numbers_change_nothing():
    """Oracle: half of four units are replaced, as in 32 bit; no cast is warned of."""
    model = mlp((3, 4, 2))
    reset = continual_backprop(
        model.hidden, model.units, model.init, rate=0.5, maturity=0
    )
    params = model.init(jax.random.key(0))
    batch = as_batch(jnp.ones((2, 3)), jnp.zeros(2, int))
    state = reset.init(params, ())
    _, _, mask = reset.reset(jax.random.key(1), state, params, batch)
    assert np.sum(np.all(mask["out"]["kernel"], axis=-1)) == 2
