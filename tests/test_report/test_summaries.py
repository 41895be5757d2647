"""Summaries and sweeps against the numbers they are made of."""

import numpy as np
import pytest
from scipy import stats

from jaxcl.report.statistics import holm, mean_interval
from jaxcl.report.summaries import grid, summarize
from tests.test_report.toy_records import record, runs


def noisy(arm, shift, *, seeds=6, num_tasks=10, **others):
    shared = np.random.default_rng(0).normal(0, 0.02, (seeds, num_tasks))
    own = np.random.default_rng(len(arm)).normal(0, 0.002, (seeds, num_tasks))
    return runs(arm, (0.6 + shared + own + shift).tolist(), **others)


def test_a_summary_holds_means_slopes_and_the_paired_test():
    """Oracle: scipy on the raw numbers, Holm over the two arms."""
    records = [*noisy("sgd", 0), *noisy("sam", 0.01), *noisy("gnp!", 0.0)]
    sgd, sam, gnp = summarize(records, baseline="sgd")
    raw = {
        arm: np.array([r["accuracy"] for r in records if r["arm"] == arm])
        for arm in ("sgd", "sam", "gnp!")
    }
    assert sam.mean == mean_interval(raw["sam"].mean(axis=1))
    slope = np.mean([np.polyfit(range(10), curve, 1)[0] for curve in raw["sam"]])
    np.testing.assert_allclose(sam.slope.mean, slope)
    tests = [
        stats.ttest_rel(raw[arm].mean(axis=1), raw["sgd"].mean(axis=1)).pvalue
        for arm in ("sam", "gnp!")
    ]
    np.testing.assert_allclose([sam.p_t, gnp.p_t], holm(np.array(tests)))
    assert (sgd.verdict, sam.verdict) == ("baseline", "better")
    assert gnp.verdict == "no difference shown"
    assert summarize(noisy("sgd", 0) + noisy("sam", -0.01), baseline="sgd")[
        1
    ].verdict == ("worse")


def test_a_difference_that_the_correction_takes_back_is_not_shown():
    """Oracle: scipy's p-value of 0.03, which Holm doubles for two arms.

    Negative control: alone, the same arm is better.
    """
    seeds = np.arange(6.0)
    gap = (seeds - seeds.mean()) / np.std(seeds, ddof=1)  # mean 0, deviation 1
    gap = 0.01 * (gap + stats.t.isf(0.015, 5) / 6**0.5)
    base = np.linspace(0.5, 0.6, 6)
    rows = lambda values: [[value] * 2 for value in values]
    sgd, sam = runs("sgd", rows(base)), runs("sam", rows(base + gap))
    other = runs("gnp", rows(base + 0.001 * (-1.0) ** seeds))
    raw = stats.ttest_rel(base + gap, base).pvalue
    np.testing.assert_allclose(raw, 0.03, rtol=1e-6)
    assert summarize([*sgd, *sam], baseline="sgd")[1].verdict == "better"
    found = summarize([*sgd, *sam, *other], baseline="sgd")[1]
    np.testing.assert_allclose(found.p_t, 2 * raw)
    assert found.verdict == "no difference shown"


def test_diverged_runs_count_nowhere_and_are_named():
    """Oracle: the summary without them; only the counts and names differ."""
    finished = noisy("sam", 0.01)[:4]
    lost = [record("sam", seed, [None] * 10, status="diverged") for seed in (4, 5)]
    base = noisy("sgd", 0)
    options = {"baseline": "sgd", "margin": 0.01}
    clean = summarize([*base, *finished], **options)[1]
    marred = summarize([*base, *finished, *lost], **options)[1]
    assert marred._replace(runs=4, diverged=()) == clean
    assert marred.diverged == tuple(r["run"] for r in lost)
    assert marred.mean.count == 4
    assert marred.versus.difference.count == 4  # common seeds only


def test_an_arm_of_which_nothing_is_left_is_diverged():
    """Oracle: the documented empty summary."""
    lost = [record("sam", 0, [None] * 10, status="diverged")]
    summary = summarize([*noisy("sgd", 0), *lost], baseline="sgd")[1]
    assert summary.verdict == "diverged"
    assert summary.mean is None
    assert np.isnan(summary.p_t)


def test_without_a_baseline_nothing_is_compared():
    """Oracle: the same summaries with one, less everything that compares."""
    records = [*noisy("sgd", 0), *noisy("sam", 0.01)]
    compared = summarize(records, baseline="sgd")
    alone = summarize(records, baseline=None)
    for with_one, without in zip(compared, alone, strict=True):
        assert without.versus is None
        assert without.verdict == "no baseline"
        assert np.isnan([without.p_t, without.p_flip, without.p_equal]).all()
        assert without[:8] == with_one[:8]
    lost = [record("sgd", seed, [None] * 10, status="diverged") for seed in range(6)]
    sgd, sam = summarize([*lost, *noisy("sam", 0.01)], baseline="sgd")
    assert (sgd.verdict, sam.verdict) == ("diverged", "no baseline")


