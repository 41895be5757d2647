"""Common code of image streams: the pool in bytes, and its conversion to inputs."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxcl.data.images import Images, as_images
from jaxcl.errors import InputError, check_kind, is_whole, shown
from jaxcl.typing import Batch

#: ``(mean, std)`` of pixels in units of 0..1: numbers, or one for each channel.
Normalise = tuple[float | int | np.ndarray | Array, float | int | np.ndarray | Array]


class Pool(NamedTuple):
    """An image set on the device; pixels stay bytes."""

    train_x: Array  # [n, h, w] or [n, h, w, channels] uint8
    train_y: Array  # [n] int32
    test_x: Array  # [m, h, w] or [m, h, w, channels] uint8
    test_y: Array  # [m] int32


def as_pool(images: Images) -> Pool:
    """Check an image set and put it on the device.

    Raises:
      ValueError: see :func:`jaxcl.data.as_images`.
    """
    check_kind("as_pool", Images, images=images)
    *arrays, num_classes, name = images
    checked = as_images(*arrays, num_classes=num_classes, name=name)
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

    Raises:
      ValueError: if ``normalise`` does not fit the channels, or ``std`` is not positive.
    """
    try:
        mean, std = (0.0, 1.0) if normalise is None else normalise
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    except (TypeError, ValueError):  # not a pair of numbers
        mean = std = np.asarray(np.nan, np.float32)
    allowed = ((), images.train_x.shape[3:])
    if {mean.shape, std.shape} - set(allowed) or not (
        np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()
    ):
        msg = (
            f"{images.name}: normalise must be finite (mean, std > 0), numbers or one for "
            f"each of {list(images.train_x.shape[3:])} channels, got "
            f"{shown(normalise)}; mean_and_std(images) computes them."
        )
        raise InputError(msg)

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
    images = lambda x: x.dtype == np.uint8 and x.ndim in (3, 4)
    convert = lambda x: unit_scale(x) if images(x) else x
    return batch._replace(x=jax.tree.map(convert, batch.x))


def task_batch(x: Array, y: Array, task: Array) -> Batch:
    """Rows of one task, none of them padding."""
    rows = x.shape[0]
    return Batch(x, y, jnp.ones(rows, jnp.float32), jnp.full(rows, task, jnp.int32))


def task_numbers(num_tasks: int) -> Int[Array, " T"]:
    """``0 .. T - 1``."""
    return jnp.asarray(np.arange(num_tasks, dtype=np.int32))


def need_tasks(who: str, num_tasks: int):
    """Raise ValueError if there is no task."""
    if not is_whole(num_tasks) or num_tasks < 1:
        msg = f"{who}: num_tasks must be at least 1, got {num_tasks}; give an int."
        raise InputError(msg)
