"""Damaged image sets: npy, npz, idx, and CIFAR's binary version."""

import gzip
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data import Images, load_images
from tests.fuzz import mutate
from tests.fuzz.battery import main, run_battery

NAMES = ("train_x", "train_y", "test_x", "test_y")
SHAPES = [
    *("(True, 3, 2)", "(10**12, 3, 2)", "(1000000000000, 3, 2)", "(-1, 3, 2)", "()"),
    *(
        "(4294967296, 4294967296, 16)",
        "(0, 3, 2)",
        "(5, 0, 2)",
        "(5, 3)",
        "(5, 3, 2, 1)",
    ),
    *(
        "(5, 3, 2L)",
        "(5.0, 3, 2)",
        "5",
        "'5'",
        "((5,), 3)",
        "(5, 3, 2",
        "(" * 80,
        "(30,)",
    ),
    *("(8589934592, 1, 1)", "(5, 3, 2) or 1", "{}", "(0, 10000000000000000000000, 1)"),
]
DTYPES = [
    *("'|O'", "'<U0'", "'|V0'", "'<f8'", "'>u2'", "'|S1'", "'<M8[s]'", "'|b1'", "None"),
    *(
        "[('a', '|u1')]",
        "'|u1,|u1'",
        "'(2,)u1'",
        "'<c16'",
        "'\\x00'",
        "1",
        "'|u9'",
        "[]",
    ),
]


def arrays_of(rng: np.random.Generator, shape=(3, 2)) -> list[np.ndarray]:
    """Train images and labels, test images and labels: 5 and 4 rows."""
    x = rng.integers(0, 256, (9, *shape), dtype=np.uint8)
    y = (np.arange(9) % 3).astype(np.uint8)
    return [x[:5], y[:5], x[5:], y[5:]]


def assert_usable(images: Images) -> tuple[int, int]:
    """The contract of a set: bytes, labels of its classes, rows in pairs."""
    for x, y in (images[:2], images[2:4]):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        assert x.ndim in (3, 4)
        assert x.size > 0
        assert len(x) == len(y)
        assert 0 <= y.min() <= y.max() < images.num_classes
    return images.train_x.shape[0], images.num_classes


