"""Damaged folders of pretrained models: headers of tensors, configurations, indexes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl.interop import load_pretrained
from jaxcl.models import EncoderConfig
from tests.fuzz import mutate
from tests.fuzz.battery import main, run_battery

GOLDEN = Path(__file__).parents[1] / "test_interop" / "golden_decoders"
ENCODERS = GOLDEN.parent / "golden_encoders"
FAMILIES = ("llama_linear", "llama3_tied", "qwen2", "qwen3")
SHAPES = [[], [0], [16], [1, 16], [40, 16], [16, 40], [2**40, 16], [2**63, 2], [-1, 16]]
SHAPES += [[16, 16, 1], [16.0, 16], ["16", 16], 16, None, [[16], 16], [True, 16]]
DTYPES = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "f32",
    "",
    3,
    None,
]
OFFSETS = [
    [0, 0],
    [0, 64],
    [64, 0],
    [-64, 0],
    [0, 2**63],
    [0, 2**64],
    [0],
    "0",
    [1, 65],
]


def assert_usable(folder: Path):
    """What is read agrees with itself, and rotations are finite."""
    config, params = load_pretrained(folder)
    depth, sizes = config.num_hidden_layers, (config.vocab_size, config.hidden_size)
    if isinstance(config, EncoderConfig):
        assert params["embeddings"]["word"].shape == sizes
        assert params["layers"]["output"]["norm"]["scale"].shape == (depth, sizes[1])
        assert ("classifier" in params) is (config.classifier is not None)
        return [leaf.dtype for leaf in jax.tree.leaves(params)]
    assert params["embedding"].shape == sizes
    assert params["layers"]["norm_0"]["scale"].shape == (depth, sizes[1])
    for turn in config.rope.turns(4, config.heads[2]):
        assert np.isfinite(turn).all()
    return [leaf.dtype for leaf in jax.tree.leaves(params)]


@cache
def files_of(family: str) -> dict[str, bytes]:
    """The files of a folder of Transformers."""
    folder = GOLDEN / family if (GOLDEN / family).exists() else ENCODERS / family
    held = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".npz"}
    held.pop("gradients.safetensors", None)
    return held


def edited(
    rng: np.random.Generator, raw: bytes, protect: tuple[str, ...] = ()
) -> bytes:
    """JSON with hostile values, names that are missing or twice, then damaged bytes."""
    held = {name: json.dumps(value) for name, value in json.loads(raw).items()}
    names = [name for name in held if name not in protect]
    for _ in range(rng.integers(3)):
        name = names[rng.integers(len(names))]
        if rng.integers(4) == 0:
            held.pop(name, None)
        else:
            held[name] = mutate.hostile(rng)
    if rng.integers(6) == 0:
        inner = json.loads(raw).get("rope_parameters", {"factor": 2.0})
        inner = {name: json.dumps(value) for name, value in inner.items()}
        inner[list(inner)[rng.integers(len(inner))]] = mutate.hostile(rng)
        spelling = ["rope_parameters", "rope_scaling"][rng.integers(2)]
        held[spelling] = joined(inner)
    text = mutate.encode(joined(held))
    return mutate.damage(rng, text) if rng.integers(3) == 0 else text


def joined(held: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in held.items()) + "}"


def write(folder: Path, files: dict[str, bytes]):
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


def spoil(rng: np.random.Generator, folder: Path):
    """A file that is missing, empty or a folder, once in a while."""
    files = sorted(folder.iterdir())
    path, kind = files[rng.integers(len(files))], rng.integers(60)
    if kind < 3:
        path.unlink()
    if kind == 1:
        path.mkdir()
    if kind == 2:
        path.touch()


def config(rng: np.random.Generator, folder: Path):
    """Hostile fields of config.json; sizes that agree with no tensor."""
    files = dict(files_of(FAMILIES[rng.integers(len(FAMILIES))]))
    protect = ("model_type",) if rng.integers(4) else ()
    files["config.json"] = edited(rng, files["config.json"], protect)
    write(folder, files)
    spoil(rng, folder)
    return lambda: assert_usable(folder)


def encoder(rng: np.random.Generator, folder: Path):
    """Hostile fields of BERT, names of labels among them, and damaged headers."""
    files = dict(files_of(("model", "texts", "tokens")[rng.integers(3)]))
    held = json.loads(files["config.json"])
    if rng.integers(2):
        names = {str(number): f"label {number}" for number in range(rng.integers(6))}
        odd = [names, list(names), names | {"9": 3}, {"0": None}, {"00": "x"}, "O", 4]
        held["id2label"] = odd[rng.integers(len(odd))]
    if rng.integers(4) == 0:
        odd = ["BertModel", [], ["BertForMaskedLM"], [None], [["BertModel"]], {}, 3]
        held["architectures"] = odd[rng.integers(len(odd))]
    raw = json.dumps(held).encode()
    files["config.json"] = edited(rng, raw, ("model_type",)) if rng.integers(2) else raw
    if rng.integers(4) == 0:
        name = "model.safetensors"
        files[name] = mutate.damage(rng, files[name], header=4096)
    write(folder, files)
    spoil(rng, folder)
    return lambda: assert_usable(folder)


def header(rng: np.random.Generator, folder: Path):
    """Hostile entries of a header, another length of it, then damaged bytes."""
    files = dict(files_of(FAMILIES[rng.integers(len(FAMILIES))]))
    raw = files["model.safetensors"]
    size = int.from_bytes(raw[:8], "little")
    held, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    names = list(held)
    for _ in range(rng.integers(3)):
        name = names[rng.integers(len(names))]
        field = ["dtype", "shape", "data_offsets"][rng.integers(3)]
        values = {"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS}[field]
        value = values[rng.integers(len(values))]
        kind = rng.integers(8)
        if kind == 0:
            held.pop(name, None)
        elif kind == 1:
            held[mutate.hostile(rng)] = held.get(name, {})
        elif isinstance(held.get(name), dict):
            held[name] = held[name] | {field: value}
    text = mutate.encode(json.dumps(held, ensure_ascii=False))
    if rng.integers(4) == 0:
        text = mutate.damage(rng, text)
    length = len(text) + (int(rng.integers(-9, 9)) if rng.integers(6) == 0 else 0)
    raw = max(length, 0).to_bytes(8, "little") + text + data
    if rng.integers(3) == 0:
        raw = mutate.damage(rng, raw, header=16)
    files["model.safetensors"] = raw
    write(folder, files)
    spoil(rng, folder)
    return lambda: assert_usable(folder)


def index(rng: np.random.Generator, folder: Path):
    """Hostile entries of an index of several files, and damage to one of them."""
    files = dict(files_of("mistral"))
    name = "model.safetensors.index.json"
    held = json.loads(files[name])
    for _ in range(rng.integers(3)):
        places = held["weight_map"]
        tensor = list(places)[rng.integers(len(places))]
        kind = rng.integers(4)
        if kind == 0:
            places.pop(tensor)
        elif kind == 1:
            others = [*files, "../x.safetensors", "none.safetensors", "", 3, None, []]
            places[tensor] = others[rng.integers(len(others))]
        else:
            places[mutate.hostile(rng)] = places[tensor]
    raw = mutate.encode(json.dumps(held, ensure_ascii=False))
    kind = rng.integers(6)
    if kind == 0:
        raw = edited(rng, files[name])
    if kind == 1:
        raw = mutate.damage(rng, raw)
    files[name] = raw
    if kind == 2:
        other = sorted(files)[rng.integers(len(files))]
        files[other] = mutate.damage(rng, files[other], header=64)
    write(folder, files)
    spoil(rng, folder)
    return lambda: assert_usable(folder)


MAKES = {"config": config, "encoder": encoder, "header": header, "index": index}


def battery(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try so many inputs; see :func:`tests.fuzz.battery.run_battery`."""
    return run_battery("models", MAKES, count, seed, folder)


if __name__ == "__main__":
    main("models", MAKES)
