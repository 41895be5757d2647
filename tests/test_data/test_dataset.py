"""Rows by number: from memory, from lines of a file, from anything with items."""

import gc
import json
import os
import weakref

import jax
import numpy as np
import pytest

from jaxcl.data import (
    array_dataset,
    from_arrays,
    jsonl_dataset,
    source_dataset,
    stream_tasks,
)
from jaxcl.data import dataset as dataset_module
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
        jsonl_dataset(lines, parse, task=2),
        source_dataset(WORDS, parse, task=2),
    ):
        assert rows.count == 5
        batch = rows.read(numbers)
        np.testing.assert_array_equal(batch.x, [[3, 6], [0, 0], [3, 6]])
        np.testing.assert_array_equal(batch.y, [0, 0, 0])
        np.testing.assert_array_equal(batch.task, [2, 2, 2])
        np.testing.assert_array_equal(batch.weight, [1, 1, 1])
        assert (batch.y.dtype, batch.weight.dtype) == (np.int32, np.float32)


def test_a_pipeline_of_grain_gives_the_rows_of_the_list():
    """Oracle: the list itself, mapped by hand."""
    grain = pytest.importorskip("grain")
    doubled = lambda record: {**record, "x": [2 * x for x in record["x"]]}
    rows = source_dataset(grain.MapDataset.source(WORDS).map(doubled), parse, task=1)
    want = source_dataset([doubled(record) for record in WORDS], parse, task=1)
    numbers = np.array([4, 1, 1, 0])
    assert rows.count == want.count == 5
    jax.tree.map(np.testing.assert_array_equal, rows.read(numbers), want.read(numbers))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[1, 2]", "expected an object, got list"),
        ('{"x": [1, 2]}', "'y'"),
        ('{"x": [1], "y": 0}', "expected shapes ((2,), ()), as line 1, got ((1,)"),
        ('{"x": [1, NaN], "y": 0}', "expected finite numbers, got [ 1. nan]"),
        ('{"x": [1, -Infinity], "y": 0}', "expected finite numbers, got [  1. -inf]"),
        ('{"x": [1, 1e999], "y": 0}', "expected finite numbers, got [ 1. inf]"),
        ('{"x": [1, 1e300], "y": 0}', "expected finite numbers, got [ 1. inf]"),
        ('{"x": [1, 2], "y": 1e999}', "OverflowError"),
        ('{"x": [1, 1' + "0" * 400 + '], "y": 0}', "OverflowError"),
        ('{"x": [1, 2], "y": 2147483648}', "integers within int32"),
        # Some versions of Python refuse it by their own limit, others read it.
        (
            '{"x": ' + "[" * 5000 + "]" * 5000 + ', "y": 0}',
            "RecursionError|maximum number",
        ),
        ('{"x": [1, 2], "y": "\udcff"}', "UnicodeDecodeError"),
    ],
)
def test_a_bad_line_is_named_or_counted(lines, line, reason):
    """Oracle: the line that was put there, third of the file."""
    good = lines.read_text().splitlines()
    text = "\n".join([*good[:2], line, *good[2:]])
    lines.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="line 3 is bad") as error:
        jsonl_dataset(lines, parse, task=0)
    assert any(one in str(error.value) for one in reason.split("|"))
    assert str(lines) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="skipped 1 bad lines") as warned:
        rows = jsonl_dataset(lines, parse, task=0, skip_bad_lines=True)
    assert "line 3" in str(warned[0].message)
    assert rows.count == 5
    np.testing.assert_array_equal(rows.read(np.arange(5)).x[:, 0], range(5))


def test_a_number_beyond_float32_is_a_bad_line_unless_rows_are_float64(tmp_path):
    """Oracle: 1e300 as float32 is infinity; with 64 bits it is kept (control)."""
    (tmp_path / "a.jsonl").write_text('{"x": [1e300]}\n')
    load = lambda: jsonl_dataset(
        tmp_path / "a.jsonl", lambda record: (np.array(record["x"]), 0), task=0
    )
    with pytest.raises(ValueError, match=r"line 1 is bad .*beyond float32"):
        load()
    with jax.enable_x64(True):
        assert load().read(np.arange(1)).x.tolist() == [[1e300]]


