"""Records of files in several formats, with the place of each."""

import csv
import gzip
import json
import sys

import numpy as np
import pandas as pd
import pytest

from jaxcl.data.records import digest_of, read_records, texts_of, values_of
from jaxcl.errors import InputError

ROWS = [
    {"text": "Stocks rose.", "label": "money"},
    {"text": 'He said "no",\nand left; naïve ☕', "label": "news"},
    {"text": "NA", "label": "null"},  # what pandas takes for missing
]


def as_json_lines(path):
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")


def as_json_list(path):
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")


def as_gzip(path):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))


def as_csv(path):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)


def as_tsv(path):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter="\t")
        writer.writeheader()
        writer.writerows(ROWS)


def as_parquet(path):
    pytest.importorskip("pyarrow")
    pd.DataFrame(ROWS).to_parquet(path)


def as_arrow_file(path):
    pa = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table)


def as_folder(path, rows=ROWS, features=None):
    """What ``save_to_disk`` writes: Arrow streams, and two files of JSON."""
    pa = pytest.importorskip("pyarrow")
    path.mkdir()
    names = []
    for number, part in enumerate((rows[:2], rows[2:])):
        names.append(f"data-{number:05}-of-00002.arrow")
        table = pa.Table.from_pylist(part)
        with (
            pa.OSFile(str(path / names[-1]), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as out,
        ):
            out.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names]}
    (path / "state.json").write_text(json.dumps(state))
    info = {"features": features or {}}
    (path / "dataset_info.json").write_text(json.dumps(info))


FILES = {
    "rows.jsonl": as_json_lines,
    "rows.txt": as_json_lines,
    "rows.json": as_json_list,
    "rows.jsonl.gz": as_gzip,
    "rows.csv": as_csv,
    "rows.TSV": as_tsv,
    "rows.parquet": as_parquet,
    "rows.arrow": as_arrow_file,
    "saved": as_folder,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_holds_the_same_rows(tmp_path, name):
    """Oracle: the rows that were written; text such as NA is not taken for missing."""
    path = tmp_path / name
    FILES[name](path)
    for given in (path, str(path)):
        records = read_records("test", given)
        assert [dict(row) for row in records.rows] == ROWS
        assert records.place(2).startswith(f"{path}, ")


@pytest.mark.parametrize("kind", ["list", "frame", "dataset"])
def test_rows_in_memory_are_the_same(kind):
    """Oracle: the list itself."""

    class Items:  # as a Hugging Face dataset
        def __len__(self):
            return len(ROWS)

        def __getitem__(self, number):
            return ROWS[number]

    source = {"list": ROWS, "frame": pd.DataFrame(ROWS), "dataset": Items()}[kind]
    records = read_records("test", source)
    assert [dict(row) for row in records.rows] == ROWS
    assert records.place(1) == "records, row 1"
    assert digest_of("test", source) == digest_of("test", ROWS)


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("a.jsonl", '{"x": 1}\n\n  \n{"x": 2}\r\n{"x": 3}', ["1", "4", "5"]),
        ("a.json", ' [\n{"x": 1},\n\n{"x":\n2}, {"x": 3}]\n', [f"{n}" for n in "245"]),
        ("a.csv", 'x\n\n1\n"2\n2"\n3', ["3", "4", "6"]),
    ],
)
def test_a_place_is_the_line_where_a_record_begins(tmp_path, name, text, places):
    """Oracle: counted by hand; items of a list are also numbered."""
    path = tmp_path / name
    path.write_text(text, newline="")
    records = read_records("test", path)
    found = [records.place(row) for row in range(3)]
    items = [f" (item {row})" if name == "a.json" else "" for row in range(3)]
    assert found == [
        f"{path}, line {place}{item}" for place, item in zip(places, items, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.jsonl", b"", "a.jsonl is empty; give"),
        ("a.jsonl", b" \n \n", "a.jsonl is empty; give"),
        ("a.csv", b"text,label\n", "a.csv has no rows; give"),
        ("a.json", b"[ ]", "a.json has no rows; give"),
        (
            "a.jsonl",
            b'{"x": 1}\n\x00\x01',
            "line 2: holds binary data; give a text file",
        ),
        (
            "a.jsonl",
            b'{"x": 1}\n{"x": "\xff"}',
            r"line 2: is not UTF-8 text \(byte 0xff",
        ),
        ("a.jsonl", '{"x": 1}'.encode("utf-16"), "line 1: holds binary data"),
        ("a.jsonl", b'{"x": 1}\n{"x": ', "line 2: is not JSON .*; fix it"),
        ("a.jsonl", b'{"x": 1}\n[1]', "line 2: expected a JSON object .*, got list"),
        ("a.jsonl", b'"text"', "line 1: expected a JSON object .*, got str"),
        ("a.jsonl", b"[" * 9000, "line 1: is not JSON"),
        ("a.json", b'[{"x": 1},\n 5]', r"line 2 \(item 1\): expected a JSON object"),
        ("a.json", b'[{"x": 1}\n{"x": 2}]', "line 2: is not JSON .*Expecting ',' or"),
        ("a.json", b'[{"x": 1},\n]', "line 2: is not JSON"),
        ("a.json", b'[{"x": 1}]\n[]', "line 2: is not JSON .*more text after the list"),
        ("a.json", b'[{"x": 1}] x', "line 1: is not JSON .*more text after the list"),
        ("a.jsonl.gz", b"plain", "a.jsonl.gz cannot be read .*; get it again"),
        (
            "a.jsonl.gz",
            gzip.compress(b"x" * 99, mtime=0)[:-9],
            "a.jsonl.gz cannot be read",
        ),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": 1, "a": 2}',
            r"line 2: .*: field 'a' is there twice",
        ),
        ("a.json", b'[{"a": 1},\n{"b": {"c": 1, "c": 2}}]', r"line 2: .* 'c' is there"),
        ("a.csv", b"a,a\n1,2", r"line 1: fields \['a'\] are there twice; rename one"),
        ("a.csv", b"a,b\n1,2\n1,2,3", "line 3: expected 2 fields, got 3; quote"),
        ("a.csv", b'a,b\n1,"2', "line 2: is not CSV"),
        ("a.csv", b'a,b\n1,"2\n3,4\n5,6\n', "line 2: is not CSV .*unexpected end"),
        ("a.csv", b'a,b\n1,"2\n3"4,5\n', "line 2: is not CSV"),
        ("a.parquet", b"PAR1nothing", "a.parquet is not a table of rows"),
        ("a.arrow", b"nothing", "a.arrow is not a table of rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(
    tmp_path, name, raw, words
):
    """Oracle: the fault that was put there."""
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(InputError, match=words) as error:
        read_records("test", path)
    assert str(error.value).startswith("test: ")
    assert "\n" not in str(error.value)


def test_a_saved_folder_without_its_files_is_refused(tmp_path):
    """Oracle: the file that was removed or damaged."""
    saved = tmp_path / "saved"
    as_folder(saved)
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no file .*data-00001.*; put it there"
    ):
        read_records("test", saved)
    (saved / "state.json").write_text("[")
    with pytest.raises(InputError, match=r"state.json is damaged \(JSONDecodeError"):
        read_records("test", saved)
    (saved / "state.json").unlink()  # the files themselves are then found
    assert len(read_records("test", saved).rows) == 2
    (saved / "dataset_dict.json").touch()
    with pytest.raises(
        InputError, match="holds several splits; give one of its folders"
    ):
        read_records("test", saved)
    with pytest.raises(FileNotFoundError, match="holds no Arrow files; give a folder"):
        read_records("test", tmp_path)


