"""tensorflow-datasets without TensorFlow and without a network."""

import sys

import numpy as np
import pytest

from jaxcl.data import prepare_mnist, tfds_images


def write_idx(folder, split, x, y):
    for kind, array in (("images", x), ("labels", y)):
        header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
        path = folder / f"{split}-{kind}-idx{array.ndim}-ubyte"
        path.write_bytes(header + array.tobytes())


@pytest.fixture
def tfds():
    """The package, or a skip where the extra is not installed."""
    pytest.importorskip("importlib_resources")
    pytest.importorskip("PIL")
    return pytest.importorskip("tensorflow_datasets")


@pytest.mark.usefixtures("tfds")
def test_mnist_prepared_from_local_files_comes_back(tmp_path):
    """Oracle: the made-up images written as idx files, as sets of (label, pixels)."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    y = (np.arange(30) % 10).astype(np.uint8)
    write_idx(tmp_path, "train", x[:20], y[:20])
    write_idx(tmp_path, "t10k", x[20:], y[20:])

    folder = prepare_mnist(tmp_path, tmp_path / "prepared")
    assert folder.is_relative_to(tmp_path / "prepared")
    images = tfds_images("mnist", tmp_path / "prepared")

    def rows(x, y):
        return sorted(
            (int(label), row.tobytes()) for row, label in zip(x, y, strict=True)
        )

    assert images.train_x.shape == (20, 28, 28)
    assert images.num_classes == 10
    assert rows(images.train_x, images.train_y) == rows(x[:20], y[:20])
    assert rows(images.test_x, images.test_y) == rows(x[20:], y[20:])
    assert "tensorflow" not in sys.modules


@pytest.mark.usefixtures("tfds")
def test_what_is_not_prepared_or_not_known_is_said_in_one_line(tmp_path):
    """Oracle: the messages."""
    with pytest.raises(
        FileNotFoundError, match=r"mnist is not prepared.*prepare_mnist"
    ):
        tfds_images("mnist", tmp_path)
    with pytest.raises(ValueError, match="has no 'no_such_set'") as error:
        tfds_images("no_such_set", tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "importlib_resources"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, missing):
    """Oracle: the message; None in sys.modules is how Python blocks an import."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing} .*'\.\[data\]'"):
        tfds_images("mnist", tmp_path)
