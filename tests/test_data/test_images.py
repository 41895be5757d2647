"""Image sets in memory."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxcl.data import as_images, digits, mean_and_std, only_classes, padded, subset


def made_up(channels=(), n=30, m=12):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n + m, 4, 5, *channels), dtype=np.uint8)
    y = np.arange(n + m) % 3
    return as_images(x[:n], y[:n], x[n:], y[n:], name="toy")


def test_digits_are_all_of_scikit_learns_images():
    """Oracle: the package's own arrays, row by row, after scaling 16 to 255."""
    images, whole = digits(), load_digits(return_X_y=True)
    rows = {
        (label, np.round(np.float64(255 * row / 16)).astype(np.uint8).tobytes())
        for row, label in zip(*whole, strict=True)
    }
    found = [
        (label, image.tobytes())
        for x, y in (images[:2], images[2:4])
        for image, label in zip(x, y.tolist(), strict=True)
    ]
    assert set(found) == rows
    assert len(found) == len(whole[1]) == 1797
    assert images.train_x.shape == (1442, 8, 8)
    assert images.train_x.dtype == np.uint8
    assert images.train_x.max() == 255
    assert images.train_y.dtype == np.int32
    assert images.num_classes == 10


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_digits_are_split_evenly_within_each_class(share):
    """Oracle: counting; a class of n gives floor(n * share) rows for testing."""
    images = digits(test_fraction=share)
    train, test = np.bincount(images.train_y), np.bincount(images.test_y)
    np.testing.assert_array_equal(test, np.floor((train + test) * share))


def test_digits_come_the_same_every_time():
    """Oracle: determinism, no random number is drawn."""
    for once, again in zip(digits()[:4], digits()[:4], strict=True):
        np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("per_class", [False, True])
def test_a_subset_is_rows_of_the_set_in_their_order(key, random, per_class):
    """Oracle: a search for each kept image in the whole set."""
    images = made_up()
    part = subset(
        images,
        num_train=4,
        num_test=2,
        per_class=per_class,
        key=key if random else None,
    )
    count = 3 if per_class else 1
    for x, y, whole, labels, kept in (
        (part.train_x, part.train_y, images.train_x, images.train_y, 4 * count),
        (part.test_x, part.test_y, images.test_x, images.test_y, 2 * count),
    ):
        places = [
            next(i for i, image in enumerate(whole) if np.array_equal(image, row))
            for row in x
        ]
        assert places == sorted(set(places))
        assert len(places) == kept
        np.testing.assert_array_equal(y, labels[places])
        if not random:
            assert places == list(range(kept))  # the classes alternate
        if per_class:
            assert (np.bincount(y) == kept / 3).all()


def test_random_subsets_follow_the_key(key):
    """Oracle: determinism; ten of thirty rows agree by chance once in 3e7."""
    images = made_up()
    draw = lambda key: subset(images, num_train=10, key=key).train_x
    np.testing.assert_array_equal(draw(key), draw(key))
    assert not np.array_equal(draw(key), draw(jax.random.key(1)))


def test_a_subset_of_everything_is_everything(key):
    """Oracle: the neutral element."""
    images = made_up()
    for whole, same in zip(images[:4], subset(images, key=key)[:4], strict=True):
        np.testing.assert_array_equal(whole, same)


def test_some_classes_are_their_rows_under_new_numbers():
    """Oracle: numpy, class by class; the third class is the negative control."""
    images = made_up()
    kept = only_classes(images, [2, 0])
    assert (kept.num_classes, kept.name) == (2, images.name)
    for x, y, whole, labels in (
        (kept.train_x, kept.train_y, images.train_x, images.train_y),
        (kept.test_x, kept.test_y, images.test_x, images.test_y),
    ):
        assert y.dtype == np.int32
        np.testing.assert_array_equal(x, whole[labels != 1])
        np.testing.assert_array_equal(x[y == 0], whole[labels == 2])
        np.testing.assert_array_equal(x[y == 1], whole[labels == 0])


@pytest.mark.parametrize("channels", [(), (3,)])
def test_padding_frames_the_image_in_black(channels):
    """Oracle: the inside is the image, and nothing was added to the sum."""
    images = made_up(channels)
    framed = padded(images, 2)
    assert framed.train_x.shape == (30, 8, 9, *channels)
    np.testing.assert_array_equal(framed.test_x[:, 2:-2, 2:-2], images.test_x)
    assert framed.test_x.sum(dtype=int) == images.test_x.sum(dtype=int)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_mean_and_std_are_those_of_the_training_pixels(channels):
    """Oracle: numpy in float64, channel by channel."""
    images = made_up(channels)
    pixels = (images.train_x / 255).reshape(-1, *channels)
    mean, std = mean_and_std(images)
    assert mean.shape == std.shape == channels
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-6)


X, Y = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 2, 0])


def test_columns_of_labels_become_vectors_and_classes_are_counted():
    """Oracle: the arrays given."""
    images = as_images(X, Y[:, None], X, Y[:, None] + 2)
    np.testing.assert_array_equal(images.train_y, Y)
    assert images.num_classes == 5
