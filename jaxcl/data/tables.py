"""Tables of pandas and CSV files: rows of numbers, numbered classes, tasks by a column."""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxcl.data.dataset import Dataset, Task, array_dataset
from jaxcl.data.files import existing_file
from jaxcl.data.subsets import train_valid_split
from jaxcl.errors import (
    InputError,
    check_key,
    check_number,
    check_size,
    reason_of,
    require,
    shown,
    warn,
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
      is the label. A label that is missing or not in ``classes`` is refused.
    """
    numbers, known = _encoded("encode_labels", labels, classes)
    unknown = next(iter(np.flatnonzero(numbers < 0).tolist()), None)
    label = None if unknown is None else np.asarray(labels, object).flat[unknown]
    none = f"label {unknown}, {shown(label)}, is none of the {len(known)} classes"
    remedy = "add it to classes, or drop its rows"
    require(unknown is None, "encode_labels", f"{none}; {remedy}")
    return numbers, known


def _encoded(who: str, labels, classes) -> tuple[Int[np.ndarray, "..."], list[Any]]:
    """Class numbers, -1 for a label that is in none of the classes; and the classes."""
    import pandas as pd

    given = np.asarray(labels, object)
    flat = pd.Series(given.ravel(), dtype=object)
    try:
        classes = sorted(flat.dropna().unique()) if classes is None else classes
        known = pd.Index(classes, dtype=object)
        twice = known[known.duplicated()].tolist()
        numbers = known.unique().get_indexer(pd.Index(flat, dtype=object))
    except (TypeError, ValueError) as error:  # of sorting, of hashing, of no list
        msg = (
            f"{who}: expected labels that can be sorted, or a list of classes "
            f"({reason_of(error)}); give classes in the order of their numbers."
        )
        raise InputError(msg) from error
    once = f"classes {shown(twice)} are listed twice; list each class once"
    require(not twice, who, once)
    return numbers.astype(np.int32).reshape(given.shape), known.tolist()


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
        float32, with a warning where they are whole; text needs ``classes``. In a file only
        an empty cell of text is missing: ``NA`` and ``None`` are labels.
      columns: of the inputs, in this order; all but ``label`` if absent.
      classes: of text labels, in the order of their numbers; see :func:`encode_labels`.
      task: number of the task.

    Returns:
      A dataset with ``x [n, columns]`` float32 and ``y [n]``.

    Raises:
      ValueError: naming the column: for one that is missing or there twice, text, missing
        values, values beyond float32, an input without a name (an index that was saved), or
        labels that are not in ``classes``.
    """
    check_size("csv_dataset", least=0, task=task)
    who = "csv_dataset"
    frame = _frame(who, source, label)
    columns = _inputs(who, frame, columns, label)
    rows = _as_dataset(who, frame, label, columns, classes, task)
    _warn_of_whole_targets(who, frame[label], classes)
    return rows


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
      Tasks named by the values, numbered from 0; each needs two rows.
    """
    who = "csv_tasks"
    key, frame = check_key(who, key), _frame(who, source, label, task)
    limits = {"most": 1.0, "above": True, "below": True}
    check_number(who, test_fraction=test_fraction, **limits)
    groups, remedy = _column(who, frame, task), "fill or drop these rows"
    _require_rows(who, groups.notna(), groups, "missing values", remedy)
    columns, tasks = _inputs(who, frame, columns, label, task), []
    for number, value in enumerate(groups.unique()):
        part = frame[groups == value]
        few = f"has too few rows of {shown(value)}, {len(part)}; a task needs one to learn "
        _require_column(who, len(part) > 1, task, f"{few}and one to test")
        rows = _as_dataset(who, part, label, columns, classes, number)
        draw = jax.random.fold_in(key, number)
        numbered = rows.read(np.arange(1)).y.dtype == np.int32
        train, test = train_valid_split(
            draw, rows, valid_fraction=test_fraction, stratify=numbered
        )
        tasks.append(Task(str(value), train, test))
    _warn_of_whole_targets(who, frame[label], classes)
    return tasks


def _frame(who: str, source: Table, *named: Any) -> "pd.DataFrame":
    """The table, read from a file unless it is one already.

    In the columns of labels and tasks, ``named``, words that pandas takes for missing, such
    as NA and None, are text.
    """
    import pandas as pd

    frame = source
    if not isinstance(frame, pd.DataFrame):
        remedy = "give the path of a CSV file, or a pandas frame"
        path = existing_file(who, source, remedy)
        try:
            with warnings.catch_warnings():
                # A line with more fields than the header would shift all columns.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                read = partial(pd.read_csv, path, index_col=False, low_memory=False)
                frame = read()
                # A column of numbers stays one: there NA is a gap.
                some = frame.dropna(axis="columns", how="all")
                numbers = list(some.select_dtypes(["number", "bool"]).columns)
                text = [name for name in frame.columns if name not in numbers]
                exact = [name for name in named if name in text]
                if frame[exact].isna().to_numpy().any():
                    again = read(usecols=exact, keep_default_na=False, na_values=[""])
                    frame[exact] = again[exact]
        except Exception as error:  # the parser raises errors of many kinds
            msg = (
                f"{who}: {path} is not a CSV file with a header line ({reason_of(error)}); "
                "fix it, or read it with pandas and give the frame."
            )
            raise InputError(msg) from error
    require(len(frame), who, "expected rows, got none; give a table with some")
    return frame


def _inputs(who: str, frame, columns, *others):
    """The columns of inputs: those that are named, else all but the others."""
    if columns is not None:
        return columns
    names = [name for name in frame.columns if name not in others]
    index = (
        "is an index that was saved; write the file with to_csv(index=False), read it "
    )
    remedy = "with pandas.read_csv(index_col=0) and give the frame, or name columns="
    unnamed = "Unnamed: 0"  # as pandas calls a first column without a name
    _require_column(who, unnamed not in names, unnamed, f"{index}{remedy}")
    return names


def _as_dataset(who, frame, label, columns, classes, task) -> Dataset:
    """The rows of a table, all of one task."""
    alone = isinstance(columns, str) or not np.iterable(columns)
    named = [] if alone else list(columns)
    usable = named and label not in named
    wanted = f"expected a list of columns, got {shown(columns)}; name some of the table"
    require(usable, who, f"{wanted}, without {shown(label)}, the labels")
    y = _labels(who, _column(who, frame, label), classes)
    x = np.stack([_numbers(who, _column(who, frame, name)) for name in named], 1)
    ones, number = np.ones(len(y), np.float32), np.full(len(y), task, np.int32)
    return array_dataset(Batch(x, y, ones, number))


def _column(who: str, frame, name):
    """One column, which is there once."""
    found = list(frame.columns).count(name)
    how = f"is there {found} times" if found else "is missing"
    there = ", ".join(map(shown, frame.columns[:8]))
    _require_column(who, found == 1, name, f"{how} among {there}; name another")
    return frame[name]


_FILL = "fill them (frame.fillna), scale them or drop their rows (frame.dropna)"
_DROP = (
    "drop their rows (frame.dropna(subset=[label])), and see that classes are integers"
)


def _numbers(who: str, column, remedy: str = _FILL) -> Float[np.ndarray, " n"]:
    """A column as float32."""
    text = f"holds no numbers, but {shown(column.iloc[0])}; encode it "
    text += "(pandas.get_dummies), or leave it out by columns="
    _require_column(who, column.dtype.kind in "biuf", column.name, text)
    with np.errstate(over="ignore"):
        numbers = column.to_numpy(np.float32, na_value=np.nan)
    odd = "missing values, or numbers that float32 cannot hold"
    _require_rows(who, np.isfinite(numbers), column, odd, remedy)
    return numbers


def _labels(who: str, column, classes) -> np.ndarray:
    """Class numbers int32, or targets float32."""
    if classes is not None:
        numbers, known = _encoded(who, column, classes)
        of_text = column.dtype.kind in "biuf" and all(isinstance(c, str) for c in known)
        strange = of_text and (column.notna() & (numbers < 0)).any()
        wanted = (
            "holds numbers, classes are text; leave classes out where they count from 0"
        )
        listed = f"{wanted}, else give classes=[{_few(column)}]"
        _require_column(who, not strange, column.name, listed)
        odd, remedy = f"labels that are none of the {len(known)} classes", "add them"
        _require_rows(who, numbers >= 0, column, odd, f"{remedy}, or drop these rows")
        return numbers
    found = [] if column.dtype.kind in "biuf" else column.dropna().unique().tolist()
    text = f"holds {len(found)} labels, no numbers; give classes=[{_few(column)}]"
    _require_column(who, not found, column.name, text)
    numbers = _numbers(who, column, _DROP)
    if column.dtype.kind == "f":
        return numbers
    remedy = "encode_labels numbers classes; targets are floats"
    classes = (column >= 0) & (column < 2**31)
    _require_rows(who, classes, column, "numbers that are not classes of int32", remedy)
    return column.to_numpy(np.int32)


def _few(column) -> str:
    """The first of its values, for a message."""
    found = column.dropna().unique().tolist()
    return ", ".join(map(repr, found[:4])) + (", ..." if len(found) > 4 else "")


def _warn_of_whole_targets(who: str, column, classes) -> None:
    """Warn of class numbers that became targets: pandas makes them floats at one gap."""
    if classes is None and column.dtype.kind == "f" and (column % 1 == 0).all():
        warn(
            f"{who}: column {shown(str(column.name))} holds floats, so its labels are "
            "targets, though all are whole. For classes convert it: .astype(int)."
        )


def _require_column(who: str, holds, name, problem: str):
    require(holds, who, f"column {shown(str(name))} {problem}")


def _require_rows(who: str, good, column, problem: str, remedy: str):
    """Refuse a column with rows that are not good, naming the first of them."""
    bad = column[~np.asarray(good, bool)]
    row, value = next(iter(bad.items()), (None, None))
    first = (
        f"has {problem} ({len(bad)}), the first in row {row}: {shown(value)}; {remedy}"
    )
    _require_column(who, bad.empty, column.name, first)
