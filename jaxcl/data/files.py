"""Image sets in files: idx as in MNIST, npz, npy files, and CIFAR's binary version.

No file is unpickled. A missing file is a ``FileNotFoundError``, a malformed one a
``ValueError``; both state in one line the path, what was expected and what to do.
"""

import gzip
import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data.images import Images, as_images
from jaxcl.errors import InputError, MissingFileError, reason_of, require, shown

PathLike = str | os.PathLike[str]

_NPY_NAMES = ("train_x", "train_y", "test_x", "test_y")
_NPZ_NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    _NPY_NAMES,
    ("xtr", "ytr", "xte", "yte"),
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_images(path: PathLike) -> Images:
    """Read the image set at a path, in any of four formats.

    - One ``.npz`` file with ``x_train, y_train, x_test, y_test``, or ``train_x, ...``, or
      ``xtr, ytr, xte, yte``; or a folder with one such file.
    - A folder with ``train_x.npy``, ``train_y.npy``, ``test_x.npy`` and ``test_y.npy``.
    - A folder with the idx files of MNIST, Fashion-MNIST or KMNIST:
      ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same for ``t10k``,
      each plain or ``.gz``; the names may have a dot before ``idx``.
    - A folder with the binary version of CIFAR-100, ``train.bin`` and ``test.bin``, of
      which the fine labels are read; or of CIFAR-10, ``data_batch_1.bin`` to
      ``data_batch_5.bin`` and ``test_batch.bin``.

    Args:
      path: of the file or folder, after which the images are named; CIFAR's are
        ``cifar100`` or ``cifar10``, ``[n, 32, 32, 3]``.
    """
    path = as_path("load_images", path, "give that of a file or folder")
    if path.is_file():
        return _npz(path)
    if (path / "train.bin").exists() or (path / "data_batch_1.bin").exists():
        return _cifar(path)
    if (path / "train_x.npy").exists():
        arrays = [_npy(path / f"{name}.npy") for name in _NPY_NAMES]
        return as_images(*arrays, name=path.resolve().name)
    if any(path.glob("train-images*")):
        names = [("images", 3), ("labels", 1)]
        arrays = [_idx(path, split, *n) for split in ("train", "t10k") for n in names]
        return as_images(*arrays, name=path.resolve().name)
    archives = list(path.glob("*.npz"))
    if len(archives) == 1:
        return _npz(archives[0])
    msg = (
        f"load_images: no image set in {path}: expected train-images-idx3-ubyte[.gz] and "
        "the like, train.bin or data_batch_1.bin (CIFAR binary), train_x.npy and the "
        "like, or one .npz file; give the folder that holds them."
    )
    raise MissingFileError(msg)


def as_path(who: str, path: PathLike, remedy: str) -> Path:
    """What a user gave as a path."""
    wanted = f"expected a path, got {shown(path)}; {remedy}"
    require(isinstance(path, str | os.PathLike), who, wanted)
    return Path(path)


def existing_file(who: str, path: PathLike, remedy: str) -> Path:
    """The path of a file, or a FileNotFoundError that says what to give."""
    path = as_path(who, path, remedy)
    if not path.is_file():
        msg = f"{who}: no file {path}; {remedy}."
        raise MissingFileError(msg)
    return path


@contextmanager
def _reading(path: Path, expected: str):
    """Refuse a missing or damaged file in one line, whatever its bytes lead to."""
    existing_file("load_images", path, "put the set's other files there")
    try:
        yield
    # For damaged headers NumPy and zipfile raise errors of a dozen kinds, such as
    # TokenError, NotImplementedError and MemoryError.
    except Exception as error:
        reason = f"is not {expected} ({reason_of(error)}); get it again"
        msg = f"load_images: {path} {reason}."
        raise InputError(msg) from error


def expect(holds: Any, otherwise: str) -> None:
    """Raise a ValueError, which becomes part of the message about its place."""
    if not holds:
        raise ValueError(otherwise)


def _npz(path: Path) -> Images:
    """The four arrays of an archive."""
    with _reading(path, "an .npz of plain arrays"), zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        names = next((n for n in _NPZ_NAMES if set(n) <= set(members)), ())
        arrays = [_member(archive, members[name]) for name in names]
    found = ", ".join(sorted(members)) or "nothing"
    wanted = f"{path} must hold x_train, y_train, x_test and y_test, got {found}"
    require(arrays, "load_images", f"{wanted}; rename its arrays")
    return as_images(*arrays, name=path.stem)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive."""
    # Deflate reduces a size by at most 1,032 times; a larger one is not allocated.
    most, size = 1032 * os.path.getsize(str(archive.filename)), member.file_size
    expect(size <= most, f"{member.filename} announces {size} bytes")
    with archive.open(member) as file:
        return _array(file, size)


def _npy(path: Path) -> np.ndarray:
    """The array of a file."""
    with _reading(path, "a plain array"), path.open("rb") as file:
        return _array(file, path.stat().st_size)


def _array(file, size: int) -> np.ndarray:
    """The array of an npy file of ``size`` bytes: what is not there is not allocated."""
    version = np.lib.format.read_magic(file)
    expect(version in _HEADERS, f"its format is {version}")
    shape, _, dtype = _HEADERS[version](file)
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    expect(wanted <= there, f"its header announces {wanted} bytes, it has {there}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _cifar(folder: Path) -> Images:
    """CIFAR's binary version (Krizhevsky 2009)."""
    if (folder / "data_batch_1.bin").exists():
        train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
        num_labels, num_classes = 1, 10
    else:
        train, test = ["train.bin"], "test.bin"
        num_labels, num_classes = 2, 100  # the coarse one before the fine one
    # A record is its labels, then 1,024 red, green and blue pixels each.
    size = num_labels + 3 * 32 * 32

    def read(name):
        with _reading(folder / name, f"complete records of {size} bytes"):
            raw = np.fromfile(folder / name, np.uint8)
            expect(len(raw) > 0 and len(raw) % size == 0, f"it has {len(raw)} bytes")
            return raw.reshape(-1, size)

    def arrays(records):
        x = records[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(x), records[:, num_labels - 1]

    train = arrays(np.concatenate([read(name) for name in train]))
    name = f"cifar{num_classes}"
    return as_images(*train, *arrays(read(test)), num_classes=num_classes, name=name)


def _idx(folder: Path, split: str, kind: str, rank: int) -> np.ndarray:
    """An idx file: a magic number and the sizes, all big-endian, then the bytes.

    Format: LeCun, Cortes and Burges, the MNIST database.
    """
    names = [f"{split}-{kind}{dot}idx{rank}-ubyte" for dot in "-."]
    paths = [folder / name for name in names + [f"{name}.gz" for name in names]]
    path = next(filter(Path.is_file, paths), paths[0])
    with _reading(path, f"an idx file of unsigned bytes in {rank} dimensions"):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        magic, *shape = np.frombuffer(raw[: 4 + 4 * rank], ">i4").tolist()
        body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
        expect(magic == 0x800 + rank, f"its magic number is {magic}")
        agree = len(shape) == rank and min(shape) >= 0
        agree = agree and math.prod(shape) == len(body)
        expect(agree, f"its header announces {shape}, it has {len(body)} bytes")
        return body.reshape(shape)
