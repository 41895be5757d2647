"""Folders of Hugging Face Transformers: ``config.json`` and safetensors.

The models are those of :mod:`jaxcl.models`, and the files those that other tools read. A
family of models is a record in ``FAMILIES``: its configuration, and a table of names.
"""

from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcl.errors import MissingFileError, check_kind, require, shown
from jaxcl.files import as_folder
from jaxcl.interop.decoders import DECODERS
from jaxcl.interop.encoders import ENCODERS
from jaxcl.interop.family import ConfigFile, Family, read_json
from jaxcl.interop.tensors import DTYPES, Leaf, Tensor, find_tensors, read_leaf
from jaxcl.sharding import ShardingPlan, check_sharding_plan, shardings
from jaxcl.typing import Params

#: All families that can be read and written.
FAMILIES: tuple[Family, ...] = (DECODERS, ENCODERS)
_WHO = "load_pretrained"


def read_config(folder: Any) -> Any:
    """The sizes of the model in a folder, such as a :class:`jaxcl.models.DecoderConfig`.

    Supported are the ``model_type`` llama (Llama 2 and 3, SmolLM2, TinyLlama), mistral,
    qwen2 and qwen3, as versions 4 and 5 of Transformers write them, with rotary positions
    of the types default, linear and llama3; and bert, alone or with a classifier of texts
    or of tokens, as a :class:`jaxcl.models.EncoderConfig`.

    Raises:
      ValueError: for a model of another type, or with a feature that would change what it
        computes and is not supported, such as biases in Llama.
    """
    return _described("read_config", folder)[1]


def load_pretrained(
    folder: Any, *, sharding: ShardingPlan | None = None, dtype: Any = None
) -> tuple[Any, Params]:
    """The configuration and the parameters of the model in a folder.

    ::

        config, params = load_pretrained("SmolLM2-135M")
        logits = decoder(config).apply(params, tokens)

        config, pretrained = load_pretrained("bert-base-uncased")
        model = sequence_classifier(config, 4)
        params = {**model.init(key), **pretrained}

    Each device's part of a parameter is read directly from the files, so that the host
    needs memory for no more than what its devices hold, or one parameter of all layers
    where devices have memory of their own.

    Args:
      folder: with ``config.json`` and ``model.safetensors``, or several with an index.
      sharding: how parameters are split over a mesh; all on one device if absent.
      dtype: of the parameters; that of the files if absent.

    Raises:
      FileNotFoundError: for a missing folder or file.
      ValueError: for a model that is not supported (see :func:`read_config`), damaged
        files, and tensors that are missing, not used or of another shape, by name. Only
        tensors that follow from others may be there without use: ``lm_head.weight`` of tied
        embeddings and ``rotary_emb.inv_freq``.
    """
    kind = None if dtype is None else as_dtype(_WHO, dtype)
    check_kind(_WHO, ShardingPlan, optional=True, sharding=sharding)
    if sharding is not None:
        check_sharding_plan(_WHO, sharding)
    family, config, place = _described(_WHO, folder)
    leaves = _matched(place, family, config, find_tensors(_WHO, place))
    is_leaf = lambda node: isinstance(node, Leaf)
    if sharding is None:
        return config, jax.tree.map(partial(_made, kind), leaves, is_leaf=is_leaf)
    places = shardings(sharding, family.shapes(config), prefix="params/", who=_WHO)
    return config, jax.tree.map(partial(_made, kind), leaves, places, is_leaf=is_leaf)


def _described(who: str, folder: Any) -> tuple[Family, Any, Path]:
    """The family, the configuration and the path of the model in a folder."""
    place = as_folder(who, folder)
    if not place.is_dir():
        came = "a file" if place.exists() else "nothing"
        wanted = f"expected a folder with a model at {folder}, got {came}"
        remedy = "give the path of one that was downloaded"
        if place.suffix == ".gguf":
            remedy = "`jaxcl convert FILE FOLDER` makes one of a GGUF file"
        msg = f"{who}: {wanted}; {remedy}."
        raise MissingFileError(msg)
    path = place / "config.json"
    file = ConfigFile(str(path), read_json(who, path, _OTHER))
    family = _family_of(file)
    return family, family.read(file), place


_OTHER = "give the folder of a model for Transformers"


def _family_of(file: ConfigFile) -> Family:
    """The family of a model, by its ``model_type``."""
    file.only("quantization_config")
    name = file.fields.get("model_type")
    for family in FAMILIES:
        if name in family.model_types:
            return family
    known = ", ".join(name for each in FAMILIES for name in each.model_types)
    return file.refuse(f"model_type must be one of {known}, got {shown(name)}")


