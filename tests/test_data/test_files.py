"""Image sets in files: what these tests write is what is read."""

import gzip
import pickle

import numpy as np
import pytest

from jaxcl.data import load_images


@pytest.fixture
def arrays():
    """Train images and labels, test images and labels: 7 and 5 rows of 6x4."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (12, 6, 4), dtype=np.uint8)
    y = np.arange(12, dtype=np.uint8) % 4
    return x[:7], y[:7], x[7:], y[7:]


def write_idx(folder, arrays, dash="-", zipped=False):
    names = [
        (split, kind) for split in ("train", "t10k") for kind in ("images", "labels")
    ]
    for (split, kind), array in zip(names, arrays, strict=True):
        header = np.array([0x800 + array.ndim, *array.shape], ">i4").tobytes()
        raw = header + array.tobytes()
        name = f"{split}-{kind}{dash}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
        (folder / name).write_bytes(gzip.compress(raw) if zipped else raw)


def assert_holds(images, arrays):
    for found, given in zip(images[:4], arrays, strict=True):
        np.testing.assert_array_equal(found, given)
    assert images.train_x.dtype == np.uint8
    assert images.train_y.dtype == np.int32
    assert images.num_classes == 4


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dash", ["-", "."])
def test_idx_files_come_back(tmp_path, arrays, dash, zipped):
    """Oracle: the arrays that were written by the format's description."""
    write_idx(tmp_path, arrays, dash, zipped)
    assert_holds(load_images(tmp_path), arrays)
    assert load_images(str(tmp_path)).name == tmp_path.name


@pytest.mark.parametrize("names", ["x_train y_train x_test y_test", "xtr ytr xte yte"])
def test_npz_files_come_back(tmp_path, arrays, names):
    """Oracle: the arrays that numpy wrote."""
    np.savez(tmp_path / "toy.npz", **dict(zip(names.split(), arrays, strict=True)))
    assert_holds(load_images(tmp_path / "toy.npz"), arrays)
    assert_holds(load_images(tmp_path), arrays)
    assert load_images(tmp_path).name == "toy"


