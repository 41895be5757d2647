"""BERT in folders of Transformers: what it computes, what is read and written back.

Most numbers are from third_party/oracles/encoders.py, which runs Transformers on torch.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxcl.interop import load_pretrained, read_config, save_pretrained
from jaxcl.losses import cross_entropy, mean_loss, single_head, token_cross_entropy
from jaxcl.models import (
    EncoderConfig,
    encoder,
    pooled,
    sentence_encoder,
    sequence_classifier,
    token_classifier,
)
from jaxcl.tree import as_batch
from tests.test_interop.test_decoders import assert_near, described, models, tensors_of
from tests.test_misuse.table import assert_refused

GOLDEN = Path(__file__).parent / "golden_encoders"
BUILD = {"model": encoder, "texts": sequence_classifier, "tokens": token_classifier}
KEY = jax.random.key(0)
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
CONFIG = EncoderConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=10,
)
every_model = pytest.mark.parametrize("name", BUILD)


def golden(name):
    """Configuration, parameters, and the numbers of Transformers."""
    config, params = load_pretrained(GOLDEN / name)
    numbers = np.load(GOLDEN / name / "golden.npz")
    return config, params, numbers


def inputs_of(numbers):
    return {name: jnp.asarray(numbers[name]) for name in ("tokens", "mask", "types")}


def changed(folder, place, tensors=lambda held: held, **fields):
    """A copy of a folder with other fields, of which ... are left out, and tensors."""
    shutil.copytree(folder, place)
    held = json.loads((place / "config.json").read_text()) | fields
    kept = {name: value for name, value in held.items() if value is not ...}
    (place / "config.json").write_text(json.dumps(kept))
    weights = place / "model.safetensors"
    save_file(tensors(load_file(weights)), weights)
    return place


# what is computed


@pytest.mark.parametrize("scan", [True, False])
@every_model
def test_bert_computes_what_transformers_computes(name, scan):
    """Oracle: torch, all states, also at padding, and the pooler or the logits."""
    config, params, numbers = golden(name)
    model, x = BUILD[name](config, scan=scan), inputs_of(numbers)
    states = jax.jit(model.hidden)(params, x)[: config.num_hidden_layers + 1]
    assert_near(jnp.stack(states), numbers["states"])
    found = jax.jit(model.apply)(params, x)
    found = pooled(params, found) if name == "model" else found
    assert found.shape == numbers["out"].shape
    assert_near(found, numbers["out"])


@pytest.mark.parametrize("scan", [True, False])
@every_model
def test_bert_has_the_gradients_of_torch(tmp_path, name, scan):
    """Oracle: torch's loss and its gradients, of all tensors, read as if a model."""
    config, params, numbers = golden(name)
    # The numbers are of evaluation: without dropout the keys of a loss are not used.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BUILD[name](config._replace(**still), scan=scan)
    x, labels = inputs_of(numbers), numbers["labels"]

    def loss(params):
        if name == "model":
            states = model.apply(params, x)
            real = x["mask"][..., None]
            total = jnp.sum(real * labels * states)
            return total + jnp.sum(jnp.square(pooled(params, states)))
        rows = cross_entropy if name == "texts" else token_cross_entropy
        weight = None if name == "texts" else (labels >= 0).sum(1)
        batch = as_batch(x, labels, weight=weight)
        return mean_loss(rows(single_head(model.apply)), params, batch, KEY)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, numbers["loss"], rtol=1e-5)
    shutil.copy(GOLDEN / name / "config.json", tmp_path)
    shutil.copy(GOLDEN / name / "gradients.safetensors", tmp_path / "model.safetensors")
    _, wanted = load_pretrained(tmp_path)
    assert jax.tree.structure(wanted) == jax.tree.structure(params)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", {"hidden_act": "relu"}),
        ("texts", {"hidden_act": "gelu"}),
        ("tokens", {"num_attention_heads": 4}),
        ("tokens", {"layer_norm_eps": 1e-2}),
    ],
)
def test_another_configuration_computes_something_else(name, change):
    """Control: the same weights with one field of the configuration changed."""
    config, params, numbers = golden(name)
    model = BUILD[name](config._replace(**change))
    found = jnp.stack(model.hidden(params, inputs_of(numbers))[:3])
    assert np.abs(found - numbers["states"]).max() > 1e-4


