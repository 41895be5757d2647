"""GGUF files: their values by key, and their tensors, which are read by rows.

The package gguf dequantises. The header is parsed here: every length is held against the
file before it is used, so that a damaged one is refused at once. 128,000 tokens with their
merges take half a second, a twentieth of the time of gguf's own reader.

Format: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

import importlib
import math
import mmap
import os
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from jaxcl.errors import InputError, MissingFileError, reason_of, shown

_AGAIN = "copy or download it again"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
#: Value types by their numbers: all but text (8) and lists (9) are numbers.
_NUMBERS = {
    **{0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "u1"},
    **{10: "u8", 11: "i8", 12: "f8"},
}
_BOOL, _TEXT, _LIST = 7, 8, 9
_MOST_AXES = 4
_LARGEST = 3e38  # of a weight


class GgufTensor(NamedTuple):
    """Where a tensor is, and how it is stored."""

    name: str
    shape: tuple[int, ...]  # rows first: [out, in] for a projection
    kind: int  # of its quantisation
    start: int  # offset of its first byte in the file
    row_bytes: int  # of one row, along the last axis

    @property
    def rows(self) -> int:
        """How many there are."""
        return math.prod(self.shape[:-1])


class GgufFile(NamedTuple):
    """The header of a file; what cannot be used is refused with its path."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def refuse(self, message: str) -> NoReturn:
        """Refuse this file."""
        _refuse(self.path, message)

    def expect(self, holds: Any, message: str) -> None:
        """Refuse this file unless it holds."""
        if not holds:
            self.refuse(message)

    def value(self, key: str, kind: Any, wanted: str, default: Any = None) -> Any:
        """A value of a type; without a default it must be there."""
        found = self.values.get(key, default)
        fits = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        came = "nothing" if found is None else shown(found)
        self.expect(fits, f"{key} must be {wanted}, got {came}")
        return found

    def size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """An int of at least ``least``, below 2^31."""
        wanted = f"an int from {least} to 2^31 - 1"
        found = self.value(key, int, wanted, default)
        fits = least <= found < 2**31
        self.expect(fits, f"{key} must be {wanted}, got {found}")
        return found

    def number(
        self, key: str, default: float | None = None, *, least: float = 0.0
    ) -> float:
        """A number from ``least``, the shortest that is equal in the file's float32."""
        wanted = f"a number from {least:g} to 1e30"
        found = self.value(key, int | float, wanted, default)
        fits = least <= found <= 1e30
        self.expect(fits, f"{key} must be {wanted}, got {found}")
        return float(str(np.float32(found)))


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read and check the header of a file.

    Raises:
      InputError: without the package gguf, and for a file of another format, damaged,
        cut off, or quantised in a way that gguf cannot undo.
    """
    path = Path(path)
    if not path.is_file():
        there = "a folder" if path.is_dir() else "something else"
        came = there if path.exists() else "nothing"
        msg = f"convert: expected a GGUF file at {path}, got {came}; give its path."
        raise MissingFileError(msg)
    if find_spec("gguf") is None:
        msg = "convert: needs the package gguf; pip install '.[gguf]'."
        raise InputError(msg)
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                came = "it does not begin with GGUF"
                _refuse(path, f"{came}; give a file that ends in .gguf")
            size = os.fstat(file.fileno()).st_size
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                values, table = _Header(path, data).read()
    except OSError as error:
        _refuse(path, f"it cannot be read ({reason_of(error)})")
    tensors = {}
    for name, *rest in table:
        placed = _placed(path, size, name, *rest)
        if name in tensors:
            _refuse(path, f"tensor {_named(name)} is there twice; {_AGAIN}")
        tensors[name] = placed
    return GgufFile(path, values, tensors)


def _refuse(path: Path, message: str) -> NoReturn:
    msg = f"convert: {path}: {message}."
    raise InputError(msg)


def _named(name: str) -> str:
    """A name for a message, in a damaged file of any length."""
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


class _Header:
    """A position in the bytes of a file."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 4

    def read(self) -> tuple[dict[str, Any], list[tuple]]:
        """All values, and name, axes, kind and offset of each tensor."""
        version = self.number("<I")
        if version & 0xFFFF == 0:  # such as 3, with its bytes in the other order
            _refuse(self.path, "it is big-endian; convert it on the machine it is for")
        if version not in _VERSIONS:
            remedy = "make it again by a newer llama.cpp"
            _refuse(self.path, f"expected version 2 or 3, got {version}; {remedy}")
        num_tensors, num_values = self.number("<Q"), self.number("<Q")
        values: dict[str, Any] = {}
        for _ in range(num_values):  # each takes bytes, so a wrong number ends soon
            key = self.text()
            if key in values:
                _refuse(self.path, f"key {_named(key)} is there twice; {_AGAIN}")
            values[key] = self.value(key)
        table = [self.tensor() for _ in range(num_tensors)]
        align = values.get("general.alignment", 32)
        if not (isinstance(align, int) and 0 < align < 2**20):
            came = shown(align)
            _refuse(self.path, f"general.alignment must be above 0, got {came}")
        start = -(-self.at // align) * align
        return values, [(*some, start + offset) for *some, offset in table]

    def number(self, form: str) -> int:
        """A number of a struct format."""
        place, self.at = self.at, self.at + struct.calcsize(form)
        if self.at > len(self.data):
            self.end()
        return struct.unpack_from(form, self.data, place)[0]

    def text(self) -> str:
        """Bytes of UTF-8 after their number."""
        length = self.number("<Q")
        place, self.at = self.at, self.at + length
        if self.at > len(self.data):
            self.end()
        try:
            return self.data[place : self.at].decode()
        except UnicodeDecodeError:
            return _refuse(self.path, f"it holds text that is not UTF-8; {_AGAIN}")

    def value(self, key: str) -> Any:
        """A number, a boolean, text, or a list of one of these."""
        kind = self.number("<I")
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            return self.numbers(key, kind, 1)[0]
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _TEXT:
            if 8 * count > len(self.data):
                self.end()
            return [self.text() for _ in range(count)]
        return self.numbers(key, kind, count)

    def numbers(self, key: str, kind: int, count: int) -> list[Any]:
        """Numbers of one type."""
        if kind not in _NUMBERS:
            _refuse(self.path, f"{_named(key)} has a value of type {kind}; {_AGAIN}")
        dtype = np.dtype(f"<{_NUMBERS[kind]}")
        place, self.at = self.at, self.at + count * dtype.itemsize
        if self.at > len(self.data):
            self.end()
        found = np.frombuffer(self.data, dtype, count, place)
        return (found != 0 if kind == _BOOL else found).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, axes (rows first), kind, and offset from the first tensor."""
        name, axes = self.text(), self.number("<I")
        if axes > _MOST_AXES:
            _refuse(self.path, f"tensor {_named(name)} has {axes} axes; {_AGAIN}")
        shape = tuple(self.number("<Q") for _ in range(axes))[::-1]
        return name, shape, self.number("<I"), self.number("<Q")

    def end(self) -> NoReturn:
        """Refuse a file that is cut off, or whose lengths are wrong."""
        _refuse(self.path, f"it ends within its header; {_AGAIN}")


def _placed(
    path: Path, size: int, name: str, shape: tuple[int, ...], kind: int, start: int
) -> GgufTensor:
    """A tensor, if the file holds all of it and it can be read."""
    who = f"tensor {_named(name)}"
    blocks = importlib.import_module("gguf.constants").GGML_QUANT_SIZES
    quantisation = _kind_of(kind)
    if quantisation is None or not _is_known(kind):
        known = (
            "take one of type F32, F16, BF16, Q4_0 to Q8_0, or a K or I type of gguf"
        )
        called = f"type {getattr(quantisation, 'name', kind)}"
        _refuse(path, f"{who} has {called}, which gguf cannot dequantise; {known}")
    block, block_bytes = blocks[quantisation]
    if not shape or 0 in shape or shape[-1] % block:
        came = f"shape {list(shape)}, in blocks of {block}"
        _refuse(path, f"{who} has {came}; {_AGAIN}")
    found = GgufTensor(name, shape, kind, start, shape[-1] // block * block_bytes)
    end = start + found.rows * found.row_bytes
    if end > size:
        _refuse(path, f"it has {size} bytes, and {who} ends at {end}; {_AGAIN}")
    return found


def _kind_of(kind: int) -> Any:
    """The quantisation with a number, or None."""
    kinds = importlib.import_module("gguf.constants").GGMLQuantizationType
    return kinds(kind) if kind in {known.value for known in kinds} else None


_PROBED: dict[int, bool] = {}


def _is_known(kind: int) -> bool:
    """Whether gguf can dequantise it: whether it does for a block of zeros."""
    if kind not in _PROBED:
        package = importlib.import_module("gguf")
        _, block_bytes = package.GGML_QUANT_SIZES[_kind_of(kind)]
        zeros = np.zeros((1, block_bytes), np.uint8)
        try:
            with np.errstate(all="ignore"):
                package.dequantize(zeros, _kind_of(kind))
            _PROBED[kind] = True
        except NotImplementedError:
            _PROBED[kind] = False
    return _PROBED[kind]


def read_rows(file: GgufFile, tensor: GgufTensor, first: int, last: int) -> np.ndarray:
    """Rows of a tensor in float32, ``[last - first, columns]``, flat but for the last axis.

    Raises:
      InputError: for numbers that are not finite, and a file that is shorter by now.
    """
    count = (last - first) * tensor.row_bytes
    with file.path.open("rb") as stream:
        stream.seek(tensor.start + first * tensor.row_bytes)
        raw = np.frombuffer(stream.read(count), np.uint8)
    name = _named(tensor.name)
    file.expect(raw.size == count, f"it ends within {name}; {_AGAIN}")
    dequantize = importlib.import_module("gguf").dequantize
    with np.errstate(all="ignore"):
        full = dequantize(raw.reshape(last - first, -1), _kind_of(tensor.kind))
    # False for NaN, too; and what is above would not be finite in bfloat16.
    finite = np.abs(full).max() <= _LARGEST
    file.expect(finite, f"{name} holds numbers that are not finite; {_AGAIN}")
    return full