def _matched(
    place: Path, family: Family, config: Any, tensors: Mapping[str, Tensor]
) -> PyTree:
    """The tensors of each leaf; refuse what is missing, not used or of another shape."""
    # Before shapes are made: layers without end would take time without end.
    depth, count = getattr(config, "num_hidden_layers", 1), len(tensors)
    few = f"{place} has {count} tensors, too few for {depth} layers; {_INCOMPLETE}"
    require(depth <= count, _WHO, few)
    shapes = family.shapes(config)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        other = found.setdefault(family.spelling(name), tensor).name
        twice = (
            f"{place} has {other} and {name}, two names of one tensor; {_INCOMPLETE}"
        )
        require(other == name, _WHO, twice)
    names = tensor_names(family, shapes)
    wanted = {name for some in names.values() for name in some}
    _check_names(place, wanted, found, family.unused(config))

    def leaf(path, array):
        path = path_of(path)
        parts = tuple(found[name] for name in names[path])
        made = Leaf(parts, "{}" in family.names[path], path.endswith("kernel"))
        axes = array.shape[1:] if made.stacked else array.shape
        for part in parts:
            _check_tensor(place, part, axes[::-1] if made.transposed else axes)
        return made

    return jax.tree_util.tree_map_with_path(leaf, shapes)


_INCOMPLETE = "files are missing, or config.json is of another model"


def _check_names(
    place: Path, wanted: set[str], found: Mapping[str, Any], unused: tuple[str, ...]
) -> None:
    """Refuse tensors that are missing, and those that are neither used nor known."""
    missing = sorted(wanted - found.keys())
    known = lambda name: any(fnmatchcase(name, pattern) for pattern in unused)
    more = sorted(name for name in found.keys() - wanted if not known(name))
    faults = [f"lacks {some_of(missing)}"] * bool(missing)
    faults += [f"has {some_of(more)}, which the model has no use for"] * bool(more)
    require(not faults, _WHO, f"{place} {' and '.join(faults)}; {_INCOMPLETE}")


def _check_tensor(place: Path, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape or dtype."""
    wanted = f"{place}: {tensor.name} must be {list(shape)} by config.json"
    came = f"{wanted}, got {list(tensor.shape)}; {_INCOMPLETE}"
    require(tensor.shape == shape, _WHO, came)
    came = f"{tensor.name} must be of {', '.join(DTYPES)}, got {tensor.dtype}"
    remedy = "take the model that was not quantized"
    require(tensor.dtype in DTYPES, _WHO, f"{place}: {came}; {remedy}")


def tensor_names(family: Family, shapes: PyTree) -> dict[str, list[str]]:
    """The names of the tensors of each leaf, by the path of the leaf."""
    numbered = lambda name, leaf: [name.format(i) for i in range(leaf.shape[0])]
    found = {}
    for path, leaf in jax.tree.leaves_with_path(shapes):
        name = family.names[path_of(path)]
        found[path_of(path)] = numbered(name, leaf) if "{}" in name else [name]
    return found


def path_of(path: Any) -> str:
    """The path of a leaf as text: ``layers/norm_0/scale``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def some_of(names: list[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _made(dtype: np.dtype | None, leaf: Leaf, sharding: Any = None) -> jax.Array:
    """The array of a leaf; each device's part of it is read by itself."""
    if dtype is None:
        kinds = {DTYPES[tensor.dtype] for tensor in leaf.tensors}
        dtype = np.dtype(jnp.result_type(*map(jax.dtypes.canonicalize_dtype, kinds)))
    read = partial(read_leaf, _WHO, leaf, dtype=dtype)
    if sharding is None:
        return jax.device_put(read([slice(None)] * len(leaf.shape)))
    parts = {}  # several devices may have the same one

    def part(index):
        key = tuple((each.start, each.stop) for each in index)
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    return jax.make_array_from_callback(leaf.shape, sharding, part)


def as_dtype(who: str, dtype: Any) -> np.dtype:
    """A dtype of weights; without 64 bits in JAX the narrower one."""
    kinds = {kind.name: kind for kind in DTYPES.values()}
    name = str(dtype)
    with suppress(TypeError):
        name = np.dtype(dtype).name
    wanted = f"dtype must be one of {', '.join(kinds)}, got {shown(dtype)}"
    require(name in kinds, who, wanted)
    return jax.dtypes.canonicalize_dtype(kinds[name])
