import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.curvature import batched_fisher, empirical_fisher, uniform_importance
from jaxcl.losses import cross_entropy, mean_loss, single_head
from jaxcl.regularizers import (
    EwcState,
    convert_strength,
    ewc,
    largest_stable_strength,
)
from jaxcl.tree import as_batch, at, axpy

TASKS, STRENGTH = 4, 3.0


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read_fisher(key, params, task):
    """An importance that the task carries with it, so that tests can choose it."""
    del key, params
    return task


SOLUTIONS = {
    "w": jnp.asarray(draw(0, TASKS, 3, 2)),
    "b": jnp.asarray(draw(1, TASKS, 2)),
}
# Entries of very different size, and some that no task or only a later one cares for.
FISHERS = {
    "w": jnp.asarray(np.exp(4 * draw(2, TASKS, 3, 2))).at[:, 0, 0].set(0.0),
    "b": jnp.asarray(draw(3, TASKS, 2) ** 2).at[:2, 1].set(0.0),
}
POINT = {"w": jnp.asarray(draw(4, 3, 2)), "b": jnp.asarray(draw(5, 2))}


def states_after_each_task(regularizer):
    def add(state, task):
        solution, fisher = task
        state = regularizer.end_task(jax.random.key(0), state, solution, fisher)
        return state, state

    start = regularizer.init(at(0, SOLUTIONS), ())
    return jax.lax.scan(add, start, (SOLUTIONS, FISHERS))[1]


def value_and_gradient(regularizer):
    """Of the penalty at POINT after each task: leaves [T, ...]."""
    penalty = lambda state: jax.value_and_grad(regularizer.penalty, argnums=1)(
        state, POINT, None
    )
    run = jax.jit(lambda: jax.vmap(penalty)(states_after_each_task(regularizer)))
    return run()


@pytest.mark.parametrize("decay", [None, 0.7, 0.0], ids=["separate", "online", "last"])
def test_the_quadratic_is_the_sum_over_all_anchors(decay):
    """Oracle: a Python loop over a list of anchors and Fishers, in 64-bit numpy."""
    values, grads = value_and_gradient(ewc(read_fisher, STRENGTH, decay=decay))
    for seen in range(1, TASKS + 1):
        value, grad = 0.0, {"w": 0.0, "b": 0.0}
        for k in range(seen):
            for name in ("w", "b"):
                share = 1.0 if decay is None else decay ** (seen - 1 - k)
                anchor = SOLUTIONS[name][k if decay is None else seen - 1]
                fisher = share * np.asarray(FISHERS[name][k], np.float64)
                away = np.asarray(POINT[name], np.float64) - np.asarray(anchor)
                value += STRENGTH / 2 * np.sum(fisher * away**2)
                grad[name] = grad[name] + STRENGTH * fisher * away
        np.testing.assert_allclose(values[seen - 1], value, rtol=1e-5)
        for name in ("w", "b"):
            np.testing.assert_allclose(
                grads[name][seen - 1], grad[name], rtol=2e-5, atol=1e-5
            )


def test_a_running_mean_weighs_all_tasks_alike():
    """Oracle: NumPy's mean over the tasks so far, around the latest solution."""
    regularizer = ewc(read_fisher, STRENGTH, running_mean=True)
    states = states_after_each_task(regularizer)
    values, _ = value_and_gradient(regularizer)
    for seen in range(1, TASKS + 1):
        value = 0.0
        for name in ("w", "b"):
            mean = np.mean(np.asarray(FISHERS[name][:seen], np.float64), axis=0)
            np.testing.assert_allclose(states.fisher[name][seen - 1], mean, rtol=1e-5)
            away = np.asarray(POINT[name], np.float64) - SOLUTIONS[name][seen - 1]
            value += STRENGTH / 2 * np.sum(mean * away**2)
        np.testing.assert_allclose(values[seen - 1], value, rtol=1e-5)


def test_separate_and_online_anchors_part_after_the_second_task():
    """Law: without decay one task is one quadratic; negative control: two are not."""
    separate, _ = value_and_gradient(ewc(read_fisher, STRENGTH))
    online, _ = value_and_gradient(ewc(read_fisher, STRENGTH, decay=1.0))
    np.testing.assert_allclose(separate[0], online[0], rtol=1e-6)
    assert abs(separate[1] - online[1]) > 1e-2 * abs(separate[1])


def test_there_is_no_penalty_before_the_first_task_or_without_strength():
    """Oracle: zero, exactly; negative control: with both there is a penalty."""
    regularizer = ewc(read_fisher, STRENGTH)
    state = regularizer.init(at(0, SOLUTIONS), ())
    value = lambda r, s: r.penalty(s, POINT, None)
    assert value(regularizer, state) == 0.0
    seen = regularizer.end_task(None, state, at(0, SOLUTIONS), at(0, FISHERS))
    assert value(regularizer, seen) > 0.0
    assert value(ewc(read_fisher, 0.0), seen) == 0.0
    assert regularizer.penalty(seen, at(0, SOLUTIONS), None) == 0.0


