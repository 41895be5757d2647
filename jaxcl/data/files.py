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
from jaxcl.errors import InputError, MissingFileError, reason_of, require

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
    """Read the image set at a path, in any supported format.

    Args:
      path: an ``.npz`` file (:func:`npz_file`), or a folder with MNIST's idx files
        (:func:`idx_folder`), with CIFAR's binary files (:func:`cifar_folder`), with
        ``train_x.npy`` and the three others (:func:`npy_folder`), or with one ``.npz``.

    Raises:
      FileNotFoundError: if the path does not exist or holds none of these.
      ValueError: if a file is malformed, or the files do not match.
    """
    path = Path(path)
    if path.is_file():
        return npz_file(path)
    if (path / "train.bin").exists() or (path / "data_batch_1.bin").exists():
        return cifar_folder(path)
    if (path / "train_x.npy").exists():
        return npy_folder(path)
    if any(path.glob("train-images*")):
        return idx_folder(path)
    archives = list(path.glob("*.npz"))
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
      Images ``[n, h, w]``, named after the folder; errors as of :func:`load_images`.

    Format: LeCun, Cortes and Burges, the MNIST database.
    """
    path = Path(path)
    arrays = (
        _read_idx(path, split, kind, rank)
        for split in ("train", "t10k")
        for kind, rank in (("images", 3), ("labels", 1))
    )
    return as_images(*arrays, name=path.resolve().name)


def npz_file(path: PathLike) -> Images:
    """Read one ``.npz`` with four arrays.

    Args:
      path: file with ``x_train, y_train, x_test, y_test``, or ``train_x, ...``, or
        ``xtr, ytr, xte, yte``; pixels uint8.

    Returns:
      Images named after the file; errors as of :func:`load_images`.
    """
    four = "x_train, y_train, x_test and y_test"
    remedy = f"give the path of an .npz file with {four}"
    path = existing_file("npz_file", path, remedy)
    plain = "an .npz of plain arrays"
    with _reading("npz_file", path, plain), zipfile.ZipFile(path) as archive:
        members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
        names = next((n for n in _NPZ_NAMES if set(n) <= set(members)), ())
        arrays = [_member(archive, members[name]) for name in names]
    found = ", ".join(sorted(members)) or "nothing"
    wanted = f"{path} must hold {four}, got {found}; rename its arrays"
    require(arrays, "npz_file", wanted)
    return as_images(*arrays, name=path.stem)


def npy_folder(path: PathLike) -> Images:
    """Read ``train_x.npy``, ``train_y.npy``, ``test_x.npy`` and ``test_y.npy``.

    Returns:
      Images named after the folder; errors as of :func:`load_images`.
    """
    path = Path(path)

    def read(name):
        remedy = "give a folder with {train,test}_{x,y}.npy"
        file = existing_file("npy_folder", path / f"{name}.npy", remedy)
        with _reading("npy_folder", file, "a plain array"), file.open("rb") as opened:
            return _array(opened, file.stat().st_size)

    return as_images(*map(read, _NPY_NAMES), name=path.resolve().name)


def cifar_folder(path: PathLike) -> Images:
    """Read the binary version of CIFAR-100 (fine labels) or CIFAR-10.

    Args:
      path: folder with ``train.bin`` and ``test.bin`` (CIFAR-100), or with
        ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` (CIFAR-10).

    Returns:
      Images ``[n, 32, 32, 3]``, named ``cifar100`` or ``cifar10``; errors as of
      :func:`load_images`.

    Format: Krizhevsky 2009; the record is the label, with the coarse one before the fine
    one in CIFAR-100, then 1,024 red, green and blue pixels each.
    """
    path = Path(path)
    if (path / "data_batch_1.bin").exists():
        train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"
        files, head, num_classes = "data_batch_1..5.bin and test_batch.bin", 1, 10
    else:
        train, test = ["train.bin"], "test.bin"
        files = "train.bin and test.bin (the binary version, not the pickled one)"
        head, num_classes = 2, 100
    size = head + 3 * 32 * 32

    def read(name):
        file = existing_file("cifar_folder", path / name, f"give a folder with {files}")
        with _reading("cifar_folder", file, f"complete records of {size} bytes"):
            raw = np.fromfile(file, np.uint8)
            _need(len(raw) > 0 and len(raw) % size == 0, f"it has {len(raw)} bytes")
            return raw.reshape(-1, size)

    def arrays(records):
        x = records[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(x), records[:, head - 1]

    return as_images(
        *arrays(np.concatenate([read(name) for name in train])),
        *arrays(read(test)),
        num_classes=num_classes,
        name=f"cifar{num_classes}",
    )


def existing_file(who: str, path: PathLike, remedy: str) -> Path:
    """The path of a file, or a FileNotFoundError that says what to give."""
    path = Path(path)
    if not path.is_file():
        msg = f"{who}: no file {path}; {remedy}."
        raise MissingFileError(msg)
    return path


@contextmanager
def _reading(who: str, path: Path, expected: str):
    """Refuse a file in one line, whatever error its bytes lead to."""
    try:
        yield
    # For damaged headers NumPy and zipfile raise errors of a dozen kinds, such as
    # TokenError, NotImplementedError and MemoryError.
    except Exception as error:
        remedy = "fetch or write the file again"
        msg = f"{who}: {path} is not {expected} ({reason_of(error)}); {remedy}."
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


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array of an archive."""
    # Deflate reduces a size by at most 1,032 times; a larger one is not allocated.
    most, size = 1032 * os.path.getsize(str(archive.filename)), member.file_size
    _need(size <= most, f"{member.filename} announces {size} bytes")
    with archive.open(member) as file:
        return _array(file, size)


def _read_idx(folder: Path, split: str, kind: str, rank: int) -> np.ndarray:
    """An idx file: a magic number and the sizes, all big-endian, then the bytes."""
    stems = [folder / f"{split}-{kind}{dot}idx{rank}-ubyte" for dot in "-."]
    paths = [*stems, *(path.with_name(f"{path.name}.gz") for path in stems)]
    path = next(filter(Path.is_file, paths), paths[0])
    files = "{train,t10k}-images-idx3-ubyte[.gz] and -labels-idx1-ubyte[.gz]"
    existing_file("idx_folder", path, f"give a folder with {files}")
    expected = f"an idx file of unsigned bytes in {rank} dimensions"
    with _reading("idx_folder", path, expected):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        magic, *shape = np.frombuffer(raw[: 4 + 4 * rank], ">i4").tolist()
        body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
        _need(magic == 0x800 + rank, f"its magic number is {magic}")
        agree = len(shape) == rank and min(shape) >= 0
        agree = agree and math.prod(shape) == len(body)
        _need(agree, f"its header announces {shape}, it has {len(body)} bytes")
        return body.reshape(shape)
