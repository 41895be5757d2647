"""Adapters in PEFT's files: read, computed, trained on, merged and written back.

Golden files are written by ``third_party/oracles/adapters.py``, in an environment with
PEFT; it also checks there what is written here.
"""

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxcl.adapters import (
    add_lora,
    combine,
    lora_rule,
    merge_lora,
    partition,
    with_frozen,
)
from jaxcl.errors import InputError
from jaxcl.interop import load_adapter, save_adapter
from jaxcl.interop.peft_names import DECODER, ENCODER
from jaxcl.models import (
    DecoderConfig,
    EncoderConfig,
    decoder,
    sequence_classifier,
)

GOLDEN = Path(__file__).parent / "golden_adapters"
SIZES = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 20}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}
#: The base of each case, the modules that are trained fully, and use_rslora.
CASES = {
    "qv": ("llama", (), False),
    "patterns": ("llama", (), True),
    "head": ("llama", ("out",), False),
    "tied_head": ("llama_tied", ("out",), False),
    "tied_embedding": ("llama_tied", ("embedding",), False),
    "one_layer": ("llama", (), False),
    "classifier": ("bert", ("classifier",), False),
}


def base_of(name):
    """The parameters of a base, from the tensors of its file."""
    kind = CASES[name][0]
    file = load_file(GOLDEN / f"{kind.removesuffix('_tied')}.safetensors")
    leaves = {}
    for path, key in (ENCODER if kind == "bert" else DECODER).items():
        turn = (lambda x: x.T) if path.endswith("kernel") else (lambda x: x)
        several = [key.format(layer) for layer in range(2)] if "{}" in key else [key]
        if several[0] in file:
            parts = [turn(file[key]) for key in several]
            leaves[path] = jnp.asarray(np.stack(parts) if "{}" in key else parts[0])
    if kind == "llama_tied":
        del leaves["out/kernel"]
    return unflatten_dict(leaves, sep="/")


def model_of(name):
    kind = CASES[name][0]
    if kind == "bert":
        config = EncoderConfig(**SIZES, max_position_embeddings=16)
        return sequence_classifier(config, 3)
    tied = {"tie_word_embeddings": kind == "llama_tied"}
    return decoder(DecoderConfig(**SIZES, num_key_value_heads=2, **tied))


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_peft(name):
    """Oracle: PEFT's logits, with the adapter, merged, and after a step of descent.

    Control: those of the base, which are far from them.
    """
    base, apply = base_of(name), jax.jit(model_of(name).apply)
    golden = np.load(GOLDEN / name / "golden.npz")
    # How XLA fuses, and so rounds, depends on its version and on the processor (1.2e-5 on
    # an AMD EPYC without AVX-512): some units in the last place of the largest logit, 3.7.
    near = {"atol": 3e-5, "rtol": 0}
    tokens = golden["tokens"]
    params = load_adapter(GOLDEN / name, base)
    np.testing.assert_allclose(apply(base, tokens), golden["base"], **near)
    np.testing.assert_allclose(apply(params, tokens), golden["adapted"], **near)
    np.testing.assert_allclose(
        apply(merge_lora(params), tokens), golden["merged"], **near
    )
    assert np.abs(golden["base"] - golden["adapted"]).max() > 1
    trainable, frozen = partition(params, [lora_rule, *CASES[name][1]])
    square = lambda part: jnp.mean(with_frozen(apply, frozen)(part, tokens) ** 2)
    grads = jax.jit(jax.grad(square))(trainable)
    stepped = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, trainable, grads)
    found = apply(combine(stepped, frozen), tokens)
    np.testing.assert_allclose(found, golden["stepped"], atol=5e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_is_written_back_as_it_was(name, tmp_path):
    """Oracle: the file of PEFT, key by key, value by value; and reading it again."""
    base, extra, rslora = base_of(name), *CASES[name][1:]
    params = load_adapter(GOLDEN / name, base)
    save_adapter(tmp_path / "new", params, extra=extra, rslora=rslora, base="here")
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "new", GOLDEN / name)
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[key], tensor)
    again = load_adapter(tmp_path / "new", base)
    chex.assert_trees_all_equal(again, params)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_the_config_says_what_peft_needs(tmp_path):
    """Oracle: PEFT's own fields, and the shortest names of modules by hand."""
    for name, (_, extra, rslora) in CASES.items():
        params = load_adapter(GOLDEN / name, base_of(name))
        save_adapter(tmp_path / name, params, extra=extra, rslora=rslora)
        ours, theirs = config_of(tmp_path / name), config_of(GOLDEN / name)
        same = ("r", "lora_alpha", "lora_dropout", "use_rslora", "bias", "peft_type")
        assert [ours[key] for key in same] == [theirs[key] for key in same]
    assert config_of(tmp_path / "qv")["target_modules"] == ["q_proj", "v_proj"]
    patterns = config_of(tmp_path / "patterns")
    assert patterns["rank_pattern"] == {"q_proj": 2, "1.mlp.down_proj": 5}
    assert patterns["alpha_pattern"] == {"q_proj": 5, "0.mlp.up_proj": 11}
    one = config_of(tmp_path / "one_layer")
    assert one["target_modules"] == ["1.mlp.gate_proj"]
    assert config_of(tmp_path / "head")["modules_to_save"] == ["lm_head"]
    found = config_of(tmp_path / "classifier")["target_modules"]
    assert found == ["attention.output.dense", "query", "value"]


