"""Streams that show some classes at a time, against numpy loops."""

import jax
import numpy as np
import pytest

from jaxcl.data import as_images, class_pairs, class_splits, stack_plans


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


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda _, i: class_pairs(i, pairs=[(0, 4)]),
            r"classes of 0 to 3, got \(0, 4\)",
        ),
        (
            lambda _, i: class_pairs(i, pairs=[(0, 1), (2, 2)]),
            r"different.*got \(2, 2\)",
        ),
        (lambda _, i: class_pairs(i, pairs=[]), "an empty list"),
        (
            lambda _, i: class_pairs(i._replace(num_classes=6)),
            "class 4 of toy lacks some",
        ),
        (lambda k, i: class_splits(k, i, num_tasks=3), "divide the 4 classes, got 3"),
        (lambda k, i: class_splits(k, i, num_tasks=0), "num_tasks must be at least 1"),
        (
            lambda k, i: class_splits(k, i._replace(num_classes=5), num_tasks=5),
            "class_splits: every class needs .* class 4",
        ),
    ],
)
def test_misuse_is_refused_in_one_line(key, build, words):
    """Oracle: the message names who, what was expected and what came."""
    with pytest.raises(ValueError, match=words) as error:
        build(key, made_up())
    assert "\n" not in str(error.value)
