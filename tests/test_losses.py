"""Losses of examples against textbook formulas and loops, batches against their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import (
    MASKED,
    accuracy,
    check_rows_independent,
    class_mask,
    cross_entropy,
    example_losses,
    heads,
    mean_loss,
    of_one,
    past_heads,
    per_example,
    single_head,
    squared_error,
    token_accuracy,
    token_cross_entropy,
)
from jaxcl.models import mlp
from jaxcl.tree import as_batch, at


def apply(params, x, keys=None):
    del keys
    return x @ params.T


PARAMS = jax.random.normal(jax.random.key(0), (6, 4))
BATCH = as_batch(
    jax.random.normal(jax.random.key(1), (5, 4)),
    jnp.array([0, 2, 1, 1, 0]),
    weight=jnp.array([1.0, 1, 0, 1, 1]),
)._replace(task=jnp.array([0, 1, 1, 0, 1], jnp.int32))
KEY = jax.random.key(2)
LOSS = cross_entropy(single_head(apply))
SCORES = np.asarray(BATCH.x, np.float64) @ np.asarray(PARAMS, np.float64).T


def test_cross_entropy_is_the_negative_log_of_the_softmax():
    """Oracle: numpy, one example at a time."""
    losses = example_losses(LOSS, PARAMS, BATCH, KEY)
    for z, y, found in zip(SCORES, BATCH.y, losses, strict=True):
        expected = -np.log(np.exp(z[y]) / np.exp(z).sum())
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_squared_error_is_half_the_squared_distance():
    """Oracle: numpy."""
    target = np.arange(30.0).reshape(5, 6)
    found = squared_error(single_head(apply))(
        PARAMS, BATCH._replace(y=jnp.asarray(target, jnp.float32)), None
    )
    expected = 0.5 * np.sum((SCORES - target) ** 2, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_losses_and_accuracies_of_tokens_are_means_over_those_that_count():
    """Oracle: loops over rows and tokens; a row without labels has zero of both."""
    scores = np.random.default_rng(0).normal(size=(4, 3, 5))
    labels = np.array([[1, 2, -1], [4, 0, 3], [-1, -1, -1], [-1, 2, -1]])
    batch = as_batch(jnp.asarray(scores, jnp.float32), labels)
    outputs = single_head(lambda params, x, keys=None: params * x)
    losses, hits = [], []
    for row, wanted in zip(scores, labels, strict=True):
        real = [(z, y) for z, y in zip(row, wanted, strict=True) if y >= 0]
        nats = [np.log(np.exp(z).sum()) - z[y] for z, y in real]
        losses.append(np.mean(nats) if real else 0.0)
        hits.append(np.mean([z.argmax() == y for z, y in real]) if real else 0.0)
    found = token_cross_entropy(outputs)(1.0, batch, None)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    np.testing.assert_allclose(token_accuracy(outputs)(1.0, batch), hits, rtol=1e-6)


def test_a_mean_over_tokens_is_that_of_rows_weighted_by_their_labels():
    """Oracle: numpy's mean over all tokens that count, whatever their rows."""
    scores = np.random.default_rng(1).normal(size=(3, 4, 5))
    labels = np.array([[1, 2, -1, -1], [4, 0, 3, 1], [2, -1, -1, -1]])
    batch = as_batch(
        jnp.asarray(scores, jnp.float32), labels, weight=(labels >= 0).sum(axis=1)
    )
    loss = token_cross_entropy(single_head(lambda params, x, keys=None: params * x))
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    flat = [-logs[i, j, labels[i, j]] for i, j in np.argwhere(labels >= 0)]
    found = mean_loss(loss, 1.0, batch, KEY)
    np.testing.assert_allclose(found, np.mean(flat), rtol=1e-5)
    rows_alike = mean_loss(loss, 1.0, batch._replace(weight=jnp.ones(3)), KEY)
    assert abs(float(rows_alike) - np.mean(flat)) > 1e-3  # control


