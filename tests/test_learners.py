"""What is evaluated in place of the parameters: class means, and training from memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxcl.averages import ema
from jaxcl.learners import (
    from_memory_alone,
    kept_rows,
    nearest_mean,
    nearest_mean_outputs,
)
from jaxcl.losses import MASKED, cross_entropy, mean_loss, single_head
from jaxcl.memory import episodic, greedy_balanced, reservoir
from jaxcl.method import default_learner, make_method
from jaxcl.training import accuracies, accuracy_row, first_example, run_stream
from jaxcl.tree import as_batch, at
from jaxcl.typing import Stream

D, H, C, T = 4, 5, 4, 2
SGD = optax.sgd(0.1)


def hidden(params, x):
    return jnp.tanh(x @ params["w"])


def init(key):
    key_w, key_v = jax.random.split(key)
    return {
        "w": jax.random.normal(key_w, (D, H)),
        "v": jax.random.normal(key_v, (H, C)),
    }


LOGITS = single_head(lambda params, x, keys=None: hidden(params, x) @ params["v"])
LOSS = cross_entropy(LOGITS)
PARAMS = init(jax.random.key(0))
OUTPUTS = nearest_mean_outputs(LOGITS, hidden)


def task(index, seed=0):
    """Two new classes per task: 0 and 1, then 2 and 3."""
    key_x, key_y = jax.random.split(jax.random.key(10 * seed + index))
    y = 2 * index + jax.random.randint(key_y, (12,), 0, 2)
    x = jax.random.normal(key_x, (12, D)) + 1.5 * jax.nn.one_hot(y, D)
    return as_batch(x, y, task=index)


def stack(batches):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


STREAM = Stream(
    (),
    {"train": stack([task(0), task(1)]), "test": stack([task(0, 1), task(1, 1)])},
    lambda pool, plan: plan["train"],
    lambda pool, plan: plan["test"],
    C,
    "two tasks of two classes",
)
MEMORIES = {
    "grouped": lambda: episodic(T, 5, grouped=True),
    "reservoir": lambda: reservoir(30, 4),
}


def numpy_means(params, rows):
    """iCaRL, algorithm 1: the mean of unit features of each class, of unit length."""
    features = np.tanh(np.asarray(rows.x) @ np.asarray(params["w"]))
    means = {}
    for label in range(C):
        vectors = [
            weight * feature / np.linalg.norm(feature)
            for feature, y, weight in zip(features, rows.y, rows.weight, strict=True)
            if int(y) == label and weight > 0
        ]
        if vectors:
            mean = np.sum(vectors, axis=0)
            means[label] = mean / np.linalg.norm(mean)
    return means


def numpy_choice(params, means, x):
    """iCaRL, equation 2: the class whose mean is nearest."""
    features = np.tanh(np.asarray(x) @ np.asarray(params["w"]))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    nearest = lambda v: min(means, key=lambda c: np.linalg.norm(v - means[c]))
    return np.array([nearest(v) for v in features])


@functools.cache
def walked(name):
    """After the stream: the method, its state, and a row of accuracies per task."""
    method = make_method(
        LOSS,
        SGD,
        memory=MEMORIES[name](),
        learners=lambda state: {
            "nearest_mean": nearest_mean(hidden, C, chunk_size=3)(state),
            "params": state.params,
        },
    )

    @jax.jit
    def walk(key):
        state = method.init(PARAMS, first_example(STREAM))
        row = accuracy_row(OUTPUTS, STREAM)
        return run_stream(
            key, method, STREAM, state, num_steps=4, batch_size=6, after=row
        )

    return method, *walk(jax.random.key(1))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_stream_is_evaluated_by_the_nearest_mean(name):
    """Oracle: NumPy over kept rows, for each test set; the usual outputs differ."""
    method, state, record = walked(name)
    rows = kept_rows(state)
    assert rows.weight.ndim == 1
    means = numpy_means(state.params, rows)
    assert sorted(means) == list(range(C))
    learner = default_learner(method, state)
    np.testing.assert_allclose(
        learner.means, [means[label] for label in range(C)], atol=1e-5
    )
    tests = [task(0, 1), task(1, 1)]
    hits = [
        np.mean(numpy_choice(state.params, means, test.x) == test.y) for test in tests
    ]
    matrix = np.asarray(record.after)
    np.testing.assert_allclose(matrix[-1], hits, rtol=1e-6)
    again = accuracies(OUTPUTS, learner, STREAM)
    np.testing.assert_allclose(again, hits, rtol=1e-6)
    params = method.learners(state)["params"]
    usual = accuracies(OUTPUTS, params, STREAM)
    np.testing.assert_array_equal(usual, accuracies(LOGITS, state.params, STREAM))
    assert not np.allclose(usual, hits)


@pytest.mark.parametrize("name", MEMORIES)
def test_classes_that_the_memory_does_not_know_are_never_chosen(name):
    """Oracle: after the first task, NumPy over its two classes alone."""
    method = make_method(
        LOSS, SGD, memory=MEMORIES[name](), learners=lambda s: {"params": s.params}
    )
    state = method.init(PARAMS, first_example(STREAM))
    state, _ = method.step(jax.random.key(0), state, task(0))
    state = method.end_task(jax.random.key(1), state, task(0))
    learner = nearest_mean(hidden, C)(state)
    assert learner.known.tolist() == [True, True, False, False]
    scores = OUTPUTS(learner, task(1))
    np.testing.assert_array_equal(scores[:, 2:], MASKED)
    means = numpy_means(state.params, kept_rows(state))
    choice = numpy_choice(state.params, means, task(1).x)
    np.testing.assert_array_equal(jnp.argmax(scores, axis=1), choice)
    for label, mean in means.items():
        features = np.tanh(np.asarray(task(1).x) @ np.asarray(state.params["w"]))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        gaps = np.sum((features - mean) ** 2, axis=1)
        np.testing.assert_allclose(scores[:, label], -gaps, atol=1e-5)


def test_an_empty_memory_knows_no_class_and_gives_numbers():
    """Oracle: finiteness, and the loss of a guess, log c."""
    method = make_method(LOSS, SGD, memory=reservoir(6, 2))
    state = method.init(PARAMS, first_example(STREAM))
    learner = nearest_mean(hidden, C)(state)
    assert not np.any(learner.known)
    assert np.isfinite(learner.means).all()
    np.testing.assert_array_equal(OUTPUTS(learner, task(0)), 0)
    losses = cross_entropy(OUTPUTS)(learner, task(0), None)
    np.testing.assert_allclose(losses, np.log(C), rtol=1e-6)


def test_the_features_may_be_those_of_an_average():
    """Oracle: the nearest mean of a method that has the average as its parameters."""
    average = ema(0.7)
    method = make_method(LOSS, SGD, memory=reservoir(20, 2), average=average)
    state = method.init(PARAMS, first_example(STREAM))
    for step in range(3):
        state, _ = method.step(jax.random.key(step), state, task(0))
    slow = average.read(state.average, state.params)
    read = lambda state: average.read(state.average, state.params)
    found = nearest_mean(hidden, C, read=read)(state)
    want = nearest_mean(hidden, C)(state._replace(params=slow))
    chex.assert_trees_all_equal(found, want)
    assert not np.allclose(found.means, nearest_mean(hidden, C)(state).means)


def test_heavy_rows_count_more_in_a_mean():
    """Oracle: NumPy with the weights; negative control: without them."""
    method = make_method(LOSS, SGD, memory=reservoir(20, 2))
    state = method.init(PARAMS, first_example(STREAM))
    batch = task(0)._replace(weight=jnp.arange(12.0) / 4)
    state, _ = method.step(jax.random.key(0), state, batch)
    rows = kept_rows(state)
    found = nearest_mean(hidden, C)(state).means
    means = numpy_means(state.params, rows)
    np.testing.assert_allclose(found[:2], [means[0], means[1]], atol=1e-5)
    alike = numpy_means(state.params, rows._replace(weight=rows.weight > 0))
    assert np.abs(found[0] - alike[0]).max() > 1e-3


def full_state(offered, capacity=11):
    """A balanced memory of eleven rows to which so many were offered."""
    memory = greedy_balanced(capacity, 1, num_classes=C)
    method = make_method(LOSS, optax.set_to_zero(), memory=memory, replay_weight=0)
    state = method.init(PARAMS, first_example(STREAM))
    rows = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), task(0), task(1))
    rows = rows._replace(weight=(jnp.arange(24) < offered).astype(jnp.float32))
    return method.step(jax.random.key(0), state, rows)[0]


GRAD = jax.jit(jax.grad(lambda p, rows: mean_loss(LOSS, p, rows, jax.random.key(0))))


def trained_by_hand(key, rows, num_epochs, batch_size, rate=0.1, momentum=0.5):
    """A loop over lists of real rows in the order of the same draws."""
    key_init, key_order, _ = jax.random.split(key, 3)
    params, velocity, steps = init(key_init), None, 0
    real = np.flatnonzero(rows.weight)
    for key_epoch in jax.random.split(key_order, num_epochs):
        lots = np.asarray(jax.random.uniform(key_epoch, rows.weight.shape))
        order = real[np.argsort(lots[real])]
        for first in range(0, len(order), batch_size):
            batch = at(order[first : first + batch_size], rows)
            grads = GRAD(params, batch)
            velocity = (
                grads
                if velocity is None
                else jax.tree.map(lambda v, g: momentum * v + g, velocity, grads)
            )
            params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
            steps += 1
    return params, steps


@pytest.mark.parametrize("offered", [4, 5, 11, 24])
def test_training_from_memory_is_a_loop_over_its_rows(offered):
    """Oracle: a Python loop over batches of four rows, each row once per epoch.

    Of a memory of eleven rows: one batch of real rows, two, three of which the last is
    smaller, and a memory that was full before.
    """
    key, state = jax.random.key(5), full_state(offered)
    train = from_memory_alone(
        key, init, LOSS, optax.sgd(0.1, 0.5), num_epochs=3, batch_size=4
    )
    found = jax.jit(train)(state)
    expected, steps = trained_by_hand(key, kept_rows(state), 3, 4)
    assert steps == 3 * -(-min(offered, 11) // 4)
    np.testing.assert_allclose(
        ravel_pytree(found)[0], ravel_pytree(expected)[0], atol=1e-5
    )
    assert not np.allclose(found["w"], PARAMS["w"])


def test_training_from_memory_gives_the_average_of_a_schedule_free_optimizer():
    """Oracle: steps of the bare method on all rows at once. Negative control: the point
    at which it trains."""
    key, state = jax.random.key(5), full_state(11)
    optimizer = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.5)
    train = from_memory_alone(key, init, LOSS, optimizer, num_epochs=3, batch_size=11)
    method = make_method(LOSS, optimizer)
    rows = kept_rows(state)
    own = method.init(init(jax.random.split(key, 3)[0]), at(slice(1), rows))
    for step in range(3):  # all rows in one batch: their order does not matter
        own, _ = method.step(jax.random.key(step), own, rows)
    found = train(state)["w"]
    np.testing.assert_allclose(found, method.learners(own)["average"]["w"], atol=1e-5)
    assert not np.allclose(found, own.params["w"], atol=1e-4)


def test_training_from_memory_ends_its_schedule_with_its_last_step():
    """Oracle: the fraction of the task that a transformation is shown at each step."""
    shown = []

    def update(updates, state, _, *, progress, **_others):
        real = progress.step < progress.num_steps
        jax.debug.callback(
            lambda r, f: shown.append(float(f)) if r else None,
            real,
            progress.fraction(),
        )
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: (), update)
    optimizer = optax.chain(spy, SGD)
    train = from_memory_alone(
        jax.random.key(5), init, LOSS, optimizer, num_epochs=2, batch_size=4
    )
    jax.block_until_ready(train(full_state(5)))
    jax.effects_barrier()
    assert sorted(set(shown)) == [0.0, 0.25, 0.5, 0.75]


def test_training_from_an_empty_memory_gives_the_fresh_network():
    """Oracle: ``init`` with the first of the three keys."""
    key = jax.random.key(5)
    train = from_memory_alone(key, init, LOSS, SGD, num_epochs=2, batch_size=4)
    found = train(full_state(0))
    fresh = init(jax.random.split(key, 3)[0])
    chex.assert_trees_all_equal(found, fresh)


def test_a_stream_is_evaluated_by_training_from_memory():
    """Oracle: the Python loop after the last task, from rows of the final memory."""
    key = jax.random.key(5)
    train = from_memory_alone(
        key, init, LOSS, optax.sgd(0.1, 0.5), num_epochs=3, batch_size=4
    )
    method = make_method(
        LOSS,
        optax.set_to_zero(),
        memory=episodic(T, 5, grouped=True),
        replay_weight=0,
        learners=lambda state: {"from_memory": train(state)},
    )
    state = method.init(PARAMS, first_example(STREAM))
    state, record = jax.jit(
        lambda key, state: run_stream(
            key,
            method,
            STREAM,
            state,
            num_steps=1,
            batch_size=6,
            after=accuracy_row(LOGITS, STREAM),
        )
    )(jax.random.key(1), state)
    params, _ = trained_by_hand(key, kept_rows(state), 3, 4)
    expected = accuracies(LOGITS, params, STREAM)
    np.testing.assert_allclose(record.after[-1], expected, atol=1e-6)
    chex.assert_trees_all_equal(state.params, PARAMS)
