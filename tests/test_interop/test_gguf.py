"""GGUF files converted: weights, sizes, files; and files that are refused."""

import json
import os
import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxcl.errors import InputError
from jaxcl.interop import convert_gguf, gguf_file
from jaxcl.interop import gguf as module
from jaxcl.interop.gguf_file import read_gguf
from jaxcl.models.layers import Rope, rotate
from tests import toy_gguf as toy

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name_of(name):
    """The name of Hugging Face, by hand."""
    *layer, leaf, _ = name.split(".")
    prefix = f"model.layers.{layer[1]}." if layer else ""
    return f"{prefix}{NAMES[leaf]}.weight"


def halves(array, head):
    """Row ``2 i + j`` of each head becomes row ``i + j head / 2``, by a loop."""
    out = np.empty_like(array)
    for row in range(len(array)):
        own, place = divmod(row, head)
        pair, side = divmod(place, 2)
        out[own * head + pair + side * head // 2] = array[row]
    return out


def expected(tensors, kinds, sizes=toy.SIZES):
    """What the folder must hold, in float32: gguf's own quantising and back."""
    found = {}
    for name, array in tensors.items():
        kind = toy.TYPES[kinds.get(name, "F32")]
        array = gguf.dequantize(gguf.quantize(array, kind), kind)
        if "attn_q" in name or "attn_k" in name:
            array = halves(array, sizes["head"])
        found[name_of(name)] = array
    return found


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "mixed"]
)
def test_weights_are_those_that_gguf_dequantises(tmp_path, kind):
    """Oracle: gguf.dequantize, and a loop over the rows of queries and keys; bfloat16 is
    NumPy's cast of them."""
    options = {"kind": kind}
    if kind == "mixed":  # as llama.cpp does: the embedding in more bits than the others
        mixed = {"token_embd.weight": "Q8_0", "blk.1.ffn_down.weight": "F16"}
        options = {"kind": "Q4_1", "kinds": mixed}
    path, tensors = toy.toy(tmp_path / "a.gguf", **options)
    matrix = lambda name, array: options["kind"] if array.ndim > 1 else "F32"
    kinds = {name: matrix(name, array) for name, array in tensors.items()}
    wanted = expected(tensors, {**kinds, **options.get("kinds", {})})
    made = convert_gguf(path, tmp_path / "f32", dtype="float32")
    same(load_file(tmp_path / "f32" / "model.safetensors"), wanted)
    size = sum(array.size for array in wanted.values())
    assert made == {"parameters": size, "bytes": 4 * size, "dtype": "float32"}
    convert_gguf(path, tmp_path / "bf16")
    with np.errstate(all="ignore"):
        short = {name: a.astype(ml_dtypes.bfloat16) for name, a in wanted.items()}
    same(load_file(tmp_path / "bf16" / "model.safetensors"), short)


def test_blocks_are_dequantised_as_the_format_says(tmp_path):
    """Oracle: loops over the bytes of Q8_0 (a scale and 32 signed bytes) and Q4_1 (scale,
    minimum, and 32 numbers of four bits, low halves first)."""

    def q8(raw):
        scale = np.frombuffer(raw[:2], np.float16)[0].astype(np.float32)
        return [scale * np.float32(n) for n in np.frombuffer(raw[2:], np.int8)]

    def q4(raw):
        scale, least = np.frombuffer(raw[:4], np.float16).astype(np.float32)
        numbers = [byte & 15 for byte in raw[4:]] + [byte >> 4 for byte in raw[4:]]
        return [scale * np.float32(n) + least for n in numbers]

    for kind, size, undo in [("Q8_0", 34, q8), ("Q4_1", 20, q4)]:
        path, tensors = toy.toy(tmp_path / f"{kind}.gguf", kind=kind)
        convert_gguf(path, tmp_path / kind, dtype="float32")
        found = load_file(tmp_path / kind / "model.safetensors")
        for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
            raw = gguf.quantize(tensors[name], toy.TYPES[kind]).tobytes()
            blocks = [undo(raw[at : at + size]) for at in range(0, len(raw), size)]
            wanted = np.array(blocks, np.float32).reshape(tensors[name].shape)
            np.testing.assert_array_equal(found[name_of(name)], wanted)