@models
def test_minilm_computes_what_transformers_computes():
    """Oracle: torch in float64, every 16th number of all states, and the embeddings."""
    folder = Path(os.environ["JAXCL_MODELS"], "minilm")
    config, params = load_pretrained(folder)
    numbers = np.load(GOLDEN / "minilm.npz")
    x = {name: jnp.asarray(numbers[name]) for name in ("tokens", "mask")}
    states = jnp.stack(jax.jit(encoder(config).hidden)(params, x))
    for ours, theirs in zip(states[..., ::16], numbers["states"], strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)
    found = jax.jit(sentence_encoder(config).apply)(params, x)
    np.testing.assert_allclose(found, numbers["sentences"], atol=1e-6)
    unmasked = sentence_encoder(config).apply(params, x["tokens"])  # control
    assert np.abs(unmasked - numbers["sentences"]).max() > 1e-2


# what is read


@every_model
def test_a_configuration_is_read(name):
    """Oracle: the sizes that the script gave, and the names of labels by default."""
    config = read_config(GOLDEN / name)
    activation = {"model": "gelu", "texts": "gelu_new", "tokens": "relu"}[name]
    wanted = CONFIG._replace(hidden_act=activation, pooler=name != "tokens")
    if name != "model":
        wanted = wanted._replace(classifier=name, labels=LABELS)
    assert config == wanted


def old_names(held):
    """The names of files that were converted from TensorFlow, and of pretraining."""
    rename = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    prefix = "" if any(name.startswith("bert.") for name in held) else "bert."
    found = {
        rename(prefix * ("classifier" not in name) + name): held[name] for name in held
    }
    found["bert.embeddings.position_ids"] = np.arange(10)[None]
    found["cls.predictions.bias"] = np.zeros(16, np.float32)
    return found


@every_model
def test_older_spellings_of_a_model_are_read(tmp_path, name):
    """Oracle: the same model in the spelling of version 5, number by number."""
    kinds = {"architectures": ["BertForMaskedLM"]} if name == "model" else {}
    older = {"dtype": ..., "torch_dtype": "float32", "transformers_version": "4.8.2"}
    place = changed(GOLDEN / name, tmp_path / "old", old_names, **kinds, **older)
    config, params = load_pretrained(place)
    wanted_config, wanted, _ = golden(name)
    assert config == wanted_config
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_a_pooler_is_there_if_the_files_have_one(tmp_path):
    """Oracle: by hand; classifiers of tokens leave it, and those of texts need it."""
    without = lambda held: {n: t for n, t in held.items() if "pooler" not in n}
    bare = changed(GOLDEN / "model", tmp_path / "bare", without)
    config, params = load_pretrained(bare)
    assert not config.pooler
    assert "pooler" not in params
    assert encoder(config).apply(params, jnp.zeros((2, 3), int)).shape == (2, 3, 8)
    kernel = {"bert.pooler.dense.weight": np.ones((8, 8), np.float32)}
    more = lambda held: held | kernel | {"bert.pooler.dense.bias": kernel_row()}
    tagger = changed(GOLDEN / "tokens", tmp_path / "tagger", more)
    assert "pooler" not in load_pretrained(tagger)[1]
    texts = changed(GOLDEN / "texts", tmp_path / "texts", without)
    words = "lacks bert.pooler.dense.bias, bert.pooler.dense.weight"
    assert_refused(lambda: load_pretrained(texts), words)
    (bare / "model.safetensors").unlink()
    assert read_config(bare).pooler  # unknown without weights


