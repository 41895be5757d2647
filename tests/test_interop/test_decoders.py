"""Decoders in folders of Transformers: what they compute, and what is written back.

Most numbers are from third_party/oracles/decoders.py, which runs Transformers on torch.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from jaxcl.interop import load_pretrained, read_config, save_pretrained
from jaxcl.losses import mean_loss, single_head, token_cross_entropy
from jaxcl.models import Rope, decoder
from jaxcl.tree import as_batch

GOLDEN = Path(__file__).parent / "golden_decoders"
FAMILIES = ("llama_linear", "llama3_tied", "mistral", "qwen2", "qwen3")
KEY = jax.random.key(0)
models = pytest.mark.skipif(
    "JAXCL_MODELS" not in os.environ, reason="set JAXCL_MODELS to a folder of models"
)

layer = lambda number, *path: lambda tree: _at(tree["layers"], path)[number]
PLACES = {
    "model.embed_tokens.weight": lambda tree: tree["embedding"],
    "model.layers.0.self_attn.q_proj.weight": layer(0, "attention", "q_proj", "kernel"),
    "model.layers.0.self_attn.q_proj.bias": layer(0, "attention", "q_proj", "bias"),
    "model.layers.0.self_attn.q_norm.weight": layer(0, "attention", "q_norm", "scale"),
    "model.layers.0.input_layernorm.weight": layer(0, "norm_0", "scale"),
    "model.layers.1.self_attn.k_proj.weight": layer(1, "attention", "k_proj", "kernel"),
    "model.layers.1.self_attn.v_proj.bias": layer(1, "attention", "v_proj", "bias"),
    "model.layers.1.self_attn.k_norm.weight": layer(1, "attention", "k_norm", "scale"),
    "model.layers.1.mlp.gate_proj.weight": layer(1, "gate_proj", "kernel"),
    "model.norm.weight": lambda tree: tree["norm"]["scale"],
}


def _at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def golden(family):
    """Configuration, parameters in float32, and the numbers of Transformers."""
    folder = GOLDEN / family
    config, params = load_pretrained(folder, dtype=jnp.float32)
    return config, params, np.load(folder / "golden.npz")


def inputs_of(numbers):
    return {"tokens": jnp.asarray(numbers["tokens"]), "mask": numbers["mask"]}


def assert_near(found, wanted, tolerance=1e-5):
    """Equal up to a share of the largest number."""
    atol = tolerance * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def tensors_of(folder):
    """Oracle: all tensors of a folder, read by safetensors itself."""
    held = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            held |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return held


# what is computed


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_computes_what_transformers_computes(family, scan):
    """Oracle: torch, at all tokens of rows padded on neither side, right and left."""
    config, params, numbers = golden(family)
    model, x = decoder(config, scan=scan), inputs_of(numbers)
    real = numbers["mask"][..., None]
    found = jax.jit(lambda p: (*model.hidden(p, x), model.apply(p, x)))(params)
    wanted = (*numbers["hidden"], numbers["logits"])
    assert len(found) == config.num_hidden_layers + 2 == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours * real, theirs)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_has_the_gradients_of_torch(family, scan):
    """Oracle: torch's mean over labels, and its gradients, of up to ten tensors."""
    config, params, numbers = golden(family)
    loss = token_cross_entropy(single_head(decoder(config, scan=scan).apply))
    weight = (numbers["labels"] >= 0).sum(1)
    batch = as_batch(inputs_of(numbers), numbers["labels"], weight=weight)
    mean = lambda p: mean_loss(loss, p, batch, KEY)
    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(value, numbers["loss"], rtol=1e-6)
    names = [name for name in numbers if name.startswith("gradient ")]
    assert len(names) >= 6
    for name in names:
        place = name.removeprefix("gradient ")
        ours = PLACES[place](gradient)
        is_kernel = place.endswith("proj.weight")
        assert_near(ours.T if is_kernel else ours, numbers[name])


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama_linear", {"rope": Rope(99.0)}),
        ("llama3_tied", {"rope": Rope(500.0, "linear", 8.0)}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 5}),
        ("qwen2", {"rms_norm_eps": 1e-2}),
        ("qwen3", {"rope": Rope(9_000.0)}),
    ],
)
def test_another_configuration_computes_something_else(family, change):
    """Control: the same weights with one field of the configuration changed."""
    config, params, numbers = golden(family)
    model = decoder(config._replace(**change))
    found = model.apply(params, inputs_of(numbers)) * numbers["mask"][..., None]
    largest = np.abs(numbers["logits"]).max()
    assert np.abs(found - numbers["logits"]).max() > 1e-3 * largest


@models
def test_smollm2_computes_what_transformers_computes():
    """Oracle: torch in float32 on three prompts; bfloat16 is the control."""
    folder = Path(os.environ["JAXCL_MODELS"], "smollm2")
    config, params = load_pretrained(folder, dtype=jnp.float32)
    apply = jax.jit(decoder(config).apply)
    numbers = np.load(GOLDEN / "smollm2.npz")
    for number in range(3):
        logits = apply(params, numbers[f"tokens_{number}"][None])[0]
        best, columns = logits.argmax(-1), logits[:, numbers["columns"]]
        np.testing.assert_array_equal(best, numbers[f"best_{number}"])
        np.testing.assert_allclose(logits.max(-1), numbers[f"top_{number}"], atol=2e-3)
        np.testing.assert_allclose(columns, numbers[f"logits_{number}"], atol=2e-3)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    logits = apply(narrow, numbers["tokens_2"][None])[0]
    assert np.abs(logits.max(-1) - numbers["top_2"]).max() > 2e-2


# what is written


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_read_is_written_as_it_was(tmp_path, family):
    """Oracle: the tensors of Transformers' own files, and its reading of both configs."""
    config, params = load_pretrained(GOLDEN / family)
    save_pretrained(tmp_path / "saved", config, params)
    ours, theirs = tensors_of(tmp_path / "saved"), tensors_of(GOLDEN / family)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)
    assert read_config(tmp_path / "saved") == config
    assert described(tmp_path / "saved") == described(GOLDEN / family)


def described(folder):
    """Oracle: a configuration as Transformers reads it, without torch."""
    transformers = pytest.importorskip("transformers")
    fields = transformers.AutoConfig.from_pretrained(folder).to_dict()
    return {name: fields[name] for name in fields if name != "_name_or_path"}