def test_the_anchor_does_not_drift_over_hundreds_of_equal_tasks():
    """Oracle: the mean of equal anchors is that anchor, to float32's rounding."""
    regularizer = ewc(uniform_importance(), 1.0)
    solution = {"w": jnp.asarray(draw(7, 100))}

    def add(state, _):
        return regularizer.end_task(None, state, solution, None), ()

    state = jax.jit(
        lambda: jax.lax.scan(add, regularizer.init(solution, ()), length=500)[0]
    )()
    np.testing.assert_array_equal(state.anchor["w"], solution["w"])
    np.testing.assert_array_equal(state.fisher["w"], 500.0)
    assert state.constant == 0.0
    assert state.tasks_seen == 500


def test_what_a_task_changes_is_an_argument_of_the_compiled_step():
    """Oracle: one compilation, and every part of the state matters to the step."""
    regularizer, traces = ewc(read_fisher, STRENGTH), []

    @jax.jit
    def step(state, params):
        traces.append(None)
        grads = jax.grad(regularizer.penalty, argnums=1)(state, params, None)
        return axpy(-0.01, grads, params), regularizer.penalty(state, params, None)

    state = regularizer.init(at(0, SOLUTIONS), ())
    seen = [step(state, POINT)]
    for k in range(TASKS):  # anchors and Fishers of later tasks are not baked in
        state = regularizer.end_task(None, state, at(k, SOLUTIONS), at(k, FISHERS))
        seen.append(step(state, POINT))
    double = jax.tree.map(lambda leaf: 2 * leaf, state.fisher)
    shifted = jax.tree.map(lambda leaf: leaf + 1, state.anchor)
    seen.append(step(state._replace(fisher=double), POINT))
    seen.append(step(state._replace(anchor=shifted), POINT))
    for (before, value), (after, other) in itertools.pairwise(seen):
        assert value != other
        assert not np.array_equal(before["w"], after["w"])
    assert seen[-1][1] != seen[-3][1]  # the anchor alone, too
    assert len(traces) == 1


def test_the_step_costs_the_same_after_many_tasks():
    """Oracle: structure, shapes and dtypes of the state before and after."""
    regularizer = ewc(read_fisher, STRENGTH)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), at(0, SOLUTIONS))
    for params in (at(0, SOLUTIONS), half):
        before = jax.eval_shape(regularizer.init, params, ())
        task = jax.eval_shape(regularizer.end_task, None, before, params, params)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), task) == (
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before)
        )
        assert before.fisher["w"].dtype == jnp.float32


def test_strengths_and_seeds_are_vmapped():
    """Law: a grid by vmap equals its members; the penalty is linear in the strength."""

    def penalty(strength, decay):
        regularizer = ewc(read_fisher, strength, decay=decay)
        state = jax.tree.map(lambda leaf: leaf[-1], states_after_each_task(regularizer))
        return regularizer.penalty(state, POINT, None)

    strengths, decays = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 0.5])
    grid = jax.vmap(jax.vmap(penalty, (None, 0)), (0, None))
    table = jax.jit(grid)(strengths, decays)
    np.testing.assert_allclose(table[2], 2 * table[1], rtol=1e-6)
    np.testing.assert_array_equal(table[0], 0.0)
    assert table[1, 0] > table[1, 1]


def test_the_penalty_keeps_an_old_task_and_training_without_it_does_not(key):
    """Oracle: the loss of the first task after learning its opposite."""
    inputs = jnp.asarray(draw(8, 40, 3))
    labels = (inputs[:, 0] > 0).astype(jnp.int32)
    first, second = as_batch(inputs, labels), as_batch(inputs[:, ::-1], 1 - labels)
    loss = cross_entropy(single_head(lambda params, x, keys: x @ params["w"]))

    def learn(regularizer, state, params, batch):
        objective = lambda p: (
            mean_loss(loss, p, batch, key) + regularizer.penalty(state, p, None)
        )
        step = lambda p, _: (axpy(-0.5, jax.grad(objective)(p), p), ())
        return jax.lax.scan(step, params, length=50)[0]

    def old_loss(strength):
        regularizer = ewc(empirical_fisher(loss), strength)
        params = {"w": jnp.zeros((3, 2))}
        state = regularizer.init(params, ())
        params = learn(regularizer, state, params, first)
        state = regularizer.end_task(key, state, params, first)
        params = learn(regularizer, state, params, second)
        return mean_loss(loss, params, first, key)

    free, held = jax.jit(jax.vmap(old_loss))(jnp.array([0.0, 30.0]))
    assert held < 0.6 * free