# which outputs are whose


TASKS = jnp.array([0, 1, 2, 2, 0], jnp.int32)
WIDTHS = [pytest.param(2, id="equal"), pytest.param([1, 3, 2], id="unequal")]


def own_outputs(sizes):
    """``(start, width)`` of each of three heads, counted by hand."""
    return [(0, 2), (2, 2), (4, 2)] if sizes == 2 else [(0, 1), (1, 3), (4, 2)]


@pytest.mark.parametrize("sizes", WIDTHS)
def test_each_example_reads_the_outputs_of_its_own_task(sizes):
    """Oracle: slicing by hand, one example at a time; what is left over is masked."""
    batch, places = BATCH._replace(task=TASKS), own_outputs(sizes)
    found = heads(apply, sizes)(PARAMS, batch)
    assert found.shape == (5, max(width for _, width in places))
    scores = np.asarray(apply(PARAMS, batch.x))
    for row, t in enumerate(TASKS.tolist()):
        start, width = places[t]
        np.testing.assert_array_equal(
            found[row, :width], scores[row, start : start + width]
        )
        np.testing.assert_array_equal(found[row, width:], MASKED)


SCORES_OF_TOKENS = np.random.default_rng(3).normal(size=(5, 4, 6)).astype(np.float32)
OF_TOKENS = as_batch(SCORES_OF_TOKENS, np.zeros((5, 4), int))._replace(task=TASKS)
ALLOWED = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1] * 6], bool)
BY_TASK = {
    "heads": lambda apply: heads(apply, [1, 3, 2]),
    "equal heads": lambda apply: heads(apply, 2),
    "past heads": lambda apply: past_heads(apply, [1, 3, 2]),
    "equal past heads": lambda apply: past_heads(apply, 2),
    "mask": lambda apply: class_mask(single_head(apply), ALLOWED),
}


@pytest.mark.parametrize("name", BY_TASK)
def test_outputs_of_tokens_are_those_of_one_token_after_another(name):
    """Oracle: the same outputs of each token by itself; also of a task without a head."""
    itself = lambda params, x, keys=None: params * x
    outputs = BY_TASK[name](itself)
    for task in (TASKS, jnp.full(5, 3), jnp.full(5, -1)):
        batch = OF_TOKENS._replace(task=task)
        found = jax.jit(outputs)(2.0, batch)
        each = [outputs(2.0, batch._replace(x=batch.x[:, k])) for k in range(4)]
        # Tokens come before the last axis, after that of past tasks.
        wanted = jnp.stack(each, axis=each[0].ndim - 1)
        np.testing.assert_array_equal(found, wanted)
        total = lambda x, rows=batch: jnp.nansum(outputs(2.0, rows._replace(x=x)))
        grads = [jax.grad(total)(batch.x[:, k]) for k in range(4)]
        np.testing.assert_array_equal(
            jax.grad(total)(batch.x), jnp.stack(grads, axis=1)
        )


@pytest.mark.parametrize("sizes", WIDTHS)
def test_a_loss_moves_the_head_of_its_example_only(sizes):
    """Oracle: exact zeros in the gradient of every other head."""
    loss = cross_entropy(heads(apply, sizes))
    for t, (start, width) in enumerate(own_outputs(sizes)):
        rows = BATCH._replace(task=jnp.full(5, t, jnp.int32), y=jnp.zeros(5, jnp.int32))
        grads = jax.grad(lambda p, rows=rows: mean_loss(loss, p, rows, KEY))(PARAMS)
        own = np.isin(np.arange(6), np.arange(start, start + width))
        assert not np.any(grads[~own])
        assert np.any(grads[own]) == (width > 1)  # one class alone has loss zero
        assert np.isfinite(grads).all()