def test_a_file_that_changed_since_is_refused(lines):
    """Oracle: lines of the same lengths, written later; untouched it is the control."""
    rows = jsonl_dataset(lines, parse, task=0)
    rows.read(np.array([1]))
    held, stamp = lines.read_text(), lines.stat().st_mtime_ns + 1
    lines.write_text(held.replace("0", "9"))
    os.utime(lines, ns=(stamp, stamp))
    with pytest.raises(ValueError, match=f"{lines} changed after it was indexed"):
        rows.read(np.array([1]))


def test_a_batch_of_lines_has_the_dtypes_of_the_file(tmp_path):
    """Oracle: all rows read at once; the second line alone has fractions."""
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"x": [1, 2], "y": 0}\n{"x": [0.5, 2], "y": 1}\n')
    plain = lambda record: (np.array(record["x"]), record["y"])
    rows = jsonl_dataset(path, plain, task=0)
    whole = rows.read(np.arange(2))
    assert (whole.x.dtype, whole.y.dtype) == (np.float64, np.int32)
    np.testing.assert_array_equal(whole.x, [[1, 2], [0.5, 2]])
    for number in (0, 1):
        alone = rows.read(np.array([number]))
        assert (alone.x.dtype, alone.y.dtype) == (np.float64, np.int32)
        np.testing.assert_array_equal(alone.x[0], whole.x[number])


def test_a_batch_of_items_has_the_dtypes_of_the_first():
    """Oracle: by hand; whole numbers become fractions, never the other way round."""
    items = [np.array([0.5, 1], np.float32), np.array([1, 2]), np.array([0.1, 0.2])]
    plain = lambda x: (x, 0)
    rows = source_dataset(items, plain, task=0)
    for numbers in ([1], [2], [0, 1, 2]):
        assert rows.read(np.array(numbers)).x.dtype == np.float32
    with pytest.raises(ValueError, match=r"dtypes of the first item.*int64.*let parse"):
        source_dataset(items[1:], plain, task=0).read(np.arange(2))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_images_as_bytes_are_the_same_rows_from_everywhere(tmp_path, channels):
    """Oracle: the same images in memory, in [0, 1]. Negative controls: wider integers,
    bytes that are no images, and labels, which stay integers."""
    x = np.random.default_rng(0).integers(0, 256, (6, 4, 5, *channels), np.uint8)
    path, numbers = tmp_path / "a.jsonl", np.array([4, 0, 4])
    path.write_text("".join(f"{json.dumps({'x': row.tolist()})}\n" for row in x))
    want = array_dataset(as_batch(x, np.zeros(6, int))).read(numbers).x
    assert want.dtype == np.float32
    np.testing.assert_allclose(want, x[numbers] / 255.0, rtol=1e-6)

    def read(make):
        plain = lambda record: make(np.array(record["x"]))
        items = [{"x": row.tolist()} for row in x]
        yield source_dataset(items, plain, task=0).read(numbers)
        yield jsonl_dataset(path, plain, task=0).read(numbers)

    for found in read(lambda image: ({"a": np.uint8(image)}, 0)):
        np.testing.assert_array_equal(found.x["a"], want, strict=True)
    whole = x[numbers].astype(np.int32)
    for found in read(lambda image: (image, np.uint8(image))):
        np.testing.assert_array_equal(found.x, whole, strict=True)
        np.testing.assert_array_equal(found.y, whole, strict=True)
    for found in read(lambda image: (np.uint8(image.ravel()), 0)):
        np.testing.assert_array_equal(found.x, whole.reshape(3, -1), strict=True)
    mixed = source_dataset([x[0], x[1].astype(np.uint16)], lambda x: (x, 0), task=0)
    with pytest.raises(ValueError, match=r"dtypes of the first item.*uint8.*let parse"):
        mixed.read(np.arange(2))


