"""Image sets of tensorflow-datasets, without TensorFlow (extra ``data``)."""

import importlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data.files import load_images
from jaxcl.data.images import Images, as_images
from jaxcl.errors import InputError, MissingFileError

PathLike = str | os.PathLike[str]


def tfds_images(name: str, data_dir: PathLike, *, download: bool = False) -> Images:
    """Read a prepared image classification set by ``tfds.data_source``.

    Args:
      name: as tensorflow-datasets calls it: ``"mnist"``, ``"cifar100"``, ...
      data_dir: folder of prepared sets, in array_record format. For MNIST
        :func:`prepare_mnist` fills it from idx files, offline.
      download: whether to download and prepare what is missing. Many stock builders
        need TensorFlow for that; reading never does.

    Returns:
      The splits ``train`` and ``test``, columns ``image`` and ``label``, in the order
      of the files; one channel becomes ``[n, h, w]``.

    Raises:
      ModuleNotFoundError: without the extra ``data``.
      FileNotFoundError: if the set is not prepared and ``download`` is false.
      KeyError: for a set without the splits or columns.
    """
    tfds = _import_tfds("tfds_images")
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        remedy = "tfds.list_builders() lists its sets"
        msg = f"tfds_images: tensorflow-datasets has no {name!r}; {remedy}."
        raise InputError(msg) from error
    if not download and not any(Path(builder.data_path).glob("*array_record*")):
        msg = (
            f"tfds_images: {name} is not prepared as array_record in {data_dir}; call "
            "prepare_mnist for MNIST, or pass download=True where there is a network."
        )
        raise MissingFileError(msg)
    source = tfds.data_source(name, data_dir=data_dir, download=download, try_gcs=False)
    num_classes = builder.info.features["label"].num_classes
    train, test = _arrays(source["train"]), _arrays(source["test"])
    return as_images(*train, *test, num_classes=num_classes, name=name)


def prepare_mnist(folder: PathLike, data_dir: PathLike) -> Path:
    """Prepare the set ``mnist`` of tensorflow-datasets from local idx files.

    Uses the stock builder's name, version and features and replaces its reading, so
    that neither TensorFlow nor a network is needed. It takes about a millisecond an image.

    Args:
      folder: the four idx files, see :func:`jaxcl.data.load_images`.
      data_dir: where tensorflow-datasets keeps prepared sets.

    Returns:
      The folder of the prepared set. An existing set is not changed.
    """
    tfds, images = _import_tfds("prepare_mnist"), load_images(folder)
    stock = tfds.image_classification.MNIST

    class Local(stock, skip_registration=True):  # pyright: ignore
        name = "mnist"
        pkg_dir_path = None

        def _split_generators(self, dl_manager):
            del dl_manager
            return {
                "train": _rows(images.train_x, images.train_y),
                "test": _rows(images.test_x, images.test_y),
            }

    builder = Local(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_path)


def _import_tfds(who: str) -> Any:
    """The package, or an error that names the extra."""
    try:
        for name in ("importlib_resources", "PIL"):  # tfds needs but does not require
            importlib.import_module(name)
        return importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        msg = f"{who}: needs {error.name} of the extra data; pip install '.[data]'."
        raise ModuleNotFoundError(msg, name=error.name) from error


def _rows(images: np.ndarray, labels: np.ndarray):
    """Examples as the builder stores them: an image as PNG in a file is kept as it is."""
    image_file = importlib.import_module("PIL.Image")

    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        image_file.fromarray(image).save(png, "PNG")
        png.seek(0)
        yield i, {"image": png, "label": int(label)}


def _arrays(rows) -> tuple[np.ndarray, np.ndarray]:
    """Images, without an axis of one channel, and labels."""
    pairs = [(row["image"], row["label"]) for row in rows]
    x = np.stack([image for image, _ in pairs])
    x = x[..., 0] if x.shape[-1] == 1 else x
    return x, np.asarray([label for _, label in pairs], np.int32)
