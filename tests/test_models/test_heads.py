"""Heads over an encoder against numpy, and those of tasks and of growing sets of tags.

What Transformers' classifiers compute is compared in tests/test_interop/test_encoders.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import metrics
from jaxcl.adapters import add_lora, combine, lora_rule, merge_lora, partition
from jaxcl.losses import (
    check_rows_independent,
    class_mask,
    cross_entropy,
    heads,
    mean_loss,
    single_head,
    token_accuracy,
    token_cross_entropy,
)
from jaxcl.models import (
    EncoderConfig,
    cast_compute,
    encoder,
    mean_pooled,
    pooled,
    sentence_encoder,
    sequence_classifier,
    token_classifier,
)
from jaxcl.models.heads import POOLINGS
from jaxcl.tree import as_batch

CONFIG = EncoderConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=9,
    initializer_range=0.4,
    hidden_dropout_prob=0.2,
)
STILL = CONFIG._replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, 11)
MASK = jnp.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
X = {"tokens": TOKENS, "mask": MASK}
KEY, KEYS = jax.random.key(3), jax.random.split(jax.random.key(2), 3)
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def started(model):
    return model.init(jax.random.key(0))


# what a classifier reads


@every_pooling
def test_a_classifier_of_texts_is_linear_in_a_vector_of_each(pooling):
    """Oracle: numpy in float64, on the encoder's states, one head at a time."""
    sizes = [2, 3]
    model = sequence_classifier(CONFIG, sizes, pooling=pooling)
    params = started(model)
    states = encoder(CONFIG).apply(params, X)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    first = np.asarray(states[:, 0], np.float64)
    layer, vectors = wide["classifier"], {"first": [first] * 2}
    vectors["mean"] = [np.asarray(mean_pooled(states, MASK))] * 2
    if pooling == "pooler":
        vectors["pooler"] = [np.asarray(pooled(params, states))] * 2
    if pooling == "heads":
        own = wide["poolers"]["dense"]
        rows = zip(own["kernel"], own["bias"], strict=True)
        vectors["heads"] = [np.tanh(first @ kernel + bias) for kernel, bias in rows]
    parts = np.split(layer["kernel"], [2], axis=1)
    scores = [v @ part for v, part in zip(vectors[pooling], parts, strict=True)]
    wanted = np.concatenate(scores, axis=1) + layer["bias"]
    np.testing.assert_allclose(model.apply(params, X), wanted, atol=1e-5)
    *_, last = model.hidden(params, X)
    several = last if pooling == "heads" else jnp.stack([last] * 2, axis=1)
    np.testing.assert_allclose(several, np.stack(vectors[pooling], axis=1), atol=1e-5)
    assert ("pooler" in params) is (pooling == "pooler")


@every_pooling
def test_an_adapter_of_every_projection_is_its_merged_network(pooling):
    """Oracle: kernels + s A B, put together by merge_lora. Control: the base is another.

    Of heads, too, whose layers have an axis of their own or share one kernel.
    """
    model = sequence_classifier(STILL, [2, 3], pooling=pooling)
    base = started(model)
    every = ["all-linear", "classifier"]
    for targets in every:
        params = add_lora(KEY, base, rank=2, targets=targets, dropout=0.5)
        trainable, frozen = partition(params, lora_rule)
        move = lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape)
        params = combine(jax.tree.map(move, trainable), frozen)
        found = model.apply(params, X)
        merged = jax.tree.map(jnp.asarray, merge_lora(params))
        np.testing.assert_allclose(found, model.apply(merged, X), atol=1e-4)
        assert np.abs(np.asarray(found - model.apply(base, X))).max() > 1e-2
        grads = jax.grad(lambda params: jnp.sum(model.apply(params, X) ** 2))(params)
        assert all(
            leaf.any() for leaf in jax.tree.leaves(partition(grads, lora_rule)[0])
        )
        noisy = model.apply(params, X, KEYS)
        loss = cross_entropy(single_head(model.apply))
        batch = as_batch(X, jnp.arange(3))
        check_rows_independent(loss, params, batch, KEY)
        assert np.abs(np.asarray(noisy - found)).max() > 1e-2


