"""The end of a task: the average first, then what remembers, each with its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.averages import ema, interpolate, wise_ft
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import episodic
from jaxcl.method import make_method
from jaxcl.regularizers import ewc
from jaxcl.tree import as_batch, at
from jaxcl.typing import Average, Memory, Regularizer, Reset

D, C = 4, 3
LOSS = cross_entropy(single_head(lambda params, x, keys=None: x @ params))
FISHER = empirical_fisher(LOSS)
START = jax.random.normal(jax.random.key(0), (D, C))
X = jax.random.normal(jax.random.key(1), (9, D))
TASK = as_batch(X, jnp.arange(9) % C)
SGD = optax.sgd(0.5)


def largest_logit(key, params, task, capacity):
    """Rows by what the parameters make of them."""
    del key, capacity
    return jnp.max(task.x @ params, axis=1)


def ended(average):
    """The parameters before the end of a task, and the state after it."""
    method = make_method(
        LOSS,
        SGD,
        regularizer=ewc(FISHER, 1.0, decay=0.9),
        memory=episodic(2, 4, 2, select=largest_logit),
        average=average,
    )
    state = method.init(START, at(slice(1), TASK))
    for i in range(5):
        state, _ = jax.jit(method.step)(jax.random.key(i), state, TASK)
    return state.params, method.end_task(jax.random.key(9), state, TASK)


def chosen_at(params):
    """The four rows that a memory keeps which looks at these parameters."""
    order = np.argsort(-np.max(np.asarray(X @ params), axis=1))
    return np.asarray(X)[order[:4]]


@pytest.mark.parametrize(
    ("average", "alpha"),
    [(interpolate(0.5), 0.5), (ema(0.5), 1.0), (wise_ft(0.5), 1.0)],
)
def test_all_parts_see_the_parameters_with_which_training_goes_on(average, alpha):
    """Oracle: the interpolated point by hand; the Fisher and the choice of rows there.

    An average that leaves the parameters alone is the control, as are the anchor, the
    Fisher and the rows at the point where the steps ended.
    """
    last, state = ended(average)
    point = (1 - alpha) * START + alpha * last
    np.testing.assert_allclose(state.params, point, atol=1e-6)
    np.testing.assert_allclose(state.regularizer.anchor, point, atol=1e-6)
    fisher = lambda params: FISHER(jax.random.key(0), params, TASK)
    np.testing.assert_allclose(state.regularizer.fisher, fisher(point), atol=1e-6)
    np.testing.assert_array_equal(state.memory.kept.x[0], chosen_at(point))
    if alpha < 1:
        assert np.abs(fisher(point) - fisher(last)).max() > 1e-3
        assert not np.array_equal(chosen_at(point), chosen_at(last))


def test_each_part_draws_from_a_key_of_its_own():
    """Oracle: the keys themselves, of two ends of a task."""
    seen = []

    def keep(key, state, params, data):
        del params, data
        seen.append(jax.random.key_data(key).tolist())
        return state

    def average_end(key, state, params, data):
        return keep(key, state, params, data), params

    method = make_method(
        LOSS,
        SGD,
        regularizer=Regularizer(end_task=keep),
        memory=Memory(lambda p, e: e, lambda key, state: state, end_task=keep),
        average=Average(end_task=average_end),
    )
    state = method.init(START, at(slice(1), TASK))
    for seed in (1, 2):
        given = jax.random.key(seed)
        seen.append(jax.random.key_data(given).tolist())
        state = method.end_task(given, state, TASK)
    assert len(seen) == 8
    assert len({tuple(key) for key in seen}) == 8


def test_each_part_draws_from_a_key_of_its_own_in_every_step():
    """Oracle: the keys of sampling, of all observers and of the reset, in two steps."""
    seen = []

    def keep(key):
        seen.append(tuple(jax.random.key_data(key).tolist()))

    def observe(key, state, step, params):
        del step, params
        keep(key)
        return state

    def sample(key, state):
        keep(key)
        return state

    def reset(key, state, params, batch):
        del batch
        keep(key)
        return state, params, None

    method = make_method(
        LOSS,
        SGD,
        regularizer=Regularizer(observe=observe),
        memory=Memory(lambda p, e: e, sample, observe=observe),
        average=Average(observe=observe),
        reset=Reset(reset=reset),
    )
    state = method.init(START, at(slice(1), TASK))
    for seed in (1, 2):
        keep(jax.random.key(seed))
        state, _ = method.step(jax.random.key(seed), state, TASK)
    assert len(seen) == 12
    assert len(set(seen)) == 12
