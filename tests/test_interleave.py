"""Replay as steps of its own, between those on new rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.averages import ema
from jaxcl.interleave import InterleavedState, interleave
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import episodic, reservoir
from jaxcl.method import default_learner, make_method
from jaxcl.regularizers import synaptic_intelligence
from jaxcl.training.device import first_example, run_stream
from jaxcl.transforms import sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import Regularizer, Stream
from tests.steps import seen

D, C, T = 4, 3, 2


def noisy(params, x, keys=None):
    """A network that draws, so that every key matters."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (D,)))
    return (x if keys is None else x + 0.2 * noise(keys)) @ params


LOGITS = single_head(noisy)
LOSS = cross_entropy(LOGITS)
PARAMS = jax.random.normal(jax.random.key(0), (D, C))
X = jax.random.normal(jax.random.key(1), (T, 12, D))
Y = jnp.argmax(X[:, :, :C], axis=2)
PARTS = {"average": ema(0.5), "gradient": sam(0.1)}


def build(**parts):
    regularizer = synaptic_intelligence(0.5)
    return make_method(LOSS, optax.adam(0.1), regularizer=regularizer, **parts)


METHOD = build(**PARTS)
STEP, END = jax.jit(METHOD.step), jax.jit(METHOD.end_task)
MEMORIES = {"reservoir": reservoir(6, 3, store=LOGITS), "episodic": episodic(T, 4, 3)}


def task(index):
    return as_batch(X[index], Y[index], task=index)


def batch_of(index, step):
    return at((4 * step + np.arange(5)) % 12, task(index))


def by_hand(memory, key, *, every, num_steps):
    """Two tasks by calls of the method's own functions, with the same keys."""
    example = at(slice(1), task(0))
    state, replay = METHOD.init(PARAMS, example), memory.init(PARAMS, example)
    replayed = 0
    for index in range(T):
        for i in range(num_steps):
            one = jax.random.fold_in(key, 10 * index + i)
            key_step, key_replay, key_sample, key_observe = jax.random.split(one, 4)
            rows = memory.sample(key_sample, replay)._replace(stored=())
            before = state.params
            state, _ = STEP(key_step, state, batch_of(index, i))
            if (i + 1) % every == 0 and np.any(rows.weight):
                counted = state.progress
                state, _ = STEP(key_replay, state, rows)
                state = state._replace(progress=counted)
                replayed += 1
            step = seen(batch_of(index, i), before)
            replay = memory.observe(key_observe, replay, step, state.params)
        ends = jax.random.split(jax.random.fold_in(key, 10 * index + 9))
        state = END(ends[0], state, task(index))
        replay = memory.end_task(ends[1], replay, state.params, task(index))
    return state, replay, replayed


def interleaved(memory, key, *, every, num_steps):
    method = interleave(METHOD, memory, every=every)
    state = method.init(PARAMS, at(slice(1), task(0)))
    step = jax.jit(method.step)
    for index in range(T):
        for i in range(num_steps):
            one = jax.random.fold_in(key, 10 * index + i)
            state, info = step(one, state, batch_of(index, i))
            assert int(state.progress.step) == i + 1
            assert np.isfinite(info.loss)
        last = jax.random.fold_in(key, 10 * index + 9)
        state = method.end_task(last, state, task(index))
        assert (int(state.progress.task), int(state.progress.step)) == (index + 1, 0)
    return method, state


