"""Losses of one example against textbook formulas, batches against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import (
    accuracy,
    cross_entropy,
    mean_loss,
    multi_head,
    past_heads,
    row_losses,
    single_head,
    squared_error,
)
from jaxcl.tree import as_batch, at


def apply(params, x):
    return params @ x


PARAMS = jax.random.normal(jax.random.key(0), (6, 4))
BATCH = as_batch(
    jax.random.normal(jax.random.key(1), (5, 4)),
    jnp.array([0, 2, 1, 1, 0]),
    weight=jnp.array([1.0, 1, 0, 1, 1]),
)._replace(task=jnp.array([0, 1, 1, 0, 1], jnp.int32))
KEY = jax.random.key(2)


def test_cross_entropy_is_the_negative_log_of_the_softmax():
    """Oracle: numpy, one example at a time."""
    losses = row_losses(cross_entropy(single_head(apply)), PARAMS, BATCH, KEY)
    for i, (x, y) in enumerate(zip(BATCH.x, BATCH.y, strict=True)):
        z = np.asarray(PARAMS) @ np.asarray(x)
        expected = -np.log(np.exp(z[y]) / np.exp(z).sum())
        np.testing.assert_allclose(losses[i], expected, rtol=1e-5)


def test_a_head_sees_its_own_outputs_and_moves_only_them():
    """Oracle: slicing by hand; the gradient of other heads is exactly zero."""
    logits = multi_head(apply, 3)
    example = at(1, BATCH)  # of task 1
    np.testing.assert_array_equal(logits(PARAMS, example), (PARAMS @ example.x)[3:6])
    grads = jax.grad(cross_entropy(logits))(PARAMS, example, KEY)
    assert not np.any(grads[:3])
    assert np.all(np.any(grads[3:] != 0, axis=1))
    with pytest.raises(ValueError, match="multiple of num_classes=4"):
        multi_head(apply, 4)(PARAMS, example)


def test_past_heads_are_those_of_earlier_tasks():
    """Oracle: slicing by hand; neither the example's own head nor later ones move."""
    logits = past_heads(apply, 2)  # three tasks
    example = at(1, BATCH)  # of task 1
    outputs = np.asarray(PARAMS @ example.x)
    found = logits(PARAMS, example)
    np.testing.assert_array_equal(found, [outputs[:2], [0, 0], [0, 0]])
    grads = jax.grad(lambda params: jnp.sum(logits(params, example)))(PARAMS)
    assert np.any(grads[:2])
    assert not np.any(grads[2:])


def test_squared_error_is_half_the_squared_distance():
    """Oracle: numpy."""
    example = at(0, BATCH)._replace(y=jnp.arange(6.0))
    expected = 0.5 * np.sum((np.asarray(PARAMS @ example.x) - np.arange(6)) ** 2)
    np.testing.assert_allclose(
        squared_error(apply)(PARAMS, example, KEY), expected, rtol=1e-6
    )


def test_means_ignore_padding_and_are_zero_without_rows():
    """Oracle: the mean over the real rows alone."""
    loss = cross_entropy(single_head(apply))
    losses = np.asarray(row_losses(loss, PARAMS, BATCH, KEY))
    expected = losses[np.asarray(BATCH.weight) > 0].mean()
    np.testing.assert_allclose(mean_loss(loss, PARAMS, BATCH, KEY), expected, rtol=1e-6)
    padding = BATCH._replace(weight=jnp.zeros(5))
    assert mean_loss(loss, PARAMS, padding, KEY) == 0
    assert not np.any(jax.grad(lambda p: mean_loss(loss, p, padding, KEY))(PARAMS))


def test_every_row_has_a_key_of_its_own_that_other_rows_do_not_change():
    """Oracle: a loss that is its own random draw."""
    loss = lambda params, example, key: jax.random.uniform(key)
    draws = np.asarray(row_losses(loss, PARAMS, BATCH, KEY))
    assert len(set(draws)) == 5
    np.testing.assert_array_equal(draws, row_losses(loss, PARAMS * 2, BATCH, KEY))