def test_rotations_of_halves_give_the_products_of_rotated_neighbours(tmp_path):
    """Oracle: rotations of neighbouring rows of the file, by a loop over complex numbers:
    all products of queries and keys are equal. Negative control: rows as in the file."""
    head, d = toy.SIZES["head"], toy.SIZES["d"]
    path, tensors = toy.toy(tmp_path / "a.gguf")
    convert_gguf(path, tmp_path / "out", dtype="float32")
    found = load_file(tmp_path / "out" / "model.safetensors")
    x = np.random.default_rng(1).standard_normal((5, d)).astype(np.float32)
    rope = Rope(100_000.0)

    def neighbours(weight):
        rows = (x @ weight.T).reshape(5, -1, head)
        pairs = rows[..., ::2] + 1j * rows[..., 1::2]
        for place in range(5):
            pairs[place] *= np.exp(1j * place * rope.frequencies(head))
        return pairs

    def ours(weight):
        rows = jnp.asarray(x @ weight.T).reshape(1, 5, -1, head)
        return np.asarray(rotate(rows, rope.turns(5, head)))[0]

    q, k = (neighbours(tensors[f"blk.0.attn_{n}.weight"])[:, 0] for n in "qk")
    wanted = np.real(q @ k.conj().T)
    names = [f"blk.0.attn_{n}.weight" for n in "qk"]
    q, k = (ours(found[name_of(name)])[:, 0] for name in names)
    np.testing.assert_allclose(q @ k.T, wanted, atol=1e-3)
    q, k = (ours(tensors[name])[:, 0] for name in names)
    assert np.abs(q @ k.T - wanted).max() > 1


def test_the_header_is_that_of_the_package(tmp_path):
    """Oracle: gguf's own reader: values, and name, shape, kind, offset and size of each
    tensor."""
    more = {"general.file_type": 3, "x.list": [1, -2], "x.flags": [True, False]}
    more |= {"x.floats": [0.5, -1.0], "x.text": "\u00e4\n", "x.negative": -5}
    more |= {"x.flag": True, "general.alignment": 64}
    tokenizer = {**toy.sentencepiece(), **more}
    path, _ = toy.toy(tmp_path / "a.gguf", kind="Q4_1", tokenizer=tokenizer)
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    values = {k: f.contents() for k, f in theirs.fields.items() if k[:5] != "GGUF."}
    assert ours.values == values
    assert values["x.flags"] == [True, False]
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        own = ours.tensors[tensor.name]
        assert own.shape == tuple(tensor.shape[::-1])
        assert (own.kind, own.start) == (tensor.tensor_type, tensor.data_offset)
        assert own.rows * own.row_bytes == tensor.n_bytes


@pytest.mark.parametrize("chunk", [1, 100, 16 * 64 + 1, 2**22])
def test_rows_that_are_read_a_few_at_a_time_are_all_there(tmp_path, monkeypatch, chunk):
    """Oracle: the weights of the file; heads of 16 rows are never divided."""
    path, tensors = toy.toy(tmp_path / "a.gguf")
    monkeypatch.setattr(module, "_CHUNK", chunk)
    convert_gguf(path, tmp_path / "out", dtype="float32")
    found = load_file(tmp_path / "out" / "model.safetensors")
    same(found, expected(tensors, {}))


