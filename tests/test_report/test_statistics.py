"""Intervals, tests and slopes against scipy, loops and numbers worked out by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxcl.report.statistics import (
    change_interval,
    equivalence,
    fraction_interval,
    holm,
    known_means,
    mean_interval,
    paired,
    slopes,
    tail_means,
)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_interval_of_a_mean_is_students():
    """Oracle: 1, 2, 3: mean 2, standard error 1/sqrt 3, quantile 4.302653 (table)."""
    interval = mean_interval(np.array([1.0, 2.0, 3.0]))
    assert interval.count == 3
    np.testing.assert_allclose(interval.mean, 2)
    np.testing.assert_allclose(interval.high - 2, 4.302653 / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(interval.low + interval.high, 4)


def test_a_band_is_the_interval_at_each_point():
    """Oracle: scipy's own interval, point by point."""
    values = draws(6, 4)
    band = mean_interval(values, 0.9)
    for t in range(4):
        low, high = stats.t.interval(
            0.9, 5, values[:, t].mean(), stats.sem(values[:, t])
        )
        np.testing.assert_allclose([band.low[t], band.high[t]], [low, high])


def test_one_run_has_no_interval():
    """Oracle: the definition: no spread from one number."""
    interval = mean_interval(np.array([0.3]))
    assert interval.mean == 0.3
    assert np.isnan([interval.low, interval.high]).all()
    with pytest.raises(ValueError, match="at least one run"):
        mean_interval(np.array([]))


def test_an_interval_covers_as_often_as_it_says():
    """Oracle: 2,000 draws with a known mean; 5 runs each, so within 1.5 points of 95."""
    band = mean_interval(draws(5, 2000))
    covered = np.mean((band.low < 0) & (band.high > 0))
    assert 0.935 < covered < 0.965


def pairs_of(table):
    """Rows before and after, from a table of counts by (before, after)."""
    cells = np.asarray(table, int).ravel()
    before, after = np.repeat([0, 0, 1, 1], cells), np.repeat([0, 1, 0, 1], cells)
    return before.astype(float), after.astype(float)


@pytest.mark.parametrize(
    "table", [[[9, 2], [7, 12]], [[0, 0], [0, 5]], [[3, 0], [4, 0]]]
)
def test_the_interval_of_a_change_has_half_a_row_more_in_each_cell(table):
    """Oracle: the variance of a difference of two dependent fractions, from the multinomial
    distribution of the table with half a row more in each cell."""
    low, high = change_interval(*pairs_of(table))
    cells = (np.array(table) + 0.5) / (np.sum(table) + 2)
    after, before = cells[:, 1].sum(), cells[1].sum()
    covariance = cells[0, 0] * cells[1, 1] - cells[0, 1] * cells[1, 0]
    spread = after * (1 - after) + before * (1 - before) - 2 * covariance
    half = 1.959964 * np.sqrt(spread / (np.sum(table) + 2))
    wanted = np.clip([after - before - half, after - before + half], -1, 1)
    np.testing.assert_allclose([low, high], wanted, rtol=1e-6)


def test_the_interval_of_a_change_covers_as_often_as_it_says():
    """Oracle: 2,000 draws of 40 rows of which few change. Control: without the half rows
    the interval covers too seldom, and the one for unpaired rows is far wider."""
    draw, cells = np.random.default_rng(0), np.array([0.45, 0.02, 0.08, 0.45])
    tables = draw.multinomial(40, cells, size=2000)
    found = np.array([change_interval(*pairs_of(table)) for table in tables])
    inside = lambda low, high: np.mean((low < -0.06) & (high > -0.06))
    assert 0.94 < inside(*found.T) < 0.99
    net, apart = tables[:, 1] - tables[:, 2], tables[:, 1] + tables[:, 2]
    plain = 1.96 * np.sqrt(apart - net**2 / 40) / 40
    assert inside(net / 40 - plain, net / 40 + plain) < 0.935
    ends = [fraction_interval(0.5, 40), fraction_interval(0.45, 40)]
    unpaired = np.hypot(*(high - low for low, high in ends))
    assert np.median(found[:, 1] - found[:, 0]) < 0.6 * unpaired


def test_the_interval_of_a_fraction_is_wilsons():
    """Oracle: the roots of his quadratic equation."""
    size, square = 20, 1.959964**2
    roots = np.roots([1 + square / size, -(2 * 0.9 + square / size), 0.9**2])
    np.testing.assert_allclose(fraction_interval(0.9, size), sorted(roots), rtol=1e-6)


def test_slopes_are_least_squares():
    """Oracle: scipy, curve by curve; and a straight line."""
    curves = draws(3, 7)
    found = slopes(curves)
    for curve, slope in zip(curves, found, strict=True):
        np.testing.assert_allclose(slope, stats.linregress(range(7), curve).slope)
    np.testing.assert_allclose(slopes(np.array([[3.0, 2.5, 2.0]])), [-0.5])
    assert np.isnan(slopes(np.ones((2, 1)))).all()


def test_tail_means_take_a_tenth_but_at_least_one():
    """Oracle: by hand."""
    curves = np.arange(40.0).reshape(2, 20)
    np.testing.assert_array_equal(tail_means(curves), [18.5, 38.5])
    np.testing.assert_array_equal(tail_means(curves[:, :3]), [2, 22])
    # The nearest number of tasks: a tenth of 14 is one, of 16 or 19 two.
    np.testing.assert_array_equal(tail_means(curves[:, :14]), [13, 33])
    np.testing.assert_array_equal(tail_means(curves[:, :16]), [14.5, 34.5])
    np.testing.assert_array_equal(tail_means(curves[:, :19]), [17.5, 37.5])


