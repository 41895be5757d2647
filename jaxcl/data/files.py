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

import numpy as np

from jaxcl.data.images import Images, as_images
from jaxcl.errors import InputError, MissingFileError, reason_of

PathLike = str | os.PathLike[str]

_NPZ_NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("xtr", "ytr", "xte", "yte"),
)


def load_images(path: PathLike) -> Images:
    """Read the image set at a path, in any supported format.

    Args:
      path: an ``.npz`` file (:func:`npz_file`), or a folder with MNIST's idx files
        (:func:`idx_folder`), with CIFAR's binary files (:func:`cifar_folder`), with
        ``train_x.npy`` and the three others (:func:`npy_folder`), or with one ``.npz``.

    Raises:
      FileNotFoundError: if the path does not exist or holds none of these.
      ValueError: if a file is malformed.
    """
    path = Path(path)
    if path.is_file():
        return npz_file(path)
    _need_folder("load_images", path)
    if (path / "train.bin").exists() or (path / "data_batch_1.bin").exists():
        return cifar_folder(path)
    if (path / "train_x.npy").exists():
        return npy_folder(path)
    if any(path.glob("train-images*")):
        return idx_folder(path)
    archives = sorted(path.glob("*.npz"))
    if len(archives) == 1:
        return npz_file(archives[0])
    msg = (
        f"load_images: no image set in {path}: expected train-images-idx3-ubyte[.gz] and "
        "the like, train.bin or data_batch_1.bin (CIFAR binary), train_x.npy and the "
        "like, or one .npz file; give the folder that holds them."
    )
    raise MissingFileError(msg)


def idx_folder(path: PathLike) -> Images:
    """Read the four idx files of MNIST, Fashion-MNIST or KMNIST.

    Args:
      path: folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the
        same for ``t10k``, each plain or ``.gz``; the names may have a dot before ``idx``.

    Returns:
      Images ``[n, h, w]``, named after the folder.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is not idx, is truncated, or the files do not match.

    Format: LeCun, Cortes and Burges, the MNIST database.
    """
    path = Path(path)
    _need_folder("idx_folder", path)
    train_x, train_y, test_x, test_y = (
        _read_idx(_find_idx(path, split, kind), rank)
        for split in ("train", "t10k")
        for kind, rank in (("images", 3), ("labels", 1))
    )
    return as_images(train_x, train_y, test_x, test_y, name=path.resolve().name)


def npz_file(path: PathLike) -> Images:
    """Read one ``.npz`` with four arrays.

    Args:
      path: file with ``x_train, y_train, x_test, y_test``, or ``train_x, ...``, or
        ``xtr, ytr, xte, yte``; pixels uint8.

    Returns:
      Images named after the file.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it is not an npz of plain arrays, or lacks one of the four.
    """
    path = Path(path)
    if not path.is_file():
        msg = (
            f"npz_file: {path} does not exist: expected an .npz file with x_train, "
            "y_train, x_test, y_test; give its path."
        )
        raise MissingFileError(msg)
    plain = "an .npz of plain arrays"
    with _reading("npz_file", path, plain), zipfile.ZipFile(path) as archive:
        members = {
            member.filename.removesuffix(".npy"): member
            for member in archive.infolist()
        }
        found = sorted(members)
        names = next((n for n in _NPZ_NAMES if set(n) <= set(found)), ())
        arrays = [_member(archive, members[name]) for name in names]
    if not arrays:
        msg = (
            f"npz_file: {path} must hold x_train, y_train, x_test and y_test, got "
            f"{', '.join(found) or 'nothing'}; rename its arrays."
        )
        raise InputError(msg)
    return as_images(*arrays, name=path.stem)


def npy_folder(path: PathLike) -> Images:
    """Read ``train_x.npy``, ``train_y.npy``, ``test_x.npy`` and ``test_y.npy``.

    Returns:
      Images named after the folder.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is not a plain array, or pixels are not uint8.
    """
    path = Path(path)
    _need_folder("npy_folder", path)

    def read(name):
        file = path / f"{name}.npy"
        _need_file("npy_folder", file, "{train,test}_{x,y}.npy")
        with _reading("npy_folder", file, "a plain array"), file.open("rb") as opened:
            return _array(opened, file.stat().st_size)

    names = ("train_x", "train_y", "test_x", "test_y")
    return as_images(*map(read, names), name=path.resolve().name)