def test_large_models_are_several_files_with_an_index(tmp_path):
    """Oracle: the tensors of one file; sizes; the index names every tensor's file."""
    path, tensors = toy.toy(tmp_path / "a.gguf", tied=False)
    convert_gguf(path, tmp_path / "out", dtype="float32", shard_size=50_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 4
    found = {}
    for name in files:
        part = load_file(tmp_path / "out" / name)
        assert {index["weight_map"][tensor] for tensor in part} == {name}
        assert len(part) == 1 or sum(a.nbytes for a in part.values()) <= 50_000
        found |= part
    same(found, expected(tensors, {}))
    total = sum(array.nbytes for array in found.values())
    assert index["metadata"]["total_size"] == total
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_one_tensor_is_in_memory(tmp_path):
    """Oracle: Python's count of memory, against the size of the largest tensor; all of them
    are eleven times as large."""
    sizes = {"d": 512, "units": 512, "layers": 6, "queries": 8, "keys": 8, "head": 64}
    path, tensors = toy.toy(tmp_path / "a.gguf", sizes=sizes, kind="Q8_0")
    convert_gguf(path, tmp_path / "first", dtype="float32")  # imports
    largest = max(array.nbytes for array in tensors.values())
    total = sum(array.nbytes for array in tensors.values())
    del tensors
    tracemalloc.start()
    convert_gguf(path, tmp_path / "out", dtype="float32")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 11 * largest
    assert largest < peak < 6 * largest  # a chunk here is all of a tensor, twice


# ------------------------------------------------------------------------------ sizes


def config_of(tmp_path, **options):
    path, _ = toy.toy(tmp_path / "a.gguf", **options)
    convert_gguf(path, tmp_path / "out")
    return json.loads((tmp_path / "out" / "config.json").read_text())


def test_the_configuration_has_the_sizes_and_special_tokens(tmp_path):
    """Oracle: by hand; 1e-5 as the file's float32 shows it."""
    found = config_of(tmp_path)
    wanted = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(toy.TOKENS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "bfloat16",
    }
    assert {name: found[name] for name in wanted} == wanted
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}


def test_other_ends_output_weights_and_absent_sizes(tmp_path):
    """Oracle: by hand: generation also ends at the end of a turn; without a number of key
    heads they are the query heads; the base of the rotations is 10,000."""
    sizes = {"keys": 4}
    model = toy.model_values(sizes, **{"attention.head_count_kv": None})
    del model["llama.rope.freq_base"], model["llama.rope.dimension_count"]
    tokenizer = toy.bpe(eot_token_id=5, eom_token_id=0, padding_token_id=None)
    found = config_of(
        tmp_path, sizes=sizes, model=model, tokenizer=tokenizer, tied=False
    )
    assert (found["eos_token_id"], found["pad_token_id"]) == ([0, 5], None)
    assert (found["num_key_value_heads"], found["head_dim"]) == (4, 16)
    assert (found["rope_theta"], found["tie_word_embeddings"]) == (10_000.0, False)
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert held["lm_head.weight"].shape == (len(toy.TOKENS), 64)