def test_without_pyarrow_its_files_are_refused(tmp_path, monkeypatch):
    """Oracle: the name of the extra."""
    as_folder(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs pyarrow; pip install '.\[data\]'"
    ):
        read_records("test", tmp_path / "saved")


def test_fields_are_read_and_checked(tmp_path):
    """Oracle: by hand; numbers of NumPy are those of Python."""
    path = tmp_path / "a.jsonl"
    lines = ['{"t": "a", "y": 1}', '{"t": "b", "y": true}', '{"t": 5, "y": 0.5}', "{}"]
    path.write_text("\n".join([*lines, '{"t": "\\ud800"}']))
    records = read_records("test", path)
    first = records._replace(rows=records.rows[:2])
    assert texts_of("test", first, "t", name="text") == ["a", "b"]
    assert values_of("test", first, "y", name="label") == [1, True]
    array = read_records("test", [{"y": np.int64(3)}])
    assert type(values_of("test", array, "y", name="label")[0]) is int
    for row, words in [
        (
            2,
            r"line 3: expected text in 't', got 5; fix it, or name another field by text=",
        ),
        (3, r"line 4: field 't' is missing, there are none; name another by text="),
        (4, r"line 5: 't' holds half a character \(a surrogate\)"),
    ]:
        bad = records._replace(rows=records.rows[row:], lines=records.lines[row:])
        with pytest.raises(InputError, match=words):
            texts_of("test", bad, "t", name="text")
    with pytest.raises(InputError, match=r"line 3: expected text or an integer in 'y'"):
        values_of("test", records, "y", name="label")


def test_a_digest_is_of_the_content(tmp_path):
    """Law: equal for a copy elsewhere; another for one changed letter."""
    digests = []
    for name, last in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "rows.jsonl"
        path.write_text(f'{{"text": "{last}"}}')
        digests.append((digest_of("test", path), digest_of("test", path.parent)))
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])
    assert digest_of("t", [{"a": 1}]) != digest_of("t", [{"a": "1"}])
