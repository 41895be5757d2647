r"""What a stream of tasks did to a learner, read from its accuracy matrix.

``R[i, j]`` is the accuracy on the test set of task ``j`` after learning tasks ``0 .. i``, a
share in [0, 1]; ``T`` tasks give a matrix [T, T]. Entries that were not measured are NaN.
In the formulas tasks count from 1, as in the papers. A matrix of errors or losses, of which
less is better, is read with its sign changed: ``forgetting(-errors)`` is positive where
errors have grown; :func:`summary` does so with ``lower_is_better``.

Two layers. The functions on arrays are the formulas: they take a NumPy or JAX matrix (or
lists), or a stack [..., T, T] of them, work under ``jit`` and ``vmap``, and give NaN where
an entry they need is NaN. :func:`summary` reads one matrix on the host, checks it, and says
of each number what it is or *why* it is not defined - never a zero in place of a missing
value.

Other programs print other numbers under these names; see :func:`forgetting`. Keep the
matrix, the untrained and the joint row, and any dialect can be computed later.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Num

from jaxcl.errors import as_numbers

#: A NumPy or JAX array, or lists of numbers.
Matrix = Num[Array, "..."] | Num[np.ndarray, "..."] | Sequence
Floats = Float[Array, "..."] | Float[np.ndarray, "..."]

#: One number per matrix.
Value = Floats | np.floating


def average_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy over all tasks at the end: :math:`\frac1T \sum_j R_{T,j}`.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 2.
    """
    matrix, _ = _tasks("average_accuracy", matrix)
    return matrix[..., -1, :].mean(-1)


def average_incremental_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy over the tasks seen so far, averaged over the stream.

    .. math:: \frac1T \sum_{k=1}^T A_k, \qquad A_k = \frac1k \sum_{j \le k} R_{k,j}

    Reference: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725, section 4.
    """
    matrix, tasks = _tasks("average_incremental_accuracy", matrix)
    rows, columns = np.tril_indices(tasks)
    share = (1 / (tasks * (rows + 1))).astype(matrix.dtype)
    return (matrix[..., rows, columns] * share).sum(-1)


def learning_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy on each task right after learning it: :math:`\frac1T \sum_j R_{j,j}`.

    Reference: Riemer et al. 2019 (MER), arXiv:1810.11910, section 5.
    """
    matrix, _ = _tasks("learning_accuracy", matrix)
    return _diagonal(matrix).mean(-1)


def backward_transfer(matrix: Matrix) -> Value:
    r"""Change on earlier tasks since they were learnt; negative means forgetting.

    .. math:: \frac1{T-1} \sum_{j<T} (R_{T,j} - R_{j,j})

    Raises:
      ValueError: with fewer than two tasks.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 3. (Their code
    divides by ``T``.)
    """
    matrix, _ = _tasks("backward_transfer", matrix, least=2)
    return (matrix[..., -1, :-1] - _diagonal(matrix)[..., :-1]).mean(-1)


def forward_transfer(matrix: Matrix, untrained: Matrix) -> Value:
    r"""What earlier tasks do for one that is not yet learnt.

    .. math:: \frac1{T-1} \sum_{j=2}^T (R_{j-1,j} - b_j)

    Without meaning where the outputs of a task do not exist before it is learnt.

    Args:
      matrix: accuracies [..., T, T].
      untrained: ``b`` [..., T], accuracies of the network before the first task.

    Raises:
      ValueError: with fewer than two tasks, or if ``untrained`` has not one entry a task.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 4.
    """
    matrix, tasks = _tasks("forward_transfer", matrix, least=2)
    untrained = _row("forward_transfer", "untrained", untrained, tasks)
    before = _diagonal(matrix, offset=1)
    return (before - untrained[..., 1:]).mean(-1)