def divisors(factor, head=16, theta=500_000.0):
    """What Llama 3.1 divides frequencies by, as its code has it."""
    found = []
    for pair in range(head // 2):
        wave = 2 * np.pi * theta ** (2 * pair / head)
        if wave < 8192 / 4:
            found.append(1.0)
        elif wave > 8192 / 1:
            found.append(factor)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def test_rotations_are_linear_or_those_of_llama_3(tmp_path):
    """Oracle: the formula of Llama 3.1's code, in a loop; linear scaling by hand. Wrong
    divisors are refused, as no configuration has them."""
    linear = toy.model_values(
        **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    )
    for number, (values, factor) in enumerate(
        [
            (linear, 4.0),
            (toy.model_values(**{"rope.scale_linear": 2.0}), 2.0),
            (toy.model_values(**{"rope.scaling.factor": 8.0}), 8.0),
        ]
    ):
        (tmp_path / str(number)).mkdir()
        found = config_of(tmp_path / str(number), model=values)
        assert found["rope_scaling"] == {"rope_type": "linear", "factor": factor}
    values = {**toy.model_values(**{"rope.freq_base": 500_000.0}), **toy.bpe()}
    tensors = toy.weights(len(toy.TOKENS))
    factors = divisors(32.0)
    assert 1 < np.sort(np.unique(factors))[1] < 32  # one between
    spoiled = factors * np.linspace(1, 1.1, 8, dtype=np.float32)
    for name, own in [("right", factors), ("wrong", spoiled), ("short", factors[:4])]:
        path = toy.write(
            tmp_path / f"{name}.gguf", {**tensors, "rope_freqs.weight": own}, values
        )
        if name != "right":
            with pytest.raises(InputError, match=r"rope_freqs.weight must be"):
                convert_gguf(path, tmp_path / name)
            continue
        convert_gguf(path, tmp_path / name)
        found = json.loads((tmp_path / name / "config.json").read_text())
        assert found["rope_scaling"] == {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }


# ------------------------------------------------------------------------ bad files

MODEL = toy.model_values()


def refused(tmp_path, path, words, **options):
    """One line that matches; nothing is left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words) as error:
        convert_gguf(path, tmp_path / "out", **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("convert: ")
    assert sorted(tmp_path.iterdir()) == before


def changed(**changes):
    return {f"llama.{k}": v for k, v in changes.items()}


WRONG = {
    "architecture": ({"architecture": "qwen2"}, "architecture llama .* got 'qwen2'"),
    "no width": (
        {"model": {k: v for k, v in MODEL.items() if "embedding_length" not in k}},
        "llama.embedding_length must be an int .* got nothing",
    ),
    "no tokenizer": (
        {"tokenizer": {"x": 1}},
        "tokenizer.ggml.model must be .* got nothing",
    ),
    "kind of tokenizer": (
        {"tokenizer": toy.bpe(model="bert")},
        r"gpt2 .* and llama .* are supported, got 'bert'",
    ),
    "split": (
        {"tokenizer": toy.bpe(pre="starcoder")},
        r"pre must be one of gpt-2, .* got 'starcoder'; give it by --split",
    ),
    "no split": ({"tokenizer": toy.bpe(pre=None)}, "does not say how text is cut"),
    "list of heads": (
        {"model": {**MODEL, "llama.attention.head_count": [4, 4]}},
        r"head_count must be an int .* got \[4, 4\]",
    ),
    "text for a size": (
        {"model": {**MODEL, "llama.block_count": "two"}},
        "block_count must be an int .* got 'two'",
    ),
    "too many layers": (
        {"model": {**MODEL, "llama.block_count": 2**31 - 1}},
        "has 20 tensors, too few for 2147483647 layers",
    ),
    "experts": ({"model": {**MODEL, "llama.expert_count": 8}}, "experts .* got 8"),
    "unknown value": (
        {"model": {**MODEL, "llama.logit_scale": 2.0}},
        "'llama.logit_scale' is not supported",
    ),
    "scaling": (
        {"model": {**MODEL, "llama.rope.scaling.type": "yarn"}},
        "rope.scaling.type 'yarn' is not supported",
    ),
    "partial rotation": (
        {
            "model": {**MODEL, "llama.attention.key_length": 16}
            | {"llama.rope.dimension_count": 8}
        },
        "rope.dimension_count must be the size of a head, 16, got 8",
    ),
    "key heads": (
        {"model": {**MODEL, "llama.attention.head_count_kv": 3}},
        "key heads must divide query heads",
    ),
    "shape": (
        {"model": {**MODEL, "llama.feed_forward_length": 95}},
        r"tensor blk.0.ffn_gate.weight must be \[95, 64\], got \[96, 64\]",
    ),
    "epsilon": (
        {"model": {**MODEL, "llama.attention.layer_norm_rms_epsilon": -1.0}},
        "epsilon must be a number from 0 to 1e30, got -1.0",
    ),
    "number of tokens": (
        {"model": {**MODEL, "llama.vocab_size": len(toy.TOKENS)}},
        None,
    ),
}


@pytest.mark.parametrize("case", [case for case in WRONG if WRONG[case][1]])
def test_models_that_are_not_supported_are_refused(tmp_path, case):
    """Oracle: the messages."""
    options, words = WRONG[case]
    path, _ = toy.toy(tmp_path / "a.gguf", **options)
    refused(tmp_path, path, words)


def test_a_size_that_agrees_is_accepted(tmp_path):
    """Negative control of the refusals: the vocabulary's size, stated and right."""
    path, _ = toy.toy(tmp_path / "a.gguf", **WRONG["number of tokens"][0])
    convert_gguf(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("blk.1.attn_k.weight"),
            r"attn_k.weight must be .*, got nothing",
        ),
        (lambda t: t.update({"blk.0.attn_q.bias": t["output_norm.weight"]}), "biases"),
        (lambda t: t["output_norm.weight"].fill(np.nan), "not finite"),
        (lambda t: t["blk.0.ffn_up.weight"].fill(np.inf), "not finite"),
    ],
)
def test_tensors_that_are_missing_more_or_not_finite_are_refused(
    tmp_path, change, words
):
    """Oracle: the messages; what was begun is removed."""
    tensors = toy.weights(len(toy.TOKENS))
    change(tensors)
    path = toy.write(tmp_path / "a.gguf", tensors, {**MODEL, **toy.bpe()})
    refused(tmp_path, path, words)


