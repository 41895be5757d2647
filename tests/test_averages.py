"""Slow copies of the parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.averages import (
    ema,
    ema_of_products,
    interpolate,
    starting_after,
    wise_ft,
)
from jaxcl.tree import at
from jaxcl.typing import Average


def walk(length, dtype=jnp.float32):
    """Parameters at the start and after each of `length` steps, leaves [length + 1, ..]."""
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(
        generator.normal(size=(length + 1, *shape)), dtype
    )
    return {"w": draw(2, 3), "b": draw(3)}


def observed(average, path):
    """The state after all of the path."""
    observe = lambda state, params: (average.observe(None, state, (), params), None)
    return jax.lax.scan(
        observe, average.init(at(0, path), ()), at(slice(1, None), path)
    )[0]


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_an_average_of_defaults_reads_and_returns_the_parameters_themselves():
    """Oracle: identity of the objects."""
    params = at(0, walk(0))
    average = Average()
    state = average.observe(None, average.init(params, ()), (), params)
    assert jax.tree.leaves(state) == []
    assert average.read(state, params) is params
    assert average.end_task(None, state, params, ())[1] is params


@pytest.mark.parametrize("warm_up", [False, True])
def test_ema_equals_a_sum_of_geometric_weights(warm_up):
    """Oracle: the weight of each step, product of what was kept after it, in float64."""
    path = walk(30)
    average = ema(0.9, warm_up=warm_up)
    found = jax.jit(lambda path: average.read(observed(average, path), at(0, path)))(
        path
    )

    kept = np.array(
        [min(0.9, (1 + t) / (10 + t)) if warm_up else 0.9 for t in range(1, 31)]
    )
    share = np.concatenate([[1], 1 - kept]) * np.append(np.cumprod(kept[::-1])[::-1], 1)
    np.testing.assert_allclose(share.sum(), 1)
    expected = jax.tree.map(
        lambda leaf: np.tensordot(share, np.asarray(leaf, np.float64), 1), path
    )
    assert_close(found, expected, atol=1e-6)


def test_ema_at_its_ends_reads_the_parameters_or_their_start():
    """Laws, bit for bit: decay 0 is no average, decay 1 is the start; 0.5 is neither."""
    path = walk(3)
    now = at(-1, path)
    read = lambda average: average.read(observed(average, path), now)
    chex.assert_trees_all_equal(read(ema(0.0)), now)
    chex.assert_trees_all_equal(read(ema(1)), at(0, path))
    assert not np.allclose(read(ema(0.5))["w"], now["w"])
    assert not np.allclose(read(ema(0.5))["w"], path["w"][0])


def test_ema_of_bfloat16_parameters_moves_at_a_decay_of_0_999():
    """Oracle: 100 steps of the way from 1 to 2; control: kept in bfloat16 it sticks.

    There a step of 0.001 is below half the spacing of numbers, 1/128.
    """
    path = jnp.ones((101, 4), jnp.bfloat16).at[1:].set(2)
    average = ema(0.999)
    state = observed(average, path)
    expected = 2 - 0.999**100
    np.testing.assert_allclose(state.average, expected, rtol=1e-5)
    read = average.read(state, path[0])
    assert read.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(read, np.float32), expected, rtol=2**-8)

    stuck = jnp.ones(4, jnp.bfloat16)
    for params in path[1:5]:
        stuck = jnp.bfloat16(0.999) * stuck + jnp.bfloat16(0.001) * params
    assert stuck[0] == 1


def test_ema_runs_on_across_tasks():
    """Law: the end of a task changes neither the average nor the parameters."""
    path = walk(3)
    average = ema(0.9)
    state = observed(average, path)
    after, params = average.end_task(None, state, at(-1, path), ())
    chex.assert_trees_all_equal(after, state)
    chex.assert_trees_all_equal(params, at(-1, path))


LATE = lambda decay: starting_after(1, ema(decay))


@pytest.mark.parametrize("make", [ema, ema_of_products, LATE, interpolate, wise_ft])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_states_keep_their_form_and_readings_that_of_the_parameters(make, dtype):
    """Oracle: shapes and dtypes of the first state and of the parameters."""
    path = factors(2, dtype)
    average = make(0.5)
    form = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    def run(path):
        start = average.init(at(0, path), ())
        state = observed(average, path)
        read = average.read(state, at(-1, path))
        return start, state, average.end_task(None, state, at(-1, path), ()), read

    start, state, (after, params), read = jax.jit(run)(path)
    assert form(start) == form(state) == form(after)
    assert form(params) == form(read) == form(at(0, path))


@pytest.mark.parametrize("make", [ema, interpolate, wise_ft])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_fresh_or_consolidated_state_can_be_donated_with_the_parameters(
    make, compiled
):
    """Oracle: giving one buffer twice is an error; the start is a copy, bit for bit."""
    average = make(0.5)
    maybe_jit = jax.jit if compiled else lambda function: function
    params = at(0, walk(0))
    init = maybe_jit(lambda params: (average.init(params, ()), params))
    end_task = maybe_jit(lambda *given: average.end_task(None, *given, ()))
    step = jax.jit(
        lambda state, params: (average.observe(None, state, (), params), params),
        donate_argnums=(0, 1),
    )
    expected = jax.tree.map(np.array, params)
    state, params = step(*init(params))
    state, params = step(*end_task(state, params))
    chex.assert_trees_all_equal(params, expected)
    chex.assert_trees_all_equal(average.read(state, params), expected)


def test_interpolate_goes_on_from_between_start_and_end_of_each_task():
    """Oracle: by hand, two tasks: start 0, end 4, so 3 at 3/4; start 3, end 7, so 6."""
    average = interpolate(0.75)
    state = average.init(jnp.zeros(2), ())
    state = average.observe(None, state, (), jnp.full(2, 9.0))
    np.testing.assert_array_equal(average.read(state, jnp.full(2, 4.0)), 4.0)
    state, params = average.end_task(None, state, jnp.full(2, 4.0), ())
    np.testing.assert_array_equal(params, 3.0)
    state, params = average.end_task(None, state, jnp.full(2, 7.0), ())
    np.testing.assert_array_equal(params, 6.0)


def test_interpolate_with_start_changes_the_reading_only():
    """Oracle: by hand; the start stays that of the first task."""
    average = wise_ft(0.75)
    state = average.init(jnp.zeros(2), ())
    for end, expected in ((4.0, 3.0), (8.0, 6.0)):
        state = average.observe(None, state, (), jnp.full(2, end))
        np.testing.assert_array_equal(average.read(state, jnp.full(2, end)), expected)
        state, params = average.end_task(None, state, jnp.full(2, end), ())
        np.testing.assert_array_equal(params, end)


def test_interpolation_at_its_ends_is_one_end_bit_for_bit():
    """Laws: alpha 1 keeps the parameters, alpha 0 returns to the start."""
    path = walk(1)
    start, end = at(0, path), at(1, path)
    for alpha, expected in ((1, end), (0, start)):
        average = interpolate(alpha)
        chex.assert_trees_all_equal(
            average.end_task(None, average.init(start, ()), end, ())[1], expected
        )
        average = wise_ft(alpha)
        chex.assert_trees_all_equal(
            average.read(average.init(start, ()), end), expected
        )


def test_a_grid_of_strengths_is_a_vmap():
    """Law: a vmap over traced strengths equals one run for each."""
    path = walk(4)

    def run(share):
        average = ema(share)
        read = average.read(observed(average, path), at(0, path))
        mixed = interpolate(share).end_task(None, at(0, path), at(1, path), ())[1]
        return read, mixed

    shares = jnp.array([0.0, 0.3, 1.0])
    grid = jax.jit(jax.vmap(run))(shares)
    for i, share in enumerate((0.0, 0.3, 1.0)):
        assert_close(at(i, grid), run(share), rtol=1e-6)


def factors(length, dtype=jnp.float32, rank=2):
    """Pairs of factors of three layers, and a head, at the start and after each step."""
    generator = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(
        generator.normal(size=(length + 1, *shape)), dtype
    )
    pair = {"lora_a": draw(3, 7, rank), "lora_b": draw(3, rank, 5)}
    return {"q_proj": pair, "classifier": {"kernel": draw(7, 2)}}


def product(tree):
    pair = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree["q_proj"])
    return pair["lora_a"] @ pair["lora_b"]


def cut(matrices, rank):
    """The nearest matrices of a rank."""
    u, s, v = np.linalg.svd(matrices, full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]


@pytest.mark.parametrize("rank", [1, 2, 4])  # of 4 the factors side by side are wide
def test_products_of_factors_are_averaged_step_by_step(rank):
    """Oracle: dense products in float64, cut to the rank after each step."""
    path = factors(6, rank=rank)
    average = ema_of_products(0.7)
    found = jax.jit(lambda path: average.read(observed(average, path), at(0, path)))(
        path
    )
    expected = product(at(0, path))
    for step in range(1, 7):
        expected = cut(0.7 * expected + 0.3 * product(at(step, path)), rank)
    np.testing.assert_allclose(product(found), expected, rtol=1e-4, atol=1e-4)
    plain = ema(0.7)
    other = plain.read(observed(plain, path), at(0, path))
    np.testing.assert_array_equal(
        found["classifier"]["kernel"], other["classifier"]["kernel"]
    )
    assert np.abs(product(other) - expected).max() > 0.1  # control: cross terms


def test_products_with_one_factor_fixed_are_products_of_averages():
    """Law: sums of A B over steps are A times sums of B, whose rank is that of A."""
    path = factors(9)
    fixed = jnp.broadcast_to(path["q_proj"]["lora_a"][:1], (10, 3, 7, 2))
    path["q_proj"]["lora_a"] = fixed
    read = lambda average: average.read(observed(average, path), at(0, path))
    products, plain = (product(read(make(0.8))) for make in (ema_of_products, ema))
    np.testing.assert_allclose(products, plain, rtol=1e-4, atol=1e-5)


def test_an_average_starts_as_a_copy_when_its_task_has_ended():
    """Oracle: the parameters before, and from then on an average that begins there."""
    path = walk(6)
    average = starting_after(1, ema(0.5))

    def step(state, n):
        return average.observe(None, state, (), at(n, path))

    state = average.init(at(0, path), ())
    for n in (1, 2):
        state = step(state, n)
        chex.assert_trees_all_equal(average.read(state, at(n, path)), at(n, path))
    state, params = average.end_task(None, state, at(2, path), ())
    chex.assert_trees_all_equal(params, at(2, path))
    expected = at(2, path)
    for n in (3, 4):
        state = step(state, n)
        expected = jax.tree.map(lambda a, b: (a + b) / 2, expected, at(n, path))
    assert_close(average.read(state, at(4, path)), expected, rtol=1e-6)
    state, _ = average.end_task(None, state, at(4, path), ())
    state = step(state, 5)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, expected, at(5, path))
    assert_close(average.read(state, at(5, path)), expected, rtol=1e-6)


def test_an_average_that_starts_at_once_is_the_average():
    """Law: no task to wait for."""
    path = walk(4)
    now, later = ema(0.5), starting_after(0, ema(0.5))
    read = lambda average: average.read(observed(average, path), at(-1, path))
    chex.assert_trees_all_equal(read(later), read(now))
