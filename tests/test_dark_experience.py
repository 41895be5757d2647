"""DER: replay towards the outputs that the network gave when a row was kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.losses import (
    LargestLogits,
    cross_entropy,
    dark_experience_loss,
    example_losses,
    largest_logits,
    mean_loss,
    single_head,
    token_cross_entropy,
)
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.methods import dark_experience_replay, experience_replay, plain
from jaxcl.tree import as_batch, at
from tests.steps import seen

D, C, RATE = 4, 3, 0.3
LOGITS = single_head(lambda params, x, keys=None: x @ params["w"] + params["b"])
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
    "w": jax.random.normal(KEYS[0], (D, C)),
    "b": jax.random.normal(KEYS[1], (C,)),
}
X = jax.random.normal(KEYS[2], (8, D))
ROWS = as_batch(X, jnp.arange(8) % C, weight=[1, 2, 0, 1, 0.5, 1, 1, 0])
FIRST, SECOND = (at(slice(4 * i, 4 * i + 4), ROWS) for i in range(2))


def logits(params, x):
    return np.asarray(x, np.float64) @ params["w"] + params["b"]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def gradient(params, batch, replay, alpha, beta):
    """Of CE(batch) + alpha |z - f|^2 + beta CE(replay), weighted means, by hand."""
    result = {"w": np.zeros((D, C)), "b": np.zeros(C)}
    for rows, far, likely in ((batch, 0, 1), (replay, alpha, beta)):
        weight = np.asarray(rows.weight, np.float64)
        if not weight.sum():
            continue
        x, f = np.asarray(rows.x, np.float64), logits(params, rows.x)
        slope = likely * (softmax(f) - np.eye(C)[np.asarray(rows.y)])
        if far:
            slope = slope + far * 2 * (f - np.asarray(rows.stored))
        slope = weight[:, None] / weight.sum() * slope
        result["w"] += x.T @ slope
        result["b"] += slope.sum(axis=0)
    return result


def as_numpy(tree):
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.0), (0.3, 0.7), (0.0, 0.7)])
def test_two_passes_are_those_by_hand(alpha, beta):
    """Oracle: gradients in NumPy; the logits of a kept row are those before its step.

    In the second pass the same rows come again, and are kept with their new logits.
    """
    memory = reservoir(16, 3)
    method = dark_experience_replay(
        LOGITS, optax.sgd(RATE), capacity=16, sample_size=3, alpha=alpha, beta=beta
    )
    state = method.init(PARAMS, at(slice(1), FIRST))
    params, kept = as_numpy(PARAMS), []
    for number, batch in enumerate([FIRST, SECOND, FIRST, SECOND]):
        key = jax.random.key(number)
        replay = memory.sample(jax.random.split(key, 7)[1], state.memory)
        state, info = jax.jit(method.step)(key, state, batch)
        assert np.isfinite(info.loss)
        for x, z in zip(replay.x, replay.stored, strict=True) if kept else ():
            assert any(
                np.array_equal(x, old_x) and np.allclose(z, old_z, atol=1e-4)
                for old_x, old_z in kept
            )
        real = np.asarray(batch.weight) > 0
        before = logits(params, batch.x)
        kept += [*zip(np.asarray(batch.x)[real], before[real], strict=True)]
        slope = gradient(params, batch, replay, alpha, beta)
        params = {name: leaf - RATE * slope[name] for name, leaf in params.items()}
        for name, leaf in params.items():
            np.testing.assert_allclose(state.params[name], leaf, atol=1e-4)
        stored = np.asarray(state.memory.kept.stored)[: len(kept)]
        np.testing.assert_allclose(stored, [z for _, z in kept], atol=1e-4)
    assert len(kept) == 12
    # The control of what "before its step" means: rows are kept with other logits.
    assert np.abs(kept[0][1] - kept[6][1]).max() > 0.01
    np.testing.assert_array_equal(kept[0][0], kept[6][0])


def walked(method, params=PARAMS):
    state = method.init(params, at(slice(1), FIRST))
    for number, batch in enumerate([FIRST, SECOND, FIRST]):
        state, _ = method.step(jax.random.key(number), state, batch)
    return state


def test_without_alpha_and_beta_it_is_plain_descent():
    """Law. Negative controls: either of them, and experience replay, which averages."""
    build = lambda alpha, beta: dark_experience_replay(
        LOGITS, optax.sgd(RATE), capacity=8, sample_size=3, alpha=alpha, beta=beta
    )
    loss = cross_entropy(LOGITS)
    alone = walked(plain(loss, optax.sgd(RATE))).params["w"]
    np.testing.assert_allclose(walked(build(0.0, 0.0)).params["w"], alone, atol=1e-6)
    others = [build(0.1, 0.0), build(0.0, 0.1)]
    others += [experience_replay(loss, optax.sgd(RATE), capacity=8, sample_size=3)]
    for other in others:
        assert np.abs(walked(other).params["w"] - alone).max() > 1e-3


def test_the_loss_of_a_row_is_that_of_the_paper():
    """Oracle: NumPy, row by row; equations 5 and 6."""
    stored = jax.random.normal(jax.random.key(7), (8, C))
    rows = ROWS._replace(stored=stored)
    loss = dark_experience_loss(LOGITS, 0.4, 0.6)
    found = example_losses(loss, PARAMS, rows, jax.random.key(0))
    f = logits(as_numpy(PARAMS), X)
    for i in range(8):
        distance = sum((float(stored[i, j]) - f[i, j]) ** 2 for j in range(C))
        likely = -np.log(softmax(f)[i, int(rows.y[i])])
        np.testing.assert_allclose(found[i], 0.4 * distance + 0.6 * likely, rtol=1e-5)


def test_rows_without_their_outputs_are_refused():
    """Oracle: the message; with a memory that stores them the method learns."""
    loss = dark_experience_loss(LOGITS, 0.4)
    others = {r"\(3, 3\), got none": None}
    others[r"\(3, 3\), got \(3, 2\)"] = lambda params, batch: batch.x[:, :2]
    for words, store in (*others.items(), ("", LOGITS)):
        memory = reservoir(8, 3, store=store)
        method = make_method(
            cross_entropy(LOGITS), optax.sgd(RATE), memory=memory, replay_loss=loss
        )
        state = method.init(PARAMS, at(slice(1), FIRST))
        if store is LOGITS:
            method.step(jax.random.key(0), state, FIRST)
        else:
            with pytest.raises(ValueError, match=words):
                method.step(jax.random.key(0), state, FIRST)


def test_what_is_stored_stays_beside_its_row():
    """Oracle: rows whose stored number is made of their own; three batches overfill.

    Under vmap each run keeps its own. Padding is never kept.
    """
    memory = reservoir(5, 4, store=lambda params, batch: params + 10 * batch.x[:, 0])

    def run(key, params):
        x = jnp.arange(4.0)[:, None]
        state = memory.init(params, as_batch(x[:1], [0]))
        for i, one in enumerate(jax.random.split(key, 3)):
            batch = as_batch(x + 4 * i, [0] * 4, weight=[1, 0, 1, 1])
            state = memory.observe(one, state, seen(batch, params + i), params + 99)
        return memory.sample(key, state)

    keys, starts = jax.random.split(jax.random.key(3), 3), jnp.array([0.0, 0.1, 0.2])
    found = jax.jit(jax.vmap(run))(keys, starts)
    rows = np.asarray(found.x[..., 0])
    assert not np.any(rows % 4 == 1)
    wanted = starts[:, None] + rows // 4 + 10 * rows
    np.testing.assert_allclose(found.stored, wanted, rtol=1e-6)
    assert len(np.unique(rows)) > 3


def test_outputs_of_a_bfloat16_network_are_stored_as_such():
    """Oracle: the dtypes of the first state, and DER in float32 up to its precision."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    outputs = single_head(
        lambda params, x, keys=None: x.astype(jnp.bfloat16) @ params["w"] + params["b"]
    )
    build = lambda outputs: dark_experience_replay(
        outputs, optax.sgd(RATE), capacity=8, sample_size=3, alpha=0.3, beta=0.7
    )
    state = walked(build(outputs), half)
    assert state.memory.kept.stored.dtype == jnp.bfloat16
    assert state.params["w"].dtype == jnp.bfloat16
    exact = walked(build(LOGITS))
    np.testing.assert_allclose(state.params["w"], exact.params["w"], atol=0.1)
    moved = jnp.abs(exact.params["w"] - PARAMS["w"]).max()
    assert float(moved) > 0.2


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_of_tokens_those_with_a_label_count(beta):
    """Oracle: a loop over them in NumPy; and the same rows in a wider batch."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(3, 4, D)), rng.normal(size=(3, 4, C))
    y = np.array([[0, 1, -100, -100], [2, 1, 0, 2], [-100, 2, 1, -100]], np.int32)
    loss, wanted = dark_experience_loss(LOGITS, 0.3, beta), []
    for row in range(3):
        f, places = logits(PARAMS, x[row]), np.flatnonzero(y[row] >= 0)
        far = 0.3 * np.square(z[row] - f).sum(axis=1)
        likely = -np.log(softmax(f)[np.arange(4), y[row].clip(0)])
        wanted.append((far + beta * likely)[places].mean())
    for wide in (0, 3):
        pad = lambda a, value, wide=wide: np.pad(
            a, [(0, 0), (0, wide), (0, 0)][: a.ndim], constant_values=value
        )
        rows = as_batch(np.float32(pad(x, 9)), pad(y, -100))
        rows = rows._replace(stored=jnp.float32(pad(z, -9)))
        np.testing.assert_allclose(loss(PARAMS, rows, None), wanted, rtol=1e-5)


# ------------------------------------------------------------- the largest logits only

VOCABULARY = 7
WORDS = {
    "in": jax.random.normal(KEYS[0], (VOCABULARY, D)),
    "out": jax.random.normal(KEYS[1], (D, VOCABULARY)),
}
OF_WORDS = single_head(
    lambda params, x, keys=None: jnp.tanh(params["in"][x["tokens"]]) @ params["out"]
)


def sentences(lengths, width, seed=0):
    """Rows of so many tokens, whose first label does not count, as that of a prompt."""
    random = np.random.default_rng(seed)
    mask = np.arange(width) < np.asarray(lengths)[:, None]
    tokens = random.integers(0, VOCABULARY, mask.shape) * mask
    y = np.where(mask, random.integers(0, VOCABULARY, mask.shape), -100)
    y[:, 0] = -100
    return as_batch({"tokens": tokens, "mask": mask.astype(np.int32)}, y)


@functools.cache
def learned(num_logits, dtype=jnp.float32):
    """The state after sentences of two widths, and the infos of the steps."""
    method = dark_experience_replay(
        OF_WORDS,
        optax.sgd(RATE),
        capacity=5,
        sample_size=3,
        alpha=0.2,
        beta=0.5,
        num_logits=num_logits,
    )
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), WORDS)
    state, infos = method.init(params, sentences([6], 6)), []
    step = jax.jit(method.step)
    for number, width in enumerate((3, 6, 3, 6)):
        rows = sentences([2, width], width, number)
        state, info = step(jax.random.key(number), state, rows)
        infos.append(info)
    return state, infos


@pytest.mark.parametrize("k", [1, 3, VOCABULARY])
def test_the_largest_logits_are_those_of_a_sorted_list(k):
    """Oracle: NumPy, token by token; zeros without a label. Under jit and vmap as alone."""
    rows = sentences([2, 5, 6], 6)
    store = largest_logits(OF_WORDS, k)
    found, z = store(WORDS, rows), np.asarray(OF_WORDS(WORDS, rows))
    for place in np.ndindex(3, 6):
        order = np.argsort(-z[place], kind="stable")[:k] * (rows.y[place] >= 0)
        np.testing.assert_array_equal(found.tokens[place], order)
        values = z[place][order] * (rows.y[place] >= 0)
        np.testing.assert_array_equal(found.values[place], values)
    assert found.tokens.dtype == jnp.int32
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), WORDS)
    mapped = jax.jit(jax.vmap(store, (0, None)))(both, rows)
    for ours, alone in zip(mapped, found, strict=True):
        np.testing.assert_allclose(ours[0], alone, rtol=1e-5)


@pytest.mark.parametrize(("k", "beta"), [(1, 0.0), (2, 0.7)])
def test_the_distance_is_that_of_the_logits_that_are_stored(k, beta):
    """Oracle: a loop in NumPy over tokens with a label, and over their entries."""
    rows = sentences([2, 5, 6], 6)
    before = jax.tree.map(lambda leaf: 0.5 * leaf + 0.1, WORDS)
    rows = rows._replace(stored=largest_logits(OF_WORDS, k)(before, rows))
    loss = dark_experience_loss(OF_WORDS, 0.3, beta)
    z, f = (np.asarray(OF_WORDS(p, rows), np.float64) for p in (before, WORDS))
    wanted = []
    for row in range(3):
        tokens = []
        for i in np.flatnonzero(rows.y[row] >= 0):
            largest = sorted(range(VOCABULARY), key=lambda v: -z[row, i, v])[:k]
            far = sum((z[row, i, v] - f[row, i, v]) ** 2 for v in largest)
            likely = -np.log(softmax(f[row])[i, int(rows.y[row, i])])
            tokens.append(0.3 * far + beta * likely)
        wanted.append(np.mean(tokens))
    np.testing.assert_allclose(loss(WORDS, rows, None), wanted, rtol=1e-5)


def test_with_all_logits_it_is_the_full_form():
    """Oracle: DER with all logits, over steps of two widths. The control: with two."""
    (full, infos), (sparse, ours), (few, _) = map(learned, (None, VOCABULARY, 2))
    for name, leaf in full.params.items():
        np.testing.assert_allclose(sparse.params[name], leaf, rtol=1e-4, atol=1e-5)
        assert np.abs(few.params[name] - leaf).max() > 1e-3
    for a, b in zip(ours, infos, strict=True):
        np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4)
    kept = sparse.memory.kept
    rebuilt = np.zeros((5, 6, VOCABULARY), np.float32)
    np.put_along_axis(rebuilt, *map(np.asarray, reversed(kept.stored)), axis=-1)
    counts = np.asarray(kept.y >= 0)
    np.testing.assert_allclose(
        rebuilt[counts], full.memory.kept.stored[counts], rtol=1e-4, atol=1e-5
    )
    for leaf in kept.stored:
        assert not np.any(leaf[~counts])


def test_new_rows_of_tokens_are_learned_by_their_cross_entropy():
    """Oracle: the loss of the first step, before anything is in memory."""
    _, (first, *_) = learned(2)
    rows = sentences([2, 3], 3)
    wanted = mean_loss(token_cross_entropy(OF_WORDS), WORDS, rows, jax.random.key(0))
    np.testing.assert_allclose(first.loss, wanted, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 8), (jnp.bfloat16, 6)])
def test_the_largest_logits_take_the_memory_that_the_docstring_says(dtype, size):
    """Oracle: the formula, bytes of 5 rows of 6 tokens; and the dtypes of the state."""
    state, infos = learned(2, dtype)
    stored = state.memory.kept.stored
    assert isinstance(stored, LargestLogits)
    assert stored.values.dtype == dtype
    assert sum(leaf.nbytes for leaf in stored) == size * 5 * 6 * 2
    assert all(bool(info.finite) for info in infos)
    assert state.params["out"].dtype == dtype


def test_the_largest_logits_of_classes_are_as_good():
    """Oracle: DER with all of them, where a row has one label. The control: with one."""
    build = lambda k: walked(
        dark_experience_replay(
            LOGITS,
            optax.sgd(RATE),
            capacity=8,
            sample_size=3,
            alpha=0.3,
            beta=0.7,
            num_logits=k,
        )
    ).params["w"]
    np.testing.assert_allclose(build(C), build(None), rtol=1e-4, atol=1e-5)
    assert np.abs(build(1) - build(None)).max() > 1e-3