def test_nothing_to_read_is_refused(tmp_path):
    """Oracle: the contract."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(FileNotFoundError, match="no file"):
        jsonl_dataset(tmp_path / "none.jsonl", parse, task=0)
    with pytest.raises(ValueError, match="no usable line"):
        jsonl_dataset(empty, parse, task=0)


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


def test_a_stream_is_read_by_two_programs_a_split_and_one_task_of_it_stays(monkeypatch):
    """Oracles: a counter in the traced code, and what the collector leaves.

    Control: reading a task again and again makes it once.
    """
    traces, made, keep = [], [], dataset_module.array_dataset

    def counted(name, make):
        return lambda pool, plan: (traces.append(name), make(pool, plan))[1]

    def followed(batch):
        rows = keep(batch)
        made.append(weakref.ref(rows.read))
        return rows

    monkeypatch.setattr(dataset_module, "array_dataset", followed)
    batches = [as_batch(np.full((4, 3), t), np.zeros(4, int), task=t) for t in range(5)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    stream = from_arrays(stacked, stacked, num_classes=2)
    tasks = stream_tasks(
        stream._replace(
            train=counted("train", stream.train), test=counted("test", stream.test)
        )
    )
    for index, task in enumerate(tasks):
        for rows in (task.train, task.test):
            for number in range(4):
                found = rows.read(np.array([number]))
                np.testing.assert_array_equal(found.x, np.full((1, 3), index))
    assert sorted(traces) == ["test"] * 2 + ["train"] * 2
    assert len(made) == 10
    gc.collect()
    assert sum(read() is not None for read in made) == 2
    np.testing.assert_array_equal(tasks[0].train.read(np.arange(2)).x, np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('"cat"', "line 2 is bad .ValueError: expected numbers from parse, got 'cat'"),
        (
            str(2**40),
            "line 2 is bad .ValueError: expected integers within int32 from parse, got 1",
        ),
        (
            str(10**400),
            "line 2 is bad .ValueError: expected integers within int32 from parse, got "
            "int beyond it",
        ),
        ("[1]", r"line 2 is bad .ValueError: expected shapes"),
    ],
)
def test_a_label_that_no_batch_can_hold_is_a_bad_line(tmp_path, bad, words):
    """Oracle: the file; such a line is skipped like any other."""
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"x": [1.5], "y": 0}}\n{{"x": [2.5], "y": {bad}}}\n')
    parse = lambda record: (np.float32(record["x"]), record["y"])
    with pytest.raises(ValueError, match=words):
        jsonl_dataset(path, parse, task=0)
    with pytest.warns(UserWarning, match="skipped 1 bad lines"):
        rows = jsonl_dataset(path, parse, task=0, skip_bad_lines=True)
    assert rows.count == 1


@pytest.mark.parametrize(
    "parse", [lambda record: np.zeros(2), lambda record: record.no]
)
def test_a_parse_that_returns_no_pair_or_slips_is_named_with_the_line(tmp_path, parse):
    """Oracle: the message."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    wanted = r"line 1 is bad \((ValueError: expected \(x, y\)|AttributeError)"
    with pytest.raises(ValueError, match=wanted):
        jsonl_dataset(tmp_path / "a.jsonl", parse, task=0)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"x": [1], "y": 0}, r"expected shapes \(\(2,\), \(\)\), as item 0"),
        ({"y": 0}, "KeyError: 'x'"),
        (None, "TypeError"),
    ],
)
def test_a_bad_item_is_named_when_it_is_read(item, reason):
    """Oracle: the item that was put there; the others are the control."""
    rows = source_dataset([*WORDS[:2], item], parse, task=0)
    assert rows.read(np.arange(2)).y.shape == (2,)
    with pytest.raises(
        ValueError, match=rf"source_dataset: item 2 is bad \(.*{reason}"
    ):
        rows.read(np.arange(3))


def test_an_item_beyond_int32_is_refused_when_it_is_read():
    """Oracle: the message; narrower integers of another kind pass."""
    parse = lambda item: (np.float32([1.0]), item)
    rows = source_dataset([np.int8(1), np.int64(300), 2**40], parse, task=0)
    assert rows.read(np.arange(2)).y.tolist() == [1, 300]
    with pytest.raises(
        ValueError, match=r"item 2 is bad .* int32 .*, got 1099511627776"
    ):
        rows.read(np.arange(3))
