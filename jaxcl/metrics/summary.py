"""All metrics of one stream, with the reasons for those that are not defined."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from jaxcl.errors import require
from jaxcl.metrics import matrix as formulas


class Metric(NamedTuple):
    """A value, or the reason why it is not defined."""

    value: float | None
    reason: str | None  # None where there is a value


def summary(
    matrix, *, untrained=None, joint=None, lower_is_better: bool = False
) -> dict[str, Metric]:
    """A :class:`Metric` for each formula but :func:`learning_curve_area`, by name.

    Runs on the host, in float64. If an entry that a formula needs was not measured, that
    metric is undefined; the others are not affected.

    Args:
      matrix: accuracies [T, T] in [0, 1], such as ``TrainResult.matrix()``, NaN where not
        measured; anything that NumPy can read.
      untrained: accuracies [T] before the first task, for the forward transfer.
      joint: accuracies [T] of networks trained on all tasks so far, for the intransigence.
      lower_is_better: the entries of all three are finite errors or losses instead. Every
        formula uses them with their sign changed: positive forgetting and intransigence
        are losses, positive transfer is a gain. Levels keep the sign of the entries:
        ``average_accuracy`` is the average error, and ``minimum_accuracy`` the largest.
    """
    read_in = partial(_read_in, lower_is_better)
    matrix = read_in("the accuracy matrix", matrix, 2)
    _, tasks = formulas.accuracies_of("summary", matrix)
    metrics = {formula.__name__: _read(formula, n, matrix) for formula, n in _OF_MATRIX}
    for formula, least, name, row in (
        (formulas.forward_transfer, 2, "untrained", untrained),
        (formulas.intransigence, 1, "joint", joint),
    ):
        if row is not None:
            row = read_in(f"the {name} row", row, 1)
            row = formulas.row_of("summary", name, row, tasks)
        metrics[formula.__name__] = _read_with(formula, least, matrix, name, row)
    # Levels get the sign of the entries back (never minus zero); the rest are changes.
    for level in _LEVELS if lower_is_better else ():
        value = metrics[level.__name__].value
        if value is not None:
            metrics[level.__name__] = Metric(0.0 - value, None)
    return metrics


#: Formulas of the matrix alone, by the least number of tasks that they need.
_OF_MATRIX = (
    (formulas.average_accuracy, 1),
    (formulas.average_incremental_accuracy, 1),
    (formulas.learning_accuracy, 1),
    (formulas.backward_transfer, 2),
    (formulas.forgetting, 2),
    (formulas.forgetting_from_initial, 2),
    (formulas.minimum_accuracy, 2),
    (formulas.worst_case_accuracy, 1),
)

#: Those that are accuracies, not differences of accuracies.
_LEVELS = (
    formulas.average_accuracy,
    formulas.average_incremental_accuracy,
    formulas.learning_accuracy,
    formulas.minimum_accuracy,
    formulas.worst_case_accuracy,
)


def _read(formula: Callable, least: int, matrix: np.ndarray) -> Metric:
    """The value of a formula, or the first entry that is missing."""
    tasks = matrix.shape[0]
    if tasks < least:
        return Metric(None, f"needs {least} or more tasks, got {tasks}")
    value = float(formula(matrix))
    if np.isfinite(value):
        return Metric(value, None)
    i, j = _first_gap(formula, np.isnan(matrix))
    return Metric(None, f"R[{i}, {j}] was not measured")


def _read_with(formula: Callable, least: int, matrix, name: str, row) -> Metric:
    """Likewise for a formula with a further row."""
    if row is None:
        return Metric(None, f"needs the {name} accuracies: pass {name}=")
    if len(row) >= least and np.isnan(formula(np.zeros_like(matrix), row)):
        return Metric(None, f"an entry of {name} was not measured")
    return _read(lambda r: formula(r, np.nan_to_num(row)), least, matrix)


def _first_gap(formula: Callable, gaps: np.ndarray) -> tuple[int, int]:
    """The first NaN entry that makes a formula NaN, by trying rows, then columns."""
    # A stack of matrices, each with the gaps of one row (then of one entry) alone.
    one = np.eye(gaps.shape[0], dtype=bool)
    spoils = lambda only: np.isnan(formula(np.where(only & gaps, np.nan, 0.0)))
    i = int(np.argmax(spoils(one[:, :, None])))
    j = int(np.argmax(spoils(one[i][:, None] & one[:, None, :])))
    return i, j


def _read_in(errors: bool, what: str, values, num_axes: int) -> np.ndarray:
    """Accuracies in float64, or errors with their sign changed; a ValueError for others."""
    values = np.asarray(values).astype(np.float64)
    if errors:
        allowed, wanted = np.isfinite(values), "finite errors or NaN"
        remedy = "leave diverged runs out"
    else:  # beyond rounding
        allowed = (values >= -1e-6) & (values <= 1 + 1e-6)
        wanted = "fractions in [0, 1]"
        remedy = "divide percentages by 100, or give lower_is_better=True for errors"
    wrong = values[~np.isnan(values) & ~allowed]
    came = f"{wrong[0]:g}; {remedy}" if wrong.size else f"shape {values.shape}"
    shape = "[T, T] (of one seed)" if num_axes == 2 else "[T]"
    fits = not wrong.size and values.ndim == num_axes
    require(fits, "summary", f"{what} must be {wanted}, {shape}, got {came}")
    return -values if errors else values
