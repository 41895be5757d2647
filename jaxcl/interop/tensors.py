"""Tensors in safetensors files: where they are, parts of them, and files of many.

Only what is asked for is read, a few megabytes at a time, and a file is mapped into memory
no longer than that: its pages would count as memory of this process.

Format: github.com/huggingface/safetensors, "Format".
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxcl.errors import InputError, MissingFileError, reason_of, require
from jaxcl.files import write_json
from jaxcl.interop.family import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: The dtypes of weights that can be read and written, by their names in files.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_CHUNK = 2**24  # bytes that are read at once
_AGAIN = "copy or download it again"


class Tensor(NamedTuple):
    """A tensor in a file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # such as BF16


class Leaf(NamedTuple):
    """The tensors of a leaf of parameters: one, or one for each entry of its first axis."""

    tensors: tuple[Tensor, ...]
    stacked: bool
    transposed: bool  # whether the tensors have the axes in the other order

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the leaf."""
        axes = self.tensors[0].shape
        axes = axes[::-1] if self.transposed else axes
        return (len(self.tensors), *axes) if self.stacked else axes


# ------------------------------------------------------------------------------ reading


def find_tensors(who: str, folder: Path) -> dict[str, Tensor]:
    """All tensors of the model in a folder, of one file or of those in its index."""
    if (folder / WEIGHTS).exists():
        return _tensors_of(who, folder / WEIGHTS)
    if (folder / INDEX).exists():
        return _indexed(who, folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    pickled = sorted(path.name for path in folder.glob("pytorch_model*"))
    if pickled and not others:
        wanted = (
            f"{folder} has no safetensors but {pickled[0]}, a pickle, which may run"
        )
        remedy = "convert it where you trust it: save_pretrained of transformers"
        msg = f"{who}: {wanted} any code when it is read; {remedy} writes safetensors."
        raise InputError(msg)
    came = ", ".join(others[:3]) or "no safetensors"
    msg = f"{who}: {folder} must have {WEIGHTS} or {INDEX}, got {came}; {_AGAIN}."
    raise MissingFileError(msg)


def _indexed(who: str, folder: Path) -> dict[str, Tensor]:
    """The tensors of the files in an index."""
    path = folder / INDEX
    files = read_json(who, path, _AGAIN).get("weight_map")
    files = files if isinstance(files, dict) else {}
    plain = all(isinstance(f, str) and _PLAIN.fullmatch(f) for f in files.values())
    wanted = "weight_map must name a file of this folder for each tensor"
    require(files and plain, who, f"{path}: {wanted}; {_AGAIN}")
    held = {}
    for name in sorted(set(files.values())):
        held |= _tensors_of(who, folder / name)
    for name, file in files.items():
        there = name in held and held[name].path.name == file
        require(there, who, f"{path} has {name!r} in {file}, which lacks it; {_AGAIN}")
    return held


#: Names of files, none in other folders.
_PLAIN = re.compile(r"[\w.-]+\.safetensors")


def _tensors_of(who: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a file, from its header."""
    with _opened(who, path) as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Tensor(path, name, tuple(part.get_shape()), part.get_dtype())
            for name, part in parts.items()
        }


@contextmanager
def _opened(who: str, path: Path) -> Iterator[Any]:
    """A file of tensors; refuse a missing or damaged one in one line."""
    if not path.is_file():
        msg = f"{who}: {path} must be a file of weights, got none; {_AGAIN}."
        raise MissingFileError(msg)
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (OSError, SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise damaged(who, path, error) from error


def read_leaf(
    who: str, leaf: Leaf, index: Sequence[slice], dtype: np.dtype
) -> np.ndarray:
    """A part of a leaf, a slice for each of its axes."""
    sizes = zip(index, leaf.shape, strict=True)
    parts = [range(*part.indices(size)) for part, size in sizes]
    out = _aligned([len(part) for part in parts], dtype)
    numbers, rows = (parts.pop(0), out) if leaf.stacked else (range(1), out[None])
    for number, row in zip(numbers, rows, strict=True):
        if leaf.transposed:
            _read_part(who, leaf.tensors[number], parts[::-1], row.T)
        else:
            _read_part(who, leaf.tensors[number], parts, row)
    return out


def _read_part(
    who: str, tensor: Tensor, parts: Sequence[range], out: np.ndarray
) -> None:
    """Copy a part of a tensor into an array, some rows at a time."""
    rows, *others = parts
    size = math.prod(map(len, others)) * DTYPES[tensor.dtype].itemsize
    step = max(1, _CHUNK // max(1, size))
    columns = [slice(part.start, part.stop) for part in others]
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        with _opened(who, tensor.path) as file:
            part = file.get_slice(tensor.name)[slice(some.start, some.stop), *columns]
        _copy(part, out[start : start + step])


def _copy(array: np.ndarray, out: np.ndarray) -> None:
    """Copy an array into another, of which either may be transposed.

    As many rows at a time as numbers of a line of the cache: all rows at once take ten
    times as long for kernels of thousands of rows.
    """
    plain = array.flags.c_contiguous and out.flags.c_contiguous
    step = len(array) if plain else 16
    for start in range(0, len(array), step):
        out[start : start + step] = array[start : start + step]


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An empty array at an address that JAX on a CPU takes without making a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


# ------------------------------------------------------------------------------ writing


class Written(NamedTuple):
    """A tensor that is to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    value: Callable[[], np.ndarray]  # called when it is written, and not kept

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(folder: Path, tensors: Sequence[Written], most: int) -> None:
    """Write tensors in the order of their names into files of at most ``most`` bytes.

    A tensor that is larger has a file of its own. More than one file have an index.
    """
    files: list[list[Written]] = [[]]
    for tensor in sorted(tensors, key=lambda tensor: tensor.name):
        if files[-1] and sum(t.size for t in files[-1]) + tensor.size > most:
            files.append([])
        files[-1].append(tensor)
    if len(files) == 1:
        _write_file(folder / WEIGHTS, files[0])
        return
    places = {}
    for number, some in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write_file(folder / name, some)
        places |= {tensor.name: name for tensor in some}
    total = {"total_size": sum(tensor.size for tensor in tensors)}
    write_json(folder / INDEX, {"metadata": total, "weight_map": places})


def _write_file(path: Path, tensors: Sequence[Written]) -> None:
    """One file, tensor by tensor."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    # Wide ones first, so that each begins at a multiple of its width.
    tensors = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        kind = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}
        header[tensor.name] = {**kind, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = tensor.value()
            if not array.flags.c_contiguous or array.dtype != tensor.dtype:
                given, array = array, np.empty(tensor.shape, tensor.dtype)
                _copy(given, array)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def damaged(who: str, path: Path, error: Exception) -> InputError:
    """What is said of a file of tensors that cannot be read."""
    why, remedy = reason_of(error), _AGAIN
    with suppress(OSError), path.open("rb") as file:
        if file.read(20) == b"version https://git-":
            why, remedy = "a pointer of Git LFS", "run git lfs pull in its folder"
    return InputError(f"{who}: {path} is not complete safetensors ({why}); {remedy}.")
