"""LoRA adapters written as PEFT writes them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from jaxcl.adapters.paths import leaves_by_path, path_of, select
from jaxcl.errors import WriteError, reason_of, require
from jaxcl.files import as_folder, write_json
from jaxcl.interop.peft import CONFIG, PREFIX, WEIGHTS, Spot, spots_of
from jaxcl.interop.peft_names import is_decoder, names_of
from jaxcl.typing import Params

_WHO = "save_adapter"


def save_adapter(
    folder: Any,
    params: Params,
    *,
    extra: str | Sequence[str] = (),
    rslora: bool = False,
    base: str | None = None,
    task_type: str | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Write the adapter of parameters into a folder that PEFT, and other tools, can load.

    Ranks are those of the factors without columns of zeros at their end, and alphas follow
    from ranks and scales.

    Args:
      folder: a new one, or one without an adapter.
      params: with an adapter, ``combine(trainable, frozen)``; of a decoder or an encoder of
        :mod:`jaxcl.models`.
      extra: modules that were trained fully, as in :func:`jaxcl.adapters.add_lora`: they
        are written as ``modules_to_save``.
      rslora: write the scales as those of ``use_rslora``.
      base: the name or path of the base, which PEFT loads.
      task_type: PEFT's, such as ``SEQ_CLS``; ``CAUSAL_LM`` for a decoder if absent.
      names: as in :func:`jaxcl.interop.load_adapter`.

    Raises:
      ValueError: for a folder that has an adapter, as nothing is overwritten; for
        parameters without one, or with one on a projection that has no name in files.
      OSError: if files cannot be written.
    """
    place = as_folder(_WHO, folder)
    held = [name for name in (CONFIG, WEIGHTS) if (place / name).exists()]
    message = f"{place} has {' and '.join(held)}, and nothing is overwritten"
    require(not held, _WHO, f"{message}; give another")
    leaves = {
        path_of(entries): leaf for entries, leaf in leaves_by_path(params).items()
    }
    spots = spots_of(names or names_of(_WHO, leaves), leaves)
    adapters = _adapters(leaves, spots, rslora)
    saved = select(f"{_WHO}: extra", extra, leaves) if extra else set()
    unnamed = min(saved - {spot.leaf for spot in spots.values()}, default=None)
    require(unnamed is None, _WHO, f"{unnamed} has no name in files of this model")
    full = {name: spot for name, spot in spots.items() if spot.leaf in saved}
    if "embedding" in saved and is_decoder(leaves) and "out/kernel" not in leaves:
        # PEFT would replace a tied embedding for tokens only.
        full["lm_head.weight"] = Spot("embedding", None)
    tensors = {}
    for module, own in adapters.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = own.a.T
        tensors[f"{PREFIX}{module}.lora_B.weight"] = own.b.T
    for name, (leaf, layer) in full.items():
        value = np.asarray(leaves[leaf])[... if layer is None else layer]
        tensors[PREFIX + name] = value.T if leaf.endswith("kernel") else value
    linear = {_module(n) for n, spot in spots.items() if spot.leaf.endswith("/kernel")}
    config = _config(adapters, linear) | {
        "base_model_name_or_path": base,
        "modules_to_save": sorted({_module(name) for name in full}) or None,
        "task_type": task_type or ("CAUSAL_LM" if is_decoder(leaves) else None),
        "use_rslora": rslora,
    }
    _write(place, config, tensors)


def _module(name: str) -> str:
    """The name of the module that has a tensor."""
    return name.rpartition(".")[0]


class _Adapter(NamedTuple):
    """The adapter of one module."""

    a: np.ndarray  # [in, rank]
    b: np.ndarray  # [rank, out]
    alpha: int | float
    dropout: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]


def _adapters(
    leaves: Mapping[str, Any], spots: Mapping[str, Spot], rslora: bool
) -> dict[str, _Adapter]:
    """The adapters by the modules' names, of each layer by itself."""
    held = {path.rpartition("/")[0] for path in leaves if path.endswith("/lora_a")}
    require(held, _WHO, "expected params with an adapter, got none; see add_lora")
    found, named = {}, set()
    for name, (leaf, layer) in spots.items():
        path = leaf.removesuffix("/kernel")
        if path not in held:
            continue
        named.add(path)
        index = ... if layer is None else layer
        own = lambda part, path=path: np.asarray(leaves[f"{path}/lora_{part}"])
        a, b = own("a")[index], own("b")[index]
        used = np.flatnonzero(np.any(a != 0, axis=0) | np.any(b != 0, axis=1))
        if used.size == 0:  # a layer without an adapter
            continue
        rank = int(used[-1]) + 1
        alpha = float(own("scale")[index]) * (rank**0.5 if rslora else rank)
        noisy = f"{path}/lora_dropout" in leaves
        rate = float(f"{own('dropout')[index]:.6g}") if noisy else 0.0
        found[_module(name)] = _Adapter(a[:, :rank], b[:rank], _rounded(alpha), rate)
    unnamed = min(held - named, default=None)
    require(unnamed is None, _WHO, f"{unnamed} has no name in files of this model")
    require(found, _WHO, "all factors are zero; train the adapter first")
    return found


def _rounded(value: float) -> int | float:
    """A number without the digits that float32 cannot hold."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def _config(adapters: Mapping[str, _Adapter], linear: set[str]) -> dict[str, Any]:
    """The fields that say which modules have adapters, and of which rank and scale."""
    ranks = {name: own.rank for name, own in adapters.items()}
    alphas = {name: own.alpha for name, own in adapters.items()}
    rank, rank_pattern = _with_patterns(ranks)
    alpha, alpha_pattern = _with_patterns(alphas)
    return {
        "alpha_pattern": alpha_pattern,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": max(own.dropout for own in adapters.values()),
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "target_modules": _endings(set(adapters), linear),
        "use_dora": False,
    }


def _endings(wanted: set[str], known: Iterable[str]) -> list[str]:
    """The shortest ends of names, at dots, that select the wanted ones of those known."""
    others = set(known) - wanted
    found = set()
    for name in wanted:
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
        selects = lambda end, other: f".{other}".endswith(f".{end}")
        found.add(
            next(
                (e for e in ends if not any(selects(e, other) for other in others)),
                name,
            )
        )
    return sorted(found)


def _with_patterns(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the others by ends of the modules' names."""
    usual = Counter(values.values()).most_common(1)[0][0]
    patterns = {}
    for value in sorted(set(values.values()) - {usual}):
        wanted = {name for name, own in values.items() if own == value}
        patterns |= dict.fromkeys(_endings(wanted, values), value)
    return usual, patterns


def _write(place: Path, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Both files, the config last: without it there is no adapter."""
    flat = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    partial = place / f".{WEIGHTS}.tmp"
    try:
        place.mkdir(parents=True, exist_ok=True)
        save_file(flat, partial, metadata={"format": "pt"})
        os.replace(partial, place / WEIGHTS)
        write_json(place / CONFIG, dict(sorted(config.items())))
    except OSError as error:
        failed = f"{_WHO}: {place} cannot be written ({reason_of(error)})"
        msg = f"{failed}; give another, or make room."
        raise WriteError(msg) from error
