"""Streams that show all classes another way, against numpy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxcl.data import (
    as_images,
    mean_and_std,
    permuted,
    permuted_labels,
    rotations,
    stack_plans,
)
from jaxcl.tree import at


def made_up(channels=(), n=20, m=9):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n + m, 6, 5, *channels), dtype=np.uint8)
    y = rng.permutation(np.arange(n + m) % 4)
    return as_images(x[:n], y[:n], x[n:], y[n:], name="toy")


def tasks_of(stream):
    """All tasks, stacked, train and test, as one compiled program makes them."""

    def walk(pool, plan):
        make = lambda plan: (stream.train(pool, plan), stream.test(pool, plan))
        return jax.lax.map(make, plan)

    return jax.tree.map(np.asarray, jax.jit(walk)(stream.pool, stream.plan))


def assert_pixels(found, want):
    np.testing.assert_allclose(found, want, rtol=1.2e-7)  # the last bit: 1/255 rounds


def assert_plain_rows(batch, task, rows):
    np.testing.assert_array_equal(batch.weight[task], np.ones(rows))
    np.testing.assert_array_equal(batch.task[task], np.full(rows, task))
    assert batch.x.dtype == batch.weight.dtype == np.float32
    assert batch.y.dtype == batch.task.dtype == np.int32


@pytest.mark.parametrize(
    ("channels", "flat", "num_examples"),
    [((), True, None), ((), False, 7), ((3,), True, 7), ((3,), False, None)],
)
def test_permuted_tasks_are_those_of_a_loop(key, channels, flat, num_examples):
    """Oracle: a loop over tasks, images and pixels."""
    images = made_up(channels)
    stream = permuted(key, images, num_tasks=3, num_examples=num_examples, flat=flat)
    train, test = tasks_of(stream)
    plan = jax.tree.map(np.asarray, stream.plan)
    for task in range(3):
        rows = np.arange(20) if num_examples is None else plan.rows[task]
        for batch, x, y, chosen in (
            (train, images.train_x, images.train_y, rows),
            (test, images.test_x, images.test_y, np.arange(9)),
        ):
            want = np.empty((len(chosen), 30, *channels), np.float32)
            for i, row in enumerate(chosen):
                old = x[row].reshape(30, *channels)
                for k in range(30):
                    want[i, k] = old[plan.order[task, k]] / np.float32(255)
            shape = (-1,) if flat else (6, 5, *(channels or (1,)))
            want = want.reshape(len(chosen), *shape)
            assert_pixels(batch.x[task], want)
            np.testing.assert_array_equal(batch.y[task], y[chosen])
            assert_plain_rows(batch, task, len(chosen))
    assert stream.num_classes == 4
    assert stream.name == "permuted-toy"


def test_a_permutation_is_undone_by_its_inverse(key):
    """Oracle: argsort of the order; the permuted image itself is another one."""
    images = made_up()
    stream = permuted(key, images, num_tasks=2)
    _, test = tasks_of(stream)
    plain = images.test_x.reshape(9, -1) / np.float32(255)
    for task in range(2):
        back = np.argsort(np.asarray(stream.plan.order)[task])
        assert_pixels(test.x[task][:, back], plain)
        assert not np.array_equal(test.x[task], plain)


def test_identity_first_shows_the_images_as_they_are(key):
    """Oracle: the images; the second task is permuted still."""
    images = made_up()
    train, _ = tasks_of(permuted(key, images, num_tasks=2, identity_first=True))
    plain = images.train_x.reshape(20, -1) / np.float32(255)
    assert_pixels(train.x[0], plain)
    assert not np.array_equal(train.x[1], plain)


def test_tasks_draw_their_own_rows_without_replacement(key):
    """Oracle: sets."""
    stream = permuted(key, made_up(), num_tasks=3, num_examples=12)
    rows = np.asarray(stream.plan.rows)
    assert all(len(set(row)) == 12 and set(row) <= set(range(20)) for row in rows)
    assert len({frozenset(row) for row in rows.tolist()}) == 3


def test_streams_follow_their_keys(key):
    """Oracle: determinism; another key gives another plan."""
    draw = lambda key: permuted(key, made_up(), num_tasks=2, num_examples=5).plan
    same, other = draw(key), draw(jax.random.key(1))
    for a, b, c in zip(*map(jax.tree.leaves, (draw(key), same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == (2,) or not np.array_equal(a, c)


def test_seeds_by_vmap_are_seeds_one_by_one():
    """Oracle: the same streams, each by itself."""
    images = made_up()
    make = lambda seed: permuted(
        jax.random.key(seed), images, num_tasks=2, num_examples=6
    )
    streams = [make(seed) for seed in range(3)]
    both = stack_plans(streams)

    @jax.jit
    def second_task(pool, plan):
        return jax.vmap(lambda plan: both.train(pool, at(1, plan)))(plan)

    stacked = second_task(both.pool, both.plan)
    for seed, stream in enumerate(streams):
        train, _ = tasks_of(stream)
        for found, alone in zip(at(seed, stacked), at(1, train), strict=True):
            np.testing.assert_array_equal(found, alone)
    assert not np.array_equal(stacked.x[0], stacked.x[1])


@pytest.mark.parametrize("channels", [(), (3,)])
def test_normalised_pixels_have_mean_zero_and_deviation_one(key, channels):
    """Oracle: the moments of what comes out, channel by channel."""
    images = made_up(channels)
    stream = permuted(
        key, images, num_tasks=1, flat=False, normalise=mean_and_std(images)
    )
    train, _ = tasks_of(stream)
    np.testing.assert_allclose(train.x[0].mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(train.x[0].std((0, 1, 2)), 1, rtol=1e-6)


def test_permuted_labels_rename_the_classes_one_to_one(key):
    """Oracle: a dictionary from each true class to the name it got."""
    images = made_up()
    stream = permuted_labels(key, images, num_tasks=4, num_examples=12)
    train, test = tasks_of(stream)
    plan = jax.tree.map(np.asarray, stream.plan)
    names = []
    for task in range(4):
        rows = plan.rows[task]
        pairs = set(zip(images.train_y[rows], train.y[task], strict=True))
        pairs |= set(zip(images.test_y, test.y[task], strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        names.append(frozenset(pairs))
        plain = images.train_x[rows].reshape(12, -1) / np.float32(255)
        assert_pixels(train.x[task], plain)
        assert_plain_rows(train, task, 12)
    assert len(set(names)) > 1


@pytest.mark.parametrize("channels", [(), (2,)])
def test_rotations_are_scipys(channels):
    """Oracle: scipy.ndimage.rotate, bilinear, black outside; float32 coordinates."""
    images = made_up(channels, n=3, m=2)
    angles = [0, 30.0, -75.5]
    stream = rotations(images, angles, flat=False)
    train, test = tasks_of(stream)
    for task, angle in enumerate(angles):
        for batch, x in ((train, images.train_x), (test, images.test_x)):
            want = ndimage.rotate(
                x / 255.0,
                angle,
                axes=(2, 1),
                reshape=False,
                order=1,
                mode="grid-constant",
            )
            want = want.reshape(batch.x[task].shape)
            np.testing.assert_allclose(batch.x[task], want, atol=2e-5)
    assert_plain_rows(test, 2, 2)
    assert stream.plan.angle.tolist() == angles


def test_a_quarter_turn_of_a_square_is_exact():
    """Oracle: numpy's rot90, counter-clockwise; the other way round is different."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (4, 7, 7), dtype=np.uint8)
    images = as_images(x[:2], np.arange(2), x[2:], np.arange(2))
    train, _ = tasks_of(rotations(images, jnp.array([90.0]), flat=False))
    turned = np.rot90(x[:2], axes=(1, 2))[..., None] / 255
    np.testing.assert_allclose(train.x[0], turned, atol=1e-4)
    assert abs(train.x[0] - np.rot90(turned, 2, axes=(1, 2))).max() > 0.1
