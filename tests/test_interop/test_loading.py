"""How folders are read: configurations of both versions, parts of tensors, memory."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcl.interop import load_pretrained, read_config, save_pretrained, tensors
from jaxcl.models import DecoderConfig, Rope, decoder
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh

GOLDEN = Path(__file__).parent / "golden_decoders"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
QWEN = {"num_key_value_heads": 2, "sliding_window": 512, "max_window_layers": 2}
USED = QWEN | {"use_sliding_window": True}
#: Fields of a file, and what they mean.
FIELDS = [
    ("llama", {}, {"rope": Rope(), "num_key_value_heads": None, "rms_norm_eps": 1e-6}),
    ("llama", {"rope_theta": 500000.0}, {"rope": Rope(500000.0)}),
    ("llama", {"rope_theta": 1e6, "rope_scaling": None}, {"rope": Rope(1e6)}),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope": Rope(10_000.0, "linear", 4.0)},
    ),
    (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope": Rope(5e5, "llama3", 32.0)},
    ),
    (
        "llama",
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
        {"rope": Rope(5e5, "llama3", 32.0)},
    ),
    (
        "llama",
        {
            "max_position_embeddings": 4096,
            "rope_scaling": {
                name: LLAMA3[name] for name in LLAMA3 if "original" not in name
            }
            | {"rope_type": "llama3"},
        },
        {"rope": Rope(10_000.0, "llama3", 32.0, 1.0, 4.0, 4096)},
    ),
    (
        "llama",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
            "rope_theta": 1e3,
        },
        {"rope": Rope(5e4)},
    ),
    ("llama", {"sliding_window": 8}, {"sliding_window": None}),
    ("llama", {"head_dim": 6, "tie_word_embeddings": True}, {"head_dim": 6}),
    ("mistral", {}, {"sliding_window": 4096}),
    ("mistral", {"sliding_window": None}, {"sliding_window": None}),
    ("mistral", {"sliding_window": 64, "head_dim": None}, {"sliding_window": 64}),
    ("qwen2", QWEN, {"sliding_window": None, "qkv_bias": True}),
    ("qwen2", USED | {"max_window_layers": 4}, {"sliding_window": None}),
    ("qwen2", USED | {"max_window_layers": 0}, {"sliding_window": 512}),
    ("qwen2", QWEN | {"layer_types": ["full_attention"] * 4}, {"sliding_window": None}),
    ("qwen3", QWEN, {"sliding_window": None, "qk_norm": True, "head_dim": 128}),
    (
        "qwen3",
        USED | {"layer_types": ["sliding_attention"] * 4, "head_dim": 8},
        {"sliding_window": 512, "head_dim": 8},
    ),
]


def write_config(folder, kind, fields):
    defaults = {"num_key_value_heads": 4} if kind == "mistral" else {}
    text = json.dumps(SIZES | defaults | fields | {"model_type": kind})
    (folder / "config.json").write_text(text)


@pytest.mark.parametrize(("kind", "fields", "wanted"), FIELDS)
def test_both_spellings_of_a_configuration_are_read(tmp_path, kind, fields, wanted):
    """Oracle: by hand, and where it can be compared Transformers' own reading."""
    transformers = pytest.importorskip("transformers")
    write_config(tmp_path, kind, fields)
    found = read_config(tmp_path)
    for name, value in (SIZES | wanted).items():
        assert getattr(found, name) == value, name
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    queries, keys, size = found.heads
    assert (queries, keys) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert size == (getattr(theirs, "head_dim", None) or 4)
    assert theirs.rope_parameters["rope_type"] == found.rope.kind
    for name in theirs.rope_parameters.keys() - {"rope_type", "type"}:
        ours = getattr(found.rope, name.removeprefix("rope_"))
        assert theirs.rope_parameters[name] == ours
    for name in ("rms_norm_eps", "tie_word_embeddings", "initializer_range"):
        assert getattr(theirs, name) == getattr(found, name)
    if kind != "llama":  # it has the field, and does not use it
        layers = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 4
        window = theirs.sliding_window if "full_attention" not in layers else None
        assert window == found.sliding_window


def read_parts(monkeypatch):
    """Record every part that is read: ``(file, tensor, index, bytes)``."""
    seen, real = [], tensors.safe_open

    class Part:
        def __init__(self, file, path, name):
            self.part, self.place = file.get_slice(name), (path.name, name)

        def __getattr__(self, name):
            return getattr(self.part, name)

        def __getitem__(self, index):
            array = self.part[index]
            seen.append((*self.place, str(index), array.nbytes))
            return array

    class File:
        def __init__(self, file, path):
            self.file, self.path = file, path

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return Part(self.file, self.path, name)

    @contextmanager
    def opened(path, **options):
        with real(path, **options) as file:
            yield File(file, path)

    monkeypatch.setattr(tensors, "safe_open", opened)
    return seen


@pytest.mark.parametrize("chunk", [1, 100, 2**24])
def test_every_byte_is_read_once_and_a_few_at_a_time(monkeypatch, chunk):
    """Oracle: the number of bytes of the parameters; a row is the least to be read."""
    seen = read_parts(monkeypatch)
    monkeypatch.setattr(tensors, "_CHUNK", chunk)
    _, params = load_pretrained(GOLDEN / "mistral")
    assert len(set(seen)) == len(seen)
    sizes = [size for *_, size in seen]
    assert sum(sizes) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    longest_row = 2 * 20
    assert max(sizes) <= max(chunk, longest_row)
    assert len(sizes) > 100 or chunk > 100


