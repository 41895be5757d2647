r"""Continual-learning metrics of the accuracy matrix.

``R[i, j]`` is the accuracy on the test set of task ``j`` after learning tasks ``0 .. i``, a
fraction in [0, 1]; ``T`` tasks give a matrix [T, T]. Entries not measured are NaN.
In the formulas tasks count from 1, as in the papers. For errors or losses change the sign:
``forgetting(-errors)`` is positive where errors have increased.

There are two layers. The functions on arrays are the formulas: they take a NumPy or JAX
matrix (or lists), or a stack [..., T, T] of them, work under ``jit`` and ``vmap``, and give
NaN where an entry they need is NaN; those of earlier tasks need two tasks or more.
:func:`summary` gives for each metric its value or the *reason* why it is not defined.

Other libraries use these names for other formulas; see :func:`forgetting`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Num

from jaxcl.errors import require

#: A NumPy or JAX array, or lists of numbers.
Matrix = Num[Array, "..."] | Num[np.ndarray, "..."] | Sequence

#: An array of floats, of NumPy or JAX.
Floats = Float[Array, "..."] | Float[np.ndarray, "..."]

#: One number per matrix.
Value = Floats | np.floating


def average_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy over all tasks at the end: :math:`\frac1T \sum_j R_{T,j}`.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 2.
    """
    matrix, _ = accuracies_of("average_accuracy", matrix)
    return matrix[..., -1, :].mean(-1)


def average_incremental_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy over the tasks seen so far, averaged over the stream.

    .. math:: \frac1T \sum_{k=1}^T A_k, \qquad A_k = \frac1k \sum_{j \le k} R_{k,j}

    Reference: Rebuffi et al. 2017 (iCaRL), arXiv:1611.07725, section 4.
    """
    matrix, tasks = accuracies_of("average_incremental_accuracy", matrix)
    # Every row has its own weight, 1 / (k T).
    rows, columns = np.tril_indices(tasks)
    weight = (1 / (tasks * (rows + 1))).astype(matrix.dtype)
    return (matrix[..., rows, columns] * weight).sum(-1)


def learning_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy on each task right after learning it: :math:`\frac1T \sum_j R_{j,j}`.

    Reference: Riemer et al. 2019 (MER), arXiv:1810.11910, section 5.
    """
    matrix, _ = accuracies_of("learning_accuracy", matrix)
    return diagonal(matrix).mean(-1)


def backward_transfer(matrix: Matrix) -> Value:
    r"""Change on earlier tasks since they were learnt; negative means forgetting.

    .. math:: \frac1{T-1} \sum_{j<T} (R_{T,j} - R_{j,j})

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 3. (Their code
    divides by ``T``.)
    """
    matrix, _ = accuracies_of("backward_transfer", matrix, least=2)
    return (matrix[..., -1, :-1] - diagonal(matrix)[..., :-1]).mean(-1)


def forward_transfer(matrix: Matrix, untrained: Matrix) -> Value:
    r"""Influence of earlier tasks on a task that is not yet learnt.

    .. math:: \frac1{T-1} \sum_{j=2}^T (R_{j-1,j} - b_j)

    ``untrained`` is ``b`` [..., T], the accuracies of the network before the first task.
    Not meaningful if the outputs of a task do not exist before it is learnt.

    Reference: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 4.
    """
    matrix, tasks = accuracies_of("forward_transfer", matrix, least=2)
    untrained = row_of("forward_transfer", "untrained", untrained, tasks)
    before = diagonal(matrix, offset=1)  # R[j - 1, j]
    return (before - untrained[..., 1:]).mean(-1)


def forgetting(matrix: Matrix) -> Value:
    r"""Decrease of the accuracy on each earlier task from its maximum.

    .. math:: \frac1{T-1} \sum_{j<T} \Big( \max_{l < T} R_{l,j} - R_{T,j} \Big)

    In [-1, 1]; negative if earlier tasks ended better than they ever were. The maximum is
    over all rows but the last, including those before task ``j`` was learnt. Variants:
    Avalanche starts from :math:`R_{j,j}` (:func:`forgetting_from_initial`); Mammoth and
    PyCIL include the last row and so are never negative.

    Reference: Chaudhry et al. 2018, arXiv:1801.10112, section 3.2; as restated in
    arXiv:1812.00420, equations 2 and 3.
    """
    matrix, _ = accuracies_of("forgetting", matrix, least=2)
    return (matrix[..., :-1, :-1].max(-2) - matrix[..., -1, :-1]).mean(-1)