def test_a_narrow_head_has_the_loss_of_its_own_classes():
    """Oracle: the softmax over two classes; a label of the filling has no chance."""
    loss = cross_entropy(heads(apply, [1, 3, 2]))
    batch = BATCH._replace(task=jnp.full(5, 2, jnp.int32), y=jnp.array([0, 1, 1, 0, 2]))
    found = loss(PARAMS, batch, None)
    z = SCORES[:, 4:6]
    expected = np.log(np.exp(z).sum(axis=1))[:4] - z[range(4), batch.y[:4]]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5)
    assert found[4] > 1e8


@pytest.mark.parametrize("sizes", WIDTHS)
def test_past_heads_are_those_of_earlier_tasks(sizes):
    """Oracle: slicing by hand, one example and one task at a time; zeros elsewhere."""
    batch, places = BATCH._replace(task=TASKS), own_outputs(sizes)
    widest = max(width for _, width in places)
    found = past_heads(apply, sizes)(PARAMS, batch)
    assert found.shape == (5, 3, widest)
    scores = np.asarray(apply(PARAMS, batch.x))
    for row, own in enumerate(TASKS.tolist()):
        for t, (start, width) in enumerate(places):
            if t >= own:
                np.testing.assert_array_equal(found[row, t], np.zeros(widest))
                continue
            np.testing.assert_array_equal(
                found[row, t, :width], scores[row, start : start + width]
            )
            np.testing.assert_array_equal(found[row, t, width:], MASKED)


@pytest.mark.parametrize("sizes", WIDTHS)
def test_past_heads_move_neither_the_example_own_head_nor_later_ones(sizes):
    """Oracle: exact zeros in the gradient; the earlier heads are the control."""
    batch = BATCH._replace(task=jnp.full(5, 1, jnp.int32))
    total = lambda params: jnp.sum(past_heads(apply, sizes)(params, batch) ** 2)
    grads = jax.grad(total)(PARAMS)
    _, width = own_outputs(sizes)[0]
    assert np.all(np.any(grads[:width] != 0, axis=1))
    assert not np.any(grads[width:])


@pytest.mark.parametrize("sizes", WIDTHS)
@pytest.mark.parametrize("task", [-1, 3])
def test_a_task_without_a_head_has_no_logits(task, sizes):
    """Oracle: a fourth head would be needed; NaN trips the flag of every step."""
    batch = BATCH._replace(task=TASKS.at[1].set(task))
    found = heads(apply, sizes)(PARAMS, batch)
    assert jnp.isnan(found[1]).all()
    assert np.isfinite(np.delete(found, 1, axis=0)).all()


def test_outputs_hand_the_keys_of_the_rows_to_the_network():
    """Oracle: the draws of the keys themselves; without keys the network gets None."""
    keys = jax.random.split(KEY, 5)
    draw = lambda params, x, keys=None: (
        jnp.zeros((len(x), 6))
        if keys is None
        else jax.vmap(lambda key: jax.random.normal(key, (6,)))(keys)
    )
    drawn = np.stack([jax.random.normal(key, (6,)) for key in keys])
    zeros = np.zeros((5, 6))
    for outputs, view in (
        (single_head(draw), lambda all: all),
        (heads(draw, 6), lambda all: all),
        (past_heads(draw, 6), lambda all: 0 * all[:, None]),
    ):
        batch = BATCH._replace(task=jnp.zeros(5, jnp.int32))
        np.testing.assert_array_equal(outputs(PARAMS, batch, keys), view(drawn))
        np.testing.assert_array_equal(outputs(PARAMS, batch), view(zeros))


# one example and many