def spoil(raw, at, more):
    return raw[:at] + more + raw[at + len(more) :]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", "does not begin with GGUF"),
        (lambda raw: b"GG", "does not begin with GGUF"),
        (lambda raw: spoil(raw, 0, b"GGML"), "does not begin with GGUF"),
        (lambda raw: raw[:4], "ends within its header"),
        (lambda raw: raw[:100], "ends within its header"),
        (lambda raw: raw[:4000], "ends within its header"),
        (lambda raw: raw[:-100], r"has \d+ bytes, and tensor '.*' ends at \d+"),
        (lambda raw: spoil(raw, 4, b"\1\0\0\0"), "expected version 2 or 3, got 1"),
        (lambda raw: spoil(raw, 4, b"\0\0\0\3"), "big-endian"),
        (lambda raw: spoil(raw, 8, b"\xff" * 8), "ends within its header|type|axes"),
        (
            lambda raw: spoil(raw, 16, b"\xff" * 8),
            "ends within its header|not UTF",
        ),
        (lambda raw: spoil(raw, 24, b"\xff" * 8), "ends within its header"),
        (
            lambda raw: raw.replace(b"llama.block_count", b"llama.block\xffcount"),
            "UTF-8",
        ),
        (
            lambda raw: raw.replace(b"llama.block_count", b"llama.embed_count"),
            "'llama.embed_count' is not supported",
        ),
        (
            lambda raw: raw.replace(b"blk.1.attn_q.weight", b"blk.1.attn_k.weight"),
            "tensor 'blk.1.attn_k.weight' is there twice",
        ),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, damage, words):
    """Oracle: the messages."""
    path, _ = toy.toy(tmp_path / "a.gguf")
    path.write_bytes(damage(path.read_bytes()))
    refused(tmp_path, path, words)


def test_lengths_without_end_are_refused_at_once(tmp_path):
    """Oracle: the message, where gguf's own reader would go on for 2^60 entries."""
    path = tmp_path / "a.gguf"
    key = b"x"
    for kind, count in [(0, 2**60), (8, 2**60), (12, 2**61 + 1)]:
        value = np.array([kind], "<u4").tobytes() + np.array([count], "<u8").tobytes()
        head = b"GGUF" + np.array([3], "<u4").tobytes()
        head += np.array([0, 1, len(key)], "<u8").tobytes() + key
        path.write_bytes(head + np.array([9], "<u4").tobytes() + value)
        refused(tmp_path, path, "ends within its header")


def test_kinds_that_cannot_be_undone_are_refused(tmp_path):
    """Oracle: the messages; gguf has no way back from integers."""
    for name, number, words in [("I32", 26, "type I32"), ("99", 99, "type 99")]:
        path, _ = toy.toy(tmp_path / "a.gguf")
        raw, key = path.read_bytes(), b"output_norm.weight"
        at = raw.index(key) + len(key) + 4 + 8  # after the axes
        path.write_bytes(spoil(raw, at, np.array([number], "<u4").tobytes()))
        refused(tmp_path, path, f"'output_norm.weight' has {words}, which gguf cannot")
        assert name in words


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.gguf", "expected a GGUF file at .*nowhere.gguf, got nothing"),
        (".", "got a folder"),
    ],
)
def test_a_path_that_is_no_file_is_refused(tmp_path, path, words):
    """Oracle: the messages; a missing file is a FileNotFoundError, too."""
    refused(tmp_path, tmp_path / path, words)
    with pytest.raises(FileNotFoundError):
        convert_gguf(tmp_path / path, tmp_path / "out")


