"""Folders that were written, loaded by Transformers on torch, where there is one."""

import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.interop import load_pretrained, read_config, save_pretrained
from jaxcl.models import DecoderConfig, Rope, decoder

GOLDEN = Path(__file__).parent / "golden_decoders"
SCRIPT = Path(__file__).parents[2] / "third_party" / "oracles" / "saved_models.py"
SMALL = DecoderConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
    max_position_embeddings=64,
)
LLAMA3 = Rope(500.0, "llama3", 8.0, original_max_position_embeddings=32)
#: What a folder can say and the golden ones do not.
CONFIGS = {
    "llama": (SMALL, "LlamaForCausalLM"),
    "llama_3": (SMALL._replace(rope=LLAMA3, head_dim=6), "LlamaForCausalLM"),
    "uneven": (
        SMALL._replace(num_attention_heads=3, num_key_value_heads=1, head_dim=8),
        "MistralForCausalLM",
    ),
    "qwen2_heads": (SMALL._replace(qkv_bias=True, head_dim=6), "Qwen2ForCausalLM"),
    "qwen2_window": (
        SMALL._replace(qkv_bias=True, sliding_window=3),
        "Qwen2ForCausalLM",
    ),
    "qwen3_window": (
        SMALL._replace(qk_norm=True, sliding_window=5),
        "Qwen3ForCausalLM",
    ),
    "qwen3_linear": (
        SMALL._replace(qk_norm=True, rope=Rope(99.0, "linear", 2.0), rms_norm_eps=1e-3),
        "Qwen3ForCausalLM",
    ),
}


def perturbed(config):
    """Parameters of which no bias is zero and no scale is one."""
    params = decoder(config).init(jax.random.key(0))
    draw = np.random.default_rng(0)
    noise = lambda leaf: 0.2 * draw.normal(size=leaf.shape).astype(np.float32)
    return jax.tree.map(lambda leaf: leaf + noise(leaf), params)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_read_as_it_was_written(tmp_path, name):
    """Oracle: the record itself, and the class that Transformers chooses."""
    transformers = pytest.importorskip("transformers")
    config, kind = CONFIGS[name]
    save_pretrained(tmp_path / name, config, decoder(config).init(jax.random.key(0)))
    found = read_config(tmp_path / name)
    heads = {"head_dim": config.head_dim or 4} if config.qk_norm else {}
    assert found == config._replace(**heads)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / name)
    assert theirs.architectures == [kind]
    kinds = {"linear": {"factor"}, "default": set()}
    wanted = kinds.get(config.rope.kind, {*LLAMA3._fields} - {"theta", "kind"})
    assert {*theirs.rope_parameters} == {"rope_type", "rope_theta"} | wanted
    assert theirs.rope_parameters["rope_type"] == config.rope.kind
    assert theirs.rope_parameters["rope_theta"] == config.rope.theta
    for field in wanted:
        assert theirs.rope_parameters[field] == getattr(config.rope, field)
    sliding = ["sliding_attention"] * 2 if config.sliding_window else None
    if name.startswith("qwen"):
        assert theirs.layer_types == (sliding or ["full_attention"] * 2)
    assert getattr(theirs, "sliding_window", None) == config.sliding_window


@pytest.mark.skipif(
    "JAXCL_TORCH" not in os.environ, reason="set JAXCL_TORCH to a Python with torch"
)
def test_transformers_computes_the_same_with_what_was_written(tmp_path):
    """Oracle: Transformers on torch, of every family, one of them in three files."""
    tokens = np.random.default_rng(0).integers(0, 40, (3, 14))
    made = {name: (c, perturbed(c)) for name, (c, _) in CONFIGS.items()}
    made |= {
        path.name: load_pretrained(path, dtype=jnp.float32)
        for path in GOLDEN.iterdir()
        if path.is_dir()
    }
    held = Path(os.environ.get("JAXCL_MODELS", "none"), "smollm2")
    if held.is_dir():
        made["smollm2"] = load_pretrained(held, dtype=jnp.float32)
    for name, (config, params) in made.items():
        size = {"shard_size": 9_000} if name == "qwen2" else {}
        save_pretrained(tmp_path / name, config, params, **size)
        np.save(tmp_path / name / "tokens.npy", tokens)
    assert len(list((tmp_path / "qwen2").glob("*.safetensors"))) > 2
    command = [os.environ["JAXCL_TORCH"], SCRIPT, *(tmp_path / name for name in made)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, (config, params) in made.items():
        found = jax.jit(decoder(config).apply)(params, tokens)
        wanted = np.load(tmp_path / name / "logits.npy")
        bound = (1e-5 if name != "smollm2" else 1e-4) * np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)
