"""All tasks of a stream as one task."""

import jax
import numpy as np
import optax
import pytest

from jaxcl.data import (
    class_splits,
    digits,
    joint,
    permuted,
    stack_plans,
    stack_tasks,
    subset,
    take_tasks,
    validate,
)
from jaxcl.losses import cross_entropy, heads, single_head
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.training import accuracy_row, first_example, run_stream
from jaxcl.tree import as_batch, at, num_tasks


def streams(key):
    """Tasks of unequal numbers of classes, of permuted pixels, and of arrays."""
    images = subset(digits(), num_train=40, num_test=30)
    rows = lambda task, count: as_batch(
        np.random.default_rng(task).standard_normal((count, 3)), np.arange(count) % 2
    )
    pairs = [(rows(task, 3 + task), rows(9 + task, 2)) for task in range(3)]
    return {
        "splits": class_splits(key, images, num_tasks=3),
        "permuted": permuted(key, images, num_tasks=2, num_examples=7),
        "arrays": stack_tasks(pairs, num_classes=2),
    }


@pytest.mark.parametrize("kind", ["splits", "permuted", "arrays"])
def test_the_one_task_holds_the_rows_of_all_tasks_in_order(key, kind):
    """Oracle: a loop that makes each task by itself and joins them in NumPy."""
    stream = streams(key)[kind]
    one = validate(joint(stream))
    assert num_tasks(one.plan) == 1
    assert one.pool is stream.pool
    assert (one.num_classes, one.name) == (stream.num_classes, f"joint-{stream.name}")
    for split in ("train", "test"):
        alone = jax.jit(getattr(stream, split))
        parts = [
            alone(stream.pool, at(task, stream.plan))
            for task in range(num_tasks(stream.plan))
        ]
        found = jax.jit(getattr(one, split))(one.pool, at(0, one.plan))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        jax.tree.map(np.testing.assert_array_equal, found, joined)
        assert set(np.asarray(found.task)) == set(range(len(parts)))


def test_joint_learning_knows_all_tasks_where_the_stream_forgets(key):
    """Oracle: a task's labels are the complement of the other's for the same inputs.

    One head that learns them in order ends at the last task only; a head for each, and
    all rows at once, answer both. The row of the original stream measures them apart.
    """
    x = np.random.default_rng(0).standard_normal((40, 2))
    y = (x[:, 0] > 0).astype(int)
    tasks = [as_batch(x, labels, task=t) for t, labels in enumerate((y, 1 - y))]
    stream = stack_tasks([(task, task) for task in tasks], num_classes=2)

    @jax.jit
    def learn(key):
        def ends(given, outputs):
            method = make_method(cross_entropy(outputs), optax.sgd(0.5))
            state = method.init(model.init(key), first_example(given))
            row = accuracy_row(outputs, stream)
            options = {"num_steps": 80, "batch_size": 20, "after": row}
            return run_stream(key, method, given, state, **options)[1].after[-1]

        model = mlp((2, 8, 4))
        own, shared = heads(model.apply, (2, 2)), single_head(model.apply)
        return ends(joint(stream), own), ends(stream, shared)

    together, in_order = learn(key)
    assert together.min() > 0.9
    assert in_order[0] < 0.2
    assert in_order[1] > 0.9


def test_joint_streams_of_seeds_are_stacked_and_run_side_by_side(key):
    """Law: vmap over stacked plans gives each seed's rows; the seeds differ."""
    images = subset(digits(), num_train=20, num_test=10)
    seeds = [permuted(jax.random.fold_in(key, s), images, num_tasks=2) for s in (0, 1)]
    both = stack_plans([joint(stream) for stream in seeds])
    make = jax.vmap(lambda plan: both.train(both.pool, at(0, plan)))
    found = jax.jit(make)(both.plan)
    for number, stream in enumerate(seeds):
        one = joint(stream)
        alone = jax.jit(one.train)(one.pool, at(0, one.plan))
        jax.tree.map(
            np.testing.assert_array_equal, at(number, found), jax.device_get(alone)
        )
    assert not np.array_equal(found.x[0], found.x[1])


def test_the_first_tasks_alone_are_joined_after_they_are_taken(key):
    """Oracle: the first rows of the whole."""
    stream = streams(key)["permuted"]
    part = joint(take_tasks(stream, slice(1)))
    found = part.train(part.pool, at(0, part.plan))
    assert found.task.tolist() == [0] * 7
