"""What goes with what, over runs that are not independent: description, and one test."""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from jaxcl.report.records import Record


def measured_tasks(measure: Float[np.ndarray, "s T"]) -> np.ndarray:
    """Numbers of the tasks after which there is a measurement, and then more tasks."""
    taken = np.flatnonzero(np.isfinite(measure).any(axis=0))
    return taken[taken < measure.shape[1] - 1]


def ahead(
    measure: Float[np.ndarray, "s T"], accuracy: Float[np.ndarray, "s T"]
) -> tuple[Float[np.ndarray, "s k"], Float[np.ndarray, "s k"]]:
    """What was measured after some tasks, and mean accuracy on those up to the next."""
    tasks = measured_tasks(measure)
    edges = itertools.pairwise([*tasks, measure.shape[1] - 1])
    following = [accuracy[:, i + 1 : j + 1].mean(axis=1) for i, j in edges]
    none = np.empty((len(measure), 0))  # columns are stacked on it, if there are any
    return measure[:, tasks], np.column_stack([none, *following])


def within_methods(x: Float[np.ndarray, "s k"], y: Float[np.ndarray, "s k"]) -> float:
    """Correlation of what rows and columns, taken out as sums, leave of x and y."""
    if min(x.shape) < 2:
        return float("nan")
    # residuals of the additive model, mean + row + column
    rest = lambda v: v - v.mean(axis=0) - v.mean(axis=1, keepdims=True) + v.mean()
    return _cosine(rest(x), rest(y), x, y)


def partial_correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    others: Float[np.ndarray, "n k"],
) -> float:
    """Pearson's correlation of what a linear fit on ``others`` leaves of x and y.

    ``others`` holds the intercept. NaN if a value is not known, if either is the same
    in all runs, or if fewer than two degrees of freedom are left.
    """
    both = np.column_stack([x, y, others])
    if not np.isfinite(both).all() or len(x) - np.linalg.matrix_rank(others) < 2:
        return float("nan")
    rest = lambda v: v - others @ np.linalg.lstsq(others, v, rcond=None)[0]
    return _cosine(rest(x), rest(y), x, y)


def cells(
    runs: Sequence[Record], x: Float[np.ndarray, " s"], y: Float[np.ndarray, " s"]
) -> tuple[Float[np.ndarray, "a r"], Float[np.ndarray, "a r"]]:
    """Means over seeds, methods by rates; methods that lack a rate are left out."""
    table = pd.DataFrame({"x": x, "y": y})
    table["arm"] = [run["arm"] for run in runs]
    table["rate"] = [run["hyper"]["learning_rate"] for run in runs]
    means = table.pivot_table(["x", "y"], "arm", "rate", sort=False).sort_index(axis=1)
    means = means.dropna()
    return means["x"].to_numpy(), means["y"].to_numpy()


def permuted_methods(
    x: Float[np.ndarray, "a r"], y: Float[np.ndarray, "a r"]
) -> tuple[float, float]:
    """Correlation over cells within rates, and its p when methods change places.

    A method keeps its numbers at all rates together, for these are not independent. All
    ``a!`` orders are counted, so p is at least ``1 / a!``. NaN below three methods.
    """
    if len(x) < 3:
        return float("nan"), float("nan")
    left, right = x - x.mean(axis=0), y - y.mean(axis=0)
    found = _cosine(left, right, x, y)
    if np.isnan(found):
        return found, found
    orders = map(list, itertools.permutations(range(len(x))))
    others = [_cosine(left[order], right, x, y) for order in orders]
    as_far = np.abs(others) >= abs(found) - 1e-9  # found itself, however it is rounded
    return found, float(np.mean(as_far))


def logarithm(values: np.ndarray) -> np.ndarray:
    """The natural logarithm; NaN where there is none."""
    positive = np.isfinite(values) & (values > 0)
    return np.where(positive, np.log(np.where(positive, values, 1.0)), np.nan)


def _cosine(x, y, raw_x, raw_y) -> float:
    """Of two residuals; NaN where one is nothing but rounding of what it came from."""
    for rest, raw in ((x, raw_x), (y, raw_y)):
        if np.linalg.norm(rest) <= 1e-9 * np.linalg.norm(raw):
            return float("nan")
    return float(x.ravel() @ y.ravel() / (np.linalg.norm(x) * np.linalg.norm(y)))
