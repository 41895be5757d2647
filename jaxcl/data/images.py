"""Image sets in memory: one record, the embedded digits, and parts of a set."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxcl.data.draws import generator
from jaxcl.errors import as_numbers, check_number, check_size, is_whole, require, shown
from jaxcl.typing import Key


class Images(NamedTuple):
    """A labelled image set as numpy arrays; build one with :func:`as_images`."""

    train_x: np.ndarray  # [n, h, w] or [n, h, w, channels] uint8
    train_y: np.ndarray  # [n] int32
    test_x: np.ndarray  # [m, h, w] or [m, h, w, channels] uint8
    test_y: np.ndarray  # [m] int32
    num_classes: int
    name: str


def as_images(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int | None = None,
    name: str = "images",
) -> Images:
    """Check four arrays and return them as :class:`Images`.

    Args:
      train_x: ``[n, h, w]`` or ``[n, h, w, channels]`` uint8, pixels from 0 to 255.
      train_y: ``[n]`` or ``[n, 1]`` integers from 0.
      test_x: ``[m, ...]`` uint8, images of the same shape.
      test_y: ``[m]`` or ``[m, 1]`` integers; each of the four may be a list.
      num_classes: how many classes there are; the largest label plus one if absent.
      name: what the set is called in logs and reports.

    Returns:
      The record, labels as int32; pixels are not copied.
    """
    check_size("as_images", optional=True, num_classes=num_classes)
    who = f"as_images: {name}"
    train_x, train_y = _split(who, "train", train_x, train_y)
    test_x, test_y = _split(who, "test", test_x, test_y)
    one, other = (list(x.shape[1:]) for x in (train_x, test_x))
    same = f"the same shape, got {one} and {other}; crop or pad"
    require(one == other, who, f"train and test images must have {same}")
    low = int(min(train_y.min(), test_y.min()))
    high = int(max(train_y.max(), test_y.max()))
    num_classes = high + 1 if num_classes is None else num_classes
    most = min(num_classes, 2**31)
    lie = f"labels must lie in [0, {most}), got {low} to {high}"
    require(low >= 0 and high < most, who, f"{lie}; renumber them or raise num_classes")
    train_y, test_y = train_y.astype(np.int32), test_y.astype(np.int32)
    return Images(train_x, train_y, test_x, test_y, num_classes, name)


def digits(*, test_fraction: float = 0.2) -> Images:
    """The 1,797 handwritten 8x8 digits of scikit-learn: real data without a download.

    The split is fixed and stratified: within each class, test rows are evenly spaced in
    the order of the file. Pixels 0..16 become 0..255.

    Args:
      test_fraction: fraction of each class that is for testing, in [0.01, 0.99].

    Returns:
      Images ``[n, 8, 8]`` in 10 classes; 1,442 and 355 rows with the default fraction.
      It needs scikit-learn.

    Source: Alpaydin and Kaynak 1998, UCI, Optical Recognition of Handwritten Digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        msg = "digits: needs scikit-learn, which is not installed; pip install it."
        raise ModuleNotFoundError(msg) from error
    check_number("digits", least=0.01, most=0.99, test_fraction=test_fraction)
    flat, y = (np.asarray(a) for a in load_digits(return_X_y=True))
    x = np.round(flat.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    place = np.zeros(len(y), np.int64)  # how many of its class come before a row
    for label in range(10):
        place[y == label] = np.arange(np.sum(y == label))
    test = np.floor((place + 1) * test_fraction) > np.floor(place * test_fraction)
    return as_images(
        x[~test], y[~test], x[test], y[test], num_classes=10, name="digits"
    )


def subset(
    images: Images,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    per_class: bool = False,
    key: Key | None = None,
) -> Images:
    """Keep part of a set: the first rows, or random ones.

    Args:
      images: what to choose from; rows keep their order.
      num_train: training rows to keep; all if absent.
      num_test: test rows to keep; all if absent.
      per_class: whether the numbers count rows of each class instead of rows.
      key: draws the rows without replacement; the first ones are kept if absent.
    """
    rng = None if key is None else generator(key)
    train = _choose(rng, images, images.train_y, num_train, per_class)
    test = _choose(rng, images, images.test_y, num_test, per_class)
    return _rows(images, train, test)


def only_classes(images: Images, classes: ArrayLike) -> Images:
    """Keep some classes of a set, renumbered from 0 in the order given.

    Args:
      images: what to choose from.
      classes: the classes to keep, a list of ints, each once.

    Returns:
      The rows of these classes in their original order; ``num_classes`` is their number.
    """
    who = f"only_classes: {images.name}"
    wanted = as_numbers(who, "classes", classes)
    both = set(images.train_y.tolist()) & set(images.test_y.tolist())
    lacking = [c for c in wanted.ravel().tolist() if not is_whole(c) or c not in both]
    remedy = f"leave out {lacking}" if lacking else "name at least one, each once"
    once = wanted.ndim == 1 and 0 < wanted.size == len(set(wanted.tolist()))
    came = f"train and test rows, got {wanted.tolist()}; {remedy}"
    needed = f"classes must be a list of different ones with {came}"
    require(once and not lacking, who, needed)
    number = np.full(images.num_classes, -1, np.int32)
    number[wanted] = np.arange(wanted.size)
    images = images._replace(
        train_y=number[images.train_y],
        test_y=number[images.test_y],
        num_classes=wanted.size,
    )
    return _rows(images, images.train_y >= 0, images.test_y >= 0)


def padded(images: Images, width: int = 2) -> Images:
    """Add a black border of ``width`` pixels on every side: 28x28 becomes 32x32.

    van de Ven and Tolias (arXiv:1904.07734) permute MNIST after this padding.
    """
    check_size("padded", least=0, width=width)

    def pad(x):
        border = [(0, 0), (width, width), (width, width)] + [(0, 0)] * (x.ndim - 3)
        return np.pad(x, border)

    return images._replace(train_x=pad(images.train_x), test_x=pad(images.test_x))


def mean_and_std(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the training pixels, in units of 0..1.

    Returns:
      Two float32 arrays, ``[]`` for grey images and ``[channels]`` for colour: what the
      streams take as ``normalise``.
    """
    axes = tuple(range(3))
    mean = images.train_x.mean(axes, dtype=np.float64)
    square = np.square(images.train_x, dtype=np.uint16).mean(axes, dtype=np.float64)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    return np.asarray(mean / 255, np.float32), np.asarray(std / 255, np.float32)


def _split(who: str, split: str, x: ArrayLike, y: ArrayLike):
    """Images and labels ``[n]`` of one split as arrays, which belong together."""
    x, y = as_numbers(who, "pixels", x), as_numbers(who, f"{split} labels", y)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    integers = np.issubdtype(y.dtype, np.integer) and y.shape == x.shape[:1]
    labels = f"{split} labels must be integers [n], one for each image, got "
    require(integers, who, f"{labels}{y.dtype} {list(y.shape)} for {list(x.shape)}")
    pixels = f"{split} pixels must be uint8 [n, h, w] or [n, h, w, channels], n > 0"
    remedy = "scale and round them, or use from_arrays for other inputs"
    good = x.dtype == np.uint8 and x.ndim in (3, 4) and x.size > 0
    require(good, who, f"{pixels}, got {x.dtype} {list(x.shape)}; {remedy}")
    return x, y


def _rows(images: Images, train: np.ndarray, test: np.ndarray) -> Images:
    """Some rows of a set, by numbers or as masks."""
    return images._replace(
        train_x=images.train_x[train],
        train_y=images.train_y[train],
        test_x=images.test_x[test],
        test_y=images.test_y[test],
    )


def _choose(rng, images: Images, y: np.ndarray, count: int | None, per_class: bool):
    """Sorted row numbers of the kept rows."""
    if count is None:
        return np.arange(len(y))
    shuffled = np.arange(len(y)) if rng is None else rng.permutation(len(y))
    groups = [shuffled]
    if per_class:
        groups = [shuffled[y[shuffled] == c] for c in range(images.num_classes)]
    least = min(len(group) for group in groups)
    good = is_whole(count) and 1 <= count <= least
    kept = f"to keep{' of each class' if per_class else ''} must lie in [1, {least}]"
    message = f"rows {kept}, got {shown(count)}; give such an int"
    require(good, f"subset: {images.name}", message)
    return np.sort(np.concatenate([group[:count] for group in groups]))