def forgetting(matrix: Matrix) -> Value:
    r"""How far each earlier task has fallen from its best.

    .. math:: \frac1{T-1} \sum_{j<T} \Big( \max_{l < T} R_{l,j} - R_{T,j} \Big)

    In [-1, 1]: negative if earlier tasks ended better than they ever were. The maximum is
    over all rows but the last, those before task ``j`` was learnt included. Dialects:
    Avalanche starts from :math:`R_{j,j}` (:func:`forgetting_from_initial`); Mammoth and
    PyCIL let the last row into the maximum and so are never negative.

    Raises:
      ValueError: with fewer than two tasks.

    Reference: Chaudhry et al. 2018, arXiv:1801.10112, section 3.2; as restated in
    arXiv:1812.00420, equations 2 and 3.
    """
    matrix, _ = _tasks("forgetting", matrix, least=2)
    return (matrix[..., :-1, :-1].max(-2) - matrix[..., -1, :-1]).mean(-1)


def forgetting_from_initial(matrix: Matrix) -> Value:
    r"""How far each earlier task has fallen since it was learnt: minus the BWT.

    .. math:: \frac1{T-1} \sum_{j<T} (R_{j,j} - R_{T,j})

    What Avalanche calls forgetting; needs no entry above the diagonal.

    Raises:
      ValueError: with fewer than two tasks.
    """
    matrix, _ = _tasks("forgetting_from_initial", matrix, least=2)
    return -backward_transfer(matrix)


def intransigence(matrix: Matrix, joint: Matrix) -> Value:
    r"""What learning in order costs on the task being learnt.

    .. math:: \frac1T \sum_k (J_k - R_{k,k})

    In [-1, 1]; negative if learning in order did better.

    Args:
      matrix: accuracies [..., T, T].
      joint: ``J`` [..., T], the accuracy on task ``k`` of a network trained on tasks
        ``1 .. k`` at once.

    Raises:
      ValueError: if ``joint`` has not one entry a task.

    Reference: Chaudhry et al. 2018, arXiv:1801.10112, section 3.2, averaged over ``k``.
    """
    matrix, tasks = _tasks("intransigence", matrix)
    joint = _row("intransigence", "joint", joint, tasks)
    return (joint - _diagonal(matrix)).mean(-1)


def minimum_accuracy(matrix: Matrix) -> Value:
    r"""The worst that became of each earlier task, on average (min-ACC).

    .. math:: \frac1{T-1} \sum_{j<T} \min_{l > j} R_{l,j}

    The paper takes the minimum over every step after task ``j`` was learnt; a matrix
    knows the ends of tasks only, so this is an upper bound of it.

    Raises:
      ValueError: with fewer than two tasks.

    Reference: De Lange et al. 2023, arXiv:2205.13452, section 3.
    """
    matrix, tasks = _tasks("minimum_accuracy", matrix, least=2)
    columns = np.arange(tasks - 1)
    rows = np.maximum(np.arange(1, tasks)[:, None], columns + 1)  # those below repeat
    return matrix[..., rows, columns].min(-2).mean(-1)


def worst_case_accuracy(matrix: Matrix) -> Value:
    r"""The last task, and the worst that became of the others (WC-ACC).

    .. math:: \frac1T R_{T,T} + \Big(1 - \frac1T\Big) \text{min-ACC}

    An upper bound of the paper's, as :func:`minimum_accuracy` is.

    Reference: De Lange et al. 2023, arXiv:2205.13452, section 3.
    """
    matrix, tasks = _tasks("worst_case_accuracy", matrix)
    last = matrix[..., -1, -1]
    if tasks == 1:
        return last
    return last / tasks + (1 - 1 / tasks) * minimum_accuracy(matrix)


def learning_curve_area(curves: Matrix) -> Value:
    r"""How fast tasks are learnt: the area under their first steps (LCA).

    .. math:: \frac1{\beta + 1} \sum_{b=0}^{\beta} \frac1T \sum_k a_{k,b}

    Args:
      curves: ``a`` [..., T, beta + 1], the accuracy on task ``k`` after ``b`` batches of
        it; a ``beta`` of 10 is usual.

    Raises:
      ValueError: if ``curves`` has fewer than two axes or an empty one.

    Reference: Chaudhry et al. 2019, arXiv:1812.00420, equations 4 and 5.
    """
    curves = _floats("learning_curve_area", "curves", curves)
    if curves.ndim < 2 or 0 in curves.shape:
        msg = (
            "learning_curve_area: curves must have shape [..., T, beta + 1], "
            f"got {curves.shape}; give one row of accuracies for each task."
        )
        raise ValueError(msg)
    return curves.mean((-2, -1))