def assert_same(left, right, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


@pytest.mark.parametrize(
    ("name", "every", "replays"),
    [("reservoir", 2, 4), ("reservoir", 1, 9), ("episodic", 2, 2), ("episodic", 1, 5)],
)
def test_it_alternates_steps_of_the_method(name, every, replays):
    """Oracle: the method's own steps called in turn; SAM, SI, Adam and an average.

    Nine of ten steps find rows in a reservoir, and the five of the second task in an
    episodic memory; counting begins with the task.
    """
    key, memory = jax.random.key(3), MEMORIES[name]
    state, replay, replayed = by_hand(memory, key, every=every, num_steps=5)
    assert replayed == replays
    method, found = interleaved(memory, key, every=every, num_steps=5)
    assert isinstance(found.memory, InterleavedState)
    assert_same(found._replace(memory=state.memory), state)
    assert_same(found.memory.replay, replay)
    assert_same(default_learner(method, found), state.average.average)
    never = by_hand(memory, key, every=100, num_steps=5)[0]
    assert np.abs(never.params - state.params).max() > 1e-3


def test_the_info_is_that_of_the_step_on_new_rows():
    """Oracle: the method's own step with the first key, whose loss is on new rows."""
    memory, key = MEMORIES["reservoir"], jax.random.key(3)
    method = interleave(METHOD, memory, every=1)
    state = method.init(PARAMS, at(slice(1), task(0)))
    state, _ = method.step(key, state, batch_of(0, 0))
    _, info = method.step(key, state, batch_of(1, 1))
    alone = state._replace(memory=state.memory.own)
    _, wanted = METHOD.step(jax.random.split(key, 4)[0], alone, batch_of(1, 1))
    np.testing.assert_allclose(info.loss, wanted.loss, rtol=1e-6)


def test_a_replay_step_has_the_progress_of_the_step_before():
    """Oracle: counting by hand: the last step of a task is followed by a replay, and both
    are at its place; the step before is followed by none."""

    def mark(key, state, step, params):
        del key, params
        return state.at[step.progress.step].add(1)

    count = Regularizer(lambda params, example: jnp.zeros(4, jnp.int32), observe=mark)
    method = make_method(LOSS, optax.sgd(0.1), regularizer=count)
    method = interleave(method, MEMORIES["reservoir"], every=2)
    state = method.init(PARAMS, at(slice(1), task(0)))
    for step in range(4):
        state, _ = method.step(jax.random.key(step), state, batch_of(0, step))
    assert state.regularizer.tolist() == [1, 2, 1, 2]
    assert int(state.progress.step) == 4


def test_while_the_memory_is_empty_it_is_the_method_bit_for_bit():
    """Law: an episodic memory is empty for the whole first task. Control: the second."""
    method = interleave(METHOD, MEMORIES["episodic"], every=1)
    ours, step = method.init(PARAMS, at(slice(1), task(0))), jax.jit(method.step)
    plain = METHOD.init(PARAMS, at(slice(1), task(0)))
    for i in range(4):
        key = jax.random.key(i)
        ours, _ = step(key, ours, batch_of(0, i))
        plain, _ = STEP(jax.random.split(key, 4)[0], plain, batch_of(0, i))
        np.testing.assert_array_equal(ours.params, plain.params)
    ours = method.end_task(key, ours, task(0))
    plain = METHOD.end_task(jax.random.split(key)[0], plain, task(0))
    np.testing.assert_array_equal(ours.params, plain.params)
    ours, _ = step(key, ours, batch_of(1, 0))
    plain, _ = STEP(jax.random.split(key, 4)[0], plain, batch_of(1, 0))
    assert np.abs(ours.params - plain.params).max() > 1e-3


PLAN = jax.tree.map(lambda *leaves: jnp.stack(leaves), task(0), task(1))
VIEW = lambda pool, plan: plan
STREAM = Stream((), PLAN, VIEW, VIEW, C, "two tasks")


@pytest.mark.parametrize("name", MEMORIES)
def test_runs_side_by_side_are_those_one_by_one(name):
    """Oracle: the same runs without vmap, over a whole stream in one scan."""

    def run(key):
        method = interleave(METHOD, MEMORIES[name], every=2)
        state = method.init(PARAMS, first_example(STREAM))
        state, _ = run_stream(key, method, STREAM, state, num_steps=5, batch_size=4)
        return state.params, state.progress, state.memory.replay.kept.x

    keys = jax.random.split(jax.random.key(4), 2)
    together = jax.jit(jax.vmap(run))(keys)
    alone = jax.jit(run)
    for i, key in enumerate(keys):
        assert_same(at(i, together), alone(key), atol=1e-5)
    assert np.abs(together[0][0] - together[0][1]).max() > 1e-3


def test_under_vmap_no_replay_is_computed_while_none_is_due():
    """Oracle: how often the loss of a replay is really asked for, by a callback.

    Three steps of two runs, a replay at every third: three batches, which both runs
    share, and one replay of each.
    """
    calls = []

    def counted(params, batch, keys):
        jax.debug.callback(lambda rows: calls.append(rows.shape), batch.x)
        return LOSS(params, batch, keys)

    method = interleave(make_method(counted, optax.sgd(0.1)), reservoir(6, 3), every=3)

    @jax.jit
    @jax.vmap
    def run(key):
        state = method.init(PARAMS, at(slice(1), task(0)))
        batches = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(batch_of(0, i) for i in range(3))
        )
        body = lambda state, item: (method.step(*item[:1], state, item[1])[0], None)
        return jax.lax.scan(body, state, (jax.random.split(key, 3), batches))[0].params

    jax.block_until_ready(run(jax.random.split(jax.random.key(0), 2)))
    jax.effects_barrier()
    assert sum(shape[-2] == 3 for shape in calls) == 2
    assert sum(shape[-2] == 5 for shape in calls) == 3


def test_a_loop_writes_to_the_store_in_place():
    """Oracle: the compiled program, whose text has no copy of a store of 977 rows."""
    method = interleave(METHOD, reservoir(977, 3), every=2)
    state = method.init(PARAMS, at(slice(1), task(0)))
    step = lambda state, key: (method.step(key, state, batch_of(0, 0))[0], None)
    run = jax.jit(lambda s, k: jax.lax.scan(step, s, k)[0], donate_argnums=0)
    text = run.lower(state, jax.random.split(jax.random.key(0), 5)).compile().as_text()
    assert f"f32[977,{D}]" in text
    copies = [line for line in text.splitlines() if " copy(" in line]
    assert not any(f"f32[977,{D}]" in line for line in copies)


def test_the_end_of_a_task_feeds_an_episodic_memory():
    """Oracle: rows of the task that ended, and how many there are; none before."""
    _, state = interleaved(
        MEMORIES["episodic"], jax.random.key(0), every=2, num_steps=1
    )
    kept = state.memory.replay.kept
    assert state.memory.replay.filled.tolist() == [4, 4]
    for index in range(T):
        assert kept.task[index].tolist() == [index] * 4
        for row in kept.x[index]:
            assert np.any(np.all(row == X[index], axis=1))