@pytest.mark.parametrize("chunk_size", [None, 2, 5, 50])
def test_accuracy_counts_real_rows_whatever_the_chunks(chunk_size):
    """Oracle: counting in numpy."""
    best = np.argmax(np.asarray(BATCH.x) @ np.asarray(PARAMS).T, axis=1)
    real = np.asarray(BATCH.weight) > 0
    expected = np.mean((best == np.asarray(BATCH.y))[real])
    found = accuracy(single_head(apply), PARAMS, BATCH, chunk_size=chunk_size)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_chunks_change_the_memory_of_a_gradient_and_not_its_value():
    """Oracle: the whole batch at once; the bytes that XLA says it needs."""
    rows, width = 256, 512
    x = jax.random.normal(jax.random.key(3), (rows, 4))
    batch = as_batch(x, jnp.zeros(rows, int))
    params = (jnp.ones((4, width)) / 4, jnp.ones((width, 6)) / width)
    deep = lambda params, x: jnp.sin(x @ params[0]) @ params[1]
    loss = cross_entropy(single_head(deep))

    def compiled(chunk_size):
        mean = lambda params: mean_loss(loss, params, batch, KEY, chunk_size=chunk_size)
        return jax.jit(jax.grad(mean)).lower(params).compile()

    whole, parts = compiled(None), compiled(16)
    for a, b in zip(whole(params), parts(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    needed = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
    assert needed[1] < 0.5 * needed[0], needed


@pytest.mark.parametrize("task", [-1, 2])
def test_a_task_without_a_head_has_no_logits(task):
    """Oracle: three heads would be needed; NaN trips the flag of every step."""
    logits = multi_head(lambda params, x: params @ x, 3)  # six outputs: two heads
    example = at(0, BATCH)._replace(task=jnp.int32(task))
    assert jnp.isnan(logits(PARAMS, example)).all()
    assert jnp.isfinite(logits(PARAMS, at(0, BATCH))).all()


def test_a_row_with_nan_counts_as_the_class_of_the_first():
    """Oracle: by hand."""
    logits = lambda params, example: jnp.array([0.0, jnp.nan, 1.0, jnp.nan])
    for label, share in ((0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0)):
        labelled = BATCH._replace(y=jnp.full(5, label))
        assert accuracy(logits, PARAMS, labelled) == share


def test_labels_and_losses_of_other_shapes_are_refused():
    """Oracle: the messages; broadcast, they would be numbers that mean nothing."""
    logits = single_head(apply)
    column = BATCH._replace(y=BATCH.y[:, None])
    with pytest.raises(ValueError, match=r"accuracy: labels must be integers \[n\]"):
        accuracy(logits, PARAMS, column)
    vector = lambda *example: cross_entropy(logits)(*example)[None]
    with pytest.raises(
        ValueError, match=r"one number for one example, got shape \[1\]"
    ):
        mean_loss(vector, PARAMS, BATCH, KEY)


@pytest.mark.parametrize("label", [-1, 6])
def test_a_label_that_is_no_class_has_no_loss(label):
    """Oracle: the definition; its neighbours are not touched."""
    wrong = BATCH._replace(y=BATCH.y.at[1].set(label))
    of = lambda batch: row_losses(cross_entropy(single_head(apply)), PARAMS, batch, KEY)
    found, usual = of(wrong), of(BATCH)
    assert np.isnan(found[1])
    np.testing.assert_array_equal(np.delete(found, 1), np.delete(usual, 1))


def test_no_rows_have_no_accuracy():
    """Oracle: 0 / 0; one row is the control."""
    nothing = BATCH._replace(weight=jnp.zeros(5))
    assert np.isnan(accuracy(single_head(apply), PARAMS, nothing))
    one = BATCH._replace(weight=jnp.zeros(5).at[0].set(1.0))
    assert accuracy(single_head(apply), PARAMS, one) in (0.0, 1.0)
