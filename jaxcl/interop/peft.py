"""LoRA adapters as PEFT writes them: ``adapter_config.json`` and safetensors.

The tensors of a module are ``base_model.model.MODULE.lora_A.weight [rank, in]`` and
``lora_B.weight [out, rank]``; ours are ``lora_a [in, rank]`` and ``lora_b [rank, out]``, of
all layers in one leaf. There, layers of a lower rank than others are padded with zeros,
whose gradient is zero, and layers without an adapter are zero.

Format: github.com/huggingface/peft, ``save_pretrained`` and ``LoraConfig`` of 0.21.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxcl.adapters import combine
from jaxcl.adapters.paths import leaves_by_path, path_of, tree_of
from jaxcl.errors import (
    MissingFileError,
    is_whole,
    require,
    shown,
)
from jaxcl.files import as_folder
from jaxcl.interop.family import read_json
from jaxcl.interop.peft_names import is_decoder, names_of
from jaxcl.interop.tensors import damaged
from jaxcl.typing import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_WHO = "load_adapter"
_AGAIN = "copy or download it again"
_OTHER = "the adapter is of another base"

#: Fields that would change what an adapter computes, where they are set.
_LATER = (
    *("use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora"),
    *("trainable_token_indices", "target_parameters", "layer_replication"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config"),
    *("monteclora_config", "megatron_config", "loftq_config"),
)
#: Ways to begin that also change the base.
_MOVING = re.compile("pissa|olora|corda|loftq|lora_ga")


def load_adapter(
    folder: Any, params: Params, *, names: Mapping[str, str] | None = None
) -> Params:
    """Parameters with the adapter in a folder that PEFT wrote.

    The factors are beside the kernels, as :func:`jaxcl.adapters.add_lora` makes them, in
    float32. Modules that were trained fully (``modules_to_save``) take the place of the
    base's; to train them on, name them: ``partition(params, [lora_rule, "out"])``. With an
    embedding for tokens alone, as PEFT trains a tied one, ``out`` is that of the base.

    Args:
      folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
      params: of the base, a decoder or an encoder of :mod:`jaxcl.models`. Their arrays are
        shared, not copied.
      names: for other models, the names of the base's tensors by the leaves of ``params``,
        with ``{}`` for the number of the layer: see :mod:`jaxcl.interop.peft_names`.

    Raises:
      FileNotFoundError: for a missing folder or file.
      ValueError: for damaged files; for an adapter that is not supported (DoRA, biases, a
        quantized base); for tensors that do not fit ``params`` by name or shape.
    """
    place = as_folder(_WHO, folder)
    config = _read_config(place)
    tensors = _read_tensors(place)
    base = {path_of(entries): leaf for entries, leaf in leaves_by_path(params).items()}
    held = [path for path in base if path.rsplit("/", 1)[-1] == "lora_a"]
    already = f"params have an adapter already, at {', '.join(held[:3])}"
    require(not held, _WHO, f"{already}; give those of the base")
    spots = spots_of(names or names_of(_WHO, base), base)
    pairs, full = _matched(place, tensors, spots)
    leaves = _untied(_full_leaves(place, full, base), base)
    every = _selects_every_layer(config)
    for module, found in pairs.items():
        if every:
            _check_layers(place, module, found, base)
        leaves |= _adapter(place, config, module, found, base)
    return combine(tree_of(leaves), params)


class Spot(NamedTuple):
    """Where a tensor is: in a leaf, or in one layer of a stacked one."""

    leaf: str
    layer: int | None


def spots_of(names: Mapping[str, str], base: Mapping[str, Any]) -> dict[str, Spot]:
    """Where each tensor of the base is, by its name."""
    spots = {}
    for leaf, name in names.items():
        if leaf in base and "{}" in name:
            layers = range(base[leaf].shape[0])
            spots |= {name.format(layer): Spot(leaf, layer) for layer in layers}
        elif leaf in base or leaf == "out/kernel":  # tied embeddings have no `out`
            spots[name] = Spot(leaf, None)
    return spots


def _read_config(place: Path) -> dict[str, Any]:
    """The fields of ``adapter_config.json``; kinds that are not supported are refused."""
    path = place / CONFIG
    fields = read_json(_WHO, path, "give the folder of an adapter of PEFT")
    kind, start = fields.get("peft_type"), fields.get("init_lora_weights")
    require(kind == "LORA", _WHO, f"{path}: peft_type must be LORA, got {shown(kind)}")
    odd = [f"{name} {shown(fields[name])}" for name in _LATER if fields.get(name)]
    if fields.get("bias", "none") != "none":
        odd.append(f"bias {shown(fields['bias'])}")
    if isinstance(start, str) and _MOVING.search(start):
        odd.append(f"init_lora_weights {start}, which changes the base")
    require(not odd, _WHO, f"{path}: {', '.join(odd)} is not supported yet")
    _check_numbers(path, fields)
    return fields


def _check_numbers(path: Path, fields: Mapping[str, Any]) -> None:
    """Refuse ranks, scales and rates that are out of their range."""
    real = lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    holds = {
        "r": lambda value: is_whole(value) and 1 <= value < 2**31,
        "lora_alpha": lambda value: real(value) and 0 <= value < 2**31,
        "lora_dropout": lambda value: real(value) and 0 <= value < 1,
    }
    for name, fits in holds.items():
        came = f"{path}: {name} is out of range, {shown(fields.get(name))}"
        require(name not in fields or fits(fields[name]), _WHO, f"{came}; {_AGAIN}")
    for name, fits in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        held = fields.get(name) or {}
        known = isinstance(held, dict) and all(map(holds[fits], held.values()))
        wanted = f"{name} must be an object of numbers, got {shown(held)}"
        require(known, _WHO, f"{path}: {wanted}; {_AGAIN}")


def _read_tensors(place: Path) -> dict[str, np.ndarray]:
    """All tensors of an adapter."""
    path = place / WEIGHTS
    if not path.is_file():
        pickled = (place / "adapter_model.bin").is_file()
        came = "adapter_model.bin, a pickle, which may run any code" if pickled else ""
        remedy = "save it with safe_serialization=True" if pickled else _AGAIN
        msg = f"{_WHO}: expected {WEIGHTS} in {place}, got {came or 'none'}; {remedy}."
        raise MissingFileError(msg)
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise damaged(_WHO, path, error) from error


class Pair(NamedTuple):
    """The two factors of a module in a file."""

    name: str  # of the module
    spot: Spot  # of its kernel
    a: np.ndarray  # [rank, in]
    b: np.ndarray  # [out, rank]


def _matched(
    place: Path, tensors: Mapping[str, np.ndarray], spots: Mapping[str, Spot]
) -> tuple[dict[str, list[Pair]], dict[str, dict[int | None, np.ndarray]]]:
    """Pairs of factors by the path of the projection, other tensors by leaf and layer."""
    factors: dict[tuple[str, Spot], dict[str, np.ndarray]] = {}
    full: dict[str, dict[int | None, np.ndarray]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        module, _, factor = name.removesuffix(".weight").rpartition(".lora_")
        weight = f"{module}.weight" if factor in ("A", "B") else name
        spot = next(
            (spots[n] for n in _spellings(weight) if n in spots), Spot("", None)
        )
        lacks = f"{place} has {key}, for which params have no place; {_OTHER}"
        require(spot.leaf, _WHO, lacks)
        if factor in ("A", "B"):
            factors.setdefault((module, spot), {})[factor] = tensor
        else:
            full.setdefault(spot.leaf, {})[spot.layer] = tensor
    require(tensors, _WHO, f"{place} has no tensors; {_AGAIN}")
    pairs: dict[str, list[Pair]] = {}
    for (module, spot), held in factors.items():
        message = f"{place} has only one of lora_A and lora_B of {module}; {_AGAIN}"
        require(len(held) == 2, _WHO, message)
        path = spot.leaf.removesuffix("/kernel")
        pairs.setdefault(path, []).append(Pair(module, spot, held["A"], held["B"]))
    return pairs, full


def _spellings(name: str) -> tuple[str, ...]:
    """A name in a file, and what it is in a model with its head, or without."""
    return name, f"model.{name}", f"bert.{name}", name.removeprefix("bert.")


def _full_leaves(
    place: Path, full: Mapping[str, Mapping[int | None, np.ndarray]], base
) -> dict[str, Any]:
    """Leaves that were trained fully, in float32."""
    leaves = {}
    for path, found in full.items():
        tied = base[path] if path in base else base["embedding"].T
        leaf = np.array(tied, np.float32)
        for layer, tensor in found.items():
            value = tensor.T if path.endswith("kernel") else tensor
            wanted = leaf.shape if layer is None else leaf.shape[1:]
            fits = value.shape == wanted
            came = f"{place}: {path} must be {list(wanted)}, got {list(value.shape)}"
            require(fits, _WHO, f"{came}; {_OTHER}")
            leaf[... if layer is None else layer] = value
        leaves[path] = jnp.asarray(leaf)
    return leaves


def _untied(leaves: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A head of its own, if tokens have another embedding than the base's head.

    PEFT replaces a tied embedding for tokens only; its outputs remain those of the base.
    """
    if "embedding" not in leaves or not is_decoder(base) or "out/kernel" in base:
        return leaves
    head = leaves.get("out/kernel", jnp.asarray(base["embedding"]).T)
    alike = np.array_equal(head, leaves["embedding"].T)
    others = {path: leaf for path, leaf in leaves.items() if path != "out/kernel"}
    return others if alike else {**others, "out/kernel": head}