@pytest.mark.devices
@pytest.mark.parametrize("axes", [(1, 8), (2, 4), (8, 1)])
def test_devices_read_their_own_parts(monkeypatch, axes):
    """Oracle: the same model on one device; each byte is read once for all devices."""
    data, parts = axes
    plan = ShardingPlan(make_mesh(data=data, fsdp=parts), fsdp(at_least=100))
    config, wanted = load_pretrained(GOLDEN / "qwen2")
    seen = read_parts(monkeypatch)
    again, params = load_pretrained(GOLDEN / "qwen2", sharding=plan)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    kernel = params["layers"]["attention"]["q_proj"]["kernel"]
    shape = kernel.addressable_shards[0].data.shape
    assert shape == (2, 16 // parts, 16)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(wanted))
    assert sum(size for *_, size in seen) == total
    assert len(set(seen)) == len(seen)
    logits = jax.jit(decoder(config).apply)(params, jnp.ones((8, 5), jnp.int32))
    alone = jax.jit(decoder(config).apply)(wanted, jnp.ones((8, 5), jnp.int32))
    np.testing.assert_allclose(logits, alone, atol=1e-5)


def test_dtypes_are_those_of_the_files_or_the_one_asked_for():
    """Oracle: Transformers' bfloat16 folder, cast by numpy."""
    _, params = load_pretrained(GOLDEN / "mistral")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    for dtype in ("float32", np.float16, jnp.bfloat16):
        _, cast = load_pretrained(GOLDEN / "mistral", dtype=dtype)
        wanted = jax.tree.map(lambda x, d=dtype: np.asarray(x).astype(d), params)
        jax.tree.map(np.testing.assert_array_equal, cast, wanted)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(cast)}
        assert kinds == {np.dtype(dtype)}


def test_layers_of_several_dtypes_have_the_one_that_holds_all(tmp_path):
    """Oracle: NumPy; 64 bits become 32, as everywhere in JAX."""
    held = {**tensors_of(GOLDEN / "llama_linear")}
    name = "model.layers.{}.mlp.up_proj.weight"
    for number, dtype in enumerate((np.float16, np.float64)):
        held[name.format(number)] = held[name.format(number)].astype(dtype)
    held["model.norm.weight"] = held["model.norm.weight"].astype(np.float16)
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    shutil.copy(GOLDEN / "llama_linear" / "config.json", tmp_path)
    _, params = load_pretrained(tmp_path)
    up = params["layers"]["up_proj"]["kernel"]
    assert (up.dtype, params["norm"]["scale"].dtype) == (np.float32, np.float16)
    for number in range(2):
        np.testing.assert_array_equal(
            up[number], held[name.format(number)].astype(np.float32).T
        )


def tensors_of(folder):
    """Oracle: safetensors' own reading."""
    return load_file(folder / "model.safetensors")


def test_tensors_that_follow_from_others_may_be_there(tmp_path):
    """Oracle: the model without them; any other name is the control."""
    source = GOLDEN / "llama3_tied"
    held, config = tensors_of(source), source / "config.json"
    shutil.copy(config, tmp_path)
    more = {
        "lm_head.weight": np.ones((40, 16), np.float32),
        "model.rotary_emb.inv_freq": np.ones(4, np.float32),
        "model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, np.int64),
    }
    save_file(held | more, tmp_path / "model.safetensors")
    _, params = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, load_pretrained(source)[1])
    odd = {"model.layers.1.mlp.up_proj.bias": np.ones(20, np.float32)}
    save_file(held | more | odd, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"has model.layers.1.mlp.up_proj.bias, which"):
        load_pretrained(tmp_path)


def test_names_without_the_prefix_of_a_head_are_read(tmp_path):
    """Oracle: the model with them, of tied embeddings as it has no head."""
    source = GOLDEN / "qwen3"
    held = tensors_of(source)
    bare = {name.removeprefix("model."): held[name] for name in held}
    assert not bare.keys() & held.keys()
    save_file(bare, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    _, params = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, load_pretrained(source)[1])


def test_parameters_may_be_donated_and_files_deleted(tmp_path):
    """Oracle: the same numbers; on a CPU the arrays are memory that NumPy allocated."""
    shutil.copytree(GOLDEN / "qwen2", tmp_path / "model")
    _, params = load_pretrained(tmp_path / "model")
    wanted = jax.tree.map(np.array, params)
    shutil.rmtree(tmp_path / "model")
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, 2 * b), double(params), wanted
    )


MEASURE = """
import sys
import jax
from jaxcl.interop import load_pretrained, read_config
from jaxcl.interop.decoders import DECODERS

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

folder, dtype = sys.argv[1:]
jax.device_put(1.0).block_until_ready()
DECODERS.shapes(read_config(folder))
before = peak()
_, params = load_pretrained(folder, dtype=dtype)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1024
print((peak() - before) / size)
"""


def peak_share(folder, dtype):
    """The growth of the largest resident memory of a process, in sizes of the model."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    command = [sys.executable, "-c", MEASURE, folder, dtype]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_the_memory_of_the_model(tmp_path, dtype):
    """Oracle: what the kernel counts, files mapped into memory included.

    The model has 184 MB in float32, which are in files of 50 MB.
    """
    config = DecoderConfig(8_000, 1024, 2048, 4, 8, 4, tie_word_embeddings=True)
    shapes = jax.eval_shape(decoder(config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    save_pretrained(tmp_path / "model", config, params, shard_size=50 * 10**6)
    assert peak_share(tmp_path / "model", dtype) < 1.2


@pytest.mark.skipif(
    "JAXCL_MODELS" not in os.environ, reason="set JAXCL_MODELS to a folder of models"
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_smollm2_takes_the_memory_of_the_model(dtype):
    """Oracle: what the kernel counts; 270 and 538 MB."""
    assert peak_share(Path(os.environ["JAXCL_MODELS"], "smollm2"), dtype) < 1.2