class Metric(NamedTuple):
    """A number, or the reason why there is none."""

    value: float | None
    reason: str | None  # None where there is a value


def summary(
    matrix, *, untrained=None, joint=None, lower_is_better: bool = False
) -> dict[str, Metric]:
    """All metrics of one stream, and the reasons for those that are not defined.

    Runs on the host, in float64. What a formula needs and nobody measured makes that
    metric undefined, not the others.

    Args:
      matrix: accuracies [T, T] in [0, 1], NaN where not measured; anything that NumPy
        can read.
      untrained: accuracies [T] of the network before the first task, for the forward
        transfer.
      joint: accuracies [T] of networks trained on all tasks so far, for the
        intransigence.
      lower_is_better: the entries of all three are errors or losses of any finite size
        instead. Every formula reads them with their sign changed, so that changes have
        the sense they have for accuracies: positive forgetting and intransigence are
        losses, positive transfer is a gain. Levels keep the sign of the entries: under
        ``average_accuracy`` stands the average error, and under ``minimum_accuracy`` the
        largest.

    Returns:
      A :class:`Metric` for each name: the functions of this module but the learning
      curve. :func:`as_json` makes it plain.

    Raises:
      ValueError: if the matrix is not square or empty, a row has the wrong length, or an
        entry lies outside [0, 1]; with ``lower_is_better``, if one is infinite.
    """
    read_in = _errors if lower_is_better else _shares
    matrix = read_in("the accuracy matrix", matrix)
    if matrix.ndim != 2:
        msg = (
            f"summary: the accuracy matrix must have shape [T, T], got {matrix.shape}; "
            "summarise seeds one by one."
        )
        raise ValueError(msg)
    _, tasks = _tasks("summary", matrix)

    def read_with(formula, least, name, row):
        if row is not None:
            row = read_in(f"the {name} row", row)
            if row.ndim != 1:
                msg = f"summary: {name} must have shape [T], got {row.shape}."
                raise ValueError(msg)
            _row("summary", name, row, tasks)
        return _read_with(formula, least, matrix, name, row)

    metrics = {formula.__name__: _read(formula, n, matrix) for formula, n in _OF_MATRIX}
    metrics["forward_transfer"] = read_with(forward_transfer, 2, "untrained", untrained)
    metrics["intransigence"] = read_with(intransigence, 1, "joint", joint)
    if lower_is_better:
        metrics |= {name: _negated(metrics[name]) for name in _LEVELS}
    return metrics


def as_json(metrics: Mapping[str, Metric]) -> dict[str, dict[str, float | str | None]]:
    """The same as plain dictionaries: ``{name: {"value": ..., "reason": ...}}``."""
    return {name: metric._asdict() for name, metric in metrics.items()}


#: Formulas that read the matrix alone, and the least number of tasks they make sense for.
_OF_MATRIX = (
    (average_accuracy, 1),
    (average_incremental_accuracy, 1),
    (learning_accuracy, 1),
    (backward_transfer, 2),
    (forgetting, 2),
    (forgetting_from_initial, 2),
    (minimum_accuracy, 2),
    (worst_case_accuracy, 1),
)


#: Metrics in the units and with the sign of the entries; all others are changes.
_LEVELS = (
    "average_accuracy",
    "average_incremental_accuracy",
    "learning_accuracy",
    "minimum_accuracy",
    "worst_case_accuracy",
)


def _negated(metric: Metric) -> Metric:
    """Minus the value, if there is one; never minus zero."""
    value = metric.value
    return metric if value is None else metric._replace(value=0.0 - value)


