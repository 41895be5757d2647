import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import past_heads
from jaxcl.regularizers import distill, feature_distillation
from jaxcl.tree import as_batch, at
from tests.steps import context


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


OLD, NEW = {"w": draw(0, 3, 4)}, {"w": draw(1, 3, 4)}
WEIGHT = np.array([1.0, 0.0, 1.0, 1.0])
BATCH = as_batch(draw(2, 4, 3), np.zeros(4, int), weight=WEIGHT)
REPLAY = as_batch(draw(3, 4, 3), np.zeros(4, int), weight=WEIGHT)
CONTEXT = context(BATCH, REPLAY, OLD)


def apply(params, x, keys=None):
    del keys
    return x @ params["w"]


def outputs(params, batch):
    return apply(params, batch.x)


def hidden(params, x):
    return apply(params, x), 2 * x


def learned(regularizer):
    return regularizer.end_task(None, regularizer.init(NEW, ()), OLD, BATCH)


def soften(x, params, temperature):
    z = np.exp(np.asarray(x, np.float64) @ np.asarray(params["w"]) / temperature)
    return z / z.sum()


@pytest.mark.parametrize("replayed", [False, True], ids=["batch", "replay"])
def test_the_penalty_is_a_softened_divergence_from_the_last_network(replayed):
    """Oracle: a loop over rows with weight, in 64-bit numpy."""
    rows = (lambda context: context.replay) if replayed else (lambda c: c.batch)
    regularizer = distill(outputs, 0.7, temperature=3.0, rows=rows)
    value = regularizer.penalty(learned(regularizer), NEW, CONTEXT)
    total = 0.0
    for i in (0, 2, 3):
        x = (REPLAY if replayed else BATCH).x[i]
        kept, now = soften(x, OLD, 3.0), soften(x, NEW, 3.0)
        total += np.sum(kept * np.log(kept / now)) / 3
    np.testing.assert_allclose(value, 0.7 * 9.0 * total, rtol=1e-5)


def test_a_quarter_at_temperature_two_is_learning_without_forgetting():
    """Oracle: Li and Hoiem 2016, equation 2: cross-entropy of softened answers, in 64-bit
    numpy; equal up to the entropy of the old ones, so gradients are compared, by central
    differences."""
    regularizer = distill(outputs, 0.25, temperature=2.0)
    state = learned(regularizer)
    grad = jax.grad(lambda params: regularizer.penalty(state, params, CONTEXT))(NEW)

    def theirs(w):
        rows = [
            -np.sum(
                soften(BATCH.x[i], OLD, 2.0) * np.log(soften(BATCH.x[i], {"w": w}, 2.0))
            )
            for i in (0, 2, 3)
        ]
        return np.mean(rows)

    w, step = np.asarray(NEW["w"], np.float64), 1e-5
    slopes = np.zeros_like(w)
    for place in np.ndindex(*w.shape):
        nudge = np.zeros_like(w)
        nudge[place] = step
        slopes[place] = (theirs(w + nudge) - theirs(w - nudge)) / (2 * step)
    np.testing.assert_allclose(grad["w"], slopes, rtol=1e-3, atol=1e-6)


