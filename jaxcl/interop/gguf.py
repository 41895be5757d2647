"""Models of the Llama family in GGUF files, converted to Hugging Face folders.

Such a folder is read by :func:`jaxcl.interop.load_pretrained`, by Transformers and by
other tools. Rows of weights are dequantised, converted and written a few at a time.
"""

import math
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxcl.errors import (
    InputError,
    WriteError,
    check_size,
    reason_of,
    require,
    shown,
)
from jaxcl.files import as_folder, write_json
from jaxcl.interop.gguf_file import GgufFile, GgufTensor, read_gguf, read_rows
from jaxcl.interop.gguf_tokenizer import SPLITS, special_numbers, tokenizer_files

DTYPES = ("bfloat16", "float32")
_WHO = "convert"
_CHUNK = 2**22  # numbers that are converted at once
#: Tensors by their names in the file, with ``{}`` for the layer: leaves of a decoder.
_LEAVES = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "norm/scale",
    "output.weight": "out/kernel",
    "blk.{}.attn_norm.weight": "layers/norm_0/scale",
    "blk.{}.attn_q.weight": "layers/attention/q_proj/kernel",
    "blk.{}.attn_k.weight": "layers/attention/k_proj/kernel",
    "blk.{}.attn_v.weight": "layers/attention/v_proj/kernel",
    "blk.{}.attn_output.weight": "layers/attention/o_proj/kernel",
    "blk.{}.ffn_norm.weight": "layers/norm_1/scale",
    "blk.{}.ffn_gate.weight": "layers/gate_proj/kernel",
    "blk.{}.ffn_up.weight": "layers/up_proj/kernel",
    "blk.{}.ffn_down.weight": "layers/down_proj/kernel",
}
#: Divisors of the angles of rotation: those of Llama 3.1 and later.
_FREQUENCIES = "rope_freqs.weight"
#: Values that say what the model computes; another one would not be obeyed.
_KNOWN = {
    *("vocab_size", "context_length", "embedding_length", "block_count"),
    *("feed_forward_length", "attention.head_count", "attention.head_count_kv"),
    *("attention.layer_norm_rms_epsilon", "attention.key_length"),
    *("attention.value_length", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.finetuned"),
    *("rope.scaling.original_context_length", "rope.scale_linear", "expert_count"),
    *("expert_used_count", "tensor_data_layout"),
}


class Sizes(NamedTuple):
    """What a file says of its model."""

    vocab: int
    width: int  # d
    units: int
    layers: int
    queries: int
    keys: int
    head: int  # size of one
    context: int
    eps: float
    theta: float
    factor: float  # of linear scaling of the rotations, 1 for none
    tied: bool  # whether the output weights are the embedding

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, rows first."""
        d, q, k = self.width, self.queries * self.head, self.keys * self.head
        block = {
            "attn_norm": (d,),
            "attn_q": (q, d),
            "attn_k": (k, d),
            "attn_v": (k, d),
            "attn_output": (d, q),
            "ffn_norm": (d,),
            "ffn_gate": (self.units, d),
            "ffn_up": (self.units, d),
            "ffn_down": (d, self.units),
        }
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.vocab, d)}
        found["output_norm.weight"] = (d,)
        if not self.tied:
            found["output.weight"] = (self.vocab, d)
        for layer in range(self.layers):
            found |= {f"blk.{layer}.{name}.weight": s for name, s in block.items()}
        return found


def convert_gguf(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: str = "bfloat16",
    shard_size: int = 5 * 10**9,
    split: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the model of a GGUF file as a new Hugging Face folder.

    The folder has ``config.json``, ``generation_config.json``, ``model.safetensors`` (or
    several files with an index), ``tokenizer.json`` and ``tokenizer_config.json`` with the
    chat template. It appears at the end, or not at all. Rows of queries and keys, which
    llama.cpp has in neighbouring pairs, are put into halves again. At most one tensor, in
    its new dtype, is in memory.

    Args:
      path: of the file, of architecture llama: Llama, SmolLM2, Mistral and others. The
        sliding window of the first Mistral is not in such files and is not written.
      folder: does not exist yet.
      dtype: of the weights: bfloat16, or float32 for exactly what gguf dequantises.
      shard_size: most bytes of a file of several tensors.
      split: how a byte-level tokenizer cuts text into words, for a file that does not
        say, or wrongly: ``gpt-2``, ``smollm``, ``qwen2``, or ``llama-bpe`` for Llama 3.
      on_progress: ``(parameters done, of all)``, after every tensor.

    Returns:
      ``parameters`` and ``bytes`` of the weights, and their ``dtype``.

    Raises:
      InputError: for a file that is damaged or of another kind, and a folder that exists.
      OSError: if files cannot be written, as on a full disk.
    """
    check_size(_WHO, shard_size=shard_size)
    wanted = f"dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}"
    require(dtype in DTYPES, _WHO, wanted)
    known = f"split must be one of {', '.join(SPLITS)}, got {shown(split)}"
    require(split is None or split in SPLITS, _WHO, known)
    place = as_folder(_WHO, folder)
    taken = f"{place} exists, and nothing is overwritten; give a new folder"
    require(not os.path.lexists(place), _WHO, taken)
    file = read_gguf(path)
    sizes = read_sizes(file)
    texts = tokenizer_files(file, sizes.vocab, sizes.context, split)
    return _write(file, sizes, texts, place, dtype, shard_size, on_progress)


# ----------------------------------------------------------------------------- checks


def read_sizes(file: GgufFile) -> Sizes:
    """The sizes of the model; all tensors must be there in the shapes that they imply."""
    kind = file.value("general.architecture", str, "text")
    file.expect(kind == "llama", f"architecture llama is supported, got {shown(kind)}")
    for key in file.values:
        name = key.removeprefix("llama.")
        odd = f"{shown(key)} is not supported: what the model computes may depend on it"
        file.expect(name == key or name in _KNOWN, odd)
    size = lambda name, default=None: file.size(f"llama.{name}", default)
    experts = file.size("llama.expert_count", 0, least=0)
    file.expect(not experts, f"models with experts are not supported, got {experts}")
    width, queries = size("embedding_length"), size("attention.head_count")
    vocab = file.tensors.get("token_embd.weight")
    head = size("attention.key_length", size("rope.dimension_count", width // queries))
    sizes = Sizes(
        vocab=size("vocab_size", vocab.shape[0] if vocab else None),
        width=width,
        units=size("feed_forward_length"),
        layers=size("block_count"),
        queries=queries,
        keys=size("attention.head_count_kv", queries),
        head=head,
        context=size("context_length"),
        eps=file.number("llama.attention.layer_norm_rms_epsilon"),
        theta=file.number("llama.rope.freq_base", 10_000.0, least=1.0),
        factor=_linear_factor(file),
        tied="output.weight" not in file.tensors,
    )
    _check_heads(file, sizes)
    _check_tensors(file, sizes)
    return sizes


def _check_heads(file: GgufFile, sizes: Sizes) -> None:
    """Refuse heads that a decoder cannot have."""
    for name in ("rope.dimension_count", "attention.value_length"):
        found = file.size(f"llama.{name}", sizes.head)
        odd = f"llama.{name} must be the size of a head, {sizes.head}, got {found}"
        file.expect(found == sizes.head, odd)
    wanted = "key heads must divide query heads, and the size of a head be even"
    came = f"got {sizes.keys}, {sizes.queries} and {sizes.head}"
    fits = not (sizes.queries % sizes.keys or sizes.head % 2)
    file.expect(fits, f"{wanted}, {came}")


def _linear_factor(file: GgufFile) -> float:
    """By how much positions are divided; linearly where a file has a factor only."""
    kind = file.value("llama.rope.scaling.type", str, "text", "linear")
    known = kind in ("none", "linear")
    came = (
        f"llama.rope.scaling.type {shown(kind)} is not supported, only none or linear"
    )
    file.expect(known, came)
    old = file.number("llama.rope.scale_linear", 1.0, least=1.0)
    factor = file.number("llama.rope.scaling.factor", old, least=1.0)
    return factor if kind == "linear" else 1.0


def _check_tensors(file: GgufFile, sizes: Sizes) -> None:
    """Refuse tensors that are missing, of another shape, or not known."""
    # Before shapes are made: layers without end would take time without end.
    few = f"it has {len(file.tensors)} tensors, too few for {sizes.layers} layers"
    file.expect(sizes.layers <= len(file.tensors), few)
    shapes = sizes.shapes()
    for name, shape in shapes.items():
        found = file.tensors.get(name)
        if found is None or found.shape != shape:
            came = "nothing" if found is None else f"{list(found.shape)}"
            file.refuse(f"tensor {name} must be {list(shape)}, got {came}")
    for name in file.tensors:
        if name not in shapes and name != _FREQUENCIES:
            came = f"got tensor {name[:60]!r}"
            file.refuse(f"tensors must be those of a Llama without biases, {came}")


def _rope(file: GgufFile, sizes: Sizes) -> Any:
    """The rotations: as they are, scaled linearly, or as in Llama 3.1.

    Such a file has no numbers but the divisors of all frequencies: those of the released
    models follow from the largest of them.
    """
    from jaxcl.models.layers import Rope

    tensor = file.tensors.get(_FREQUENCIES)
    plain = Rope(sizes.theta)
    if tensor is None:
        scaled = plain._replace(kind="linear", factor=sizes.factor)
        return plain if sizes.factor == 1 else scaled
    half = sizes.head // 2
    fits = tensor.shape == (half,) and sizes.factor == 1
    came = f"got {list(tensor.shape)} and {sizes.factor:g}"
    file.expect(fits, f"{_FREQUENCIES} must be [{half}], and scaling 1, {came}")
    found = read_rows(file, tensor, 0, 1)[0]
    rope = plain._replace(kind="llama3", factor=max(1.0, float(found.max())))
    wanted = plain.frequencies(sizes.head) / rope.frequencies(sizes.head)
    other = (
        f"{_FREQUENCIES} must be that of Llama 3.1 to 3.3: low 1, high 4, length 8192"
    )
    file.expect(np.allclose(found, wanted, rtol=1e-3), other)
    return rope


# ---------------------------------------------------------------------------- writing


def _write(file, sizes, texts, place, dtype, shard_size, on_progress) -> dict[str, Any]:
    """All files in a new folder, which gets its name at the end."""
    from jaxcl.interop.tensors import write_tensors

    config = _config(file, sizes, dtype)
    tensors = _tensors(file, sizes, dtype, on_progress)
    new = place.with_name(f".{place.name[:100]}.{os.getpid()}")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write_tensors(new, tensors, shard_size)
        for name, values in texts.items():
            write_json(new / name, values)
        write_json(new / "generation_config.json", special_numbers(file))
        write_json(new / "config.json", config)
        taken = f"{place} appeared meanwhile, and nothing is overwritten"
        require(not os.path.lexists(place), _WHO, taken)
        os.rename(new, place)
    except InputError:
        raise
    except OSError as error:
        failed = f"{_WHO}: {place} cannot be written ({reason_of(error)})"
        msg = f"{failed}; give another, or make room."
        raise WriteError(msg) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return {
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "bytes": sum(tensor.size for tensor in tensors),
        "dtype": dtype,
    }


def _config(file: GgufFile, sizes: Sizes, dtype: str) -> dict[str, Any]:
    """The fields of ``config.json``."""
    from jaxcl.interop.decoders import DECODERS
    from jaxcl.models.decoder import DecoderConfig

    config = DecoderConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.width,
        intermediate_size=sizes.units,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.queries,
        num_key_value_heads=sizes.keys,
        head_dim=sizes.head,
        rope=_rope(file, sizes),
        rms_norm_eps=sizes.eps,
        tie_word_embeddings=sizes.tied,
        max_position_embeddings=sizes.context,
    )
    return {**DECODERS.write(config), **special_numbers(file), "dtype": dtype}


def _tensors(file: GgufFile, sizes: Sizes, dtype: str, on_progress) -> list[Any]:
    """What is to be written, under the names of Hugging Face."""
    from jaxcl.interop.decoders import DECODERS
    from jaxcl.interop.tensors import DTYPES as KINDS
    from jaxcl.interop.tensors import Written

    kind = next(kind for kind in KINDS.values() if kind.name == dtype)
    shapes = sizes.shapes()
    total, done = sum(map(math.prod, shapes.values())), 0

    def value(tensor, head):
        nonlocal done
        made = _converted(file, tensor, head, kind)
        done += made.size
        if on_progress is not None:
            on_progress(done, total)
        return made

    found = []
    for name, shape in shapes.items():
        block, layer = re.subn(r"^blk\.\d+\.", "blk.{}.", name), name.split(".")[1]
        leaf = _LEAVES[block[0]]
        paired = "q_proj" in leaf or "k_proj" in leaf
        make = partial(value, file.tensors[name], sizes.head if paired else None)
        found.append(Written(DECODERS.names[leaf].format(layer), shape, kind, make))
    return found


def _converted(
    file: GgufFile, tensor: GgufTensor, head: int | None, dtype: np.dtype
) -> np.ndarray:
    """A tensor in another dtype; rows of each ``head`` from neighbours to halves.

    llama.cpp rotates rows ``2 i`` and ``2 i + 1`` of a head together, Hugging Face rows
    ``i`` and ``i + head / 2``.
    """
    out = np.empty(tensor.shape, dtype)
    columns = tensor.shape[-1]
    rows = out.reshape(tensor.rows, columns)
    step = max(1, _CHUNK // columns)
    if head is not None:
        step = max(1, step // head) * head
    for first in range(0, len(rows), step):
        last = min(first + step, len(rows))
        part = read_rows(file, tensor, first, last)
        if head is not None:
            pairs = part.reshape(-1, head // 2, 2, columns)
            part = pairs.swapaxes(1, 2).reshape(part.shape)
        rows[first:last] = part
    return out
