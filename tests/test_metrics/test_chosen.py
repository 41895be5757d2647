"""Chosen answers against the metric of the loops, and ties and NaN by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.metrics import choice_results, choices
from jaxcl.tree import as_batch


def questions(seed=0, count=80, most=5):
    """Scores of 2 to 5 answers, texts, and right numbers; many scores are equal.

    Those of different answers are far apart, also over their numbers of characters.
    """
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, most + 1, count)
    scores = [rng.choice([-1.0, -1.5, -2.25], k) for k in counts]
    texts = [["é" * n for n in rng.choice([2, 5, 7], k)] for k in counts]
    return scores, texts, [int(rng.integers(k)) for k in counts]


def by_metric(scores, texts, right, most=5):
    """The RowMetric's values of each question, from logits of one token each."""
    shape = len(scores), most, 1
    labels, characters = np.full(shape, -100), np.ones(shape[:2], int)
    logits = np.zeros((*shape, 2), np.float32)
    for row, (likely, own) in enumerate(zip(scores, texts, strict=True)):
        chance = np.exp(likely)  # log p = s for a logit of log(p / (1 - p))
        logits[row, : len(own), 0, 0] = np.log(chance / (1 - chance))
        labels[row, : len(own)] = 0
        characters[row, : len(own)] = [len(text) for text in own]
    y = {"labels": labels, "answer": np.array(right), "characters": characters}
    batch = as_batch({"logits": jnp.asarray(logits)}, y)
    return choices(lambda params, batch: batch.x["logits"]).rows((), None, batch)


@pytest.mark.parametrize("name", ["choice_accuracy", "choice_accuracy_per_character"])
def test_results_are_those_of_the_metric(name):
    """Oracle: the RowMetric, row by row. Negative control: the two choices differ."""
    given = questions()
    found = choice_results(*given)
    np.testing.assert_array_equal(getattr(found, name), by_metric(*given)[name])
    assert set(getattr(found, name)) == {0.0, 1.0}
    assert (found.choice != found.choice_per_character).any()


def test_ties_and_nan():
    """Oracle: by hand; the first of equal ones, also per character."""
    scores = [[-2.0, -1.0, -1.0], [-2.0, -2.0], [np.nan, -1.0], [-np.inf, -np.inf]]
    assert choice_results([[-2.0, -1.0]], [["bb", "a"]], [0])[:2] == ([1], [0])
    texts = [["a", "b", "c"], ["a", "bb"], ["a", "b"], ["a", "b"]]
    found = choice_results(scores, texts, [1, 1, 1, 0])
    assert found.choice.tolist() == [1, 0, -1, 0]
    assert found.choice_per_character.tolist() == [1, 1, -1, 0]
    np.testing.assert_array_equal(found.choice_accuracy, [1, 0, np.nan, 1])
    np.testing.assert_array_equal(
        found.choice_accuracy_per_character, [1, 1, np.nan, 1]
    )
    assert [part.shape for part in choice_results([], [], [])] == [(0,)] * 4
