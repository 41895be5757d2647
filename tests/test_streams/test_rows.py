"""Rows by number: from memory, from lines of a file, from anything with items."""

import json

import jax
import numpy as np
import pytest

from jaxcl.streams import (
    array_rows,
    from_arrays,
    jsonl_rows,
    source_rows,
    stream_tasks,
)
from jaxcl.tree import as_batch

WORDS = [{"x": [i, 2 * i], "y": i % 3} for i in range(5)]


def parse(record):
    return np.asarray(record["x"], np.float32), np.int64(record["y"])


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, WORDS)) + "\n\n")
    return path


def test_lines_of_a_file_and_items_of_a_list_are_the_same_rows(lines):
    """Oracle: the records, by hand; an empty line is none, order is that of the ask."""
    numbers = np.array([3, 0, 3])
    for rows in (
        jsonl_rows(lines, parse, task=2),
        source_rows(WORDS, parse, task=2),
    ):
        assert rows.count == 5
        batch = rows.read(numbers)
        np.testing.assert_array_equal(batch.x, [[3, 6], [0, 0], [3, 6]])
        np.testing.assert_array_equal(batch.y, [0, 0, 0])
        np.testing.assert_array_equal(batch.task, [2, 2, 2])
        np.testing.assert_array_equal(batch.weight, [1, 1, 1])
        assert (batch.y.dtype, batch.weight.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[1, 2]", "expected an object, got list"),
        ('{"x": [1, 2]}', "'y'"),
        ('{"x": [1], "y": 0}', "expected shapes"),
    ],
)
def test_a_bad_line_is_named_or_counted(lines, line, reason):
    """Oracle: the line that was put there, third of the file."""
    good = lines.read_text().splitlines()
    lines.write_text("\n".join([*good[:2], line, *good[2:]]))
    with pytest.raises(ValueError, match="line 3 is bad") as error:
        jsonl_rows(lines, parse, task=0)
    assert reason in str(error.value)
    assert str(lines) in str(error.value)
    with pytest.warns(UserWarning, match="passed over 1 bad lines") as warned:
        rows = jsonl_rows(lines, parse, task=0, skip_bad_lines=True)
    assert "line 3" in str(warned[0].message)
    assert rows.count == 5
    np.testing.assert_array_equal(rows.read(np.arange(5)).x[:, 0], range(5))


def test_nothing_to_read_is_refused(tmp_path):
    """Oracle: the contract."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(FileNotFoundError, match="no file"):
        jsonl_rows(tmp_path / "none.jsonl", parse, task=0)
    with pytest.raises(ValueError, match="no usable line"):
        jsonl_rows(empty, parse, task=0)
    with pytest.raises(ValueError, match="at least one item"):
        source_rows([], parse, task=0)
    with pytest.raises(ValueError, match="weight above 0"):
        array_rows(as_batch(np.ones((2, 1)), np.zeros(2, int), weight=np.zeros(2)))


def test_tasks_of_a_stream_are_its_rows_without_the_padding():
    """Oracle: the arrays that the stream was made of."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 3)).astype(np.float32), np.arange(8).reshape(2, 4) % 2
    weight = np.array([[1, 1, 1, 1], [1, 0, 1, 1]], np.float32)
    batches = [as_batch(x[t], y[t], weight=weight[t], task=t) for t in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    tasks = stream_tasks(from_arrays(stacked, stacked, num_classes=2))
    assert [task.train.count for task in tasks] == [4, 3]
    found = tasks[1].test.read(np.arange(3))
    np.testing.assert_array_equal(found.x, x[1][[0, 2, 3]])
    np.testing.assert_array_equal(found.y, y[1][[0, 2, 3]])
    assert tasks[1].name == "arrays 1"
