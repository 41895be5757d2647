"""Confidence intervals and tests over seeds, for few runs.

Arrays hold one run per row. Two arms that ran on the same seeds had the same streams, so
they are compared in pairs. An interval that contains zero does not show that two arms
are equal; :func:`equivalence` does, within a margin.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from jaxcl.errors import require


class Interval(NamedTuple):
    """A mean over runs and its confidence interval: numbers, or arrays along a curve.

    With one run, ``low`` and ``high`` are NaN.
    """

    mean: Any
    low: Any
    high: Any
    count: int  # runs


class Paired(NamedTuple):
    """The difference of an arm and the baseline on the same seeds."""

    difference: Interval  # arm minus baseline
    p_t: float  # paired t-test, two-sided
    p_flip: float  # sign-flip permutation test, two-sided, no normality assumed


def mean_interval(
    values: Float[np.ndarray, "s ..."], confidence: float = 0.95
) -> Interval:
    r"""Mean and t-interval over the first axis, of one number or a curve per run.

    .. math:: \bar x \pm t_{s-1} \, \hat\sigma / \sqrt{s}

    NaN is propagated. Along a curve it is pointwise, not simultaneous for all of it.

    Raises:
      InputError: without any run.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    require(count, "mean_interval", "expected at least one run, got none")
    mean, half = np.mean(values, axis=0), np.nan
    if count > 1:
        half = stats.t.ppf((1 + confidence) / 2, count - 1) * stats.sem(values)
    return Interval(mean, mean - half, mean + half, count)


def slopes(curves: Float[np.ndarray, "s T"]) -> Float[np.ndarray, " s"]:
    """Least-squares slope of each curve against the task number, per task.

    Negative slopes of accuracy are a loss of plasticity. NaN with one task.
    """
    curves = np.asarray(curves)
    num_tasks = curves.shape[1]
    if num_tasks < 2:
        return np.full(len(curves), np.nan)
    centred = np.arange(num_tasks) - (num_tasks - 1) / 2
    return curves @ centred / (centred @ centred)


def tail_means(curves: Float[np.ndarray, "s T"]) -> Float[np.ndarray, " s"]:
    """Mean of each curve over the last tenth of the tasks, at least one."""
    curves = np.asarray(curves)
    return curves[:, -max(1, round(0.1 * curves.shape[1])) :].mean(axis=1)


def known_means(values: Float[np.ndarray, "s T"]) -> Float[np.ndarray, " s"]:
    """Mean of each curve over the tasks at which it is known; NaN if there are none."""
    return np.ma.masked_invalid(values).mean(axis=1).filled(np.nan)


def paired(
    values: Float[np.ndarray, " s"], baseline: Float[np.ndarray, " s"]
) -> Paired:
    """Compare two arms seed by seed: the same seeds in the same order.

    The p-value of the sign-flip test is the fraction of sign patterns of the differences
    whose mean is at least as far from zero. It is exact up to 12 seeds; above that, 20,000
    patterns are drawn (always the same ones). With ``s`` seeds its smallest value is
    ``2 / 2**s``: five seeds cannot reach 0.05. Both p-values are NaN with one seed, and 1
    if no seed differs.

    Raises:
      InputError: if the lengths differ or no seed is left.
    """
    values, baseline = np.asarray(values), np.asarray(baseline)
    require(
        values.shape == baseline.shape and values.ndim == 1 and values.size,
        "paired",
        f"expected one number per seed of both arms, got shapes {values.shape} and "
        f"{baseline.shape}; compare common seeds",
    )
    difference = values - baseline
    interval = mean_interval(difference)
    if len(difference) == 1:
        return Paired(interval, np.nan, np.nan)
    if not np.any(difference):
        return Paired(interval, 1.0, 1.0)
    flipped = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=2**12 if len(difference) <= 12 else 20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    p_t = 2 * _t_tail(abs(interval.mean), difference)
    return Paired(interval, p_t, float(flipped.pvalue))


def fraction_interval(value: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a fraction of ``count`` rows, by Wilson's formula (1927)."""
    test = stats.binomtest(round(value * count), count)
    found = test.proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def change_interval(
    before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    r"""The 95 % interval of a change of two fractions, of the same rows.

    With :math:`b` rows that were right and are wrong, and :math:`c` the other way round,
    half a row is added to each of the four cells, :math:`m = n + 2`:

    .. math:: \frac{c - b}{m} \pm \frac{z}{m} \sqrt{b + c + 1 - \frac{(c - b)^2}{m}}

    Rows that stay as they were tell nothing of the change, so that it is narrower than
    two intervals of unpaired rows.

    Source: Agresti and Min 2005, Statistics in Medicine 24:729 ("Wald + 2").
    """
    change = np.asarray(after, float) - np.asarray(before, float)
    gained, lost = np.count_nonzero(change > 0), np.count_nonzero(change < 0)
    size, net = len(change) + 2, gained - lost
    spread = np.sqrt(gained + lost + 1 - net**2 / size)
    half = stats.norm.ppf(0.975) * spread
    return max(-1.0, float((net - half) / size)), min(1.0, float((net + half) / size))


def equivalence(
    values: Float[np.ndarray, " s"],
    baseline: Float[np.ndarray, " s"],
    margin: float,
) -> float:
    """The p-value against the hypothesis that the arms differ by ``margin`` or more.

    Two one-sided paired t-tests (TOST, Schuirmann 1987); the larger of the two p-values.
    Below 0.05, the arms may be called equal within the margin. NaN with one seed.

    Raises:
      InputError: if the margin is not positive.
    """
    require(margin > 0, "equivalence", f"margin must be positive, got {margin}")
    difference = np.asarray(values) - np.asarray(baseline)
    if len(difference) < 2:
        return np.nan
    return _t_tail(margin - abs(float(np.mean(difference))), difference)


def holm(p_values: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """Adjust p-values for multiple tests by Holm's step-down method.

    ``p'_(i) = max_{j <= i} min(1, (k - j + 1) p_(j))`` (Holm 1979). NaN is kept and does
    not count as a test.
    """
    p_values = np.asarray(p_values)
    adjusted = np.full(len(p_values), np.nan)
    known = np.count_nonzero(~np.isnan(p_values))
    order = np.argsort(p_values, kind="stable")[:known]  # NaN comes last
    steps = np.minimum(1.0, np.arange(known, 0, -1) * p_values[order])
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def _t_tail(gap: float, difference: np.ndarray) -> float:
    """The p-value of a gap, one-sided; 0 or 1 where all differences are equal."""
    # scipy's ttest_1samp gives the same, but warns where all differences are equal.
    error = stats.sem(difference)
    if error == 0:
        return float(gap <= 0)
    return float(stats.t.sf(gap / error, len(difference) - 1))