def test_npy_files_come_back(tmp_path, arrays):
    """Oracle: the arrays that numpy wrote."""
    names = ("train_x", "train_y", "test_x", "test_y")
    for name, array in zip(names, arrays, strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    assert_holds(load_images(tmp_path), arrays)


@pytest.mark.parametrize("classes", [10, 100])
def test_cifars_binary_files_come_back(tmp_path, classes):
    """Oracle: pixels chosen by hand at known places of the record."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, classes, 7).astype(np.uint8)

    def write(name, rows):
        with (tmp_path / name).open("wb") as file:
            for image, label in zip(x[rows], y[rows], strict=True):
                file.write(bytes([label]) if classes == 10 else bytes([17, label]))
                for channel in range(3):
                    file.write(image[:, :, channel].tobytes())

    if classes == 10:
        for batch in range(5):
            write(f"data_batch_{batch + 1}.bin", slice(batch, batch + 1))
    else:
        write("train.bin", slice(0, 5))
    write("test_batch.bin" if classes == 10 else "test.bin", slice(5, 7))
    images = load_images(tmp_path)
    np.testing.assert_array_equal(np.concatenate([images.train_x, images.test_x]), x)
    np.testing.assert_array_equal(np.concatenate([images.train_y, images.test_y]), y)
    assert images.num_classes == classes
    assert load_images(tmp_path).name == f"cifar{classes}"


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_a_folder_without_images_is_named_in_one_line(tmp_path, folder):
    """Oracle: the message names the files that were looked for."""
    words = "no image set in .*train-images-idx3-ubyte.*or one .npz"
    with pytest.raises(FileNotFoundError, match=words) as error:
        load_images(tmp_path / folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
        ("train_x.npy", "train_y.npy"),
        ("data_batch_1.bin", "data_batch_2.bin"),
    ],
)
def test_a_missing_file_of_a_set_is_named_in_one_line(tmp_path, arrays, there, missing):
    """Oracle: the message; the first file of each set is good."""
    write_idx(tmp_path, arrays, zipped=True)
    write_npy(tmp_path, arrays)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    for path in tmp_path.iterdir():
        if path.name != there:
            path.unlink()
    with pytest.raises(FileNotFoundError, match=f"no file .*/{missing}; put") as error:
        load_images(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["short", "long", "magic", "empty", "not gzip"])
def test_a_broken_idx_file_is_named(tmp_path, arrays, fault):
    """Oracle: the message; the same file whole is read by the test above."""
    write_idx(tmp_path, arrays)
    path = tmp_path / "t10k-images-idx3-ubyte"
    raw = path.read_bytes()
    if fault == "not gzip":
        path.unlink()
        path = path.with_name(path.name + ".gz")
    damaged = {
        "short": raw[:-1],
        "long": raw + b"0",
        "magic": b"\0\0\x0d\x03" + raw[4:],
        "empty": b"",
        "not gzip": raw,
    }
    path.write_bytes(damaged[fault])
    with pytest.raises(ValueError, match=rf"load_images: .*{path.name} is not .*again"):
        load_images(tmp_path)


def test_a_cut_cifar_file_is_named(tmp_path):
    """Oracle: the message; 3,073 bytes are no record of 3,074."""
    (tmp_path / "train.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match=r"train.bin is not complete records of 3074"):
        load_images(tmp_path)


def write_npy(folder, arrays):
    names = ("train_x", "train_y", "test_x", "test_y")
    for name, array in zip(names, arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
    return folder / "train_x.npy"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(7, 6, 4)", b"(7, 6, 4'"),  # a flipped bit: TokenError
        (b"(7, 6, 4)", b"(True,42,4)"),  # TypeError
        (b"(7, 6, 4)", b"(10**12, 6)"),
        (b"(7, 6, 4)", b"(1000000000000, 6, 4)"),  # MemoryError
        (b"(7, 6, 4)", b"(4294967296, 4294967296, 16)"),  # the product overflows
        (b"(7, 6, 4)", b"[" * 90),
        (b"|u1", b"|O8"),
        (b"'descr'", b"'descs'"),
        (b"NUMPY\x01", b"NUMPY\x09"),
    ],
)
def test_a_damaged_npy_header_is_refused_in_one_line(tmp_path, arrays, old, new):
    """Oracle: the file as written is read; nothing that is not there is allocated."""
    path = write_npy(tmp_path, arrays)
    assert_holds(load_images(tmp_path), arrays)
    raw = path.read_bytes()
    # The header's padding gives or takes the bytes that the new text needs.
    room = new + b" " * max(0, len(old) - len(new))
    raw = raw.replace(old, room, 1).replace(b" " * (len(room) - len(old)), b"", 1)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"train_x.npy is not a plain array") as error:
        load_images(tmp_path)
    assert "\n" not in str(error.value)
    if b"000000000, 6" in new:
        assert "announces 24000000000000 bytes, it has 168" in str(error.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [(8, 1), (10, 99), (27, 255), (46, 0)],
    ids=["encrypted", "compression", "size", "name"],
)
def test_a_damaged_npz_directory_is_refused_in_one_line(tmp_path, arrays, place, value):
    """Oracle: places in a central header by the zip format; as written it is read."""
    path = tmp_path / "toy.npz"
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez_compressed(path, **dict(zip(names, arrays, strict=True)))
    assert_holds(load_images(path), arrays)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + place] = value
    path.write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"load_images: .*toy.npz (is not|must)"
    ) as error:
        load_images(path)
    assert "\n" not in str(error.value)


def test_sizes_of_an_idx_file_that_overflow_are_refused(tmp_path, arrays):
    """Oracle: 2**30 * 2**30 * 16 is 0 modulo 2**64, the bytes that are there."""
    write_idx(tmp_path, arrays)
    header = np.array([0x803, 2**30, 2**30, 16], ">i4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header)
    with pytest.raises(ValueError, match=r"announces \[1073741824, .* it has 0 bytes"):
        load_images(tmp_path)


def test_labels_beyond_int32_are_refused_not_wrapped(tmp_path, arrays):
    """Oracle: 2**32 wraps to the valid class 0."""
    labels = arrays[1].astype(np.int64) + (np.arange(7) == 3) * 2**32
    write_npy(tmp_path, (arrays[0], labels, *arrays[2:]))
    with pytest.raises(
        ValueError, match=r"labels must lie in \[0, 2147483648\), got 0 to"
    ):
        load_images(tmp_path)


class Bomb:
    """Unpickling this leaves a trace."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("kind", ["npz", "npy", "pickle"])
def test_nothing_is_ever_unpickled(tmp_path, capsys, kind):
    """Oracle: an object whose unpickling prints; loading it in earnest does."""
    bomb = np.array([Bomb()] * 3, dtype=object)
    if kind == "npz":
        path = tmp_path / "set.npz"
        names = ("x_train", "y_train", "x_test", "y_test")
        np.savez(path, **dict.fromkeys(names, bomb))
    else:
        path = tmp_path
        for name in ("train_x", "train_y", "test_x", "test_y"):
            np.save(path / f"{name}.npy", bomb)
        if kind == "pickle":
            (path / "train_x.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"is not .*plain array"):
        load_images(path)
    assert "unpickled" not in capsys.readouterr().out
    pickle.loads(pickle.dumps(Bomb()))
    assert "unpickled" in capsys.readouterr().out


def test_an_npz_with_other_names_is_told_which_it_needs(tmp_path, arrays):
    """Oracle: the message lists what the file holds."""
    np.savez(tmp_path / "odd.npz", images=arrays[0], labels=arrays[1])
    with pytest.raises(ValueError, match=r"must hold x_train.*got images, labels"):
        load_images(tmp_path / "odd.npz")
    (tmp_path / "odd.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"odd.npz is not an .npz"):
        load_images(tmp_path / "odd.npz")


def test_two_archives_in_a_folder_are_not_guessed_between(tmp_path, arrays):
    """Oracle: the message; each by itself is read."""
    for name in ("a.npz", "b.npz"):
        names = ("x_train", "y_train", "x_test", "y_test")
        np.savez(tmp_path / name, **dict(zip(names, arrays, strict=True)))
    with pytest.raises(FileNotFoundError, match="no image set"):
        load_images(tmp_path)
    assert load_images(tmp_path / "b.npz").name == "b"


@pytest.mark.realdata
def test_real_mnist_is_what_everybody_knows(realdata):
    """Oracle: the published counts and the first labels of both files."""
    images = load_images(realdata / "mnist")
    assert images.train_x.shape == (60_000, 28, 28)
    assert images.test_x.shape == (10_000, 28, 28)
    assert images.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert images.test_y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(images.train_y).tolist() == counts
    np.testing.assert_allclose(images.train_x.mean() / 255, 0.1307, atol=5e-5)
