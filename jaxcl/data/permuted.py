"""Streams with all classes in every task: permuted pixels, rotations, permuted labels.

Build a stream outside of ``jit`` and pass ``stream.pool`` and ``stream.plan`` as
arguments; a task's float32 inputs are then in memory only while the task is learned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int

from jaxcl.data.draws import generator, permutations, rows_without_replacement
from jaxcl.data.images import Images
from jaxcl.data.pixels import (
    Normalise,
    as_pool,
    finisher,
    pool_stream,
    task_batch,
    task_numbers,
)
from jaxcl.errors import as_numbers, check_size, is_whole, require, shown
from jaxcl.typing import Key, Stream


class PermutedPlan(NamedTuple):
    """The plan of :func:`permuted`; leaves lack the axis ``T`` in a task."""

    task: Int[Array, " T"]
    order: Int[Array, "T pixels"]  # new pixel k is old pixel order[k]
    rows: Int[Array, "T n"] | None  # training rows of the pool; None is all of them


class RotationPlan(NamedTuple):
    """The plan of :func:`rotations`."""

    task: Int[Array, " T"]
    angle: Float[Array, " T"]  # degrees, counter-clockwise


class LabelPlan(NamedTuple):
    """The plan of :func:`permuted_labels`."""

    task: Int[Array, " T"]
    labels: Int[Array, "T c"]  # class k has label labels[k]
    rows: Int[Array, "T n"] | None  # training rows of the pool; None is all of them


def permuted(
    key: Key,
    images: Images,
    *,
    num_tasks: int,
    num_examples: int | None = None,
    identity_first: bool = False,
    flat: bool = True,
    normalise: Normalise | None = None,
) -> Stream:
    """Every task permutes the pixels of the images by its own fixed permutation.

    Channels of a pixel stay together. All tasks have the same classes
    (domain-incremental). A task of 10,000 28x28 images takes 10 to 25 ms of one CPU core.

    Args:
      key: draws the permutations and the rows.
      images: what to permute; see :func:`jaxcl.data.padded` for 32x32 MNIST.
      num_tasks: tasks ``T``.
      num_examples: training rows of a task, drawn for each without replacement; all of
        them, in the same order for every task, if absent.
      identity_first: whether task 0 has the original images.
      flat: inputs ``[n, h * w * channels]`` for a network of dense layers, or
        ``[n, h, w, channels]`` for a convolutional one.
      normalise: ``(mean, std)``; inputs are in [0, 1] if absent.

    Returns:
      A stream of ``num_classes`` outputs; every task tests on all test images.

    Source: Goodfellow et al. 2013, arXiv:1312.6211; online with ``num_examples=10_000``
    as in Kumar et al. 2023, arXiv:2308.11958.
    """
    pool, finish = as_pool(images), finisher(images, flat, normalise)
    check_size("permuted", num_tasks=num_tasks)
    pixels = images.train_x.shape[1] * images.train_x.shape[2]
    rng = generator(key)
    order = permutations(rng, num_tasks, pixels, identity_first=identity_first)
    rows = _draw_rows("permuted", rng, images, num_tasks, num_examples)
    plan = PermutedPlan(task_numbers(num_tasks), order, rows)

    @sequential_vmap
    def pixels_of(x, rows, order):
        # One gather of rows and pixels together, run by run. For all runs at once, or rows
        # first, XLA is up to ten times slower on CPU.
        lines = x.reshape(x.shape[0], pixels, *x.shape[3:])
        rows = jnp.arange(x.shape[0]) if rows is None else rows
        return finish(lines[rows[:, None], order].reshape(-1, *x.shape[1:]))

    def view(x, y, rows, plan):
        y = y if rows is None else y[rows]
        return task_batch(pixels_of(x, rows, plan.order), y, plan.task)

    name = f"permuted-{images.name}"
    return pool_stream(pool, plan, view, images.num_classes, name)


def permuted_labels(
    key: Key,
    images: Images,
    *,
    num_tasks: int,
    num_examples: int | None = None,
    flat: bool = True,
    normalise: Normalise | None = None,
) -> Stream:
    """Every task has the same images with its own permutation of the labels.

    Earlier tasks do not help the current one: a test of plasticity.

    Args:
      key: draws the permutations of the labels and the rows.
      images: the inputs of all tasks.
      num_tasks: tasks ``T``.
      num_examples: training rows of a task, drawn for each without replacement; all if
        absent.
      flat: see :func:`permuted`.
      normalise: see :func:`permuted`.

    Source: Kumar et al. 2023, arXiv:2308.11958, section 4 (label-permuted tasks).
    """
    pool, finish = as_pool(images), finisher(images, flat, normalise)
    check_size("permuted_labels", num_tasks=num_tasks)
    rng = generator(key)
    labels = permutations(rng, num_tasks, images.num_classes)
    rows = _draw_rows("permuted_labels", rng, images, num_tasks, num_examples)
    plan = LabelPlan(task_numbers(num_tasks), labels, rows)

    def view(x, y, rows, plan):
        x, y = (x, y) if rows is None else (x[rows], y[rows])
        return task_batch(finish(x), plan.labels[y], plan.task)

    name = f"permuted-labels-{images.name}"
    return pool_stream(pool, plan, view, images.num_classes, name)


def rotations(
    images: Images,
    angles: Sequence[float | int] | np.ndarray | Array,
    *,
    flat: bool = True,
    normalise: Normalise | None = None,
) -> Stream:
    """Every task rotates the images by its own angle about their centre.

    Bilinear interpolation; pixels from outside the image are black. A task of 10,000
    28x28 images takes about 55 ms of one CPU core.

    Args:
      images: what to rotate.
      angles: degrees, counter-clockwise, one for each task.
      flat: see :func:`permuted`.
      normalise: see :func:`permuted`; applied after the rotation.
    """
    pool, finish = as_pool(images), finisher(images, flat, normalise)
    angles = np.asarray(as_numbers("rotations", "angles", angles), np.float32)
    wanted = f"angles must be one finite number for each task, got {angles.tolist()}"
    good = angles.ndim == 1 and len(angles) > 0 and np.isfinite(angles).all()
    require(good, "rotations", f"{wanted}; give a list of degrees")

    def view(x, y, rows, plan):
        del rows  # all of them
        return task_batch(finish(_turn(x, plan.angle)), y, plan.task)

    plan = RotationPlan(task_numbers(len(angles)), jnp.asarray(angles))
    name = f"rotated-{images.name}"
    return pool_stream(pool, plan, view, images.num_classes, name)


def _turn(x, angle):
    """Images rotated by ``angle`` degrees, float32 on the scale of bytes."""
    height, width = x.shape[1:3]
    up, right = (height - 1) / 2, (width - 1) / 2
    rows, columns = jnp.meshgrid(
        jnp.arange(height) - up, jnp.arange(width) - right, indexing="ij"
    )
    cos, sin = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
    source = [cos * rows + sin * columns + up, cos * columns - sin * rows + right]
    turn = lambda plane: map_coordinates(plane, source, order=1)
    over_images = jax.vmap(turn)
    over_channels = jax.vmap(over_images, in_axes=-1, out_axes=-1)
    return (over_images if x.ndim == 3 else over_channels)(x.astype(jnp.float32))


def _draw_rows(who, rng, images: Images, num_tasks: int, num_examples: int | None):
    """Training rows of each task, or None for all of them."""
    if num_examples is None:
        return None
    size = len(images.train_y)
    wanted = f"num_examples must lie in [1, {size}], the training rows of {images.name}"
    good = is_whole(num_examples) and 1 <= num_examples <= size
    require(good, who, f"{wanted}, got {shown(num_examples)}; give such an int")
    return rows_without_replacement(rng, num_tasks, size, num_examples)
