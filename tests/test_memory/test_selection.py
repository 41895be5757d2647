"""Rules that choose the rows worth keeping."""

import jax
import numpy as np
from scipy import stats

from jaxcl.memory import class_balanced_examples, episodic, random_examples
from jaxcl.tree import as_batch


def kept(key, select, capacity, task):
    """The rows that the rule keeps, by number."""
    memory = episodic(1, capacity, select=select)
    state = memory.end_task(key, memory.init((), task), (), task)
    return state.kept.x[0, :, 0], state.kept.weight[0]


def labelled(labels, weight=None):
    return as_batch(
        np.arange(len(labels), dtype=np.float32)[:, None],
        np.asarray(labels),
        weight=weight,
    )


def test_random_rows_are_uniform(key):
    """Oracle: 3 of 7 real rows, each with probability 3/7 (chi-square)."""
    task = labelled(np.zeros(8, int), weight=np.array([1.0] * 7 + [0.0]))
    draw = jax.jit(jax.vmap(lambda key: kept(key, random_examples, 3, task)[0]))
    counts = np.bincount(np.asarray(draw(jax.random.split(key, 3000)), int).ravel())
    expected = 3000 * 3 / 7
    statistic = np.sum((counts - expected) ** 2 / expected) * (6 / 7) / (1 - 3 / 7)
    assert len(counts) == 7
    assert stats.chi2.sf(statistic, 6) > 1e-3


def even_shares(sizes, capacity):
    """Hand out places one by one, each to a class with fewest places and rows left."""
    shares = dict.fromkeys(sizes, 0)
    for _ in range(min(capacity, sum(sizes.values()))):
        open_classes = [c for c in sizes if shares[c] < sizes[c]]
        shares[min(open_classes, key=shares.get)] += 1
    return sorted(shares.values())


def test_class_balanced_rows_share_the_places_evenly(key):
    """Oracle: places handed out one by one; 1, 3 and 7 rows of three labels."""
    labels = np.array([5, 2, 5, 2, 5, 5, 0, 5, 2, 5, 5, 0, 2])
    weight = np.ones(13)
    weight[[11, 12]] = 0  # one row each of two labels is padding
    task = labelled(labels, weight)

    def check(capacity, number, real):
        chosen = np.asarray(number, int)[np.asarray(real) > 0]
        assert len(set(chosen)) == len(chosen) == min(capacity, 11)
        counts = [int(np.sum(labels[chosen] == c)) for c in (0, 2, 5)]
        assert sorted(counts) == even_shares({0: 1, 2: 3, 5: 7}, capacity)
        assert not set(chosen) & {11, 12}

    capacities = (1, 6, 9, 20)
    draw = lambda key: [kept(key, class_balanced_examples, c, task) for c in capacities]
    draws = jax.jit(jax.vmap(draw))(jax.random.split(key, 10))
    for capacity, (numbers, weights) in zip(capacities, draws, strict=True):
        for number, real in zip(numbers, weights, strict=True):
            check(capacity, number, real)


def test_padding_with_the_label_of_a_class_takes_no_turn_of_it(key):
    """Oracle: two places each, for labels with two and ten real rows.

    Nine rows of padding repeat the label of the small class, as padding by copies does.
    """
    labels = np.array([0] * 11 + [1] * 10)
    weight = np.ones(21)
    weight[:9] = 0
    task = labelled(labels, weight)
    draw = jax.jit(jax.vmap(lambda key: kept(key, class_balanced_examples, 4, task)[0]))
    for number in np.asarray(draw(jax.random.split(key, 20)), int):
        assert set(number) >= {9, 10}
        np.testing.assert_array_equal(np.bincount(labels[number]), [2, 2])


def test_class_balanced_rows_are_uniform_within_a_label_and_fair_between(key):
    """Oracle: one place of four rows, two of each label: probability 1/4 each."""
    task = labelled([3, 1, 1, 3])
    draw = jax.jit(jax.vmap(lambda key: kept(key, class_balanced_examples, 1, task)[0]))
    counts = np.bincount(np.asarray(draw(jax.random.split(key, 4000)), int).ravel())
    assert stats.chisquare(counts).pvalue > 1e-3