def test_a_loss_of_one_and_of_a_batch_are_each_other_s_inverse():
    """Oracle: equal bits, both ways; a loop over examples for the lift itself."""
    keys = jax.random.split(KEY, 5)

    def one(params, example, key):
        noise = jax.random.normal(key, example.x.shape)
        return jnp.sum(jnp.sin(params @ (example.x + noise))) * example.y

    lifted = per_example(one)
    losses = lifted(PARAMS, BATCH, keys)
    loop = [one(PARAMS, at(i, BATCH), keys[i]) for i in range(5)]
    np.testing.assert_allclose(losses, loop, rtol=1e-5)
    again = per_example(of_one(lifted))(PARAMS, BATCH, keys)
    np.testing.assert_array_equal(again, losses)
    for i in range(5):
        found = of_one(lifted)(PARAMS, at(i, BATCH), keys[i])
        assert found.shape == ()
        part = lifted(PARAMS, at(slice(i, i + 1), BATCH), keys[i : i + 1])
        np.testing.assert_array_equal(found, part[0])


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 50])
def test_losses_in_chunks_are_those_of_all_rows(chunk_size):
    """Oracle: all rows at once, with noise from the keys; sizes that divide or not."""
    outputs = lambda params, batch, keys: (
        apply(params, batch.x)
        + jax.vmap(lambda key: jax.random.normal(key, (6,)))(keys)
    )
    loss = cross_entropy(outputs)
    whole = example_losses(loss, PARAMS, BATCH, KEY)
    parts = example_losses(loss, PARAMS, BATCH, KEY, chunk_size=chunk_size)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    by_rows = example_losses(loss, PARAMS, BATCH, jax.random.split(KEY, 5))
    np.testing.assert_array_equal(by_rows, whole)  # keys of the rows, given directly
    quiet = example_losses(LOSS, PARAMS, BATCH, KEY)
    assert not np.allclose(whole, quiet)  # control: the noise is there


def test_every_row_has_a_key_of_its_own_that_other_rows_do_not_change():
    """Oracle: a loss that is its own random draw."""
    loss = lambda params, batch, keys: jax.vmap(jax.random.uniform)(keys)
    draws = np.asarray(example_losses(loss, PARAMS, BATCH, KEY))
    assert len(set(draws)) == 5
    np.testing.assert_array_equal(draws, example_losses(loss, PARAMS * 2, BATCH, KEY))
    old_form = example_losses(loss, PARAMS, BATCH, jax.random.PRNGKey(2))
    np.testing.assert_array_equal(old_form, draws)


def test_rows_that_depend_on_their_neighbours_are_found_out():
    """Law: a network's rows stand alone; negative controls: a mean, and a contrast."""
    model = mlp((4, 8, 3))
    params = model.init(KEY)
    check_rows_independent(cross_entropy(single_head(model.apply)), params, BATCH, KEY)
    noisy = lambda params, batch, keys: jax.vmap(jax.random.uniform)(keys)
    check_rows_independent(noisy, params, BATCH, KEY)

    def normalised(params, x, keys=None):
        centred = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-5)  # as BatchNorm does
        return model.apply(params, centred, keys)

    def contrast(params, batch, keys):
        scores = model.apply(params, batch.x, keys)
        return -jnp.diagonal(jax.nn.log_softmax(scores @ scores.T))

    for loss in (cross_entropy(single_head(normalised)), contrast):
        with pytest.raises(
            ValueError, match=r"loss: row \d must depend .*Norm"
        ) as error:
            check_rows_independent(loss, params, BATCH, KEY)
        assert "\n" not in str(error.value)


# means


def test_means_ignore_padding_and_are_zero_without_rows():
    """Oracle: the mean over the real rows alone."""
    losses = np.asarray(example_losses(LOSS, PARAMS, BATCH, KEY))
    expected = losses[np.asarray(BATCH.weight) > 0].mean()
    np.testing.assert_allclose(mean_loss(LOSS, PARAMS, BATCH, KEY), expected, rtol=1e-6)
    padding = BATCH._replace(weight=jnp.zeros(5))
    assert mean_loss(LOSS, PARAMS, padding, KEY) == 0
    assert not np.any(jax.grad(lambda p: mean_loss(LOSS, p, padding, KEY))(PARAMS))


