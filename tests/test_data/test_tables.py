"""Tables: numbered classes, rows of CSV files and frames, tasks by a column."""

import csv

import jax
import numpy as np
import pandas as pd
import pytest

from jaxcl.data import (
    array_dataset,
    csv_dataset,
    csv_tasks,
    encode_labels,
    from_arrays,
    stack_tasks,
)
from jaxcl.errors import InputError
from jaxcl.tree import as_batch

WORDS = ["dog", "cat", "cow", "cat"]


@pytest.mark.parametrize(
    "form", [list, np.array, pd.Series, lambda w: pd.Series(w, dtype="category")]
)
def test_classes_are_numbered_in_sorted_order_and_kept_for_the_test_set(form):
    """Oracle: numpy's unique, and the inverse lookup; an own order is the control."""
    y, classes = encode_labels(form(WORDS))
    want, inverse = np.unique(WORDS, return_inverse=True)
    assert classes == want.tolist()
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, inverse)
    np.testing.assert_array_equal(encode_labels(form(["cow"]), classes)[0], [1])
    own, order = encode_labels(form(WORDS), ["cow", "dog", "cat"])
    assert [order[number] for number in own] == WORDS
    assert own.tolist() == [1, 2, 0, 2]


def test_labels_may_be_numbers_and_of_any_shape():
    """Oracle: by hand."""
    y, classes = encode_labels(np.array([[30, 7], [7, 30]]))
    assert (y.tolist(), classes) == ([[1, 0], [0, 1]], [7, 30])
    assert encode_labels([True, False])[0].tolist() == [1, 0]
    assert encode_labels([30], np.array([7, 30]))[1] == [7, 30]


def table(count=12):
    """Rows whose columns are known functions of their number."""
    number = np.arange(count)
    return pd.DataFrame(
        {
            "wide": number * 0.5,
            "kind": np.where(number % 3, "u", "v"),
            "tall": number % 2 == 0,
            "year": 2021 - number % 2,
            "deep": number - 4,
        }
    )


@pytest.mark.parametrize("kind", ["file", "text path", "frame"])
def test_rows_of_a_table_are_its_columns(tmp_path, kind):
    """Oracle: the file read by Python's own csv module."""
    path = tmp_path / "table.csv"
    table().to_csv(path, index=False)
    source = {"file": path, "text path": str(path), "frame": table()}[kind]
    dataset = csv_dataset(
        source, label="kind", columns=["deep", "tall"], classes=["u", "v"], task=3
    )
    with path.open() as file:
        rows = list(csv.DictReader(file))
    numbers = np.array([7, 0, 7])
    batch = dataset.read(numbers)
    assert dataset.count == len(rows) == 12
    want = [[float(rows[i]["deep"]), rows[i]["tall"] == "True"] for i in numbers]
    np.testing.assert_array_equal(batch.x, want)
    np.testing.assert_array_equal(
        batch.y, ["uv".index(rows[i]["kind"]) for i in numbers]
    )
    assert (batch.x.dtype, batch.y.dtype) == (np.float32, np.int32)
    assert batch.task.tolist() == [3, 3, 3]


def test_integers_are_class_numbers_and_fractions_are_targets():
    """Oracle: the columns; all columns but the label are inputs where none is named."""
    numbers = table()[["wide", "tall", "year"]]
    classes = csv_dataset(numbers.astype({"tall": int}), label="tall").read(
        np.arange(12)
    )
    assert classes.y.dtype == np.int32
    np.testing.assert_array_equal(classes.x, numbers[["wide", "year"]])
    targets = csv_dataset(numbers, label="wide").read(np.arange(12))
    assert targets.y.dtype == np.float32
    np.testing.assert_array_equal(targets.y, np.arange(12) / 2)


def test_each_value_of_a_column_is_a_task(key):
    """Law: a task's train and test rows are together the rows of its value, each once.

    Tasks are in the order of the file (2021 before 2020) and numbered by it.
    """
    frame = table()
    tasks = csv_tasks(
        key, frame, label="kind", task="year", test_fraction=1 / 3, classes=["u", "v"]
    )
    assert [task.name for task in tasks] == ["2021", "2020"]
    for number, task in enumerate(tasks):
        parts = [part.read(np.arange(part.count)) for part in (task.train, task.test)]
        assert [len(part.y) for part in parts] == [4, 2]
        both = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        rows = frame[frame.year == 2021 - number]
        place = np.argsort(both.x[:, 0])
        np.testing.assert_array_equal(both.x[place], rows[["wide", "tall", "deep"]])
        np.testing.assert_array_equal(both.y[place], rows.kind == "v")
        assert set(both.task) == {number}
    stream = stack_tasks(tasks, num_classes=2)
    assert stream.pool.train.x.shape == (2, 4, 3)