def test_an_adapter_of_our_own_is_read_again(tmp_path):
    """Oracle: what was written; ranks and scales of layers by the library's own rule."""
    base = base_of("qv")
    options = {"targets": "all-linear", "rank": 3, "alpha": 5, "dropout": 0.25}
    patterns = {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"o_proj": 2.5}}
    params = add_lora(jax.random.key(0), base, **options, **patterns, rslora=True)
    save_adapter(tmp_path, params, rslora=True)
    again = load_adapter(tmp_path, base)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    chex.assert_trees_all_close(again, params, rtol=1e-6)
    # The same scales, written for a reader that divides by the rank.
    save_adapter(tmp_path / "plain", params)
    chex.assert_trees_all_close(
        load_adapter(tmp_path / "plain", base), params, rtol=1e-5
    )


def test_a_base_in_bfloat16_gets_factors_in_float32():
    """Oracle: the values of the file. The base's arrays are shared."""
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base_of("head"))
    params = load_adapter(GOLDEN / "head", base)
    o_proj = params["layers"]["attention"]["o_proj"]
    wanted = load_adapter(GOLDEN / "head", base_of("head"))
    assert o_proj["lora_a"].dtype == params["out"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(params["out"]["kernel"], wanted["out"]["kernel"])
    assert o_proj["kernel"] is base["layers"]["attention"]["o_proj"]["kernel"]


@pytest.mark.parametrize(
    ("name", "prefix"), [("qv", "model."), ("classifier", "bert.")]
)
def test_an_adapter_of_a_model_without_its_head(name, prefix, tmp_path):
    """Oracle: the same tensors under the names of a model with its head.

    An encoder without a classifier is written under such names; a decoder has a head.
    """

    def bare(held):
        factors = {key: x for key, x in held.items() if "lora_" in key}
        start = "base_model.model."
        return {key.replace(start + prefix, start): x for key, x in factors.items()}

    base = base_of(name)
    base = {part: leaves for part, leaves in base.items() if part != "classifier"}
    folder = changed(tmp_path, name, tensors=bare)
    params = load_adapter(folder, base)
    wanted = load_adapter(GOLDEN / name, base_of(name))
    trainable, _ = partition(params, lora_rule)
    chex.assert_trees_all_equal(trainable, partition(wanted, lora_rule)[0])
    save_adapter(tmp_path / "again", params)
    files = [folder / "adapter_model.safetensors"]
    files.append(tmp_path / "again" / "adapter_model.safetensors")
    theirs, ours = map(load_file, files)
    assert (ours.keys() == theirs.keys()) is (name == "classifier")
    assert len(ours) == len(theirs) > 0


def test_padded_ranks_stay_zero_in_training():
    """Oracle: zero gradients where a layer has a lower rank, or no adapter."""
    params = load_adapter(GOLDEN / "patterns", base_of("patterns"))
    down = params["layers"]["down_proj"]
    assert down["lora_a"].shape == (2, 20, 5)
    assert not down["lora_a"][0, :, 3:].any()
    apply = model_of("patterns").apply
    tokens = jnp.asarray(np.load(GOLDEN / "patterns" / "golden.npz")["tokens"])
    trainable, frozen = partition(params, lora_rule)
    square = lambda part: jnp.mean(with_frozen(apply, frozen)(part, tokens) ** 2)
    grads = jax.jit(jax.grad(square))(trainable)["layers"]["down_proj"]
    assert not grads["lora_a"][0, :, 3:].any()
    assert not grads["lora_b"][0, 3:].any()
    assert grads["lora_a"][1].any()


def test_an_adapter_of_the_first_layer_alone_is_read(tmp_path):
    """Oracle: by hand; PEFT takes a number for ``layers_to_transform``, and 0 is one."""
    first = lambda held: {name: x for name, x in held.items() if ".1." not in name}
    folder = changed(tmp_path, tensors=first, layers_to_transform=0)
    params = load_adapter(folder, base_of("qv"))
    factor = params["layers"]["attention"]["q_proj"]["lora_a"]
    assert factor[0].any()
    assert not factor[1].any()


# --------------------------------------------------------------------------- refusals


def changed(tmp_path, name="qv", tensors=None, **fields):
    """A copy of a case with other fields, and other tensors."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / name, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(config_of(folder) | fields))
    if tensors:
        held = load_file(folder / "adapter_model.safetensors")
        save_file(tensors(held), folder / "adapter_model.safetensors")
    return folder


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
without = lambda key: lambda held: {k: v for k, v in held.items() if k != key}
WRONG = [
    ({"use_dora": True}, "use_dora True is not supported yet"),
    ({"bias": "all"}, "bias 'all' is not supported"),
    ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
    ({"init_lora_weights": "pissa"}, "pissa, which changes the base"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config .* not supported yet"),
    ({"r": 5}, r"must be \[5, 16\] and \[16, 5\] by .* got \[4, 16\] and \[16, 4\]"),
    ({"r": "four"}, "r is out of range, 'four'"),
    ({"r": 4.0}, "r is out of range"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern must be an object of numbers"),
    ({"lora_dropout": 1.0}, "lora_dropout is out of range"),
    ({"rank_pattern": {"(": 3}}, "no regular expression"),
    ({"alpha_pattern": [3]}, "must be an object of numbers"),
    ({"tensors": without(KEY)}, "only one of lora_A and lora_B of .*q_proj"),
    ({"tensors": lambda held: {}}, "has no tensors"),
    (
        {"tensors": lambda held: {k.replace(".1.", ".7."): v for k, v in held.items()}},
        "layers.7.* for which params have no place; the adapter is of another base",
    ),
    (
        {"tensors": lambda held: {k: v[..., :-1].copy() for k, v in held.items()}},
        "another base",
    ),
    ({"name": "classifier"}, "bert.* for which params have no place"),
    (
        {"tensors": lambda held: {k: v for k, v in held.items() if ".1." not in k}},
        r"_proj for 1 of the 2 layers of params, none for \[1\]; .* of another base",
    ),
    (
        {
            "exclude_modules": [],
            "layers_to_transform": [],
            "tensors": lambda held: {k: v for k, v in held.items() if ".1." not in k},
        },
        r"_proj for 1 of the 2 layers of params, none for \[1\]; .* of another base",
    ),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(change, words, tmp_path):
    """Oracle: the pattern of the message; the case as it is is read."""
    base = base_of("qv")
    load_adapter(changed(tmp_path / "as it is"), base)
    with pytest.raises(InputError, match=words) as error:
        load_adapter(changed(tmp_path / "changed", **change), base)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path):
    """Oracle: patterns of messages, of missing and of damaged files."""
    base = base_of("qv")
    cases = {
        "nothing": (
            lambda folder: shutil.rmtree(folder),
            "no file .*adapter_config.json; give the folder",
        ),
        "torn": (
            lambda folder: (folder / "adapter_config.json").write_text('{"r": '),
            "is damaged",
        ),
        "list": (
            lambda folder: (folder / "adapter_config.json").write_text("[]"),
            "it holds no object",
        ),
        "cut": (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"abc"),
            "not complete safetensors",
        ),
        "pointer": (
            lambda folder: (folder / "adapter_model.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
            ),
            r"safetensors \(a pointer of Git LFS\); run git lfs pull in its folder",
        ),
        "pickle": (
            lambda folder: (folder / "adapter_model.safetensors").rename(
                folder / "adapter_model.bin"
            ),
            "a pickle, which may run any code; save it",
        ),
    }
    for name, (damage, words) in cases.items():
        folder = changed(tmp_path / name)
        damage(folder)
        with pytest.raises(InputError, match=words) as error:
            load_adapter(folder, base)
        assert "\n" not in str(error.value)


def test_what_cannot_be_written_is_refused_in_one_line(tmp_path):
    """Oracle: patterns of messages; nothing is overwritten, and nothing is left."""
    base = base_of("qv")
    params = load_adapter(GOLDEN / "qv", base)
    save_adapter(tmp_path / "held", params)
    (tmp_path / "file").write_text("")
    zero = jax.tree.map(jnp.zeros_like, params)
    trained, _ = partition(params, lora_rule)
    cases = [
        ("held", params, {}, "nothing is overwritten"),
        ("new", base, {}, "with an adapter, got none"),
        ("new", zero, {}, "all factors are zero"),
        ("new", trained, {}, "those of a decoder or an encoder"),
        ("new", params, {"extra": "head"}, "extra: 'head' selects nothing"),
        ("file", params, {}, "cannot be written"),
    ]
    for name, given, options, words in cases:
        with pytest.raises(InputError, match=words) as error:
            save_adapter(tmp_path / name, given, **options)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="have an adapter already"):
        load_adapter(GOLDEN / "qv", params)


def test_an_adapter_of_a_tied_output_layer_is_refused(tmp_path):
    """Oracle: the pattern of the message; with a layer of its own it is read."""
    folder = changed(tmp_path, tensors=_with_head)
    params = load_adapter(folder, base_of("qv"))
    np.testing.assert_array_equal(params["out"]["lora_a"], np.ones((16, 4)))
    with pytest.raises(InputError, match="params have no out; tied embeddings have"):
        load_adapter(folder, base_of("tied_head"))


def test_a_quantized_base_is_refused():
    """Oracle: the pattern of the message."""
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.int8), base_of("qv"))
    with pytest.raises(
        InputError, match="kernel must have floats, got int8; adapters of"
    ):
        load_adapter(GOLDEN / "qv", base)


def _with_head(held):
    """An adapter of the output layer as well."""
    head = "base_model.model.lm_head.lora_{}.weight"
    a, b = np.ones((4, 16), np.float32), np.ones((24, 4), np.float32)
    return held | {head.format("A"): a, head.format("B"): b}


def test_a_tied_embedding_is_written_for_tokens_and_outputs(tmp_path):
    """Oracle: both tensors by hand, as PEFT would leave the base's outputs; it is read."""
    base = base_of("tied_head")
    params = add_lora(jax.random.key(0), base, rank=2, extra="embedding")
    params["embedding"] += 1
    save_adapter(tmp_path / "new", params, extra="embedding")
    file = load_file(tmp_path / "new" / "adapter_model.safetensors")
    for name in ("lm_head", "model.embed_tokens"):
        found = file[f"base_model.model.{name}.weight"]
        np.testing.assert_array_equal(found, params["embedding"])
    modules = config_of(tmp_path / "new")["modules_to_save"]
    assert modules == ["lm_head", "model.embed_tokens"]
    chex.assert_trees_all_equal(load_adapter(tmp_path / "new", base), params)
