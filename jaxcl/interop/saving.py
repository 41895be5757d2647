"""Models written as Hugging Face Transformers writes them."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl.errors import (
    InputError,
    MissingFileError,
    WriteError,
    check_size,
    reason_of,
    require,
    shown,
)
from jaxcl.files import as_folder, write_json
from jaxcl.interop.family import Family, read_json
from jaxcl.interop.huggingface import FAMILIES, as_dtype, path_of, some_of
from jaxcl.interop.tensors import DTYPES, Written, write_tensors
from jaxcl.typing import Params

_WHO = "save_pretrained"
#: Files beside a model that do not depend on its weights.
BESIDE = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_MODEL = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def save_pretrained(
    folder: Any,
    config: Any,
    params: Params,
    *,
    source: Any = None,
    dtype: Any = None,
    shard_size: int = 5 * 10**9,
) -> None:
    """Write a model into a folder that Transformers, and other tools, can load.

    It gets ``config.json`` and ``model.safetensors``, or several files with an index.
    Tensors are brought to the host one at a time. All files appear together at the end, or
    none where writing fails.

    Args:
      folder: a new one, or one without a model.
      config: of the model, such as a :class:`jaxcl.models.DecoderConfig`.
      params: of the model; the factors of adapters must have been merged.
      source: the folder that the model came from: its tokenizer, chat template and
        generation settings are copied, and the numbers of its special tokens.
      dtype: of the files; that of the parameters if absent.
      shard_size: most bytes of a file of several tensors.

    Raises:
      FileNotFoundError: if ``source`` is not a folder.
      ValueError: for a folder that has a model, as nothing is overwritten; for parameters
        of another model, and a configuration that no supported family has.
      OSError: if files cannot be written, as on a full disk.
    """
    check_size(_WHO, shard_size=shard_size)
    kind = None if dtype is None else as_dtype(_WHO, dtype)
    known = ", ".join(each.config.__name__ for each in FAMILIES)
    given = f"config must be one of {known}, got {shown(config)}"
    family = next((f for f in FAMILIES if isinstance(config, f.config)), None)
    if family is None:
        return require(False, _WHO, given)
    fields = family.write(config)
    tensors = _checked(family, config, params, kind)
    fields["dtype"] = tensors[0].dtype.name
    place = as_folder(_WHO, folder)
    beside = _beside(source, fields)
    with _new_files(place, [path.name for path in beside]) as new:
        write_tensors(new, tensors, shard_size)
        for path in beside:
            shutil.copyfile(path, new / path.name)
        write_json(new / "config.json", fields)
    return None


def _checked(
    family: Family, config: Any, params: Params, dtype: np.dtype | None
) -> list[Written]:
    """The tensors of all leaves, which must be those of the model."""
    by_path = lambda tree: {path_of(p): x for p, x in jax.tree.leaves_with_path(tree)}
    shapes, leaves = by_path(family.shapes(config)), by_path(params)
    missing = sorted(shapes.keys() - leaves.keys())
    more = sorted(leaves.keys() - shapes.keys())
    faults = [f"lack {some_of(missing)}"] * bool(missing)
    faults += [f"have {some_of(more)} besides"] * bool(more)
    adapted = any("lora_" in name for name in more)
    remedy = "merge the adapters first" if adapted else "give the model's own config"
    require(not faults, _WHO, f"params {' and '.join(faults)}; {remedy}")
    written = []
    for path, leaf in leaves.items():
        _check_leaf(path, leaf, shapes[path].shape)
        kind = np.dtype(leaf.dtype) if dtype is None else dtype
        written += _tensors_of(family.names[path], path, leaf, kind)
    return written


def _check_leaf(path: str, leaf: Any, shape: tuple[int, ...]) -> None:
    """Refuse a leaf of another shape or of no floating dtype, and one that is elsewhere."""
    arrays = isinstance(leaf, jax.Array | np.ndarray)
    came = f"{leaf.dtype} {list(leaf.shape)}" if arrays else shown(leaf)
    sizes = f"{path} must be an array {list(shape)} by config, got {came}"
    require(arrays and leaf.shape == shape, _WHO, sizes)
    names = ", ".join(kind.name for kind in DTYPES.values())
    kinds = f"{path} must be of {names}, got {came}; give dtype"
    require(leaf.dtype in DTYPES.values(), _WHO, kinds)
    near = isinstance(leaf, np.ndarray) or leaf.is_fully_addressable
    far = f"{path} is partly on devices of other processes; gather it on each one first"
    require(near, _WHO, far)


def _tensors_of(name: str, path: str, leaf: Any, dtype: np.dtype) -> list[Written]:
    """The tensors of a leaf: one, or one for each entry of its first axis."""
    transposed = path.endswith("kernel")

    def value(*index):
        part = np.asarray(leaf[index])
        return part.T if transposed else part

    several = "{}" in name
    axes = leaf.shape[1:] if several else leaf.shape
    axes = axes[::-1] if transposed else axes
    if not several:
        return [Written(name, axes, dtype, value)]
    return [
        Written(name.format(number), axes, dtype, partial(value, number))
        for number in range(leaf.shape[0])
    ]


def _beside(source: Any, fields: dict[str, Any]) -> list[Path]:
    """The files to copy; ``fields`` get the numbers of the special tokens."""
    held: Mapping[str, Any] = {}
    found = []
    if source is not None:
        place = as_folder(_WHO, source, "source")
        if not place.is_dir():
            remedy = "give the folder of the model that this one came from"
            msg = f"{_WHO}: source must be a folder, got {source}; {remedy}."
            raise MissingFileError(msg)
        found = [place / name for name in BESIDE if (place / name).is_file()]
        if (place / "config.json").exists():
            held = read_json(_WHO, place / "config.json", "give another source")
    for name in _SPECIAL:
        # Written even where it is not known: Transformers would assume one.
        fields[name] = held.get(name, fields.get(name))
    return found


@contextmanager
def _new_files(place: Path, names: list[str]) -> Iterator[Path]:
    """A folder whose files are moved to ``place`` at the end, or removed on an error."""
    patterns = (*_MODEL, *names)
    held = sorted(path.name for each in patterns for path in place.glob(each))
    message = f"{place} has {some_of(held)}, and nothing is overwritten; give another"
    require(not held, _WHO, message)
    new, created = place / ".saving", not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        # The configuration last: without it there is no model.
        for path in sorted(new.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, place / path.name)
    except InputError:
        raise
    except OSError as error:
        failed = f"{_WHO}: {place} cannot be written ({reason_of(error)})"
        msg = f"{failed}; give another, or make room."
        raise WriteError(msg) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if created:
            with suppress(OSError):  # it has files
                place.rmdir()
