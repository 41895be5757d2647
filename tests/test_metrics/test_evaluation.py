"""Ready metrics against scikit-learn and NumPy, and the laws of weighted means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
)

from jaxcl.losses import accuracy
from jaxcl.metrics import (
    classification,
    evaluate,
    macro_f1,
    regression,
    tokens,
    with_frozen,
)
from jaxcl.metrics.evaluation import TaskMetric, values_of_task
from jaxcl.typing import Batch

RANDOM = np.random.default_rng(0)
READ = lambda params, batch: batch.x  # the rows are the outputs
ROWS, CLASSES = 37, 4


def batch(x, y, weight=None):
    weight = np.ones(len(x), np.float32) if weight is None else weight
    return Batch(*map(jnp.asarray, (x, y, weight)), jnp.zeros(len(x), jnp.int32))


LOGITS = batch(
    RANDOM.standard_normal((ROWS, CLASSES)).astype(np.float32),
    RANDOM.integers(CLASSES - 1, size=ROWS).astype(np.int32),  # one class is no label
)
TARGETS = batch(
    RANDOM.standard_normal((ROWS, 3)).astype(np.float32),
    RANDOM.standard_normal((ROWS, 3)).astype(np.float32) + 2.0,
)
SEQUENCES = batch(
    RANDOM.standard_normal((ROWS, 5, CLASSES)).astype(np.float32),
    RANDOM.integers(-2, CLASSES, size=(ROWS, 5)).astype(np.int32),
)
ALL = {
    "classification": (classification(READ), LOGITS),
    "macro_f1": (macro_f1(READ, CLASSES), LOGITS),
    "regression": (regression(READ), TARGETS),
    "tokens": (tokens(READ), SEQUENCES),
}


def close(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_classification_is_scikit_learns():
    """Oracle: scikit-learn."""
    probabilities = jax.nn.softmax(LOGITS.x)
    answers = np.argmax(LOGITS.x, axis=1)
    wanted = {
        "accuracy": accuracy_score(LOGITS.y, answers),
        "loss": log_loss(LOGITS.y, probabilities, labels=range(CLASSES)),
    }
    close(evaluate([ALL["classification"][0]], (), LOGITS), wanted)
    f1 = f1_score(LOGITS.y, answers, average="macro", zero_division=0)
    close(evaluate([ALL["macro_f1"][0]], (), LOGITS), {"macro_f1": f1})


def test_regression_is_scikit_learns():
    """Oracle: scikit-learn; its r2 of all entries is 'variance_weighted'."""
    y, f = TARGETS.y, TARGETS.x
    wanted = {
        "mse": mean_squared_error(y, f),
        "rmse": np.sqrt(mean_squared_error(y, f)),
        "mae": mean_absolute_error(y, f),
        "r2": r2_score(y, f, multioutput="variance_weighted"),
    }
    close(evaluate([ALL["regression"][0]], (), TARGETS), wanted)
    constant = TARGETS._replace(y=jnp.ones_like(TARGETS.y))
    assert np.isnan(evaluate([regression(READ)], (), constant)["r2"])


def test_r2_far_from_zero_needs_a_center():
    """Oracle: scikit-learn in float64. Negative control: without the center."""
    far = TARGETS._replace(y=TARGETS.y + 1e4, x=TARGETS.x + 1e4)
    exact = [np.asarray(leaf, np.float64) for leaf in (far.y, far.x)]
    want = r2_score(*exact, multioutput="variance_weighted")
    find = lambda **center: evaluate(regression(READ, **center), (), far)["r2"]
    np.testing.assert_allclose(find(center=1e4), want, rtol=1e-3)
    assert not abs(find() - want) < 0.1


def test_a_label_that_is_no_class_is_not_a_wrong_answer():
    """Oracle: NaN in both metrics, as for the loss; padding is not looked at. Negative
    control: the label of a class."""
    read = evaluate(classification(READ), (), LOGITS)
    assert np.isfinite([*read.values()]).all()
    for label in (CLASSES, -1):
        bad = LOGITS._replace(y=LOGITS.y.at[3].set(label))
        assert np.isnan([*evaluate(classification(READ), (), bad).values()]).all()
        assert np.isnan(accuracy(READ, (), bad))
        padded = bad._replace(weight=bad.weight.at[3].set(0.0))
        assert np.isfinite(accuracy(READ, (), padded))
    lost = LOGITS._replace(x=LOGITS.x.at[3, 0].set(jnp.nan))
    assert np.isnan(evaluate(classification(READ), (), lost)["accuracy"])


def test_tokens_are_counted_over_all_rows():
    """Oracle: one list of all labelled tokens; scikit-learn's log loss of it. Negative
    control: the mean over rows of each row's mean."""
    known = np.asarray(SEQUENCES.y) >= 0
    logits, labels = np.asarray(SEQUENCES.x)[known], np.asarray(SEQUENCES.y)[known]
    loss = log_loss(labels, jax.nn.softmax(logits), labels=range(CLASSES))
    wanted = {
        "loss": loss,
        "perplexity": np.exp(loss),
        "token_accuracy": np.mean(np.argmax(logits, -1) == labels),
    }
    found = evaluate([ALL["tokens"][0]], (), SEQUENCES)
    close(found, wanted)
    hits = np.where(known, np.argmax(SEQUENCES.x, -1) == SEQUENCES.y, 0)
    by_row = np.mean(hits.sum(1) / np.maximum(known.sum(1), 1))
    assert abs(by_row - found["token_accuracy"]) > 1e-3