def test_equality_is_shown_within_a_margin_or_not_at_all():
    """Oracle: scipy's one-sided tests on the raw numbers, Holm over the two arms."""
    records = [*noisy("sgd", 0), *noisy("sam", 0.005), *noisy("gnp!", 0.03)]
    margin = 0.01
    _, sam, gnp = summarize(records, baseline="sgd", margin=margin)
    mean = lambda arm: np.array(
        [np.mean(r["accuracy"]) for r in records if r["arm"] == arm]
    )
    raw = []
    for arm in ("sam", "gnp!"):
        gap = mean(arm) - mean("sgd")
        low = stats.ttest_1samp(gap, -margin, alternative="greater").pvalue
        high = stats.ttest_1samp(gap, margin, alternative="less").pvalue
        raw.append(max(low, high))
    np.testing.assert_allclose([sam.p_equal, gnp.p_equal], holm(np.array(raw)))
    assert sam.verdict == "better by less than the margin"
    assert gnp.verdict == "better"
    undecided = [*noisy("sgd", 0)[:3], *noisy("gnp!", 0.0)[:3]]
    small = summarize(undecided, baseline="sgd", margin=1e-5)[1]
    assert small.verdict == "no difference shown"


def test_the_late_slope_is_that_of_the_second_half():
    """Oracle: numpy's fit to the second half of a curve that rises, then falls."""
    curve = [0.1, 0.5, 0.8, 0.9, 0.8, 0.75, 0.6]
    (found,) = summarize(runs("sgd", [curve] * 2), baseline="sgd")
    late = np.polyfit(range(4), curve[3:], 1)[0]
    np.testing.assert_allclose(found.late_slope.mean, late)
    assert found.slope.mean > 0 > found.late_slope.mean
    (short,) = summarize(runs("sgd", [[0.5]]), baseline="sgd")
    assert np.isnan(short.late_slope.mean)


def test_each_rate_is_compared_with_its_own_baseline():
    """Oracle: the shifts that were put in."""
    rate = lambda value: {"hyper": {"learning_rate": value}}
    records = [
        *noisy("sgd", 0.0, **rate(0.1)),
        *noisy("sgd", 0.1, **rate(0.01)),
        *noisy("sam", 0.02, **rate(0.1)),
        *noisy("sam", 0.05, **rate(0.01)),
    ]
    found = summarize(records, baseline="sgd")
    gaps = [s.versus.difference.mean for s in found if s.versus]
    np.testing.assert_allclose(gaps, [0.02, -0.05], atol=2e-3)
    with pytest.raises(ValueError, match="fits 2 groups of sgd"):
        summarize(records, baseline="sgd", match=())


def test_settings_are_corrected_apart():
    """Oracle: the raw p-value, for one arm per setting needs no correction."""
    both = [
        r
        for setting in ("a", "b")
        for arm, shift in (("sgd", 0), ("sam", 0.001))
        for r in noisy(arm, shift, setting=setting)
    ]
    for summary in summarize(both, baseline="sgd"):
        if summary.versus:
            assert summary.p_t == summary.versus.p_t


def sweep():
    hyper = lambda rate, rho: {"learning_rate": rate, "rho": rho}
    return [
        *runs("sam", [(0.2, 0.4), (0.4, 0.6)], hyper=hyper(0.1, 0.5)),
        *runs("sam", [(0.9, 0.9)], hyper=hyper(0.01, 0.5)),
        record("sam", 0, hyper=hyper(0.1, 1.0), status="diverged"),
    ]


def test_a_grid_holds_means_counts_and_divergence():
    """Oracle: by hand."""
    found = grid(sweep(), rows="rho", columns="learning_rate")
    assert (found.rows, found.columns) == ((0.5, 1.0), (0.01, 0.1))
    np.testing.assert_allclose(found.mean, [[0.9, 0.4], [np.nan, np.nan]])
    np.testing.assert_array_equal(found.count, [[1, 2], [0, 0]])
    np.testing.assert_array_equal(found.diverged, [[0, 0], [0, 1]])


@pytest.mark.parametrize("axis", ["words", "lists"])
def test_an_axis_of_a_grid_may_hold_words_or_lists(axis):
    """Oracle: by hand."""
    low, high = {"words": ("adam", "sgd"), "lists": ([8], [8, 8])}[axis]
    records = [
        record(hyper={"kind": kind, "lr": 0.1}, accuracy=[level] * 2)
        for kind, level in ((high, 0.75), (low, 0.25))
    ]
    found = grid(records, rows="kind", columns="lr")
    assert found.rows == {"words": (low, high), "lists": ((8,), (8, 8))}[axis]
    np.testing.assert_array_equal(found.mean, [[0.25], [0.75]])


def test_an_axis_of_a_grid_may_mix_numbers_and_words():
    """Oracle: by hand."""
    records = [
        record(hyper={"rho": rho, "lr": 0.1}) for rho in ("tracked", 0.5, None, 0.1)
    ]
    found = grid(records, rows="rho", columns="lr")
    assert found.rows == (0.1, 0.5, None, "tracked")
