"""Folders of models that cannot be used, and wrong calls of what reads and writes them."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcl.errors import MissingFileError
from jaxcl.interop import load_pretrained, read_config, save_pretrained
from jaxcl.models import DecoderConfig
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh
from tests.test_misuse.table import assert_refused

GOLDEN = Path(__file__).parents[1] / "test_interop" / "golden_decoders"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
INDEX, NORM = "model.safetensors.index.json", "model.norm.weight"
ONE, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def copy(tmp_path_factory):
    """A copy of the folder of a family, outside the folder that must stay empty."""
    place = tmp_path_factory.mktemp("models")

    def make(family):
        return Path(shutil.copytree(GOLDEN / family, place / family))

    return make


def changed(**fields):
    """Other fields in config.json; None takes one away."""

    def damage(folder):
        held = json.loads((folder / CONFIG).read_text()) | fields
        kept = {name: value for name, value in held.items() if value is not ...}
        (folder / CONFIG).write_text(json.dumps(kept))

    return damage


def with_tensors(change):
    """Other tensors in model.safetensors, by a function of the dict of them."""

    def damage(folder):
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return damage


def with_bytes(name, change):
    """Other bytes in a file."""

    def damage(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def with_index(**files):
    """Another index, of which ``weight_map`` is updated."""

    def damage(folder):
        held = json.loads((folder / INDEX).read_text())
        held["weight_map"] |= files
        (folder / INDEX).write_text(json.dumps(held))

    return damage


def pickled(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def header(raw, change):
    """Other JSON at the start of a file of tensors."""
    size = int.from_bytes(raw[:8], "little")
    text = json.dumps(change(json.loads(raw[8 : 8 + size]))).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


rope = lambda **fields: changed(rope_parameters=fields)
ALL = "copy or download it again"
CONFIGS = [
    (
        "llama_linear",
        changed(model_type="gpt2"),
        "llama, mistral, qwen2, qwen3, bert, got 'gpt2'",
    ),
    ("llama_linear", changed(model_type=...), "model_type must be one of .* got None"),
    ("llama_linear", changed(model_type=["llama"]), r"model_type .* got \['llama'\]"),
    (
        "qwen2",
        changed(hidden_act="gelu"),
        "hidden_act must be \"silu\" or .* got 'gelu'",
    ),
    (
        "llama_linear",
        changed(attention_bias=True),
        "attention_bias must be false or abs",
    ),
    (
        "qwen3",
        changed(attention_bias=True),
        "attention_bias must be false or .* got True",
    ),
    (
        "llama_linear",
        changed(mlp_bias=True),
        "mlp_bias must be false or absent, got True",
    ),
    (
        "qwen2",
        changed(quantization_config={"quant_method": "awq"}),
        r"quantization_config must be absent, got \{'quant_method': 'awq'\}; others",
    ),
    (
        "qwen2",
        changed(partial_rotary_factor=0.5),
        "partial_rotary_factor must be 1 or ab",
    ),
    (
        "qwen2",
        changed(vocab_size=...),
        "vocab_size must be an int from 1 to .* got None",
    ),
    ("qwen2", changed(hidden_size="16"), "hidden_size must be an int .* got '16'"),
    ("qwen2", changed(hidden_size=16.0), "hidden_size must be an int .* got 16.0"),
    (
        "qwen2",
        changed(num_hidden_layers=0),
        "num_hidden_layers must be an int .* got 0",
    ),
    (
        "qwen2",
        changed(num_hidden_layers=2**31),
        "an int from 1 to 2147483647, got 2147",
    ),
    (
        "qwen2",
        changed(num_key_value_heads=3),
        "decoder: key heads must divide query heads",
    ),
    (
        "qwen2",
        changed(rms_norm_eps=-1),
        "rms_norm_eps must be a number from 0 to .* got -1",
    ),
    ("qwen2", changed(tie_word_embeddings="no"), "must be true or false, got 'no'"),
    (
        "qwen2",
        rope(rope_type="yarn", factor=4.0),
        'rope_type must be "default" or "linear"',
    ),
    (
        "qwen2",
        rope(rope_type="linear"),
        "rope_parameters: factor must be a number .* None",
    ),
    (
        "qwen2",
        rope(rope_type="llama3", factor=4.0),
        "low_freq_factor must be a number from",
    ),
    (
        "llama3_tied",
        rope(rope_type="llama3", factor=4.0, low_freq_factor=4, high_freq_factor=4),
        "high_freq_factor must be above low_freq_factor, got 4.0 and 4.0",
    ),
    ("qwen2", rope(rope_theta=0.5), "rope_theta must be a number from 1 to .* got 0.5"),
    (
        "qwen2",
        changed(rope_scaling="linear"),
        "rope_scaling must be an object, got 'linea",
    ),
    (
        "qwen2",
        rope(full_attention={"rope_theta": 1e4}),
        r"rotations by kind of layer are not supported, got \['full_attention'\]",
    ),
    (
        "qwen2",
        changed(
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=1,
            layer_types=None,
        ),
        "full attention, or all sliding attention with a window, got .*full.*sliding",
    ),
    (
        "qwen3",
        changed(layer_types=["sliding_attention"] * 2),
        r"full attention, or all .* got \['sliding_attention'\] and window None",
    ),
    (
        "mistral",
        changed(layer_types=["full_attention"] * 2),
        "full attention, or .*window 4",
    ),
    (
        "mistral",
        changed(layer_types=[["a"]]),
        r"full attention, or .* got \[\['a'\]\] and",
    ),
    ("mistral", changed(sliding_window=0), "sliding_window must be an int from 1 to"),
    (
        "mistral",
        with_bytes(CONFIG, lambda raw: raw[:50]),
        f"{CONFIG} is damaged .JSONDecodeError",
    ),
    (
        "mistral",
        with_bytes(CONFIG, lambda raw: b"[]"),
        "damaged .it holds no object.; give",
    ),
    (
        "mistral",
        with_bytes(CONFIG, lambda raw: b"\xff"),
        "is damaged .UnicodeDecodeError",
    ),
    ("mistral", with_bytes(CONFIG, lambda raw: b"[" * 9999), "damaged .RecursionError"),
    (
        "mistral",
        lambda folder: (folder / CONFIG).unlink(),
        f"no file .*{CONFIG}; give the",
    ),
]


@pytest.mark.parametrize(("family", "damage", "words"), CONFIGS)
def test_a_configuration_that_cannot_be_used_is_refused(copy, family, damage, words):
    """Oracle: the contract; the folder without damage is read."""
    folder = copy(family)
    read_config(folder)
    damage(folder)
    assert_refused(lambda: read_config(folder), f"read_config: .*{words}")
    assert_refused(lambda: load_pretrained(folder), words)


MODELS = [
    (
        "llama_linear",
        with_tensors(lambda held: held.pop(NORM)),
        f"lacks {NORM}; files are missing, or config.json is of another model",
    ),
    (
        "llama_linear",
        changed(num_hidden_layers=3),
        r"lacks model.layers.2.input_layernorm.weight, model.layers.2.mlp.down_proj.wei"
        r"ght, model.layers.2.mlp.gate_proj.weight and 6 more; files",
    ),
    (
        "llama_linear",
        changed(num_hidden_layers=50),
        "has 21 tensors, too few for 50 layers",
    ),
    (
        "llama_linear",
        changed(num_hidden_layers=1),
        "has model.layers.1.input_layernorm.weight, .* and 6 more, which the model has no",
    ),
    (
        "qwen2",
        changed(model_type="llama"),
        "has .*q_proj.bias.* and 3 more, which the mod",
    ),
    (
        "llama3_tied",
        changed(tie_word_embeddings=False),
        "lacks lm_head.weight; files are",
    ),
    (
        "llama_linear",
        changed(hidden_size=32, head_dim=4),
        r"must be \[40, 32\] by config.json, got \[40, 16\]; files",
    ),
    (
        "llama_linear",
        changed(hidden_size=2**30, head_dim=2**20),
        "must be .* by config.json",
    ),
    (
        "llama_linear",
        with_tensors(lambda held: held.update({NORM: np.ones(15, np.float32)})),
        rf"{NORM} must be \[16\] by config.json, got \[15\]",
    ),
    (
        "llama_linear",
        with_tensors(lambda held: held.update({NORM: np.ones(16, np.int8)})),
        f"{NORM} must be of F64, F32, F16, BF16, got I8; take the model that was not",
    ),
    (
        "llama_linear",
        with_tensors(lambda held: held.update({NORM[6:]: np.ones(16, np.float32)})),
        "has model.norm.weight and norm.weight, two names of one tensor",
    ),
    (
        "llama_linear",
        pickled,
        "but pytorch_model.bin, a pickle, which may run any code when",
    ),
    (
        "llama_linear",
        lambda folder: (folder / WEIGHTS).unlink(),
        "got no safetensors; copy",
    ),
    (
        "llama_linear",
        lambda folder: (folder / WEIGHTS).rename(folder / "consolidated.safetensors"),
        f"must have {WEIGHTS} or {INDEX}, got consolidated.safetensors; {ALL}",
    ),
    (
        "llama_linear",
        with_bytes(WEIGHTS, lambda raw: raw[:-1]),
        "not complete safetensors .*",
    ),
    (
        "llama_linear",
        with_bytes(WEIGHTS, lambda raw: raw[:5]),
        f"not complete safe.*; {ALL}",
    ),
    (
        "llama_linear",
        with_bytes(WEIGHTS, lambda raw: b""),
        "is not complete safetensors",
    ),
    (
        "llama_linear",
        with_bytes(WEIGHTS, lambda raw: raw[:9] + b"?" + raw[10:]),
        "complete",
    ),
    (
        "llama_linear",
        with_bytes(WEIGHTS, lambda raw: b"\xff" * 8 + raw[8:]),
        "not complete",
    ),
    (
        "llama_linear",
        with_bytes(
            WEIGHTS,
            lambda raw: header(raw, lambda held: held | {NORM: {"dtype": "F32"}}),
        ),
        "is not complete safetensors",
    ),
    (
        "llama_linear",
        lambda folder: [(folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()],
        f"{WEIGHTS} must be a file of weights, got none",
    ),
    (
        "mistral",
        lambda folder: (folder / OTHER).unlink(),
        f"{OTHER} must be a file of weig",
    ),
    (
        "mistral",
        with_index(**{NORM: ONE}),
        f"has '{NORM}' in {ONE}, which lacks it; {ALL}",
    ),
    ("mistral", with_index(a=OTHER), f"has 'a' in {OTHER}, which lacks it; {ALL}"),
    *[
        (
            "mistral",
            with_index(a=name),
            f"{INDEX}: weight_map must name a file of this fol",
        )
        for name in (
            "../mistral/" + ONE,
            "/x/" + ONE,
            CONFIG,
            None,
            3,
            "a\0.safetensors",
        )
    ],
    (
        "mistral",
        with_bytes(INDEX, lambda raw: b"{}"),
        "weight_map must name a file of this",
    ),
    ("mistral", with_bytes(INDEX, lambda raw: b"{"), f"{INDEX} is damaged .* {ALL}"),
]


@pytest.mark.parametrize(("family", "damage", "words"), MODELS)
def test_weights_that_cannot_be_used_are_refused(copy, family, damage, words):
    """Oracle: the contract; the folder without damage is loaded, its config read."""
    folder = copy(family)
    load_pretrained(folder)
    damage(folder)
    read_config(folder)
    assert_refused(lambda: load_pretrained(folder), f"load_pretrained: .*{words}")


def test_another_thing_than_a_folder_is_refused(copy):
    """Oracle: the contract."""
    folder = copy("qwen2")
    for place, came in ((folder / WEIGHTS, "a file"), (folder / "none", "nothing")):
        words = f"expected a folder with a model at {re.escape(str(place))}, got {came}"
        for call in (read_config, load_pretrained):
            with pytest.raises(
                MissingFileError, match=f"{call.__name__}: {words}; give"
            ):
                call(place)
    assert_refused(
        lambda: load_pretrained("HuggingFaceTB/SmolLM2-135M"), "got nothing; g"
    )
    (file := folder / "model.gguf").write_bytes(b"GGUF")
    for each in (read_config, load_pretrained):
        with pytest.raises(MissingFileError, match="got a file; `jaxcl convert FILE F"):
            each(file)
    for wrong in (None, 3, "", b"x"):
        assert_refused(
            lambda wrong=wrong: load_pretrained(wrong), "folder must be a path"
        )


def test_wrong_arguments_of_loading_are_refused():
    """Oracle: the contract."""
    plan = ShardingPlan(make_mesh(fsdp=8), fsdp())
    odd = ShardingPlan(jax.make_mesh((8,), ("x",)), fsdp())
    bad = ShardingPlan(plan.mesh, lambda *_: None)
    for given, words in (
        ({"dtype": "int8"}, "dtype must be one of float64, .*bfloat16, got 'int8'"),
        ({"dtype": "wide"}, "dtype must be one of .* got 'wide'"),
        ({"dtype": 3}, "dtype must be one of .* got 3"),
        ({"sharding": plan.mesh}, "sharding must be of type ShardingPlan"),
        ({"sharding": odd}, "mesh must have the axes data, fsdp, tensor"),
        ({"sharding": bad}, r"rule must return a PartitionSpec .*embedding \[40, 16\]"),
    ):
        call = lambda given=given: load_pretrained(GOLDEN / "qwen2", **given)
        assert_refused(call, f"load_pretrained: {words}")


def test_wrong_models_are_not_written(tmp_path_factory):
    """Oracle: the contract; no folder is made."""
    config, params = load_pretrained(GOLDEN / "qwen2")
    place = tmp_path_factory.mktemp("models") / "new"
    q = params["layers"]["attention"]["q_proj"]
    lora = {"lora_a": jnp.ones((2, 16, 1))}
    scale = params["norm"]["scale"]
    number = lambda leaf: {**params, "norm": {"scale": leaf}}
    layers = params["layers"]
    adapted = layers | {"attention": layers["attention"] | {"q_proj": q | lora}}
    for wrong, words in (
        (
            {"params": {**params, "layers": adapted}},
            "params have layers/attention/q_proj/lora_a besides; merge the adapters first",
        ),
        (
            {"config": config._replace(qkv_bias=False)},
            "have layers/attention/k_proj/bias, .* besides; give the model's own config",
        ),
        (
            {"config": config._replace(tie_word_embeddings=True)},
            "params have out/kernel besides",
        ),
        (
            {"params": {"norm": params["norm"]}},
            "params lack embedding, layers/.* and 1",
        ),
        (
            {"params": number(scale[:15])},
            r"norm/scale must be an array \[16\] by config, g",
        ),
        (
            {"params": number([1.0] * 16)},
            "params lack norm/scale and have norm/scale/0",
        ),
        (
            {"params": number(3.0)},
            r"norm/scale must be an array \[16\] by config, got 3.0",
        ),
        (
            {"params": number(scale.astype(jnp.int32))},
            "norm/scale must be of float64, .* got int32 .16.; give dtype",
        ),
        (
            {"config": None},
            "config must be one of DecoderConfig, EncoderConfig, got None",
        ),
        (
            {"config": config._replace(qk_norm=True)},
            "no supported family has qkv_bias and",
        ),
        (
            {"config": config._replace(vocab_size=0)},
            "vocab_size must be an int of at least",
        ),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"shard_size": 0}, "shard_size must be an int of at least 1"),
        ({"source": place}, "source must be a folder, got .*new; give the folder of"),
        ({"source": 3}, "source must be a path, got 3"),
        ({"folder": ""}, "folder must be a path, got ''"),
    ):
        given = {"folder": place, "config": config, "params": params} | wrong
        call = lambda given=given: save_pretrained(**given)
        assert_refused(call, words)
    assert not place.exists()


def test_nothing_is_overwritten(copy):
    """Oracle: the bytes of the folder, before and after."""
    folder = copy("qwen2")
    config, params = load_pretrained(folder)
    state = lambda: {path.name: path.read_bytes() for path in folder.iterdir()}
    for kept in ("config.json", WEIGHTS, "pytorch_model.bin", INDEX, "tokenizer.json"):
        for path in folder.iterdir():
            path.unlink()
        (folder / kept).write_bytes(b"mine")
        source = copy("llama_linear") if kept == "tokenizer.json" else None
        if source:
            (source / kept).write_bytes(b"other")
        call = lambda source=source: save_pretrained(
            folder, config, params, source=source
        )
        assert_refused(
            call, f"qwen2 has {kept}, and nothing is overwritten; give another"
        )
        assert state() == {kept: b"mine"}


def test_a_folder_that_cannot_be_made_is_refused(copy):
    """Oracle: the contract; a file lies where the folder or one above it should be."""
    folder = copy("qwen2")
    config, params = load_pretrained(folder)
    before = sorted(os.listdir(folder))
    for place in (folder / WEIGHTS, folder / WEIGHTS / "below"):
        call = lambda place=place: save_pretrained(place, config, params)
        assert_refused(call, "save_pretrained: .* cannot be written .*; give another")
    assert sorted(os.listdir(folder)) == before
    assert isinstance(config, DecoderConfig)