def forgetting_from_initial(matrix: Matrix) -> Value:
    r"""Decrease of the accuracy on each earlier task since it was learnt: minus the BWT.

    .. math:: \frac1{T-1} \sum_{j<T} (R_{j,j} - R_{T,j})

    This is Avalanche's forgetting.
    """
    matrix, _ = accuracies_of("forgetting_from_initial", matrix, least=2)
    return -backward_transfer(matrix)


def intransigence(matrix: Matrix, joint: Matrix) -> Value:
    r"""Accuracy on the task being learnt, lost by learning tasks in sequence.

    .. math:: \frac1T \sum_k (J_k - R_{k,k})

    In [-1, 1]; negative if learning in sequence is better than joint training. ``joint``
    is ``J`` [..., T], the accuracy on task ``k`` of a network trained on tasks
    ``1 .. k`` at once.

    Reference: Chaudhry et al. 2018, arXiv:1801.10112, section 3.2, averaged over ``k``.
    """
    matrix, tasks = accuracies_of("intransigence", matrix)
    joint = row_of("intransigence", "joint", joint, tasks)
    return (joint - diagonal(matrix)).mean(-1)


def minimum_accuracy(matrix: Matrix) -> Value:
    r"""Mean over earlier tasks of their minimum accuracy since learnt (min-ACC).

    .. math:: \frac1{T-1} \sum_{j<T} \min_{l > j} R_{l,j}

    The paper takes the minimum over every step after task ``j`` was learnt; the matrix
    has only the ends of tasks, so this is an upper bound of it.

    Reference: De Lange et al. 2023, arXiv:2205.13452, section 3.
    """
    matrix, tasks = accuracies_of("minimum_accuracy", matrix, least=2)
    columns = np.arange(tasks - 1)
    rows = np.maximum(np.arange(1, tasks)[:, None], columns + 1)  # rows <= j: j + 1
    return matrix[..., rows, columns].min(-2).mean(-1)


def worst_case_accuracy(matrix: Matrix) -> Value:
    r"""Accuracy of the last task and minimum accuracy of the others (WC-ACC).

    .. math:: \frac1T R_{T,T} + \Big(1 - \frac1T\Big) \text{min-ACC}

    An upper bound of the paper's, as :func:`minimum_accuracy` is.

    Reference: De Lange et al. 2023, arXiv:2205.13452, section 3.
    """
    matrix, tasks = accuracies_of("worst_case_accuracy", matrix)
    last = matrix[..., -1, -1]
    if tasks == 1:  # min-ACC is a mean over no tasks
        return last
    return last / tasks + (1 - 1 / tasks) * minimum_accuracy(matrix)


def learning_curve_area(curves: Matrix) -> Value:
    r"""Learning speed: the area under the first steps of the learning curves (LCA).

    .. math:: \frac1{\beta + 1} \sum_{b=0}^{\beta} \frac1T \sum_k a_{k,b}

    ``curves`` are ``a`` [..., T, beta + 1], the accuracy on task ``k`` after ``b`` batches
    of it; a ``beta`` of 10 is usual.

    Reference: Chaudhry et al. 2019, arXiv:1812.00420, equations 4 and 5.
    """
    return _as_floats(curves).mean((-2, -1))


def diagonal(matrix: Floats, offset: int = 0) -> Floats:
    """The entries ``R[j, j + offset]`` of each matrix."""
    return matrix.diagonal(offset, -2, -1)


def _as_floats(values) -> Floats:
    """An array of floats: integer arithmetic would truncate fractions."""
    values = values if hasattr(values, "dtype") else np.asarray(values)
    return values.astype(float) if values.dtype.kind in "biu" else values


def accuracies_of(who: str, matrix, least: int = 1) -> tuple[Floats, int]:
    """Accuracies [..., T, T] as an array, and ``T``; or a ValueError."""
    matrix = _as_floats(matrix)
    shape = matrix.shape
    tasks = shape[-1] if shape else 0
    fits = shape[-2:] == (tasks, tasks) and tasks >= least
    wanted = f"shape [..., T, T] of {least} or more tasks, got {shape}"
    require(fits, who, f"the accuracy matrix must have {wanted}")
    return matrix, tasks


def row_of(who: str, name: str, row, tasks: int) -> Floats:
    """A row with one accuracy a task, as an array; or a ValueError."""
    row = _as_floats(row)
    wanted = f"{tasks} accuracies, one a task, got {row}"
    require(row.shape[-1:] == (tasks,), who, f"{name} must have {wanted}")
    return row
