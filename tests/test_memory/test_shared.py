"""A memory of one size that tasks share, and a reservoir that gives back the past."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.memory import reservoir, shared_episodic
from jaxcl.tree import as_batch
from tests.steps import seen


def task(index, rows=7):
    number = 100 * index + 1 + np.arange(rows)
    return as_batch(number.astype(np.float32)[:, None], number, task=index)


def largest(key, params, data, capacity):
    """Rows of the largest numbers first."""
    del key, params, capacity
    return data.y.astype(jnp.float32)


def test_tasks_share_the_places_and_keep_their_best_rows():
    """Oracle: a list per task by hand: the first 8 // t of each, best first."""
    memory, key = shared_episodic(8, select=largest), jax.random.key(0)
    state, by_hand = memory.init((), task(0)), []
    end = jax.jit(memory.end_task)
    for index in range(9):
        state = end(key, state, (), task(index))
        rows = sorted(task(index).y.tolist(), reverse=True)
        part = 8 // (index + 1)
        by_hand = [kept[:part] for kept in [*by_hand, rows]]
        kept = memory.sample(key, state)
        assert kept.weight.shape == (8,)
        found = kept.y[kept.weight > 0].tolist()
        assert found == [row for rows in by_hand for row in rows]
    assert not any(by_hand)  # nine tasks have no place each


def test_a_short_task_leaves_its_places_empty_and_samples_skip_them():
    """Oracle: counting; every stored row is drawn equally often."""
    memory, key = shared_episodic(6, 4), jax.random.key(0)
    state = memory.init((), task(0))
    state = memory.end_task(key, state, (), task(0, rows=1))
    state = memory.end_task(key, state, (), task(1))
    assert state.kept.weight.tolist() == [1, 0, 0, 1, 1, 1]
    keys = jax.random.split(jax.random.key(1), 3000)
    drawn = jax.vmap(lambda key: memory.sample(key, state))(keys)
    assert (drawn.weight == 1).all()
    _, counts = np.unique(drawn.y, return_counts=True)
    np.testing.assert_allclose(counts / 12000, 0.25, atol=0.02)


@pytest.mark.parametrize("replace", [True, False])
def test_a_reservoir_may_give_back_past_tasks_only(replace):
    """Oracle: the task of each sampled row. Negative control: the same memory without the
    option gives rows of the current task."""
    key = jax.random.key(0)
    for past_only in (True, False):
        memory = reservoir(12, 5, past_only=past_only, replace=replace)
        state = memory.init((), task(0))
        assert not memory.sample(key, state).weight.any()
        state = memory.observe(key, state, seen(task(0)), ())
        drawn = memory.sample(key, state)
        assert bool(drawn.weight.any()) == (not past_only)
        state = memory.end_task(key, state, (), task(0))
        for number in range(3):  # more rows than places: past ones are written over
            step_key = jax.random.key(number)
            state = memory.observe(step_key, state, seen(task(1)), ())
        keys = jax.random.split(jax.random.key(1), 50)
        drawn = jax.vmap(lambda key, m=memory, s=state: m.sample(key, s))(keys)
        tasks = set(np.unique(drawn.task[drawn.weight > 0]))
        assert tasks == ({0} if past_only else {0, 1})
        left = np.sum((state.kept.task == 0) & (state.kept.weight > 0))
        want = 5 if replace else min(5, left)
        if past_only:
            assert (drawn.weight > 0).sum(axis=1).tolist() == [want] * 50