def test_weights_that_count_labels_are_not_applied_twice():
    """Oracle: the mean over all tokens by numpy. Negative control: the same weights taken
    as weights of examples."""
    logits = RANDOM.standard_normal((9, 5, CLASSES)).astype(np.float32)
    labels = RANDOM.integers(-3, CLASSES, (9, 5)).astype(np.int32)
    labels[2] = -100
    counts = labels >= 0
    rows = batch(logits, labels)
    rows = rows._replace(weight=jnp.asarray(counts.sum(1), jnp.float32))
    logs = np.asarray(jax.nn.log_softmax(logits))[counts]
    loss = -np.mean([logs[i, label] for i, label in enumerate(labels[counts])])
    right = np.mean(logits[counts].argmax(-1) == labels[counts])
    found = evaluate(tokens(READ, weighted_by_labels=True), (), rows)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(loss), rtol=1e-5)
    np.testing.assert_allclose(found["token_accuracy"], right, rtol=1e-5)
    twice = evaluate(tokens(READ), (), rows)
    assert abs(twice["loss"] - loss) > 1e-3
    ones = rows._replace(weight=jnp.ones(9))
    np.testing.assert_allclose(
        evaluate(tokens(READ), (), ones)["loss"], loss, rtol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_padding_weights_and_chunks_change_nothing(name):
    """Law: rows of weight 0 are not there, a row of weight 2 is there twice, and chunks of
    any size give what all rows give."""
    metric, rows = ALL[name]
    alone = evaluate([metric], (), rows)
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:5]]), rows)
    heavy = rows._replace(weight=rows.weight.at[:5].set(2.0))
    close(evaluate([metric], (), heavy), evaluate([metric], (), twice))
    padded = twice._replace(weight=twice.weight.at[ROWS:].set(0.0))
    close(evaluate([metric], (), padded), alone)
    for size in (1, 10, 37):
        close(evaluate([metric], (), rows, chunk_size=size), alone)
    nothing = rows._replace(weight=0 * rows.weight)
    assert all(np.isnan(v) for v in evaluate([metric], (), nothing).values())


def test_a_metric_with_frozen_weights_is_that_of_all_weights():
    """Oracle: the metric of the combined outputs; its finish (perplexity) too."""
    rng = np.random.default_rng(1)
    base, own = rng.standard_normal((2, 5, CLASSES)).astype(np.float32)
    x = rng.standard_normal((ROWS, 3, 5)).astype(np.float32)
    rows = batch(x, rng.integers(-1, CLASSES, (ROWS, 3)).astype(np.int32))
    outputs = lambda weights: lambda params, rows: rows.x @ (params + weights)
    metric = with_frozen(lambda frozen: tokens(outputs(frozen)))
    found = evaluate(metric, own, rows, frozen=base)
    wanted = evaluate(tokens(outputs(base)), own, rows)
    assert found.keys() == wanted.keys() >= {"perplexity"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    assert found["loss"] != evaluate(tokens(outputs(0.0)), own, rows)["loss"]


def test_a_metric_of_data_gets_the_frozen_weights_too():
    """Oracle: by hand; and it is built once for the same weights."""
    built = []

    def build(frozen):
        built.append(frozen)
        value = lambda key, params, none, rows: {"sum": params + frozen + rows}
        return TaskMetric(("sum",), value)

    metric, first, second = with_frozen(build), np.float32(10.0), np.float32(20.0)
    assert (metric.names, built) == (("sum",), [()])
    assert values_of_task(metric, jax.random.key(0), 1.0, first, 3.0) == {"sum": 14.0}
    assert values_of_task(metric, jax.random.key(0), 2.0, first, 3.0) == {"sum": 15.0}
    assert values_of_task(metric, jax.random.key(0), 1.0, second, 3.0) == {"sum": 24.0}
    assert built == [(), first, second]
