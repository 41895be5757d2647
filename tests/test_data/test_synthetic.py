"""Data made from a key."""

import jax
import numpy as np

from jaxcl.data import prototypes, synthetic_images
from jaxcl.tree import at


def nearest_mean_accuracy(train_x, train_y, test_x, test_y):
    """Share of test rows whose nearest class mean is their own: a plain classifier."""
    train_x, test_x = (x.reshape(len(x), -1).astype(float) for x in (train_x, test_x))
    means = np.stack([train_x[train_y == c].mean(0) for c in np.unique(train_y)])
    distance = ((test_x[:, None] - means) ** 2).sum(-1)
    return np.mean(distance.argmin(1) == test_y)


def test_synthetic_images_look_like_mnist_in_type_and_can_be_told_apart(key):
    """Oracle: shapes; a nearest-mean classifier on the images and on shuffled labels."""
    images = synthetic_images(key, num_train=400, num_test=100)
    assert images.train_x.shape == (400, 28, 28)
    assert images.train_x.dtype == np.uint8
    assert images.num_classes == 10
    assert set(images.train_y) == set(range(10))
    assert nearest_mean_accuracy(*images[:4]) > 0.95
    rng = np.random.default_rng(0)
    shuffled = images._replace(train_y=rng.permutation(images.train_y))
    assert nearest_mean_accuracy(*shuffled[:4]) < 0.5


def test_a_fifth_of_the_pixels_is_lit_without_noise(key):
    """Oracle: the construction; a class is one picture, and pictures differ."""
    images = synthetic_images(key, num_train=200, num_test=1, num_classes=5, noise=0)
    assert set(np.unique(images.train_x)) == {0, 255}
    np.testing.assert_allclose((images.train_x > 0).mean((1, 2)), 0.2, atol=0.01)
    assert len({x.tobytes() for x in images.train_x}) == 5


def test_synthetic_images_follow_the_key(key):
    """Oracle: determinism."""
    make = lambda key: synthetic_images(key, num_train=20, num_test=5).train_x
    np.testing.assert_array_equal(make(key), make(key))
    assert not np.array_equal(make(key), make(jax.random.key(1)))


def test_prototype_tasks_are_one_another_permuted(key):
    """Oracle: undoing each order by argsort gives the same rows and labels."""
    stream = prototypes(key, num_tasks=3, num_train=200, num_test=50, noise=0.5)
    orders = np.asarray(stream.plan.order)
    tasks = [stream.train(stream.pool, at(t, stream.plan)) for t in range(3)]
    for task, batch in enumerate(tasks):
        plain = np.asarray(batch.x)[:, np.argsort(orders[task])]
        np.testing.assert_array_equal(plain, stream.pool.train_x)
        np.testing.assert_array_equal(batch.y, stream.pool.train_y)
        assert set(batch.task.tolist()) == {task}
    assert not np.array_equal(tasks[0].x, tasks[1].x)
    assert nearest_mean_accuracy(*map(np.asarray, stream.pool)) > 0.95
