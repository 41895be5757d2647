"""Tables of pandas and CSV files: rows of numbers, numbered classes, tasks by a column."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxcl.data.dataset import Dataset, Task, array_dataset
from jaxcl.data.subsets import train_valid_split
from jaxcl.errors import (
    InputError,
    MissingFileError,
    check_key,
    check_size,
    reason_of,
    shown,
)
from jaxcl.typing import Batch, Key

if TYPE_CHECKING:
    import pandas as pd

#: A CSV file, or a table in memory.
Table = Any  # str | os.PathLike[str] | pd.DataFrame


def encode_labels(
    labels: Any, classes: Sequence[Any] | np.ndarray | None = None
) -> tuple[Int[np.ndarray, "..."], list[Any]]:
    """Number the classes of text or other labels from 0.

    ::

        y, classes = encode_labels(["cat", "dog", "cat"])     # [0, 1, 0], ["cat", "dog"]
        y_test, _ = encode_labels(["dog"], classes)           # [1]

    Args:
      labels: text, numbers or booleans of any shape: a list, an array or a pandas series.
      classes: all classes in the order of their numbers, such as those of the training
        set; the different labels in sorted order if absent.

    Returns:
      The numbers, int32 in the shape of ``labels``, and the classes: ``classes[number]``
      is the label.

    Raises:
      ValueError: for a missing label, one that is not in ``classes``, labels of different
        types, or a class that is listed twice.
    """
    import pandas as pd

    given = _objects("labels", labels)
    known = _objects("classes", () if classes is None else classes)
    flat = pd.Series(given.ravel(), dtype=object)
    missing = np.flatnonzero(flat.isna())
    if missing.size:
        _refuse(f"label {missing[0]} is missing", "drop its row, or name it")
    if classes is None:
        try:
            known = np.asarray(sorted(flat.unique()), object)
        except TypeError:
            kinds = sorted({type(one).__name__ for one in flat})
            _refuse(f"labels are of types {', '.join(kinds)}", "make them all text")
    listed = pd.Index(known, dtype=object)
    if not listed.is_unique:
        twice = listed[listed.duplicated()][0]
        _refuse(f"class {shown(twice)} is listed twice", "list each class once")
    numbers = listed.get_indexer(pd.Index(flat, dtype=object))
    unknown = np.flatnonzero(numbers < 0)
    if unknown.size:
        _refuse(
            f"label {unknown[0]}, {shown(flat[unknown[0]])}, is none of the {len(known)} "
            "classes",
            "add it to classes, or drop its rows",
        )
    return numbers.astype(np.int32).reshape(given.shape), listed.tolist()


def _objects(name: str, values: Any) -> np.ndarray:
    """An array of objects of a list, an array or a series."""
    try:
        array = np.asarray(values, object)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.ndim == 0:
        _refuse(f"{name} must be a list or an array, got {shown(values)}", "make one")
    return array


def csv_dataset(
    source: Table,
    *,
    label: str,
    columns: Sequence[str] | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
    task: int = 0,
) -> Dataset:
    """Rows of a CSV file or a pandas frame: a column of labels, the others inputs.

    All rows are in memory, as float32. A file for training and another for testing are two
    calls with the same ``columns`` and ``classes``; one file for both is split afterwards,
    by :func:`jaxcl.data.train_valid_split` or, task by task, by :func:`csv_tasks`.

    Args:
      source: path of a file with a header line, or a frame, for what needs preparation
        (``pandas.get_dummies`` encodes text, ``fillna`` fills gaps).
      label: column of the labels. Integers are class numbers from 0; floats are targets,
        float32; text needs ``classes``.
      columns: of the inputs, in this order; all but ``label`` if absent.
      classes: of text labels, in the order of their numbers; see :func:`encode_labels`.
      task: number of the task.

    Returns:
      A dataset with ``x [n, columns]`` float32 and ``y [n]``.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: naming the column: for one that is missing or there twice, text, missing
        values, values beyond float32, or labels that are not in ``classes``.
    """
    check_size("csv_dataset", least=0, task=task)
    return _as_dataset(_frame("csv_dataset", source), label, columns, classes, task)


def csv_tasks(
    key: Key,
    source: Table,
    *,
    label: str,
    task: str,
    test_fraction: float,
    columns: Sequence[str] | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
) -> list[Task]:
    """One task for each value of a column, in the order in which the values appear.

    Args:
      key: draws the test rows of each task.
      source: as for :func:`csv_dataset`.
      label: likewise.
      task: column that says to which task a row belongs, such as a year or a place. Sort
        the frame for another order of tasks.
      test_fraction: fraction of each task's rows that is for testing, in (0, 1), of every
        class alike where labels are class numbers.
      columns: of the inputs; all but ``label`` and ``task`` if absent.
      classes: as for :func:`csv_dataset`.

    Returns:
      Tasks named by the values, numbered from 0.

    Raises:
      ValueError: as :func:`csv_dataset`; for a missing value of ``task``, or a task of
        fewer than two rows.
    """
    import pandas as pd

    check_key("csv_tasks", key)
    if not 0 < float(test_fraction) < 1:
        msg = f"csv_tasks: test_fraction must be in (0, 1), got {shown(test_fraction)}."
        raise InputError(msg)
    frame = _frame("csv_tasks", source)
    groups = _column(frame, task)
    if not len(groups):
        _refuse_column(task, "has no rows", "give a table with some")
    if len(np.flatnonzero(groups.isna())):
        _refuse_column(task, "has missing values", "fill or drop these rows")
    if columns is None:
        columns = [name for name in frame.columns if name not in (label, task)]
    if any(not pd.api.types.is_hashable(value) for value in groups):
        what = f"holds values of type {type(groups.iloc[0]).__name__}"
        _refuse_column(task, what, "make it text")
    tasks = []
    for number, value in enumerate(groups.unique()):
        part = frame[groups == value]
        if len(part) < 2:
            few = f"has one row of {shown(value)}"
            _refuse_column(task, few, "a task needs one to learn and one to test")
        rows = _as_dataset(part, label, columns, classes, number)
        draw = jax.random.fold_in(key, number)
        numbered = rows.read(np.arange(1)).y.dtype == np.int32
        train, test = train_valid_split(
            draw, rows, valid_fraction=test_fraction, stratify=numbered
        )
        tasks.append(Task(str(value), train, test))
    return tasks


def _frame(who: str, source: Table) -> "pd.DataFrame":
    """The table, read from a file unless it is one already."""
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source
    if not isinstance(source, str | os.PathLike):
        msg = f"{who}: source must be a path or a pandas frame, got {shown(source)}."
        raise InputError(msg)
    path = Path(source)
    if not path.is_file():
        msg = f"{who}: no file {path}; give the path of a CSV file, or a pandas frame."
        raise MissingFileError(msg)
    try:
        with warnings.catch_warnings():
            # A line with more fields than the header would shift all columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, index_col=False, low_memory=False)
    except Exception as error:  # the parser raises errors of many kinds
        msg = (
            f"{who}: {path} is not a CSV file with a header line ({reason_of(error)}); fix "
            "it, or read it with pandas and give the frame."
        )
        raise InputError(msg) from error


def _as_dataset(frame, label, columns, classes, task) -> Dataset:
    if columns is None:
        columns = [name for name in frame.columns if name != label]
    if isinstance(columns, str) or not len(columns) or not len(frame):
        msg = (
            f"csv_dataset: expected rows, and columns of inputs, got {len(frame)} rows and "
            f"columns {shown(columns)}; name some that the table has."
        )
        raise InputError(msg)
    if label in list(columns):
        _refuse_column(label, "holds the labels", "leave it out of columns")
    y = _labels(label, _column(frame, label), classes)
    x = np.stack([_numbers(name, _column(frame, name)) for name in columns], 1)
    ones, number = np.ones(len(y), np.float32), np.full(len(y), task, np.int32)
    return array_dataset(Batch(x, y, ones, number))


def _column(frame, name):
    """One column, which is there once."""
    found = list(frame.columns).count(name)
    if found != 1:
        there = ", ".join(map(shown, frame.columns[:8]))
        how = "is missing" if not found else f"is there {found} times"
        _refuse_column(name, f"{how} among {there}", "name another")
    return frame[name]


def _numbers(name, column) -> Float[np.ndarray, " n"]:
    """A column as float32."""
    missing = np.flatnonzero(column.isna())
    if missing.size:
        _refuse_column(
            name,
            f"has missing values ({missing.size}), the first in row "
            f"{column.index[missing[0]]}",
            "fill them (frame.fillna) or drop their rows (frame.dropna)",
        )
    if column.dtype.kind not in "biuf":
        _refuse_column(
            name,
            f"holds no numbers, but {shown(column.iloc[0])}",
            "encode it (pandas.get_dummies), or leave it out by columns=",
        )
    with np.errstate(over="ignore"):
        numbers = column.to_numpy(np.float32)
    if not np.isfinite(numbers).all():
        row = np.flatnonzero(~np.isfinite(numbers))[0]
        where = f"has {column.iloc[row]} in row {column.index[row]}"
        _refuse_column(name, where, "float32 cannot hold it")
    return numbers


def _labels(name, column, classes) -> np.ndarray:
    """Class numbers int32, or targets float32."""
    if classes is not None:
        return encode_labels(column, classes)[0]
    if column.dtype.kind not in "biuf" and not len(np.flatnonzero(column.isna())):
        found = encode_labels(column)[1]
        few = ", ".join(map(repr, found[:4])) + (", ..." if len(found) > 4 else "")
        _refuse_column(
            name, f"holds {len(found)} labels, no numbers", f"give classes=[{few}]"
        )
    numbers = _numbers(name, column)
    if column.dtype.kind == "f":
        return numbers
    for row in (int(column.argmin()), int(column.argmax())):
        if not 0 <= column.iloc[row] < 2**31:
            _refuse_column(
                name,
                f"has {column.iloc[row]} in row {column.index[row]}, not a class number "
                "of int32",
                "encode_labels numbers classes; targets are floats",
            )
    return column.to_numpy(np.int32)


def _refuse(problem: str, remedy: str):
    msg = f"encode_labels: {problem}; {remedy}."
    raise InputError(msg)


def _refuse_column(name, problem: str, remedy: str):
    msg = f"csv_dataset: column {shown(str(name))} {problem}; {remedy}."
    raise InputError(msg)