def test_nothing_is_overwritten(tmp_path):
    """Oracle: what is there stays: a folder with a file, an empty one, a file, and a link
    to nothing."""
    path, _ = toy.toy(tmp_path / "a.gguf")
    out = tmp_path / "out"
    out.mkdir()
    refused(tmp_path, path, "out exists, and nothing is overwritten; give a new folder")
    (out / "kept").write_text("text")
    refused(tmp_path, path, "out exists")
    assert (out / "kept").read_text() == "text"
    (out / "kept").unlink()
    out.rmdir()
    out.symlink_to(tmp_path / "nowhere")
    refused(tmp_path, path, "out exists")
    out.unlink()
    out.touch()
    refused(tmp_path, path, "out exists")
    out.unlink()
    convert_gguf(path, out / "deeper" / "model")  # folders above it are made
    assert (out / "deeper" / "model" / "config.json").is_file()


def test_a_folder_that_appears_meanwhile_and_an_interrupt_leave_nothing(tmp_path):
    """Oracle: the files; the folder that another made is kept."""
    path, _ = toy.toy(tmp_path / "a.gguf")

    def appear(done, total):
        assert 0 < done <= total
        (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(InputError, match="appeared meanwhile"):
        convert_gguf(path, tmp_path / "out", on_progress=appear)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out").rmdir()

    def interrupt(done, total):
        del done, total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path, tmp_path / "out", on_progress=interrupt)
    assert list(tmp_path.iterdir()) == [path]


def test_progress_ends_with_all_parameters(tmp_path):
    """Oracle: the number of parameters."""
    path, tensors = toy.toy(tmp_path / "a.gguf")
    seen = []
    made = convert_gguf(path, tmp_path / "out", on_progress=lambda *n: seen.append(n))
    assert [total for _, total in seen] == [made["parameters"]] * len(tensors)
    done = [done for done, _ in seen]
    assert done == sorted(done)
    assert done[-1] == made["parameters"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    """Oracle: the message; a file in place of a folder above."""
    path, _ = toy.toy(tmp_path / "a.gguf")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written") as error:
        convert_gguf(path, tmp_path / "file" / "out")
    assert isinstance(error.value, OSError)


def test_options_and_the_package_are_checked_first(tmp_path, monkeypatch):
    """Oracle: the messages."""
    path, _ = toy.toy(tmp_path / "a.gguf")
    refused(tmp_path, path, "dtype must be one of bfloat16, float32", dtype="int8")
    refused(tmp_path, path, "shard_size must be an int", shard_size=0)
    refused(tmp_path, path, "split must be one of gpt-2", split="words")
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    refused(tmp_path, path, r"needs the package gguf; pip install '.\[gguf\]'")


def test_a_converted_model_is_loaded_and_runs(tmp_path):
    """Oracle: the parameters, transposed by hand; logits are finite and causal."""
    from jaxcl.interop import load_pretrained
    from jaxcl.models import decoder

    path, tensors = toy.toy(tmp_path / "a.gguf")
    convert_gguf(path, tmp_path / "out", dtype="float32")
    config, params = load_pretrained(tmp_path / "out")
    kernel = params["layers"]["down_proj"]["kernel"]
    np.testing.assert_array_equal(kernel[1], tensors["blk.1.ffn_down.weight"].T)
    tokens = jnp.arange(12).reshape(2, 6)
    logits = decoder(config).apply(params, tokens)
    assert np.isfinite(logits).all()
    other = decoder(config).apply(params, tokens + (np.arange(6) == 5))
    np.testing.assert_allclose(logits[:, :5], other[:, :5], rtol=1e-4, atol=1e-3)
    assert jax.tree.leaves(params)[0].dtype == np.float32
    assert os.listdir(tmp_path / "out")
