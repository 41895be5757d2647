"""Lists of numbers in place of arrays, and scalars of NumPy, which are accepted."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxcl import data, metrics
from jaxcl.report import statistics
from jaxcl.tree import as_batch
from tests.test_misuse.table import BATCH, KEY, TASKS, X, Y

MATRIX, HALVES = [[1, 0, 0], [1, 1, 0], [0, 1, 1]], [0.5, 0.25, 1.0]
BOTH = [
    (lambda x, y: as_batch(x, y, weight=y), (np.ones((4, 3)), Y)),
    (lambda y: data.as_images(X, y, list(X), y)[:4], (Y,)),
    (metrics.average_incremental_accuracy, (np.array(MATRIX, float),)),
    (metrics.forward_transfer, (np.array(MATRIX, float), np.array(HALVES))),
    (metrics.learning_curve_area, (np.array(MATRIX, float),)),
    (statistics.slopes, (np.array([HALVES]),)),
    (statistics.tail_means, (np.array([HALVES]),)),
    (statistics.paired, (np.array(HALVES), np.zeros(3))),
]


@pytest.mark.parametrize(("call", "arrays"), BOTH)
def test_lists_of_numbers_do_what_arrays_do(call, arrays):
    """Oracle: the same call with arrays."""
    lists = [array.tolist() for array in arrays]
    assert isinstance(lists[0], list)
    jax.tree.map(np.testing.assert_array_equal, call(*lists), call(*arrays))


FRAME = pd.DataFrame({"a": np.arange(8.0), "y": [0, 1] * 4, "place": list("uuuuvvvv")})
FRACTIONS = [
    lambda half: data.train_valid_split(KEY, BATCH, valid_fraction=half),
    lambda half: [
        part.read(np.arange(2))
        for task in data.csv_tasks(
            KEY, FRAME, label="y", task="place", test_fraction=half
        )
        for part in (task.train, task.test)
    ],
    lambda half: [
        task.train.read(np.arange(4))
        for task in data.blurry(KEY, TASKS, minor_fraction=half)
    ],
]


@pytest.mark.parametrize("call", FRACTIONS)
def test_a_fraction_of_numpy_does_what_a_float_does(call):
    """Oracle: the same call with a float of Python."""
    jax.tree.map(np.testing.assert_array_equal, call(np.float32(0.5)), call(0.5))


def test_fractions_in_integers_are_not_truncated_to_zero():
    """Oracle: by hand; in integers every term of the sum would be zero."""
    for matrix in (MATRIX, np.array(MATRIX), jnp.array(MATRIX)):
        found = metrics.average_incremental_accuracy(matrix)
        np.testing.assert_allclose(found, (1 + 1 + 2 / 3) / 3, rtol=1e-6)
