"""Common code of image streams: the pool in bytes, and its conversion to inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxcl.data.images import Images, as_images
from jaxcl.errors import as_numbers, check_kind, require, shown
from jaxcl.typing import Batch, PyTree, Stream

#: ``(mean, std)`` of pixels in units of 0..1: numbers, or one for each channel.
Normalise = tuple[float | int | np.ndarray | Array, float | int | np.ndarray | Array]


class Pool(NamedTuple):
    """An image set on the device; pixels stay bytes."""

    train_x: Array  # [n, h, w] or [n, h, w, channels] uint8
    train_y: Array  # [n] int32
    test_x: Array  # [m, h, w] or [m, h, w, channels] uint8
    test_y: Array  # [m] int32


def as_pool(images: Images) -> Pool:
    """An image set on the device, checked again: its fields may have been replaced."""
    check_kind("images", Images, "make them by as_images", images=images)
    checked = as_images(*images[:4], num_classes=images.num_classes, name=images.name)
    return Pool(*map(jnp.asarray, checked[:4]))


def finisher(
    images: Images, flat: bool, normalise: Normalise | None
) -> Callable[[Array], Array]:
    """The function from pixels 0..255 to inputs of a network.

    Args:
      images: the set, for the number of channels.
      flat: whether rows become ``[h * w * channels]``, else ``[h, w, channels]``.
      normalise: ``x -> (x / 255 - mean) / std``; ``x / 255`` if absent.

    Returns:
      ``([n, h, w] or [n, h, w, channels]) -> float32``.
    """
    given = (0.0, 1.0) if normalise is None else normalise
    given = given if np.iterable(given) else ()
    pair = [as_numbers(images.name, "normalise", part) for part in given]
    pair = [np.asarray(part, np.float32) for part in pair]
    channels = images.train_x.shape[3:]
    finite = all(np.isfinite(part).all() for part in pair)
    good = len(pair) == 2 and finite and (pair[1] > 0).all()
    good = good and {part.shape for part in pair} <= {(), channels}
    wanted = f"(mean, std > 0), numbers or one for each of {list(channels)} channels"
    came = f"got {shown(normalise)}; mean_and_std(images) computes them"
    require(good, images.name, f"normalise must be finite {wanted}, {came}")
    mean, std = pair

    def finish(x):
        x = unit_scale(x)
        x = x if normalise is None else (x - mean) / std
        if flat:
            return x.reshape(x.shape[0], -1)
        return x[..., None] if x.ndim == 3 else x

    return finish


def unit_scale(x):
    """Pixels 0..255 as float32 in [0, 1]: the same bits on the host and on a device."""
    return x.astype(np.float32) * np.float32(1 / 255)  # as jit compiles a division


def pixels_as_floats(batch: Batch) -> Batch:
    """Rows whose images, uint8 ``[n, h, w]`` or ``[n, h, w, channels]``, are in [0, 1].

    Datasets and streams hold such images as the bytes they are given as, a quarter of
    float32, and convert the rows that are read. Other inputs are not changed.
    """
    convert = lambda x: unit_scale(x) if are_images(x.dtype, x.ndim) else x
    return batch._replace(x=jax.tree.map(convert, batch.x))


def are_images(dtype: np.dtype, ndim: int) -> bool:
    """Whether inputs are images as bytes: uint8, rows of two axes and maybe channels."""
    return dtype == np.uint8 and ndim in (3, 4)


def task_batch(x: Array, y: Array, task: Array) -> Batch:
    """Rows of one task, none of them padding."""
    rows = x.shape[0]
    return Batch(x, y, jnp.ones(rows, jnp.float32), jnp.full(rows, task, jnp.int32))


def task_numbers(num_tasks: int) -> Int[Array, " T"]:
    """``0 .. T - 1``."""
    return jnp.asarray(np.arange(num_tasks, dtype=np.int32))


def pool_stream(
    pool: Pool, plan: PyTree, view: Callable[..., Batch], num_classes: int, name: str
) -> Stream:
    """A stream whose tasks are views ``(x, y, rows, plan) -> Batch`` of a pool.

    ``rows`` are the plan's numbers of training rows; None is all, as for testing.
    """

    def train(pool, plan):
        return view(pool.train_x, pool.train_y, getattr(plan, "rows", None), plan)

    def test(pool, plan):
        return view(pool.test_x, pool.test_y, None, plan)

    return Stream(pool, plan, train, test, num_classes, name)