def _read(formula: Callable, least: int, matrix: np.ndarray) -> Metric:
    """The value of a formula, or the first thing that it lacks."""
    tasks = matrix.shape[0]
    if tasks < least:
        return Metric(None, f"needs {least} or more tasks, got {tasks}")
    value = float(formula(matrix))
    if np.isfinite(value):
        return Metric(value, None)
    i, j = _first_gap(formula, np.isnan(matrix))
    return Metric(None, f"R[{i}, {j}] was not measured")


def _read_with(formula: Callable, least: int, matrix, name: str, row) -> Metric:
    """Likewise for a formula that reads a further row."""
    if row is None:
        return Metric(None, f"needs the {name} accuracies: pass {name}=")
    if len(row) >= least and np.isnan(formula(np.zeros_like(matrix), row)):
        return Metric(None, f"an entry of {name} was not measured")
    return _read(lambda r: formula(r, np.nan_to_num(row)), least, matrix)


def _first_gap(formula: Callable, gaps: np.ndarray) -> tuple[int, int]:
    """The first NaN entry that makes a formula NaN, by trying rows, then columns."""
    one = np.eye(gaps.shape[0], dtype=bool)
    spoils = lambda only: np.isnan(formula(np.where(only & gaps, np.nan, 0.0)))
    i = int(np.argmax(spoils(one[:, :, None])))
    j = int(np.argmax(spoils(one[i][:, None] & one[:, None, :])))
    return i, j


def _diagonal(matrix, offset=0):
    return matrix.diagonal(offset, -2, -1)


def _floats(who: str, what: str, values) -> Floats:
    """An array of floats: sums of shares in integers would be cut."""
    values = values if hasattr(values, "dtype") else as_numbers(who, what, values)
    return values.astype(float) if values.dtype.kind in "biu" else values


def _tasks(who: str, matrix, least: int = 1) -> tuple[Floats, int]:
    """Accuracies [..., T, T] as an array, and ``T``; or a ValueError."""
    matrix = _floats(who, "the accuracy matrix", matrix)
    shape = matrix.shape
    if len(shape) < 2 or shape[-1] != shape[-2]:
        msg = (
            f"{who}: the accuracy matrix must have shape [..., T, T], got {shape}; "
            "entry (i, j) is the accuracy on task j after learning task i."
        )
        raise ValueError(msg)
    if shape[-1] < least:
        msg = (
            f"{who}: needs {least} or more tasks, got {shape[-1]}; "
            "jaxcl.metrics.summary gives a reason instead of a number."
        )
        raise ValueError(msg)
    return matrix, shape[-1]


def _row(who: str, name: str, row, tasks: int) -> Floats:
    row = _floats(who, name, row)
    if row.shape[-1:] != (tasks,):
        msg = (
            f"{who}: {name} must have one accuracy for each of the {tasks} tasks, "
            f"got shape {row.shape}."
        )
        raise ValueError(msg)
    return row


def _shares(what: str, values) -> np.ndarray:
    """Accuracies in float64; a ValueError if one is outside [0, 1] beyond rounding."""
    values = as_numbers("summary", what, values).astype(np.float64)
    known = values[~np.isnan(values)]
    wrong = known[(known < -1e-6) | (known > 1 + 1e-6)]
    if wrong.size:
        msg = (
            f"summary: {what} must hold shares in [0, 1], got {wrong[0]:g}; "
            "divide percentages by 100, or give lower_is_better=True for errors."
        )
        raise ValueError(msg)
    return values


def _errors(what: str, values) -> np.ndarray:
    """Errors in float64 with their sign changed; a ValueError if one is infinite."""
    values = as_numbers("summary", what, values).astype(np.float64)
    if np.isinf(values).any():
        msg = (
            f"summary: {what} must hold finite errors, or NaN where none was measured, got "
            f"{values[np.isinf(values)][0]:g}; leave diverged runs out."
        )
        raise ValueError(msg)
    return -values


__all__ = [
    "Floats",
    "Matrix",
    "Metric",
    "Value",
    "as_json",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
    "forgetting_from_initial",
    "forward_transfer",
    "intransigence",
    "learning_accuracy",
    "learning_curve_area",
    "minimum_accuracy",
    "summary",
    "worst_case_accuracy",
]