def hostile_array(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """An array of another kind, shape, or with extreme values."""
    extreme = [-1, 2**31, 2**32, 2**63 - 1, -(2**63)][rng.integers(5)]
    wide = array.astype(np.int64)
    wide.flat[0] = extreme
    return [
        wide,
        array.astype(np.float32) * np.nan,
        array.astype(str),
        np.array([{"a": 1}] * len(array), object),
        array[..., None],
        array.ravel(),
        array[:0],
        np.asarray(extreme),
        np.full(array.shape, 2**64 - 1, np.uint64),
        array.astype(np.dtype([("a", np.uint8)])),
        array.astype(">u4"),
        np.asfortranarray(array),
    ][rng.integers(12)]


def npy_bytes(rng: np.random.Generator, array: np.ndarray) -> bytes:
    """An npy file, in half of the cases with another shape or dtype in its header."""
    file = io.BytesIO()
    with_pickle = array.dtype.hasobject
    np.lib.format.write_array(file, array, allow_pickle=with_pickle)
    raw = file.getvalue()
    if rng.integers(2):
        return raw
    size = int.from_bytes(raw[8:10], "little")
    header = raw[10 : 10 + size].decode("latin1")
    old, new = (
        (r"\(.*?\)", SHAPES[rng.integers(len(SHAPES))])
        if rng.integers(2)
        else (r"'[<>|=].*?'", DTYPES[rng.integers(len(DTYPES))])
    )
    header = re.sub(old, lambda _: new, header, count=1).encode("latin1")
    return raw[:8] + len(header).to_bytes(2, "little") + header + raw[10 + size :]


def _files(rng: np.random.Generator) -> dict[str, bytes]:
    """The four arrays as npy files; one of them is hostile in most cases."""
    plain, one = arrays_of(rng), rng.integers(6)
    files = {}
    for place, (name, array) in enumerate(zip(NAMES, plain, strict=True)):
        file = io.BytesIO()
        np.save(file, array)
        files[name] = file.getvalue()
        if place == one:
            other = hostile_array(rng, array) if rng.integers(2) else array
            files[name] = npy_bytes(rng, other)
    return files


def _spoil(rng: np.random.Generator, path: Path) -> None:
    """A file that is missing, empty or a folder, once in a while."""
    kind = rng.integers(60)
    if kind < 3:
        path.unlink()
    if kind == 1:
        path.mkdir()
    if kind == 2:
        path.touch()


def npy(rng: np.random.Generator, folder: Path):
    """Hostile arrays, hostile headers, then damaged bytes."""
    damaged = rng.integers(8)
    for place, (name, raw) in enumerate(_files(rng).items()):
        data = mutate.damage(rng, raw, header=128) if place == damaged else raw
        (folder / f"{name}.npy").write_bytes(data)
    _spoil(rng, folder / f"{NAMES[rng.integers(4)]}.npy")
    return lambda: assert_usable(load_images(folder))


def npz(rng: np.random.Generator, folder: Path):
    """The same in an archive, stored or deflated, whose bytes are damaged."""
    path, kind = folder / "set.npz", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
    with zipfile.ZipFile(path, "w", kind[rng.integers(2)]) as archive:
        for name, raw in _files(rng).items():
            archive.writestr(f"{name}.npy", raw)
    if rng.integers(2):
        raw = path.read_bytes()
        start = raw.index(b"PK\x01\x02")  # the directory at the end
        if rng.integers(2):
            raw = raw[:start] + mutate.damage(rng, raw[start:])
        else:
            raw = mutate.damage(rng, raw, header=64)
        path.write_bytes(raw)
    _spoil(rng, path)
    place = folder if rng.integers(2) else path
    return lambda: assert_usable(load_images(place))


def idx(rng: np.random.Generator, folder: Path):
    """Extreme sizes and damaged bytes, plain and zipped, before or after zipping."""
    names = [
        f"{split}-{kind}-idx{rank}-ubyte"
        for split in ("train", "t10k")
        for kind, rank in (("images", 3), ("labels", 1))
    ]
    for name, array in zip(names, arrays_of(rng), strict=True):
        sizes = list(array.shape)
        if rng.integers(16) == 0:
            sizes[rng.integers(len(sizes))] = int(rng.choice([2**30, 2**31 - 1, -1, 0]))
        raw = np.array([0x800 + array.ndim, *sizes], ">i4").tobytes() + array.tobytes()
        if rng.integers(12) == 0:
            raw = mutate.damage(rng, raw, header=16)
        zipped = rng.integers(2)
        raw = gzip.compress(raw, mtime=0) if zipped else raw
        if zipped and rng.integers(8) == 0:
            raw = mutate.damage(rng, raw, header=10)
        (folder / f"{name}{'.gz' if zipped else ''}").write_bytes(raw)
    files = sorted(folder.iterdir())
    _spoil(rng, files[rng.integers(len(files))])
    return lambda: assert_usable(load_images(folder))


def cifar(rng: np.random.Generator, folder: Path):
    """Labels out of range, files cut and lengthened."""
    ten = bool(rng.integers(2))
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name in names if ten else ["train.bin", "test.bin"]:
        records = rng.integers(0, 256, (2, 3073 if ten else 3074), dtype=np.uint8)
        records[:, 0 if ten else 1] %= 10
        raw = records.tobytes()
        damaged = rng.integers(4) == 0
        data = mutate.damage(rng, raw, header=2) if damaged else raw
        (folder / name).write_bytes(data)
    files = sorted(folder.iterdir())
    _spoil(rng, files[rng.integers(len(files))])
    return lambda: assert_usable(load_images(folder))


MAKES = {"npy": npy, "npz": npz, "idx": idx, "cifar": cifar}


def battery(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try so many inputs; see :func:`tests.fuzz.battery.run_battery`."""
    return run_battery("images", MAKES, count, seed, folder)


if __name__ == "__main__":
    main("images", MAKES)