def test_unknown_values_are_left_out_of_a_mean():
    """Oracle: by hand; a run that knows nothing has no mean."""
    curves = np.array([[1.0, np.nan, 4.0], [np.nan, 2.0, np.nan], [np.nan] * 3])
    np.testing.assert_array_equal(known_means(curves), [2.5, 2, np.nan])


def test_the_paired_t_test_is_scipys():
    """Oracle: scipy.stats.ttest_rel; unpaired data would give another value."""
    baseline = draws(8)
    values = baseline + 0.3 + 0.2 * draws(8, seed=1)
    result = paired(values, baseline)
    np.testing.assert_allclose(result.p_t, stats.ttest_rel(values, baseline).pvalue)
    assert abs(result.p_t - stats.ttest_ind(values, baseline).pvalue) > 0.1
    np.testing.assert_allclose(result.difference.mean, np.mean(values - baseline))


@pytest.mark.parametrize("count", [2, 5, 9])
def test_the_flip_test_counts_all_signs(count):
    """Oracle: a loop over all 2^s signs."""
    baseline = draws(count)
    values = baseline + 0.4 + draws(count, seed=2)
    difference = values - baseline
    means = [
        abs(np.mean(np.array(signs) * difference))
        for signs in itertools.product([-1, 1], repeat=count)
    ]
    share = np.mean(np.array(means) >= abs(difference.mean()) * (1 - 1e-9))
    np.testing.assert_allclose(paired(values, baseline).p_flip, share)


def test_the_flip_test_of_many_seeds_is_close_and_repeats():
    """Oracle: the t-test, which normal differences make exact."""
    baseline, values = draws(30), draws(30, seed=3) + 0.35
    first, again = paired(values, baseline), paired(values, baseline)
    assert first == again
    assert abs(first.p_flip - first.p_t) < 0.02


def test_special_cases_of_a_comparison_are_defined():
    """Oracle: the documented values."""
    same = paired(np.ones(4), np.ones(4))
    assert (same.p_t, same.p_flip) == (1.0, 1.0)
    constant = paired(np.full(4, 2.0), np.ones(4))
    assert (constant.p_t, constant.p_flip) == (0.0, 2 / 2**4)
    assert np.isnan([paired(np.ones(1), np.zeros(1)).p_t]).all()
    with pytest.raises(ValueError, match="common seeds"):
        paired(np.empty(0), np.empty(0))


def test_holm_by_hand():
    """Oracle: Holm's example rule: 4 x .01, 3 x .02, 2 x .03 raised, 1 x .5."""
    adjusted = holm(np.array([0.03, 0.01, np.nan, 0.5, 0.02]))
    np.testing.assert_allclose(adjusted, [0.06, 0.04, np.nan, 0.5, 0.06])
    np.testing.assert_array_equal(holm(np.array([0.9, 0.8])), [1, 1])
    assert holm(np.array([])).shape == (0,)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    """Oracle: the procedure itself, as a loop, on random p-values."""
    for seed in range(20):
        p_values = np.random.default_rng(seed).uniform(size=6) ** 3
        rejected = set()
        for rank, place in enumerate(np.argsort(p_values)):
            if p_values[place] > 0.05 / (6 - rank):
                break
            rejected.add(int(place))
        assert set(np.flatnonzero(holm(p_values) <= 0.05)) == rejected


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_difference_beyond_the_margin_is_no_equality_on_either_side(sign):
    """Oracle: scipy's larger one-sided test is close to 1; 1 where nothing varies."""
    baseline = draws(10)
    values = baseline + sign * 0.5 + 0.01 * draws(10, seed=1)
    difference = values - baseline
    sides = (
        stats.ttest_1samp(difference, -0.1, alternative="greater").pvalue,
        stats.ttest_1samp(difference, 0.1, alternative="less").pvalue,
    )
    found = equivalence(values, baseline, 0.1)
    np.testing.assert_allclose(found, max(sides))
    assert found > 0.99
    assert equivalence(np.full(3, sign * 0.5), np.zeros(3), 0.1) == 1
    # Control: a wider margin holds the same difference.
    assert equivalence(values, baseline, 1.0) < 0.01


def test_equivalence_is_two_one_sided_tests():
    """Oracle: scipy's one-sided t-tests against either margin."""
    baseline = draws(10)
    values = baseline + 0.01 * draws(10, seed=1)
    difference = values - baseline
    for margin in (0.005, 0.02):
        sides = (
            stats.ttest_1samp(difference, -margin, alternative="greater").pvalue,
            stats.ttest_1samp(difference, margin, alternative="less").pvalue,
        )
        np.testing.assert_allclose(
            equivalence(values, baseline, margin), max(sides), rtol=1e-9
        )
    assert (
        equivalence(values, baseline, 0.02) < 0.05 < equivalence(values, -values, 0.1)
    )
    assert equivalence(np.ones(3), np.ones(3), 0.1) == 0
    with pytest.raises(ValueError, match="margin must be positive"):
        equivalence(values, baseline, 0.0)
