"""The episodic memory keeps a fixed share of every finished task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcl.memory import episodic
from jaxcl.tree import as_batch, at
from tests.steps import seen


def task(index, weight=None):
    """Rows numbered 100 * index + 1, 2, ... in x and y."""
    number = 100 * index + 1 + np.arange(6)
    return as_batch(
        number.astype(np.float32)[:, None], number, weight=weight, task=index
    )


def after_tasks(memory, key, tasks):
    """The state after each number of tasks, from none to all."""

    def body(state, item):
        state = memory.end_task(item[0], state, (), item[1])
        return state, state

    def run(key):
        start = memory.init((), tasks[0])
        items = jax.random.split(key, len(tasks)), stack(tasks)
        states = jax.lax.scan(body, start, items)[1]
        return [start] + [at(i, states) for i in range(len(tasks))]

    return jax.jit(run)(key)


def stack(batches):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def largest(key, params, task, capacity):
    del key, params, capacity
    return task.x[:, 0]


def test_each_task_fills_its_slot_and_the_oldest_is_written_over(key):
    """Oracle: a list per task by hand; slot 0 goes to the third task of two slots."""
    memory = episodic(2, 2, select=largest, grouped=True)
    _, *states = after_tasks(memory, key, [task(i) for i in range(3)])
    kept = [memory.sample(key, state) for state in states]
    assert [int(state.tasks_seen) for state in states] == [1, 2, 3]
    assert kept[0].y.tolist() == [[6, 5], [1, 1]]  # copies of the example
    assert kept[0].weight.tolist() == [[1, 1], [0, 0]]
    assert kept[1].y.tolist() == [[6, 5], [106, 105]]
    assert kept[1].task.tolist() == [[0, 0], [1, 1]]
    assert kept[2].y.tolist() == [[206, 205], [106, 105]]
    assert kept[2].task.tolist() == [[2, 2], [1, 1]]


def test_steps_change_nothing(key):
    """Oracle: the state before."""
    memory = episodic(2, 2)
    state = memory.init((), task(0))
    jax.tree.map(
        np.testing.assert_array_equal,
        memory.observe(key, state, seen(task(0)), ()),
        state,
    )


def test_samples_are_uniform_over_rows_and_not_over_tasks(key):
    """Oracle: 5 stored rows, 1 + 4 in two of three slots, of one probability each."""
    memory = episodic(3, 4, 2)
    weights = np.array([[0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    tasks = [task(i, weight=weight) for i, weight in enumerate(weights)]
    state = after_tasks(memory, key, tasks)[-1]
    assert state.filled.tolist() == [1, 4, 0]
    sample = jax.jit(jax.vmap(lambda key: memory.sample(key, state)))
    drawn = sample(jax.random.split(key, 2000))
    assert bool(jnp.all(drawn.weight == 1))
    numbers, counts = np.unique(drawn.y, return_counts=True)
    assert numbers.tolist() == [3, 101, 102, 103, 104]
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(drawn.x[..., 0], drawn.y)


@pytest.mark.parametrize("replace", [True, False])
def test_samples_stay_whole_with_more_tasks_than_rows_to_draw(key, replace):
    """Law: ``sample_size`` real rows, whatever the number of tasks; none before the first.

    Dividing the sample among the tasks, 3 // 5 = 0 rows each, would leave it empty.
    """
    memory = episodic(5, 2, 3, replace=replace)
    sample = jax.jit(memory.sample)
    for count, state in enumerate(
        after_tasks(memory, key, [task(i) for i in range(5)])
    ):
        drawn = sample(key, state)
        assert drawn.weight.shape == (3,)
        expected = 3 if replace and count else min(3, 2 * count)
        assert int(jnp.sum(drawn.weight)) == expected
        real = drawn.weight > 0
        assert set((drawn.y[real] // 100).tolist()) <= set(range(count))
        np.testing.assert_array_equal(drawn.task[real], drawn.y[real] // 100)


@pytest.mark.parametrize(
    ("sample_size", "grouped", "shape"),
    [(None, True, (3, 2)), (5, True, (3, 5)), (None, False, (6,)), (5, False, (5,))],
)
def test_samples_have_the_promised_shape_and_no_weight_where_nothing_is_stored(
    key, sample_size, grouped, shape
):
    """Oracle: the table of the docstring; rows counted by hand after one of three tasks."""
    memory = episodic(3, 2, sample_size, grouped=grouped)
    sample = jax.jit(memory.sample)
    empty, full = (sample(key, state) for state in after_tasks(memory, key, [task(0)]))
    for drawn in (empty, full):
        assert drawn.weight.shape == shape
        assert drawn.x.shape == (*shape, 1)
    assert float(jnp.sum(empty.weight)) == 0
    assert float(jnp.sum(full.weight)) == (sample_size or 2)
    if grouped:
        assert float(jnp.sum(full.weight[1:])) == 0
    assert bool(jnp.all(full.y[full.weight > 0] > 0))


def test_grouped_samples_draw_each_task_from_its_own_slot(key):
    """Oracle: membership, by number; without replacement a slot of two comes whole."""
    memory = episodic(3, 2, 2, grouped=True, replace=False)
    state = after_tasks(memory, key, [task(i) for i in range(3)])[-1]
    drawn = jax.jit(memory.sample)(key, state)
    np.testing.assert_array_equal(np.sort(drawn.y), np.sort(state.kept.y))


def test_padding_and_rows_without_priority_are_never_kept(key):
    """Oracle: of six rows two are padding, one has priority -inf and one NaN."""

    def picky(key, params, task, capacity):
        del key, params, task, capacity
        return jnp.array([9.0, -jnp.inf, 1.0, jnp.nan, 2.0, 8.0])

    rows = task(0, weight=np.array([0.0, 1, 1, 1, 1, 0]))
    memory = episodic(1, 5, select=picky)
    kept = memory.sample(key, after_tasks(memory, key, [rows])[-1])
    assert kept.weight.tolist() == [1, 1, 0, 0, 0]
    assert kept.y[:2].tolist() == [5, 3]


def test_a_task_smaller_than_its_share_is_kept_whole(key):
    """Oracle: the task itself."""
    memory = episodic(2, 9)
    kept = memory.sample(key, after_tasks(memory, key, [task(0)])[-1])
    assert sorted(kept.y[kept.weight > 0].tolist()) == [1, 2, 3, 4, 5, 6]


def test_tasks_can_be_scanned_and_seeds_vmapped(key):
    """Laws: a scan over tasks is a loop; a vmap over keys is a loop; shapes stay."""
    memory = episodic(2, 3, 4)
    tasks = [task(i) for i in range(3)]
    seeds = jax.random.split(key, 2)
    many = jax.vmap(lambda key: after_tasks(memory, key, tasks)[-1])(seeds)

    end_task, state = jax.jit(memory.end_task), memory.init((), tasks[0])
    for key_task, rows in zip(jax.random.split(seeds[1], 3), tasks, strict=True):
        state = end_task(key_task, state, (), rows)
    jax.tree.map(np.testing.assert_array_equal, at(1, many), state)