def kernel_row():
    return np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("model", {"position_embedding_type": "relative_key"}, 'must be "absolute" or'),
        ("model", {"is_decoder": True}, "is_decoder must be false or absent, got True"),
        ("model", {"hidden_act": "silu"}, 'hidden_act must be "gelu" or .*, got .silu'),
        ("model", {"hidden_act": None}, "hidden_act must be one of gelu, .* got None"),
        ("model", {"num_attention_heads": 3}, "must divide hidden_size, got 3 and 8"),
        ("model", {"hidden_dropout_prob": 1.0}, r"must be a number in \[0, 0.999\]"),
        (
            "model",
            {"architectures": ["BertForQuestionAnswering"]},
            "one of BertModel, ",
        ),
        (
            "model",
            {"architectures": [3]},
            r"architectures must be one of .*, got \[3\]",
        ),
        (
            "model",
            {"architectures": "BertModel "},
            "architectures must be one of .*, got",
        ),
        (
            "texts",
            {"id2label": {"0": "a", "2": "b"}},
            "a name for each number from 0, got",
        ),
        (
            "texts",
            {"id2label": ["a", "b"]},
            "id2label must have a name for each number",
        ),
        ("texts", {"id2label": {}}, "id2label must have a name for each number from 0"),
        (
            "tokens",
            {"id2label": ...},
            r"classifier.bias must be \[2\] .* got \[4\]",
        ),
        (
            "tokens",
            {"id2label": ..., "num_labels": 0},
            "num_labels must be an int from 1",
        ),
        (
            "tokens",
            {"architectures": None},
            "has classifier.bias, classifier.weight, whi",
        ),
        (
            "texts",
            {"num_hidden_layers": 3},
            "lacks bert.encoder.layer.2.attention.output",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, name, fields, words):
    """Oracle: the message names the file, what was expected and what it was."""
    place = changed(GOLDEN / name, tmp_path / "damaged", **fields)
    assert_refused(lambda: load_pretrained(place), words)


# what is written


@every_model
def test_what_was_read_is_written_as_it_was(tmp_path, name):
    """Oracle: the tensors of Transformers' own files, and its reading of both configs."""
    config, params, _ = golden(name)
    save_pretrained(tmp_path / "saved", config, params)
    ours, theirs = (
        tensors_of(tmp_path / "saved"),
        load_file(GOLDEN / name / "model.safetensors"),
    )
    prefix = "bert." if name == "model" else ""
    assert ours.keys() == {prefix + each for each in theirs}
    for each, tensor in theirs.items():
        np.testing.assert_array_equal(ours[prefix + each], tensor)
    assert read_config(tmp_path / "saved") == config
    unlike = ("label2id", "id2label") if name == "model" else ()
    both = [described(place) for place in (tmp_path / "saved", GOLDEN / name)]
    for fields in both:
        for field in unlike:
            fields.pop(field)
    assert both[0] == both[1]


def test_a_trained_classifier_keeps_the_names_of_its_labels(tmp_path):
    """Oracle: the record itself, and Transformers' reading of the names."""
    transformers = pytest.importorskip("transformers")
    config = CONFIG._replace(
        classifier="tokens",
        labels=("O", "B-PER", "I-PER"),
        pooler=False,
        classifier_dropout=0.3,
        type_vocab_size=1,
    )
    params = token_classifier(config).init(KEY)
    save_pretrained(tmp_path / "tags", config, params)
    assert read_config(tmp_path / "tags") == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "tags")
    assert theirs.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
    assert theirs.classifier_dropout == 0.3
    assert theirs.architectures == ["BertForTokenClassification"]
    fewer = config._replace(labels=("O",))
    words = r"classifier/bias must be an array \[1\] by config, got float32 \[3\]"
    assert_refused(lambda: save_pretrained(tmp_path / "one", fewer, params), words)
    none = config._replace(classifier=None)
    words = "params have classifier/bias, classifier/kernel besides"
    assert_refused(lambda: save_pretrained(tmp_path / "none", none, params), words)


@pytest.mark.skipif(
    "JAXCL_TORCH" not in os.environ, reason="set JAXCL_TORCH to a Python with torch"
)
@every_model
def test_transformers_computes_the_same_with_what_was_written(tmp_path, name):
    """Oracle: Transformers on torch reads the folder, misses and ignores no tensor."""
    config, _, numbers = golden(name)
    params = BUILD[name](config).init(KEY)
    draw = np.random.default_rng(0)
    noise = lambda leaf: 0.3 * draw.normal(size=leaf.shape).astype(np.float32)
    params = jax.tree.map(lambda leaf: leaf + noise(leaf), params)
    save_pretrained(tmp_path / name, config, params)
    np.savez(tmp_path / "inputs.npz", **inputs_of(numbers))
    script = Path(__file__).parents[2] / "third_party" / "oracles" / "encoders.py"
    command = [os.environ["JAXCL_TORCH"], script, "--saved", tmp_path / name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    model = BUILD[name](config)
    found = model.apply(params, inputs_of(numbers))
    assert_near(found, np.load(tmp_path / "found.npy"))
