"""Streams that show some classes at a time, against numpy loops."""

import chex
import jax
import numpy as np
import optax
import pytest

from jaxcl.data import (
    as_images,
    class_pairs,
    class_splits,
    split_sizes,
    stack_plans,
    validate,
)
from jaxcl.losses import cross_entropy, heads
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.training import accuracy_row, first_example, run_stream


def made_up(classes=4):
    """Images whose first pixel is their row: classes of 5, 6, 7, ... rows."""
    rng = np.random.default_rng(0)
    train_y = rng.permutation(np.repeat(np.arange(classes), 5 + np.arange(classes)))
    test_y = rng.permutation(np.repeat(np.arange(classes), 2 + np.arange(classes)))
    sets = []
    for y in (train_y, test_y):
        x = rng.integers(0, 256, (len(y), 3, 2), dtype=np.uint8)
        x[:, 0, 0] = np.arange(len(y))
        sets += [x, y]
    return as_images(*sets, name="toy")


def tasks_of(stream):
    """All tasks, stacked, train and test, as one compiled program makes them."""

    def walk(pool, plan):
        make = lambda plan: (stream.train(pool, plan), stream.test(pool, plan))
        return jax.lax.map(make, plan)

    return jax.tree.map(np.asarray, jax.jit(walk)(stream.pool, stream.plan))


def assert_pixels(found, want):
    np.testing.assert_allclose(found, want, rtol=1.2e-7)  # the last bit: 1/255 rounds


def assert_rows(batch, task, images, split, classes, labels, size):
    """The real rows are those of a loop in order; the rest has weight zero."""
    x, y = images[:2] if split == "train" else images[2:4]
    chosen = [i for i in range(len(y)) if y[i] in classes][:size]
    weight = [1.0] * len(chosen) + [0.0] * (size - len(chosen))
    np.testing.assert_array_equal(batch.weight[task], weight)
    np.testing.assert_array_equal(batch.task[task], [task] * size)
    real = slice(0, len(chosen))
    plain = x[chosen].reshape(len(chosen), -1) / np.float32(255)
    assert_pixels(batch.x[task][real], plain)
    assert batch.y[task][real].tolist() == [labels[int(y[i])] for i in chosen]
    assert set(batch.y[task]) <= set(labels.values())  # padding is a row of the task


def test_pairs_come_once_each_in_the_order_of_the_paper():
    """Oracle: the order written out for four classes, and 45 pairs for ten."""
    stream = class_pairs(made_up())
    order = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert stream.plan.classes.tolist() == order
    ten = class_pairs(made_up(10)).plan.classes.tolist()
    assert len(ten) == len({tuple(pair) for pair in ten}) == 45
    assert ten == sorted(ten)
    assert ten[:2] + ten[8:10] + ten[-1:] == [[0, 1], [0, 2], [0, 9], [1, 2], [8, 9]]


@pytest.mark.parametrize("truncate", [False, True])
def test_pairs_hold_the_rows_of_a_loop(truncate):
    """Oracle: a loop over rows; sizes are those of the largest or smallest pair."""
    images = made_up()
    stream = class_pairs(images, truncate=truncate)
    train, test = tasks_of(stream)
    sizes = (5 + 6, 2 + 3) if truncate else (7 + 8, 4 + 5)
    assert (train.y.shape[1], test.y.shape[1]) == sizes
    for task, pair in enumerate(stream.plan.classes.tolist()):
        labels = {pair[0]: 0, pair[1]: 1}
        assert_rows(train, task, images, "train", pair, labels, sizes[0])
        assert_rows(test, task, images, "test", pair, labels, sizes[1])
    assert (test.weight == 0).any() == (not truncate)
    assert stream.num_classes == 2
    assert stream.name == "pairs-toy"