def cifar_folder(path: PathLike) -> Images:
    """Read the binary version of CIFAR-100 (fine labels) or CIFAR-10.

    Args:
      path: folder with ``train.bin`` and ``test.bin`` (CIFAR-100), or with
        ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` (CIFAR-10).

    Returns:
      Images ``[n, 32, 32, 3]``, named ``cifar100`` or ``cifar10``.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the size of a file is not a multiple of a record.

    Format: Krizhevsky 2009; the record is the label, with the coarse one before the fine
    one in CIFAR-100, then 1,024 red, green and blue pixels each.
    """
    path = Path(path)
    _need_folder("cifar_folder", path)
    ten = (path / "data_batch_1.bin").exists()
    train = [f"data_batch_{i}.bin" for i in range(1, 6)] if ten else ["train.bin"]
    expected = (
        "data_batch_1..5.bin and test_batch.bin"
        if ten
        else ("train.bin and test.bin (the binary version, not the pickled one)")
    )
    head = 1 if ten else 2

    def read(name):
        _need_file("cifar_folder", path / name, expected)
        size = head + 3072
        with _reading("cifar_folder", path / name, f"complete records of {size} bytes"):
            raw = np.fromfile(path / name, np.uint8)
            _need(len(raw) > 0 and len(raw) % size == 0, f"it has {len(raw)} bytes")
            return raw.reshape(-1, size)

    def arrays(records):
        x = records[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(x), records[:, head - 1]

    return as_images(
        *arrays(np.concatenate([read(name) for name in train])),
        *arrays(read("test_batch.bin" if ten else "test.bin")),
        num_classes=10 if ten else 100,
        name="cifar10" if ten else "cifar100",
    )


@contextmanager
def _reading(who: str, path: Path, expected: str):
    """Refuse a file in one line, whatever error its bytes lead to.

    NumPy and zipfile raise errors of a dozen kinds for damaged headers, such as
    ``TokenError``, ``NotImplementedError`` and ``MemoryError``.
    """
    try:
        yield
    except Exception as error:
        msg = (
            f"{who}: {path} is not {expected} ({reason_of(error)}); fetch or write the "
            "file again."
        )
        raise InputError(msg) from error


def _need(holds: bool, otherwise: str):
    """Raise a ValueError, for :func:`_reading`."""
    if not holds:
        raise ValueError(otherwise)


def _array(file, size: int) -> np.ndarray:
    """The array of an npy file of ``size`` bytes: what is not there is not allocated."""
    version = np.lib.format.read_magic(file)
    _need(version in _HEADERS, f"its format is {version}")
    shape, _, dtype = _HEADERS[version](file)
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    _need(wanted <= there, f"its header announces {wanted} bytes, it has {there}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive. Deflate reduces a size by at most 1,032 times."""
    most = 1032 * os.path.getsize(str(archive.filename))
    size = member.file_size
    _need(size <= most, f"{member.filename} announces {size} bytes")
    with archive.open(member) as file:
        return _array(file, size)


def _need_folder(who: str, path: Path):
    if not path.is_dir():
        msg = (
            f"{who}: {path} is not a folder: expected one with the image files; "
            "give its path."
        )
        raise MissingFileError(msg)


def _need_file(who: str, path: Path, expected: str):
    if not path.is_file():
        msg = (
            f"{who}: {path.name} is missing in {path.parent}: expected {expected}; "
            "put the files there or give another folder."
        )
        raise MissingFileError(msg)


def _find_idx(folder: Path, split: str, kind: str) -> Path:
    rank = 3 if kind == "images" else 1
    plain = [f"{split}-{kind}{dot}idx{rank}-ubyte" for dot in "-."]
    for name in plain + [f"{name}.gz" for name in plain]:
        if (folder / name).is_file():
            return folder / name
    expected = "{train,t10k}-images-idx3-ubyte[.gz] and -labels-idx1-ubyte[.gz]"
    _need_file("idx_folder", folder / plain[0], expected)
    return folder / plain[0]


def _read_idx(path: Path, rank: int) -> np.ndarray:
    expected = f"an idx file of unsigned bytes in {rank} dimensions"
    with _reading("idx_folder", path, expected):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        start = 4 + 4 * rank
        magic, *shape = np.frombuffer(raw[:start], ">i4").tolist()
        body = np.frombuffer(raw, np.uint8, offset=start)
        _need(magic == 0x800 + rank, f"its magic number is {magic}")
        agree = len(shape) == rank and min(shape) >= 0
        agree = agree and math.prod(shape) == len(body)
        _need(agree, f"its header announces {shape}, it has {len(body)} bytes")
        return body.reshape(shape)