def test_an_answer_that_is_not_given_counts_nowhere():
    """Oracle: the same penalty over the other answers alone."""
    masked = lambda params, batch: outputs(params, batch).at[:, 3].set(-jnp.inf)
    some = lambda params, batch: outputs(params, batch)[:, :3]
    value, wanted = (
        distill(keep, 1.0).penalty(learned(distill(keep, 1.0)), NEW, CONTEXT)
        for keep in (masked, some)
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    regularizer = distill(masked, 1.0)
    grad = jax.grad(regularizer.penalty, argnums=1)(learned(regularizer), NEW, CONTEXT)
    assert np.isfinite(grad["w"]).all()


def test_heads_of_unequal_width_are_distilled_each_over_its_own_classes():
    """Oracle: a loop over rows and past tasks, each a softmax over its own outputs."""
    sizes, tasks = [1, 2, 1], np.array([2, 0, 1, 2], np.int32)
    batch = BATCH._replace(task=jnp.asarray(tasks))
    regularizer = distill(past_heads(apply, sizes), 0.7, temperature=3.0)
    context = CONTEXT._replace(batch=batch)
    value, grad = jax.value_and_grad(regularizer.penalty, argnums=1)(
        learned(regularizer), NEW, context
    )
    ends, total = np.cumsum([0, *sizes]), 0.0
    for x, task, weight in zip(BATCH.x, tasks, WEIGHT, strict=True):
        for t in range(task):
            own = slice(ends[t], ends[t + 1])
            kept, now = (soften(x, {"w": p["w"][:, own]}, 3.0) for p in (OLD, NEW))
            total += weight * np.sum(kept * np.log(kept / now))
    wanted = 0.7 * 9.0 * total / (3 * WEIGHT.sum())  # a mean over the three heads
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert np.isfinite(grad["w"]).all()
    assert not np.any(grad["w"][:, [0, 3]])  # one class says nothing; the last is new
    assert np.all(np.any(grad["w"][:, 1:3] != 0, axis=0))


def test_answers_to_sequences_are_averaged_over_positions():
    """Oracle: positions taken as rows, where all sequences are as long."""
    both = as_batch(draw(7, 4, 2, 3), np.zeros(4, int), weight=WEIGHT)
    flat = as_batch(both.x.reshape(8, 3), np.zeros(8, int), weight=np.repeat(WEIGHT, 2))
    regularizer = distill(outputs, 0.5)
    state = learned(regularizer)
    found, wanted = (
        regularizer.penalty(state, NEW, CONTEXT._replace(batch=batch))
        for batch in (both, flat)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_tokens_without_a_label_are_not_distilled():
    """Oracle: a loop over the labelled tokens in 64-bit numpy, also of past heads; and the
    same rows in a wider batch, with padding that is not even finite."""
    x, y = np.array(draw(7, 4, 3, 3)), np.full((4, 3), 5, np.int32)
    y[0, 2], y[2, :2], y[3] = -100, -100, -100
    batch = as_batch(x, y, weight=WEIGHT)
    kinds = outputs, past_heads(apply, 2)
    for keep, parts in zip(kinds, ([np.s_[:4]], [np.s_[:2], np.s_[2:]]), strict=True):
        batch = batch._replace(task=np.full(4, 2, np.int32))
        regularizer, total = distill(keep, 0.7, temperature=3.0), 0.0
        for i in (0, 2, 3):  # the last row has no label
            for j in np.flatnonzero(y[i] >= 0):
                for own in parts:
                    kept, now = (
                        soften(x[i, j], {"w": p["w"][:, own]}, 3.0) for p in (OLD, NEW)
                    )
                    total += (
                        np.sum(kept * np.log(kept / now))
                        / (y[i] >= 0).sum()
                        / len(parts)
                    )
        value = regularizer.penalty(
            learned(regularizer), NEW, CONTEXT._replace(batch=batch)
        )
        np.testing.assert_allclose(value, 0.7 * 9.0 * total / 3, rtol=1e-5)
        wide = batch._replace(
            x=np.pad(x, ((0, 0), (0, 2), (0, 0)), constant_values=np.inf),
            y=np.pad(y, ((0, 0), (0, 2)), constant_values=-100),
        )
        same = regularizer.penalty(
            learned(regularizer), NEW, CONTEXT._replace(batch=wide)
        )
        # XLA may sum a wider batch in another order (3e-6 on an AMD EPYC without AVX-512).
        np.testing.assert_allclose(same, value, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_rows_in_chunks_give_the_same_penalty(chunk_size):
    """Oracle: all rows at once, value and gradient."""
    for build in (
        functools.partial(distill, outputs),
        functools.partial(feature_distillation, hidden),
    ):
        built = [build(0.5), build(0.5, chunk_size=chunk_size)]
        found = [
            jax.value_and_grad(part.penalty, argnums=1)(learned(part), NEW, CONTEXT)
            for part in built
        ]
        np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
        np.testing.assert_allclose(
            found[1][1]["w"], found[0][1]["w"], rtol=1e-5, atol=1e-7
        )


def test_nothing_is_kept_before_the_first_task_nor_without_rows():
    """Oracle: zero value and gradient; also at the old network itself."""
    regularizer = distill(outputs, 1.0)

    def penalty(state, params, context):
        both = jax.value_and_grad(regularizer.penalty, argnums=1)
        value, grad = both(state, params, context)
        return value, jnp.abs(grad["w"]).max()

    state = learned(regularizer)
    empty = CONTEXT._replace(batch=BATCH._replace(weight=jnp.zeros(4)))
    none = CONTEXT._replace(batch=at(slice(0), BATCH))
    run = jax.jit(penalty)
    assert run(regularizer.init(OLD, ()), NEW, CONTEXT) == (0.0, 0.0)
    assert run(state, NEW, empty) == (0.0, 0.0)
    assert run(state, NEW, none) == (0.0, 0.0)
    np.testing.assert_allclose(run(state, OLD, CONTEXT), (0.0, 0.0), atol=1e-6)
    assert run(state, NEW, CONTEXT)[0] > 0.1


def test_at_a_high_temperature_it_compares_logits():
    """Oracle: Hinton et al. 2015, section 2.1: half the variance of logit gaps."""
    regularizer = distill(outputs, 1.0, temperature=1e3)
    gaps = np.asarray(BATCH.x @ (OLD["w"] - NEW["w"]))
    expected = np.average(gaps.var(axis=1) / 2, weights=WEIGHT)
    with jax.enable_x64(True):  # the divergence is a small difference of large numbers
        wide = lambda tree: jax.tree.map(
            lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf,
            tree,
        )
        state = wide(learned(regularizer))
        context = CONTEXT._replace(batch=wide(BATCH))
        value = regularizer.penalty(state, wide(NEW), context)
    np.testing.assert_allclose(value, expected, rtol=1e-2)


def test_features_follow_the_slow_learner_on_the_replay():
    """Oracle: a weighted mean of squared gaps, by hand; the slow side is still."""
    regularizer = feature_distillation(hidden, 0.5)
    value = regularizer.penalty((), NEW, CONTEXT)
    gaps = np.asarray(REPLAY.x @ (NEW["w"] - OLD["w"])) ** 2
    expected = 0.5 * np.average(gaps.mean(axis=1) / 2, weights=WEIGHT)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    slope = jax.grad(
        lambda s: regularizer.penalty((), NEW, CONTEXT._replace(average=s))
    )
    np.testing.assert_array_equal(slope(OLD)["w"], 0.0)


def test_features_in_bfloat16_are_compared_in_float32():
    """Oracle: the same features in float64; a mean in bfloat16 is the control."""
    narrow = lambda params, x: (x @ params["w"]).astype(jnp.bfloat16)
    value = feature_distillation(narrow, 1.0).penalty((), NEW, CONTEXT)
    now, slow = (np.asarray(narrow(p, REPLAY.x), np.float64) for p in (NEW, OLD))
    gaps = np.asarray(jnp.asarray(now - slow, jnp.bfloat16), np.float64)
    wanted = np.average((gaps**2).mean(axis=1), weights=WEIGHT)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    rounded = jnp.mean(jnp.square(jnp.asarray(gaps, jnp.bfloat16)), axis=1)
    coarse = np.average(np.asarray(rounded, np.float64), weights=WEIGHT)
    assert abs(coarse / wanted - 1) > 1e-4


def test_features_of_padding_are_not_followed():
    """Oracle: a loop over the real tokens in NumPy; and the same rows in a wider batch."""
    x, mask = np.array(draw(8, 4, 3, 3)), np.ones((4, 3), np.int32)
    mask[0, 2], mask[2, 1:] = 0, 0

    def hidden(params, x):
        return x["tokens"] @ params["w"], x["tokens"][:, 0] @ params["w"]

    def penalty(x, mask):
        rows = as_batch({"tokens": x, "mask": mask}, np.zeros(4, int), weight=WEIGHT)
        rows = CONTEXT._replace(replay=rows)
        return feature_distillation(hidden, 0.5).penalty((), NEW, rows)

    gaps = (x @ np.asarray(NEW["w"] - OLD["w"])) ** 2
    of_rows = [row[real > 0].mean() for row, real in zip(gaps, mask, strict=True)]
    wanted = 0.25 * np.average(of_rows + gaps[:, 0].mean(axis=1), weights=WEIGHT)
    np.testing.assert_allclose(penalty(x, mask), wanted, rtol=1e-5)
    wide = np.pad(x, ((0, 0), (0, 2), (0, 0)), constant_values=7)
    same = penalty(wide, np.pad(mask, ((0, 0), (0, 2))))
    np.testing.assert_allclose(same, wanted, rtol=1e-5)


def test_there_is_nothing_to_follow_without_replay_or_average():
    """Oracle: zero."""
    regularizer = feature_distillation(apply, 1.0)
    none = CONTEXT._replace(replay=at(slice(0), REPLAY))
    assert regularizer.penalty((), NEW, none) == 0.0
    assert regularizer.penalty((), NEW, CONTEXT._replace(average=NEW)) == 0.0