def test_chosen_pairs_keep_their_order_and_their_direction():
    """Oracle: a loop; (3, 1) calls class 3 zero, and sizes fit these pairs only."""
    images = made_up()
    stream = class_pairs(images, pairs=[(3, 1), (0, 1)])
    train, _ = tasks_of(stream)
    assert train.y.shape == (2, 14)
    assert_rows(train, 0, images, "train", [3, 1], {3: 0, 1: 1}, 14)
    assert_rows(train, 1, images, "train", [0, 1], {0: 0, 1: 1}, 14)


@pytest.mark.parametrize("relabel", [True, False])
@pytest.mark.parametrize("truncate", [False, True])
def test_splits_deal_out_every_class_once(key, relabel, truncate):
    """Oracle: a loop over rows; sizes are those of the two largest or smallest."""
    images = made_up(6)
    stream = class_splits(key, images, num_tasks=3, relabel=relabel, truncate=truncate)
    classes = stream.plan.classes.tolist()
    assert sorted(c for group in classes for c in group) == list(range(6))
    train, test = tasks_of(stream)
    sizes = (5 + 6, 2 + 3) if truncate else (9 + 10, 6 + 7)
    for task, group in enumerate(classes):
        labels = {c: group.index(c) if relabel else c for c in group}
        assert_rows(train, task, images, "train", group, labels, sizes[0])
        assert_rows(test, task, images, "test", group, labels, sizes[1])
    assert stream.num_classes == (2 if relabel else 6)


@pytest.mark.parametrize("truncate", [False, True])
def test_even_splits_are_those_of_one_permutation_cut_in_equal_parts(key, truncate):
    """Oracle: the split in NumPy, before sizes could differ; equal in every number."""
    images = made_up(6)
    plan = class_splits(key, images, num_tasks=3, truncate=truncate).plan
    words = np.asarray(jax.random.key_data(key)).tolist()
    groups = np.random.default_rng(words).permutation(np.arange(6)).reshape(3, 2)
    np.testing.assert_array_equal(plan.classes, groups)
    assert plan.classes.dtype == np.int32
    parts = (plan.train_rows, plan.train_count), (plan.test_rows, plan.test_count)
    for y, (rows, counts) in zip((images.train_y, images.test_y), parts, strict=True):
        each = sorted(np.sum(y == c) for c in range(6))
        size = sum(each[:2] if truncate else each[-2:])
        for task, group in enumerate(groups):
            found = [i for i in range(len(y)) if y[i] in group][:size]
            assert counts[task] == len(found)
            padding = [found[0]] * (size - len(found))
            assert rows[task].tolist() == found + padding
    by_sizes = class_splits(key, images, sizes=(2, 2, 2), truncate=truncate).plan
    chex.assert_trees_all_equal(plan, by_sizes)


@pytest.mark.parametrize("relabel", [True, False])
@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2, 2), (1, 4), (2, 1, 1)])
def test_tasks_of_unequal_sizes_hold_the_rows_of_a_loop(key, sizes, relabel, truncate):
    """Oracle: a loop over rows; the width is that of the widest or narrowest task."""
    images = made_up(7)
    stream = class_splits(key, images, sizes=sizes, relabel=relabel, truncate=truncate)
    assert stream.plan.classes.shape == (len(sizes), max(sizes))
    groups = [[c for c in row if c >= 0] for row in stream.plan.classes.tolist()]
    assert tuple(map(len, groups)) == sizes
    dealt = [c for group in groups for c in group]
    assert len(set(dealt)) == sum(sizes)
    train, test = tasks_of(stream)
    width = min(sizes) if truncate else max(sizes)
    ordered = lambda first: sorted(first + c for c in range(7))
    rows = [
        sum(ordered(n)[:width] if truncate else ordered(n)[-width:]) for n in (5, 2)
    ]
    for task, group in enumerate(groups):
        labels = {c: group.index(c) if relabel else c for c in group}
        assert_rows(train, task, images, "train", group, labels, rows[0])
        assert_rows(test, task, images, "test", group, labels, rows[1])
    assert stream.num_classes == (max(sizes) if relabel else 7)
    assert validate(stream) is stream


