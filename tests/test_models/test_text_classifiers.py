"""The convolutional and the recurrent classifier of texts against PyTorch, and their laws.

The golden files are written by third_party/oracles/text_classifiers.py.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import check_rows_independent, cross_entropy, mean_loss, single_head
from jaxcl.models import (
    DecoderConfig,
    EncoderConfig,
    cast_compute,
    decoder,
    lstm,
    sequence_classifier,
    text_cnn,
)
from jaxcl.tree import as_batch

GOLDEN = Path(__file__).parent / "golden_texts"
KEY = jax.random.key(0)
MODELS = {
    "lstm_1": lambda **options: lstm(
        16, 4, embedding_size=4, hidden_size=3, bidirectional=False, **options
    ),
    "lstm_2": lambda **options: lstm(16, 4, embedding_size=4, hidden_size=3, **options),
    "text_cnn": lambda **options: text_cnn(
        16, 4, embedding_size=4, widths=(2, 3, 4), filters=3, **options
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def load(name):
    """Our parameters and gradients, and the batch and logits, of a golden file."""
    with np.load(GOLDEN / f"{name}.npz") as held:
        held = {part: jnp.asarray(held[part]) for part in held}
    params = lambda prefix: {
        "embedding": held[f"{prefix}embedding.weight"],
        "out": {
            "kernel": held[f"{prefix}out.weight"].T,
            "bias": held[f"{prefix}out.bias"],
        },
        **(convolutions if name == "text_cnn" else gates)(held, prefix),
    }
    batch = as_batch({"tokens": held["tokens"], "mask": held["mask"]}, held["labels"])
    return params(""), params("gradient "), batch, held["out"]


def convolutions(held, prefix):
    """PyTorch's kernels are [filters, embedding, width]."""
    return {
        f"conv_{width}": {
            "kernel": held[f"{prefix}convs.{k}.weight"].transpose(2, 1, 0),
            "bias": held[f"{prefix}convs.{k}.bias"],
        }
        for k, width in enumerate((2, 3, 4))
    }


def gates(held, prefix):
    """PyTorch has two biases a direction, whose sum is ours; their gradients are equal."""
    ends = [end for end in ("l0", "l0_reverse") if f"lstm.weight_ih_{end}" in held]
    stack = lambda part: jnp.stack([held[f"{prefix}lstm.{part}_{e}"] for e in ends])
    bias = stack("bias_ih") if prefix else stack("bias_ih") + stack("bias_hh")
    return {
        "input": {"kernel": stack("weight_ih").swapaxes(1, 2), "bias": bias},
        "state": {"kernel": stack("weight_hh").swapaxes(1, 2)},
    }


def started(name, **options):
    model = MODELS[name](**options)
    return model, model.init(KEY)


# A full text, one padded on the right, one of two tokens (fewer than a window).
TOKENS = np.random.default_rng(0).integers(1, 16, (3, 6)).astype(np.int32)
SIZES = np.array([6, 4, 2])
MASK = (np.arange(6) < SIZES[:, None]).astype(np.int32)
X = {"tokens": TOKENS, "mask": MASK}
KEYS = jax.random.split(jax.random.key(1), 3)


@every_model
def test_logits_and_gradients_are_those_of_pytorch(name):
    """Oracle: torch.nn.LSTM on packed texts, and Conv1d on each text between zeros."""
    params, wanted_grads, batch, wanted = load(name)
    model = MODELS[name](dropout_rate=0.0)
    shapes = jax.eval_shape(model.init, KEY)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    np.testing.assert_allclose(model.apply(params, batch.x), wanted, atol=1e-5)
    loss = cross_entropy(single_head(model.apply))
    grads = jax.jit(jax.grad(lambda p: mean_loss(loss, p, batch, KEY)))(params)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    layer = params["out"]
    (last,) = model.hidden(params, batch.x)
    np.testing.assert_allclose(
        last @ layer["kernel"] + layer["bias"], wanted, atol=1e-5
    )


@every_model
@pytest.mark.parametrize("keys", [None, KEYS], ids=["eval", "train"])
def test_padding_changes_nothing(name, keys):
    """A law: padding on either side, of any tokens. The control has no mask."""
    model, params = started(name)
    wanted = model.apply(params, X, keys)
    for pads in ((0, 3), (2, 0)):
        longer = {
            "tokens": np.pad(TOKENS, ((0, 0), pads), constant_values=7),
            "mask": np.pad(MASK, ((0, 0), pads)),
        }
        np.testing.assert_allclose(model.apply(params, longer, keys), wanted, atol=1e-6)
        blind = model.apply(params, longer["tokens"], keys)
        assert np.abs(blind - wanted).max() > 1e-3
    alone = [
        model.apply(params, row[None, :size], None if keys is None else keys[i, None])
        for i, (row, size) in enumerate(zip(TOKENS, SIZES, strict=True))
    ]
    np.testing.assert_allclose(np.concatenate(alone), wanted, atol=1e-6)