def test_a_classifier_of_tokens_is_linear_in_each_state():
    """Oracle: numpy, one token at a time; labels of the config give the width."""
    config = CONFIG._replace(labels=("O", "B-PER", "I-PER"))
    model = token_classifier(config)
    params = started(model)
    states = np.asarray(model.hidden(params, X)[-1])
    layer = params["classifier"]
    wanted = [[h @ layer["kernel"] + layer["bias"] for h in row] for row in states]
    found = model.apply(params, X)
    assert found.shape == (3, 7, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_embedding_of_a_sentence_is_the_mean_of_its_tokens():
    """Oracle: numpy; lengths are 1, also where the gradient is needed."""
    model = sentence_encoder(CONFIG)
    params = started(model)
    states = np.asarray(encoder(CONFIG).apply(params, X))
    means = np.stack(
        [h[:size].mean(0) for h, size in zip(states, (7, 3, 5), strict=True)]
    )
    wanted = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(model.apply(params, X), wanted, atol=1e-5)
    plain = sentence_encoder(CONFIG, normalise=False).apply(params, X)
    np.testing.assert_allclose(plain, means, atol=1e-5)
    empty = X | {"mask": jnp.zeros_like(MASK)}
    grads = jax.grad(lambda p: jnp.sum(model.apply(p, empty)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_pretrained_encoder_takes_its_place_beside_a_new_head():
    """Oracle: the states of the encoder alone."""
    base, model = encoder(CONFIG), sequence_classifier(CONFIG, 3)
    pretrained = base.init(jax.random.key(8))
    params = {**started(model), **pretrained}
    assert jax.tree.structure(params) == jax.tree.structure(started(model))
    np.testing.assert_array_equal(
        model.hidden(params, X)[-2], base.apply(pretrained, X)
    )


# dropout and rows


def test_dropout_of_a_head_has_a_rate_of_its_own():
    """Oracle: states seen through a kernel of unit vectors, kept and scaled or zero."""
    noisy = STILL._replace(classifier_dropout=0.25)
    for build in (sequence_classifier, token_classifier):
        model = build(noisy, 8)
        unit = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
        params = started(model) | {"classifier": unit}
        whole = np.asarray(model.apply(params, X))
        found = np.asarray(model.apply(params, X, KEYS))
        kept = found != 0
        np.testing.assert_allclose(found[kept], whole[kept] / 0.75, rtol=1e-5)
        assert 0 < kept.mean() < 1
        same = build(STILL, 8)  # the rate of hidden layers, which is zero
        np.testing.assert_array_equal(same.apply(params, X, KEYS), whole)
        usual = build(STILL._replace(hidden_dropout_prob=0.25), 8)
        assert (np.asarray(usual.apply(params, X, KEYS)) == 0).any()


@pytest.mark.parametrize("pooling", [*POOLINGS, None])
def test_a_row_does_not_see_its_neighbours(pooling):
    """The row law, with dropout; for tokens without a pooling."""
    if pooling:
        model = sequence_classifier(CONFIG, [2, 3], pooling=pooling)
        loss = cross_entropy(heads(model.apply, [2, 3]))
        labels = jnp.array([1, 0, 1])
    else:
        model = token_classifier(CONFIG, [2, 3])
        loss = token_cross_entropy(heads(model.apply, [2, 3]))
        labels = jnp.where(MASK > 0, TOKENS % 2, -100)
    batch = as_batch(X, labels)._replace(task=jnp.array([0, 1, 1], jnp.int32))
    check_rows_independent(jax.jit(loss), started(model), batch, KEY)


# heads of tasks, and heads that grow


@pytest.mark.parametrize("tokens", [False, True])
def test_a_task_moves_its_own_head_only(tokens):
    """Oracle: exact zeros in the gradient of every other head."""
    sizes = [2, 1, 3]
    build = token_classifier if tokens else sequence_classifier
    options = {} if tokens else {"pooling": "heads"}
    model = build(CONFIG, sizes, **options)
    params, outputs = started(model), heads(model.apply, sizes)
    loss = (token_cross_entropy if tokens else cross_entropy)(outputs)
    labels = jnp.where(MASK > 0, 1, -100) if tokens else jnp.ones(3, jnp.int32)
    batch = as_batch(X, labels, task=2)
    grads = jax.grad(lambda p: mean_loss(loss, p, batch, KEY))(params)
    kernel = grads["classifier"]["kernel"]
    assert not kernel[:, :3].any()
    assert kernel[:, 3:].any(axis=0).all()
    assert grads["embeddings"]["word"].any()
    if not tokens:
        own = grads["poolers"]["dense"]["kernel"]
        assert not own[:2].any()
        assert own[2].any()


TAGS = np.arange(5) < np.array([1, 3, 5])[:, None]  # O, then two more in each task


def test_a_growing_head_is_a_narrow_one_until_its_tags_are_seen():
    """Oracle: a classifier of the seen tags alone; unseen ones get no gradient."""
    wide = token_classifier(STILL, 5)
    params, narrow = started(wide), token_classifier(STILL, 3)
    cut = {name: leaf[..., :3] for name, leaf in params["classifier"].items()}
    labels = jnp.where(MASK > 0, TOKENS % 3, -100)
    batch = as_batch(X, labels, task=1)
    growing = token_cross_entropy(class_mask(single_head(wide.apply), TAGS))
    plain = token_cross_entropy(single_head(narrow.apply))
    value_of = lambda loss: jax.value_and_grad(lambda p: mean_loss(loss, p, batch, KEY))
    value, grads = value_of(growing)(params)
    wanted, wanted_grads = value_of(plain)(params | {"classifier": cut})
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    kernel = grads["classifier"]["kernel"]
    np.testing.assert_allclose(
        kernel[:, :3], wanted_grads["classifier"]["kernel"], atol=1e-6
    )
    assert not kernel[:, 3:].any()
    unmasked = value_of(token_cross_entropy(single_head(wide.apply)))(params)
    assert unmasked[1]["classifier"]["kernel"][:, 3:].any()  # control


def test_labels_below_zero_count_neither_in_losses_nor_in_metrics():
    """Oracle: numpy over the tokens that count; those of the last task are the control."""
    model = token_classifier(STILL, 5)
    params, outputs = started(model), single_head(model.apply)
    labels = np.where(MASK > 0, TOKENS % 5, -100)
    labels[:, 0] = labels[0, 3] = -100  # the first token, and a continued word
    batch = as_batch(X, labels)
    scores = np.asarray(model.apply(params, X), np.float64)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    counts = labels >= 0
    nats = np.zeros(labels.shape)
    nats[counts] = [-logs[*place, labels[*place]] for place in np.argwhere(counts)]
    right = (scores.argmax(-1) == labels) & counts
    each = nats.sum(1) / counts.sum(1)
    found = token_cross_entropy(outputs)(params, batch, KEYS)
    np.testing.assert_allclose(found, each, rtol=1e-5)
    found = token_accuracy(outputs)(params, batch)
    np.testing.assert_allclose(found, right.sum(1) / counts.sum(1), rtol=1e-6)
    found = metrics.evaluate(metrics.tokens(outputs), params, batch)
    np.testing.assert_allclose(found["loss"], nats.sum() / counts.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["token_accuracy"], right.sum() / counts.sum())


def test_computing_in_bfloat16_keeps_logits_in_float32():
    """Oracle: float32, to bfloat16's precision; the logits' product is in float32."""
    for model in (
        sequence_classifier(STILL, [2, 3], pooling="heads"),
        sequence_classifier(STILL, 5),
        token_classifier(STILL, 5),
    ):
        params = started(model)
        narrow = cast_compute(jnp.bfloat16, model.apply)
        exact, found = model.apply(params, X), narrow(params, X)
        assert found.dtype == jnp.float32
        assert not np.array_equal(found, exact)
        np.testing.assert_allclose(found, exact, atol=0.05 * np.abs(exact).max())
        coarse = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        assert model.apply(coarse, X).dtype == jnp.float32
