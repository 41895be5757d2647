"""Damaged GGUF files: their bytes, their values, and their tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jaxcl.interop import convert_gguf, read_config
from jaxcl.interop.tensors import INDEX, WEIGHTS, find_tensors
from tests import toy_gguf as toy
from tests.fuzz import mutate
from tests.fuzz.battery import main, run_battery

SIZES = {"d": 32, "units": 32, "layers": 1, "queries": 4, "keys": 2, "head": 8}
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_1")
#: Values that a file may have in place of another.
HOSTILE = [
    *(0, 1, 2, 3, 8, 255, 2**31 - 1, 2**31, 2**32 - 1, -1, -(2**31), True, False),
    *(0.0, -1.0, 1e30, 3e38, 1e-30, float("nan"), float("inf"), 10_000.0, 0.5),
    *("", "gpt2", "llama", "x" * 300, "\n", "\x00", "\u2028", "none", "linear", "yarn"),
    *([1], [0, 1], ["a"], ["a b"], [0.5], [True], [-1] * 300, ["a"] * 300, [""] * 2),
]
NUMBERS = np.array([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 255, 7], np.uint64)


def a_file(rng: np.random.Generator, path: Path, **options: Any) -> bytes:
    """A small valid file of one of the two tokenizers, and its bytes."""
    tokenizer = toy.bpe() if rng.integers(2) else toy.sentencepiece()
    kind = KINDS[rng.integers(len(KINDS))]
    given = {"tokenizer": tokenizer, "sizes": SIZES, "tied": bool(rng.integers(2))}
    toy.toy(path, kind=kind, **{**given, **options})
    return path.read_bytes()


def assert_usable(path: Path, folder: Path, rng: np.random.Generator) -> None:
    """The contract of a folder: what reads it accepts all of it."""
    dtype = ("float32", "bfloat16")[rng.integers(2)]
    size = (5 * 10**9, 3000)[rng.integers(2)]
    made = convert_gguf(path, folder, dtype=dtype, shard_size=size)
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= names
    assert (WEIGHTS in names) != (INDEX in names)
    config = json.loads((folder / "config.json").read_text())
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocab) == config["vocab_size"]
    tensors = find_tensors("fuzz", folder)
    sizes = [int(np.prod(tensor.shape)) for tensor in tensors.values()]
    assert sum(sizes) == made["parameters"]
    assert tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a 1")
    try:
        read_config(folder)
    except ValueError as error:
        raise AssertionError from error


def checked(path: Path, rng: np.random.Generator):
    """The call: it converts the file, or it leaves no folder behind."""

    def call():
        folder = path.parent / "out"
        try:
            assert_usable(path, folder, rng)
        except ValueError:
            left = sorted(file.name for file in path.parent.iterdir())
            assert left == [path.name] * path.exists(), left
            raise

    return call


def header(rng: np.random.Generator, folder: Path):
    """Bytes of the header changed, inserted, or cut off."""
    path = folder / "a.gguf"
    raw = a_file(rng, path)
    end = raw.index(b"token_embd.weight") + 2000
    if rng.integers(8):
        raw = mutate.damage(rng, raw[:end], header=600) + raw[end:]
    path.write_bytes(raw)
    return checked(path, rng)


def lengths(rng: np.random.Generator, folder: Path):
    """Extreme numbers where counts, kinds and lengths are."""
    path = folder / "a.gguf"
    valid = a_file(rng, path)
    raw = bytearray(valid)
    keys = [b"tokenizer.ggml.tokens", b"llama.block_count", b"blk.0.attn_q.weight"]
    keys += [b"general.architecture", b"token_embd.weight", b"output_norm.weight"]
    for _ in range(rng.integers(3)):
        key = keys[rng.integers(len(keys))]
        place = valid.index(key)
        starts = [4, 8, 16, 24, place - 8]
        starts += [place + len(key) + 4 * n for n in range(9)]
        at = starts[rng.integers(len(starts))]
        size = (4, 8)[rng.integers(2)]
        value = int(NUMBERS[rng.integers(len(NUMBERS))]) % 2 ** (8 * size)
        raw[at : at + size] = value.to_bytes(size, "little")
    path.write_bytes(raw)
    return checked(path, rng)


def values(rng: np.random.Generator, folder: Path):
    """Values of another type, extreme values, and keys that are not there."""
    path = folder / "a.gguf"
    tokenizer = toy.bpe() if rng.integers(2) else toy.sentencepiece()
    every = {**toy.model_values(SIZES), **tokenizer}
    more = ("rope.scaling.type", "rope.scaling.factor", "expert_count", "vocab_size")
    keys = [*every, *(f"llama.{name}" for name in more), "llama.x", "general.alignment"]
    keys += ["tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_eos_token"]
    for _ in range(rng.integers(3)):
        key = keys[rng.integers(len(keys))]
        if rng.integers(4) == 0:
            every.pop(key, None)
            continue
        value = HOSTILE[rng.integers(len(HOSTILE))]
        if isinstance(value, list) and isinstance(every.get(key), list):
            old = list(every[key])
            old[rng.integers(len(old))] = value[0]
            same = {type(item) for item in old} == {type(value[0])}
            value = old if same else value
        fits = key != "general.alignment" or (isinstance(value, int) and value > 0)
        if fits and not (isinstance(value, int) and not -(2**31) <= value < 2**32):
            every[key] = 64 if key == "general.alignment" else value
    architecture = "llama" if rng.integers(12) else "gpt2"
    vocab = len(tokenizer["tokenizer.ggml.tokens"])
    tensors = toy.weights(vocab, SIZES, tied=bool(rng.integers(2)))
    toy.write(path, tensors, every, architecture=architecture)
    return checked(path, rng)


def tensors(rng: np.random.Generator, folder: Path):
    """Tensors that are missing, more, of other shapes, or full of odd bytes."""
    path = folder / "a.gguf"
    made = toy.weights(len(toy.TOKENS), SIZES, tied=bool(rng.integers(2)))
    names = list(made)
    name = names[rng.integers(len(names))]
    kind = rng.integers(7)
    if kind == 0:
        del made[name]
    elif kind == 1:
        other = ("x.weight", "blk.0.attn_q.bias", "blk.9.attn_q.weight", "")
        made[other[rng.integers(4)]] = made[name]
    elif kind == 2:
        made[name] = made[name].reshape(-1)
    elif kind == 3:
        made["rope_freqs.weight"] = np.exp(rng.normal(size=4)).astype(np.float32)
    toy.write(
        path, made, {**toy.model_values(SIZES), **toy.bpe()}, kind=KINDS[kind % 5]
    )
    raw = path.read_bytes()
    if kind == 4:  # any bytes are numbers: scales that are NaN, infinite or very large
        at = int(rng.integers(len(raw) - 4000, len(raw)))
        raw = raw[:at] + rng.bytes(64) + raw[at + 64 :]
    elif kind == 5:
        raw = raw[: int(rng.integers(len(raw)))]
    path.write_bytes(raw)
    if rng.integers(60) == 0:
        path.unlink()
    return checked(path, rng)


MAKES = {"header": header, "lengths": lengths, "values": values, "tensors": tensors}


def battery(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try so many inputs; see :func:`tests.fuzz.battery.run_battery`."""
    return run_battery("gguf_files", MAKES, count, seed, folder)


if __name__ == "__main__":
    main("gguf_files", MAKES)