@every_model
def test_a_row_does_not_see_its_neighbours(name):
    """The row law, with dropout; and in another order."""
    model, params = started(name)
    loss = cross_entropy(single_head(model.apply))
    batch = as_batch(X, np.arange(3))
    check_rows_independent(jax.jit(loss), params, batch, KEY)
    turned = jax.tree.map(lambda leaf: leaf[::-1], X)
    found = model.apply(params, turned, KEYS[::-1])[::-1]
    np.testing.assert_allclose(found, model.apply(params, X, KEYS), atol=1e-6)


@every_model
def test_dropout_is_of_the_features(name):
    """Oracle: features seen through a kernel of unit vectors, kept and scaled or zero."""
    model, params = started(name, dropout_rate=0.25)
    (last,) = model.hidden(params, X)
    width = last.shape[1]
    unit = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
    found = np.asarray(model.apply(params | {"out": unit}, X, KEYS))
    kept = found != 0
    np.testing.assert_allclose(found[kept], np.asarray(last)[kept] / 0.75, rtol=1e-5)
    assert 0 < kept.mean() < 1
    still, _ = started(name, dropout_rate=0.0)
    program = lambda keys: str(
        jax.make_jaxpr(lambda p: still.apply(p, X, keys))(params)
    )
    assert program(KEYS) == program(None)


@every_model
def test_an_empty_text_has_finite_logits_and_gradients(name):
    """A law: no real token, so that features are zero and logits the biases."""
    model, params = started(name)
    params["out"]["bias"] = jnp.arange(4.0)
    empty = X | {"mask": MASK * np.array([[1], [0], [1]], np.int32)}
    np.testing.assert_array_equal(model.apply(params, empty)[1], jnp.arange(4.0))
    grads = jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, empty))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@every_model
def test_dtypes(name, x64):
    """Oracle: float32 to the precision of each; logits are float32 or wider."""
    del x64
    model, params = started(name)
    exact = model.apply(params, X)
    assert exact.dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    assert model.apply(wide, X).dtype == jnp.float64
    np.testing.assert_allclose(model.apply(wide, X), exact, atol=1e-5)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    coarse = model.apply(narrow, X)
    assert coarse.dtype == jnp.float32
    np.testing.assert_allclose(coarse, exact, atol=0.05)
    same = cast_compute(jnp.bfloat16, model.apply)(params, X)
    np.testing.assert_array_equal(same, coarse)


@every_model
def test_seeds_are_a_vmap(name):
    """Oracle: one seed at a time, under jit."""
    model, params = started(name)
    both = jax.tree.map(lambda *rows: jnp.stack(rows), params, model.init(KEYS[0]))
    found = jax.vmap(model.apply, (0, None, None))(both, X, KEYS)
    np.testing.assert_allclose(
        found[0], jax.jit(model.apply)(params, X, KEYS), atol=1e-6
    )


def test_weights_begin_in_their_bounds():
    """Oracle: the bounds of the docstrings, and moments of uniform numbers."""
    params = lstm(50, 4, embedding_size=30, hidden_size=25).init(KEY)
    bias = params["input"]["bias"].reshape(2, 4, 25)
    np.testing.assert_array_equal(bias[:, 1], 1)
    assert not bias[:, [0, 2, 3]].any()
    uniform = [params["input"]["kernel"], params["state"]["kernel"]]
    for kernel, a in (*((kernel, 0.2) for kernel in uniform),):
        assert np.abs(kernel).max() <= a
        np.testing.assert_allclose(np.std(kernel), a / np.sqrt(3), rtol=0.05)
    params = text_cnn(50, 4, embedding_size=30, widths=(4,), filters=25).init(KEY)
    for leaf, a in (
        (params["embedding"], 0.25),
        (params["conv_4"]["kernel"], np.sqrt(2 * 3 / 120)),
        (params["out"]["kernel"], np.sqrt(3 / 25)),
    ):
        assert np.abs(leaf).max() <= a
        np.testing.assert_allclose(np.std(leaf), a / np.sqrt(3), rtol=0.15)


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_that_the_model_does_not_know_is_no_other_one(token):
    """Oracle: NaN for its row, and the numbers of the other row as they were."""
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    models = (
        decoder(DecoderConfig(**sizes)),
        sequence_classifier(EncoderConfig(**sizes), 2),
        text_cnn(11, 2),
        lstm(11, 2),
    )
    for model in models:
        params = model.init(jax.random.key(0))
        known = jnp.array([[1, 2, 10, 3, 4, 5]] * 2)
        scores = model.apply(params, known)
        changed = model.apply(params, known.at[1, 2].set(token))
        np.testing.assert_allclose(changed[0], scores[0], rtol=1e-5, atol=1e-6)
        assert jnp.all(jnp.isnan(changed[1, -1]))