def _selects_every_layer(config: Mapping[str, Any]) -> bool:
    """Whether modules are named for all layers alike, as they usually are."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    chosen = is_whole(layers) or bool(layers)  # 0 is a layer, an empty list is all
    named = isinstance(targets, list) and not any("." in str(name) for name in targets)
    return named and not chosen and not config.get("exclude_modules")


def _check_layers(place: Path, module: str, found: list[Pair], base) -> None:
    """Refuse an adapter of fewer layers: it is of a smaller model of the same width."""
    layers = {pair.spot.layer for pair in found} - {None}
    kernel = base.get(f"{module}/kernel")
    count = len(kernel) if layers and kernel is not None else 0
    missing = sorted(set(range(count)) - layers)
    came = f"{place} has {module} for {len(layers)} of the {count} layers of params"
    require(not missing, _WHO, f"{came}, none for {missing[:3]}; {_OTHER}")


def _adapter(
    place: Path, config: Mapping[str, Any], module: str, found: list[Pair], base
) -> dict[str, Any]:
    """The leaves of the adapter of one projection, of all its layers."""
    absent = f"{place} has an adapter of {found[0].name}, but params have no {module}"
    remedy = "tied embeddings have no projection of their own"
    require(f"{module}/kernel" in base, _WHO, f"{absent}; {remedy}")
    kernel = base[f"{module}/kernel"]
    floats = jnp.issubdtype(kernel.dtype, jnp.floating)
    later = "adapters of quantized bases are not supported yet"
    require(
        floats, _WHO, f"{module}/kernel must have floats, got {kernel.dtype}; {later}"
    )
    *layers, i, o = kernel.shape
    top = max(pair.a.shape[0] for pair in found)
    a, b = (
        np.zeros((*layers, i, top), np.float32),
        np.zeros((*layers, top, o), np.float32),
    )
    scale = np.zeros(layers, np.float32)
    for name, spot, own_a, own_b in found:
        rank = _setting(config, "rank_pattern", name, config.get("r", 8))
        alpha = _setting(config, "alpha_pattern", name, config.get("lora_alpha", 8))
        shapes = [list(np.shape(own)) for own in (own_a, own_b)]
        wanted = f"{place}: factors of {name} must be [{rank}, {i}] and [{o}, {rank}]"
        fits = shapes == [[rank, i], [o, rank]]
        came = f"got {shapes[0]} and {shapes[1]}; {_OTHER}"
        require(fits, _WHO, f"{wanted} by {CONFIG} and params, {came}")
        layer = ... if spot.layer is None else spot.layer
        a[layer][..., :rank], b[layer][..., :rank, :] = own_a.T, own_b.T
        scale[layer] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    leaves = {"lora_a": a, "lora_b": b, "lora_scale": scale}
    if rate := config.get("lora_dropout", 0.0):
        leaves["lora_dropout"] = np.full(layers, rate, np.float32)
    return {f"{module}/{name}": jnp.asarray(leaf) for name, leaf in leaves.items()}


def _setting(config: Mapping[str, Any], field: str, module: str, usual: Any) -> Any:
    """The value of a module, by the first pattern that matches the end of its name."""
    for pattern, value in (config.get(field) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            msg = f"{field} has {pattern!r}, no regular expression ({error}); {_AGAIN}"
            return require(False, _WHO, msg)
    return usual
