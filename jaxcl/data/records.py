"""Records of named fields, from files or memory, and what their fields hold."""

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.files import existing_file
from jaxcl.data.readers import csv_rows, json_rows, saved_rows, table_rows
from jaxcl.errors import InputError, reason_of, require, shown

#: A file of JSON lines, a JSON list (each also ``.gz``), CSV, parquet or Arrow; a folder
#: that ``save_to_disk`` of Hugging Face datasets wrote; or records in memory: a list of
#: dicts, a pandas frame, a Hugging Face dataset.
Source = Any  # str | os.PathLike[str] | Sequence[Mapping[str, Any]] | pd.DataFrame

_WANTED = (
    "give a file of JSON lines or CSV, a folder of save_to_disk, or a list of dicts"
)
_ABSENT = object()


class Records(NamedTuple):
    """Records in memory, and where each of them was."""

    rows: Sequence[Mapping[str, Any]]
    lines: Sequence[int | str]  # the line of each row, or its number from 0 in a table
    source: str  # the path, for messages
    unit: str = "line"  # or "row"
    names: Mapping[str, list[str]] | None = None  # of numbered classes, by field
    is_text: bool = False  # whether all values are text, as in a CSV file

    def place(self, row: int) -> str:
        """Where a row is, for a message."""
        return f"{self.source}, {self.unit} {self.lines[row]}"


def read_records(who: str, source: Source) -> Records:
    """All records of a source, in their order; files are read into memory.

    Raises:
      InputError: for a file that is missing, empty or not text, and for a record that
        cannot be read, with its line.
    """
    if not isinstance(source, str | os.PathLike):
        return _in_memory(who, source)
    path = Path(source)
    name = str(path)
    if path.is_dir():
        rows, classes = saved_rows(who, path)
        records = Records(rows, range(len(rows)), name, "row", classes)
    else:
        existing_file(who, path, _WANTED)
        kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
        if kind in ("parquet", "arrow", "feather"):
            rows = table_rows(who, [path])
            records = Records(rows, range(len(rows)), name, "row")
        elif kind in ("csv", "tsv"):
            comma = "\t" if kind == "tsv" else ","
            records = Records(*csv_rows(who, path, comma), name, is_text=True)
        else:
            records = Records(*json_rows(who, path), name)
    require(records.rows, who, f"{name} has no rows; give a file with some")
    return records


def _in_memory(who: str, source: Any) -> Records:
    """Records of a list, a pandas frame or a Hugging Face dataset."""
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        source = source.to_dict("records")
    listed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    listed = listed and not isinstance(source, Mapping | bytes)
    require(listed, who, f"expected a path or records, got {shown(source)}; {_WANTED}")
    rows = []
    for number in range(len(source)):
        record = source[number]
        if not isinstance(record, Mapping):
            wanted = f"row {number} must be a dict of fields, got {shown(record)}"
            require(False, who, f"{wanted}; {_WANTED}")
        rows.append(record)
    require(rows, who, f"expected records, got none; {_WANTED}")
    features = getattr(source, "features", None)  # of Hugging Face datasets
    held = features.items() if isinstance(features, Mapping) else ()
    classes = {
        field: list(kind.names) for field, kind in held if hasattr(kind, "names")
    }
    return Records(rows, range(len(rows)), "records", "row", classes)


def digest_of(who: str, source: Source) -> str:
    """SHA-256 of the content of a source; files are not parsed."""
    total = hashlib.sha256()
    if not isinstance(source, str | os.PathLike):
        for row in _in_memory(who, source).rows:
            fields = sorted(row.items(), key=repr)  # names may be of several types
            total.update(repr(fields).encode(errors="backslashreplace"))
        return total.hexdigest()
    path = Path(source)
    if not path.is_dir():
        existing_file(who, path, _WANTED)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    try:
        for file in filter(Path.is_file, files):
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        msg = f"{who}: {path} cannot be read ({reason_of(error)}); get it again."
        raise InputError(msg) from error
    return total.hexdigest()


# ------------------------------------------------------------------------------ fields


def texts_of(who: str, records: Records, field: str, *, name: str) -> list[str]:
    """The text of a field of each record; ``name`` is the argument that names it."""
    found = enumerate(records.rows)
    return [text_of(who, records.place(i), row, field, name) for i, row in found]


def text_of(who: str, place: str, record: Mapping, field: str, name: str) -> str:
    """The text of a field of one record, which UTF-8 can hold."""
    text = record.get(field, _ABSENT)
    if text is _ABSENT:
        refuse_absent(who, place, record, field, name)
    if not isinstance(text, str):
        wanted = f"expected text in {field!r}, got {shown(text)}"
        remedy = f"fix it, or name another field by {name}="
        require(False, who, f"{place}: {wanted}; {remedy}")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold halves of characters, "\ud800"
        half = f"{field!r} holds half a character (a surrogate)"
        require(False, who, f"{place}: {half}, which UTF-8 cannot hold; fix it")
    return text


def values_of(who: str, records: Records, field: str, *, name: str) -> list[Any]:
    """The text, integer or boolean in a field of each record, such as its label."""
    values = []
    for row, record in enumerate(records.rows):
        value = record.get(field, _ABSENT)
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, str | int):
            if value is _ABSENT:
                refuse_absent(who, records.place(row), record, field, name)
            wanted = f"expected text or an integer in {field!r}, got {shown(value)}"
            require(False, who, f"{records.place(row)}: {wanted}; fix it")
        values.append(value)
    return values


def refuse_absent(who: str, place: str, record: Mapping, field: str, name: str):
    """Say that a record lacks a field, which the argument ``name`` names."""
    there = ", ".join(map(shown, itertools.islice(record, 8))) or "none"
    absent = f"field {shown(field)} is missing, there are {there}"
    require(False, who, f"{place}: {absent}; name another by {name}=, or fix the line")