def quadratic(fisher, strength, learning_rate):
    """Distance from the anchor after 200 steps of gradient descent on the penalty."""
    zeros = jax.tree.map(jnp.zeros_like, fisher)
    state = EwcState(zeros, fisher, jnp.zeros(()), jnp.ones((), jnp.int32))
    slope = jax.grad(ewc(read_fisher, strength).penalty, argnums=1)
    step = lambda p, _: (axpy(-learning_rate, slope(state, p, None), p), ())
    start = jax.tree.map(jnp.ones_like, fisher)
    return jax.lax.scan(step, start, length=200)[0]


def test_the_largest_stable_strength_parts_rest_from_flight():
    """Oracle: gradient descent on the penalty itself, at both sides of the limit."""
    fisher = {"a": jnp.array([0.5, 4.0]), "b": jnp.array([[1.0]])}
    limit = largest_stable_strength(fisher, 0.1)
    np.testing.assert_allclose(limit, 2 / (0.1 * 4.0))
    run = jax.jit(jax.vmap(quadratic, (None, 0, None)))
    far = run(fisher, limit * jnp.array([0.95, 1.05]), 0.1)
    assert abs(far["a"][0, 1]) < 1e-3
    assert abs(far["a"][1, 1]) > 1e3

    # With a loss of curvature 5 the limit of their sum is lower by as much.
    less = largest_stable_strength(fisher, 0.1, loss_curvature=5.0)
    np.testing.assert_allclose(0.1 * (less * 4.0 + 5.0), 2.0, rtol=1e-6)
    assert largest_stable_strength(fisher, 0.1, loss_curvature=50.0) == 0.0
    nothing = jax.tree.map(jnp.zeros_like, fisher)
    assert largest_stable_strength(nothing, 0.1) == jnp.inf


@pytest.mark.parametrize(
    ("theirs", "halved", "ratio"),
    [
        (lambda lam, f, d: lam * np.sum(f * d**2), False, 1.0),  # Avalanche
        (lambda lam, f, d: lam / 2 * np.sum(f * d**2), True, 1.0),  # van de Ven
        (lambda lam, f, d: lam * np.sum(f / 32 * d**2), False, 1 / 32),  # SequeL
        (lambda lam, f, d: lam / 2 * np.sum(3 * f * d**2), True, 3.0),  # TRACE, E = 3
    ],
)
def test_a_converted_strength_gives_the_same_penalty(theirs, halved, ratio):
    """Oracle: the other systems' formulas, written out."""
    fisher, away = draw(9, 6) ** 2, draw(10, 6)
    regularizer = ewc(read_fisher, convert_strength(7.0, halved=halved, ratio=ratio))
    origin = {"w": jnp.zeros(6)}
    state = regularizer.end_task(
        None, regularizer.init(origin, ()), origin, {"w": jnp.asarray(fisher)}
    )
    ours = regularizer.penalty(state, {"w": jnp.asarray(away)}, None)
    np.testing.assert_allclose(ours, theirs(7.0, fisher, away), rtol=1e-5)


def batch_means(batches):
    """Gradients of the mean loss of each batch, of a model linear in its parameters."""
    return [np.mean(batch, axis=0) for batch in batches]


@pytest.mark.parametrize(
    ("system", "halved", "ratio"),
    [("Avalanche", False, 1.0), ("SequeL", False, 1 / 4), ("TRACE", True, 3.0)],
)
def test_the_table_of_units_is_that_of_the_other_systems(system, halved, ratio):
    """Oracle: their loops over batches of four, three epochs where they have epochs.

    Exact against the batched Fisher of the same batch size, as the table says.
    """
    size, epochs, theirs = 4, 3, 7.0
    gradients = draw(11, 12, 6).astype(np.float64)  # of single examples
    batches = gradients.reshape(3, size, 6)
    squares = [mean**2 for mean in batch_means(batches)]
    away = draw(12, 6).astype(np.float64)
    if system == "Avalanche":  # mean over batches
        penalty = theirs * np.sum(np.mean(squares, axis=0) * away**2)
    elif system == "SequeL":  # sum over batches, divided by the number of examples
        penalty = theirs * np.sum(np.sum(squares, axis=0) / len(gradients) * away**2)
    else:  # TRACE: mean over batches, added up over epochs
        total = sum(np.mean(squares, axis=0) for _ in range(epochs))
        penalty = theirs / 2 * np.sum(total * away**2)

    linear = lambda params, batch, keys: batch.x @ params["w"]
    fisher = batched_fisher(linear, batch_size=size)
    regularizer = ewc(fisher, convert_strength(theirs, halved=halved, ratio=ratio))
    origin = {"w": jnp.zeros(6)}
    task = as_batch(gradients.astype(np.float32), np.zeros(12, int))
    state = regularizer.end_task(
        jax.random.key(0), regularizer.init(origin, ()), origin, task
    )
    ours = regularizer.penalty(state, {"w": jnp.asarray(away, jnp.float32)}, None)
    np.testing.assert_allclose(ours, penalty, rtol=1e-5)