def test_a_number_of_tasks_deals_the_classes_as_evenly_as_it_can(key):
    """Oracle: written out by hand; the parts of one split are those of its sizes."""
    assert split_sizes(10, 3) == (4, 3, 3)
    assert split_sizes(10, 4) == (3, 3, 2, 2)
    assert split_sizes(10, 5) == (2,) * 5
    assert split_sizes(3, 3) == (1, 1, 1)
    images = made_up(7)
    plans = [
        class_splits(key, images, **given).plan
        for given in ({"num_tasks": 3}, {"sizes": (3, 2, 2)})
    ]
    chex.assert_trees_all_equal(*plans)
    plain = class_splits(key, images, num_tasks=3, shuffle_classes=False).plan
    assert plain.classes.tolist() == [[0, 1, 2], [3, 4, -1], [5, 6, -1]]


def test_heads_of_unequal_sizes_learn_tasks_of_unequal_sizes(key):
    """Oracle: a NumPy loop that scores each task on its own slice of the outputs.

    Control: the labels of the widest task do not fit the head of a narrow one.
    """
    images, sizes = easy(key, classes=10), split_sizes(10, 3)
    stream = class_splits(key, images, num_tasks=3)
    model = mlp((images.train_x[0].size, 16, sum(sizes)))

    @jax.jit
    def learn(key, pool, plan):
        given = stream._replace(pool=pool, plan=plan)
        outputs = heads(model.apply, sizes)
        method = make_method(cross_entropy(outputs), optax.sgd(0.3))
        state = method.init(model.init(key), first_example(given))
        row = accuracy_row(outputs, given)
        options = {"num_steps": 60, "batch_size": 10, "after": row}
        return run_stream(key, method, given, state, **options)

    state, record = learn(key, stream.pool, stream.plan)
    assert bool(record.finite.all())
    _, test = tasks_of(stream)
    ends = np.cumsum(sizes)
    expected = []
    for task, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        logits = np.asarray(model.apply(state.params, test.x[task]))[
            :, end - size : end
        ]
        hits = logits.argmax(1) == test.y[task]
        expected.append(hits[test.weight[task] > 0].mean())
    np.testing.assert_allclose(record.after[-1], expected, rtol=1e-6)
    assert min(np.diagonal(record.after)) > 0.9
    assert (test.weight == 0).any()
    assert test.y.max() == max(sizes) - 1 >= min(sizes)


def easy(key, *, classes):
    """Images of one bright pixel a class, in noise."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    sets = []
    for rows in (12, 5):
        y = rng.permutation(np.repeat(np.arange(classes), rows))
        x = rng.integers(0, 60, (len(y), 4, 4), dtype=np.uint8)
        x.reshape(len(y), -1)[np.arange(len(y)), y] = 255
        sets += [x, y]
    return as_images(*sets, name="easy")


def test_classes_come_in_order_unless_shuffled(key):
    """Oracle: the natural order; 5040 others make a chance agreement unlikely."""
    images = made_up(8)
    plain = class_splits(key, images, num_tasks=4, shuffle_classes=False)
    assert plain.plan.classes.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    orders = {
        str(class_splits(jax.random.key(s), images, num_tasks=4).plan.classes.tolist())
        for s in range(4)
    }
    assert len(orders) == 4


def test_splits_of_all_seeds_have_one_shape(key):
    """Oracle: stack_plans accepts them although their classes differ in rows."""
    images = made_up(8)
    keys = [jax.random.fold_in(key, seed) for seed in range(5)]
    streams = [class_splits(k, images, num_tasks=4) for k in keys]
    both = stack_plans(streams)
    assert both.plan.train_rows.shape == (5, 4, 11 + 12)
    counts = np.asarray(both.plan.train_count)
    assert (counts.sum(1) == len(images.train_y)).all()
    assert len(np.unique(counts)) > 1
