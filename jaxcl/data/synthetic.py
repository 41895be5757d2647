"""Synthetic data from a key, for benchmarks and tests."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxcl.data.draws import generator, permutations
from jaxcl.data.images import Images, as_images
from jaxcl.data.pixels import Pool, pool_stream, task_batch, task_numbers
from jaxcl.errors import check_number, check_size
from jaxcl.typing import Key, Stream


def synthetic_images(
    key: Key,
    *,
    num_train: int = 10_000,
    num_test: int = 2_000,
    num_classes: int = 10,
    size: int = 28,
    noise: float | int = 0.3,
) -> Images:
    """Grey images like MNIST in shape, dtype and fraction of nonzero pixels.

    A class is a smooth random pattern whose brightest fifth is white; an image is its
    class's pattern plus Gaussian noise, clipped to 0..255.

    Args:
      key: draws everything.
      num_train: training images ``[n, size, size]``.
      num_test: test images.
      num_classes: classes, drawn with equal probability.
      size: height and width in pixels.
      noise: standard deviation in units of a white pixel.
    """
    check_size("synthetic_images", num_train=num_train, num_test=num_test)
    check_size("synthetic_images", num_classes=num_classes, size=size)
    check_number("synthetic_images", noise=noise)
    rng = generator(key)
    field = rng.random((num_classes, size, size), np.float32)
    for axis in (1, 2, 1, 2):
        field = field + np.roll(field, 1, axis) + np.roll(field, -1, axis)
    cut = np.quantile(field, 0.8, axis=(1, 2), keepdims=True)
    patterns = (field >= cut).astype(np.float32)

    def draw(count):
        y = rng.integers(num_classes, size=count)
        x = rng.standard_normal((count, size, size), np.float32)
        x *= noise
        x += patterns[y]
        return (np.clip(x, 0, 1) * 255).astype(np.uint8), y

    return as_images(
        *draw(num_train), *draw(num_test), num_classes=num_classes, name="synthetic"
    )


class PrototypePlan(NamedTuple):
    """The plan of :func:`prototypes`."""

    task: Int[Array, " T"]
    order: Int[Array, "T d"]  # new feature k is old feature order[k]


def prototypes(
    key: Key,
    *,
    num_tasks: int = 5,
    num_train: int = 1_000,
    num_test: int = 500,
    num_features: int = 64,
    num_classes: int = 10,
    noise: float | int = 1.5,
) -> Stream:
    """Noisy points around class centres; every task permutes the features.

    ``x = centre[y] + noise * n`` with standard normal ``centre`` and ``n``. A small
    stream on which a network learns and forgets.

    Args:
      key: draws centres, rows and permutations.
      num_tasks: tasks ``T``.
      num_train: training rows of a task, the same ones in each.
      num_test: test rows of a task.
      num_features: features ``d``.
      num_classes: classes, drawn with equal probability.
      noise: standard deviation around the centres, whose own is 1.
    """
    check_size("prototypes", num_tasks=num_tasks, num_classes=num_classes)
    check_size("prototypes", num_train=num_train, num_test=num_test)
    check_size("prototypes", num_features=num_features)
    check_number("prototypes", noise=noise)
    rng = generator(key)
    order = permutations(rng, num_tasks, num_features)
    centres = rng.standard_normal((num_classes, num_features), np.float32)

    def draw(count):
        y = rng.integers(num_classes, size=count, dtype=np.int32)
        x = noise * rng.standard_normal((count, num_features), np.float32) + centres[y]
        return jnp.asarray(x, jnp.float32), jnp.asarray(y)

    def view(x, y, rows, plan):
        del rows  # all of them
        return task_batch(x[:, plan.order], y, plan.task)

    plan = PrototypePlan(task_numbers(num_tasks), order)
    pool = Pool(*draw(num_train), *draw(num_test))
    return pool_stream(pool, plan, view, num_classes, "prototypes")
