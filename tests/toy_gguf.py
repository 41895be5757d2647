"""Small GGUF files of the Llama family, written by the package gguf."""

import gguf
import numpy as np

TYPES = gguf.GGMLQuantizationType
LETTERS = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256))]
LETTERS += [chr(256 + n) for n in range(256 - len(LETTERS))]  # GPT-2's 256 bytes
SPECIAL = ("<|end|>", "<|user|>")
MERGES = ("Ġ t", "h e", "Ġt he", "i n", "1 2", "Ġ Ġ", "l l", "ll o")
TOKENS = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
SIZES = {"d": 64, "units": 96, "layers": 2, "queries": 4, "keys": 2, "head": 16}


def bpe(**changes):
    """The values of a byte-level tokenizer."""
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "merges": list(MERGES),
        "bos_token_id": 1,
        "eos_token_id": 0,
        "unknown_token_id": 0,
        "padding_token_id": 0,
        "add_bos_token": False,
        **changes,
    }
    named = {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}
    return {**named, "tokenizer.chat_template": TEMPLATE}


def sentencepiece(**changes):
    """The values of a tokenizer with scores, bytes and a prefix space."""
    words = ["▁t", "he", "▁the", "in", "▁▁", "ll", "llo", "▁hello", "hello", "▁h", "el"]
    words += [*"▁abcdefghilnoprstu.,!12", "ä"]
    bytes_of = [f"<0x{n:02X}>" for n in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_of, *words]
    scores = [0.0] * 259 + [-float(n) for n in range(len(words))]
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{k}": v for k, v in values.items() if v is not None}


def model_values(sizes=None, **changes):
    """The values of the model; with None a key is left out."""
    s = {**SIZES, **(sizes or {})}
    values = {
        "block_count": s["layers"],
        "context_length": 128,
        "embedding_length": s["d"],
        "feed_forward_length": s["units"],
        "attention.head_count": s["queries"],
        "attention.head_count_kv": s["keys"],
        "rope.freq_base": 100_000.0,
        "rope.dimension_count": s["head"],
        "attention.layer_norm_rms_epsilon": 1e-5,
        **changes,
    }
    return {f"llama.{k}": v for k, v in values.items() if v is not None}


def weights(vocab, sizes=None, *, tied=True, seed=0):
    """Random tensors in float32, rows first."""
    s = {**SIZES, **(sizes or {})}
    d, q, k = s["d"], s["queries"] * s["head"], s["keys"] * s["head"]
    block = {"attn_norm": (d,), "attn_q": (q, d), "attn_k": (k, d), "attn_v": (k, d)}
    block |= {"attn_output": (d, q), "ffn_norm": (d,), "ffn_gate": (s["units"], d)}
    block |= {"ffn_up": (s["units"], d), "ffn_down": (d, s["units"])}
    shapes = {"token_embd": (vocab, d), "output_norm": (d,)}
    shapes |= {} if tied else {"output": (vocab, d)}
    for layer in range(s["layers"]):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape).astype(np.float32)
    return {f"{name}.weight": draw(shape) for name, shape in shapes.items()}


def write(path, tensors, values, *, kind="F32", kinds=(), architecture="llama"):
    """Write a file; matrices are stored as ``kind``, or each by its name in ``kinds``."""
    writer = gguf.GGUFWriter(path, architecture)
    adders = {bool: writer.add_bool, float: writer.add_float32, str: writer.add_string}
    for key, value in values.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, int) and not isinstance(value, bool):
            add = writer.add_uint32 if value >= 0 else writer.add_int32
            add(key, value)
        else:
            adders[type(value)](key, value)
    for name, array in tensors.items():
        own = TYPES[dict(kinds).get(name, kind if array.ndim > 1 else "F32")]
        writer.add_tensor(name, gguf.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def toy(path, *, tokenizer=None, model=None, sizes=None, tied=True, **options):
    """Write a complete file; returns its path and its tensors in float32."""
    tokenizer = bpe() if tokenizer is None else tokenizer
    vocab = len(tokenizer.get("tokenizer.ggml.tokens", TOKENS))
    tensors = weights(vocab, sizes, tied=tied)
    values = {**(model_values(sizes) if model is None else model), **tokenizer}
    return write(path, tensors, values, **options), tensors