def test_a_table_and_a_series_are_arrays_wherever_arrays_are_taken():
    """Oracle: the same numbers as arrays; columns of booleans and of floats mix."""
    frame, labels = table()[["wide", "tall"]], pd.Series(np.arange(12) % 2)
    x, y = np.stack([np.arange(12) / 2, np.arange(12) % 2 == 0], 1), np.arange(12) % 2
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(as_batch(frame, labels), as_batch(x, y))
    same(as_batch(frame, pd.Series(y, dtype="Int64")), as_batch(x, y))
    rows = array_dataset(as_batch({"a": frame}, labels)).read(np.array([5]))
    np.testing.assert_array_equal(rows.x["a"], x[[5]])
    pairs = [([frame[:6], frame[6:]], [labels[:6], labels[6:]])] * 2
    arrays = [(x.reshape(2, 6, 2), y.reshape(2, 6))] * 2
    pools = [from_arrays(*part, num_classes=2).pool for part in (pairs, arrays)]
    same(*pools)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "No columns"),
        (b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        (b"a,b\n1,2,3\n4,5,6\n", "does not match length of data"),
        (b'a,b\n"1,2\n', "EOF inside string"),
        (b"a,b\n\xff,3\n", "can't decode"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_place(tmp_path, raw, words):
    """Oracle: bytes written by hand; the second case is a row that pandas would shift."""
    path = tmp_path / "bad.csv"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"bad.csv is not a CSV .*{words}") as error:
        csv_dataset(path, label="b")
    assert "\n" not in str(error.value)


def test_rows_are_those_of_the_table(key):
    """Oracle: the row that was damaged by hand, of the second task."""
    frame = pd.DataFrame(
        {"a": np.arange(20.0), "y": 0, "place": 10 * ["u"] + 10 * ["v"]}
    )
    frame.loc[17, "a"] = np.nan
    split = {"label": "y", "task": "place", "test_fraction": 0.5}
    with pytest.raises(
        InputError, match=r"'a' has missing values.* \(1\), .* in row 17:"
    ):
        csv_tasks(key, frame, **split)
    kinds = frame.assign(y=17 * ["cat"] + ["cow"] + 2 * ["cat"], a=0.0)
    words = (
        r"csv_tasks: column 'y' has labels .* 1 classes \(1\), .* row 17: 'cow'; add"
    )
    with pytest.raises(InputError, match=words):
        csv_tasks(key, kinds, classes=["cat"], **split)
    with pytest.raises(InputError, match=r"must be a number in \(0, 1\), got 20.0"):
        csv_tasks(key, frame, **split | {"test_fraction": 20.0})
    with pytest.raises(InputError, match=r"list of columns.* without 'y', the labels"):
        csv_dataset(frame.dropna(), label="y", columns=["a", "y"])


def test_words_that_pandas_takes_for_missing_are_labels_and_tasks(tmp_path, key):
    """Oracle: the lines, by hand; an empty cell is the control, and NA among numbers."""
    path = tmp_path / "words.csv"
    lines = ["a,y,place", *(f"{n},{'NA' if n % 2 else 'None'},NA" for n in range(4))]
    path.write_text("\n".join([*lines, "4,NA,EU", "5,None,EU"]))
    words = {"label": "y", "classes": ["None", "NA"]}
    tasks = csv_tasks(key, path, task="place", test_fraction=0.5, **words)
    assert [task.name for task in tasks] == ["NA", "EU"]
    found = csv_dataset(path, columns=["a"], **words).read(np.arange(6))
    assert found.y.tolist() == [0, 1, 0, 1, 1, 0]
    path.write_text("\n".join([*lines, "4,,EU", "5,None,EU"]))
    with pytest.raises(InputError, match=r"'y' has labels .* \(1\), .* row 4: nan"):
        csv_dataset(path, columns=["a"], **words)
    path.write_text("a,y\n0,0\nNA,NA\n")
    for label, other in ("ay", "ya"):
        with pytest.raises(InputError, match=f"'{label}' has missing values"):
            csv_dataset(path, label=label, columns=[other])


def test_whole_floats_are_targets_with_one_warning(key):
    """Oracle: integers with a gap that is dropped; converted they are classes."""
    frame = pd.DataFrame({"a": np.arange(9.0), "y": [0, 1, None] * 3, "t": 1})
    frame = frame.dropna(subset=["y"])
    split = {"label": "y", "task": "t", "test_fraction": 0.5}
    for make in (
        lambda table: csv_dataset(table, label="y"),
        lambda table: (
            csv_tasks(key, table.assign(t=[0, 0, 0, 1, 1, 1]), **split)[0].train
        ),
    ):
        with pytest.warns(
            UserWarning, match=r"'y' holds floats.*astype\(int\)"
        ) as seen:
            rows = make(frame)
        assert len(seen) == 1
        assert rows.read(np.arange(1)).y.dtype == np.float32
        rows = make(frame.astype({"y": int}))  # no warning, which would be an error
        assert rows.read(np.arange(1)).y.dtype == np.int32