@pytest.mark.parametrize("chunk_size", [None, 2, 5, 50])
def test_accuracy_counts_real_rows_whatever_the_chunks(chunk_size):
    """Oracle: counting in numpy."""
    real = np.asarray(BATCH.weight) > 0
    expected = np.mean((SCORES.argmax(axis=1) == np.asarray(BATCH.y))[real])
    found = accuracy(single_head(apply), PARAMS, BATCH, chunk_size=chunk_size)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_chunks_change_the_memory_of_a_gradient_and_not_its_value():
    """Oracle: the whole batch at once; the bytes that XLA says it needs."""
    rows, width = 256, 512
    x = jax.random.normal(jax.random.key(3), (rows, 4))
    batch = as_batch(x, jnp.zeros(rows, int))
    params = (jnp.ones((4, width)) / 4, jnp.ones((width, 6)) / width)
    deep = lambda params, x, keys: jnp.sin(x @ params[0]) @ params[1]
    loss = cross_entropy(single_head(deep))

    def compiled(chunk_size):
        mean = lambda params: mean_loss(loss, params, batch, KEY, chunk_size=chunk_size)
        return jax.jit(jax.grad(mean)).lower(params).compile()

    whole, parts = compiled(None), compiled(16)
    for a, b in zip(whole(params), parts(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    needed = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
    assert needed[1] < 0.5 * needed[0], needed


def test_a_row_with_nan_counts_as_the_class_of_the_first():
    """Oracle: by hand."""
    row = jnp.array([0.0, jnp.nan, 1.0, jnp.nan])
    outputs = lambda params, batch: jnp.tile(row, (len(batch.x), 1))
    for label, share in ((0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0)):
        labelled = BATCH._replace(y=jnp.full(5, label))
        assert accuracy(outputs, PARAMS, labelled) == share


@pytest.mark.parametrize("label", [-1, 6])
def test_a_label_that_is_no_class_has_no_loss(label):
    """Oracle: the definition; its neighbours are not touched."""
    wrong = BATCH._replace(y=BATCH.y.at[1].set(label))
    found, usual = (
        np.asarray(example_losses(LOSS, PARAMS, batch, KEY)) for batch in (wrong, BATCH)
    )
    assert np.isnan(found[1])
    np.testing.assert_array_equal(np.delete(found, 1), np.delete(usual, 1))


def test_no_rows_have_no_accuracy():
    """Oracle: 0 / 0; one row is the control."""
    nothing = BATCH._replace(weight=jnp.zeros(5))
    assert np.isnan(accuracy(single_head(apply), PARAMS, nothing))
    one = BATCH._replace(weight=jnp.zeros(5).at[0].set(1.0))
    assert accuracy(single_head(apply), PARAMS, one) in (0.0, 1.0)


def test_masked_classes_get_no_probability_and_no_gradient():
    """Oracle: the cross-entropy of the allowed logits alone, and its gradient."""
    allowed = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
    logits = jax.random.normal(jax.random.key(0), (3, 4))
    rows = as_batch(np.zeros((3, 1), np.float32), np.array([1, 0, 2]))
    rows = rows._replace(task=jnp.array([0, 1, 1]))
    outputs = class_mask(lambda params, batch, keys=None: params, allowed)
    loss = cross_entropy(outputs)
    total = lambda logits: jnp.sum(loss(logits, rows, jax.random.split(KEY, 3)))
    grads = jax.grad(total)(logits)
    want = 0.0
    for row, (task, label) in enumerate(zip((0, 1, 1), (1, 0, 2), strict=True)):
        own = logits[row][allowed[task]]
        want += jax.nn.logsumexp(own) - own[label]
        soft = jax.nn.softmax(own) - jax.nn.one_hot(label, len(own))
        np.testing.assert_allclose(grads[row][allowed[task]], soft, atol=1e-6)
        assert not grads[row][~allowed[task]].any()
    np.testing.assert_allclose(total(logits), want, rtol=1e-6)
    with pytest.raises(ValueError, match=r"each output, \[tasks, 4\], got \[4\]"):
        class_mask(lambda *given: logits, allowed[0])(logits, rows)
