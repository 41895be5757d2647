"""Readers of files that hold records of named fields: each gives rows and their lines."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcl.data.files import existing_file
from jaxcl.errors import InputError, MissingFileError, reason_of, require, shown

#: Rows, and the line of each.
Rows = tuple[list[dict[str, Any]], list[int | str]]

_NOT_JSON = (ValueError, RecursionError, MemoryError)  # MemoryError: "[" * 10**6


def read_text(who: str, path: Path) -> str:
    """The text of a file in UTF-8, plain or ``.gz``, without its byte order mark."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        msg = f"{who}: {path} cannot be read ({reason_of(error)}); get it again."
        raise InputError(msg) from error
    require(raw.strip(), who, f"{path} is empty; give a file with rows")
    remedy = "give a text file in UTF-8"
    null = raw.find(b"\0")
    if null >= 0:
        line = raw.count(b"\n", 0, null) + 1
        require(False, who, f"{path}, line {line}: holds binary data; {remedy}")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        msg = f"{who}: {path}, line {line}: is not UTF-8 text ({byte}); {remedy}."
        raise InputError(msg) from error


def json_rows(who: str, path: Path) -> Rows:
    """JSON objects: one per line, where empty lines are skipped, or one list of them."""
    text = read_text(who, path)
    is_list = text.lstrip().startswith("[")
    rows, lines = [], []
    for line, record in (_json_list if is_list else _json_lines)(who, path, text):
        if is_list:  # which may be all in one line
            line = f"{line} (item {len(rows)})"
        if not isinstance(record, dict):
            wanted = "expected a JSON object of named fields, got "
            wanted += type(record).__name__
            require(False, who, f"{path}, line {line}: {wanted}; fix it")
        rows.append(record)
        lines.append(line)
    return rows, lines


def _json_lines(who: str, path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                yield line, json.loads(content, object_pairs_hook=_unique)
            except _NOT_JSON as error:
                raise _not_json(who, path, line, error) from error


def _json_list(who: str, path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of one JSON list, with the line where each begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    line, counted, place = 1, 0, _skip_spaces(text, text.index("[") + 1)
    closed = text[place : place + 1] == "]"
    while not closed:
        line += text.count("\n", counted, place)
        counted = place
        try:
            record, place = decoder.raw_decode(text, place)
            yield line, record
            place = _skip_spaces(text, place)
            closed = text[place : place + 1] == "]"
            if not closed and text[place : place + 1] != ",":
                msg = "Expecting ',' or ']'"
                raise json.JSONDecodeError(msg, text, place)
        except _NOT_JSON as error:
            line = getattr(error, "lineno", line)
            raise _not_json(who, path, line, error) from error
        place = place if closed else _skip_spaces(text, place + 1)
    rest = _skip_spaces(text, place + 1)
    if rest < len(text):
        line += text.count("\n", counted, rest)
        error = ValueError("more text after the list")
        raise _not_json(who, path, line, error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two fields of one name Python would take the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"field {shown(twice)} is there twice"
        raise ValueError(msg)
    return found


def _skip_spaces(text: str, place: int) -> int:
    """The place of the next character that is not a space of JSON."""
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place


def _not_json(who: str, path: Path, line: int, error: Exception) -> InputError:
    return InputError(
        f"{who}: {path}, line {line}: is not JSON ({reason_of(error)}); fix it."
    )


def csv_rows(who: str, path: Path, comma: str) -> Rows:
    """Rows of a table with a header line, all as text: nothing is taken for missing."""
    text = io.StringIO(read_text(who, path), newline="")
    reader = csv.reader(text, delimiter=comma, strict=True)
    rows, lines, header, after = [], [], [], 0
    try:
        for fields in reader:
            line, after = after + 1, reader.line_num  # quoted text may have many lines
            if not fields:
                continue
            if not header:
                header = fields
                twice = sorted({name for name in header if header.count(name) > 1})
                once = f"{path}, line {line}: fields {twice} are there twice"
                require(not twice, who, f"{once}; rename one")
                continue
            if len(fields) != len(header):
                wanted = f"expected {len(header)} fields, got {len(fields)}"
                remedy = "quote text that holds a comma"
                require(False, who, f"{path}, line {line}: {wanted}; {remedy}")
            rows.append(dict(zip(header, fields, strict=True)))
            lines.append(line)
    except csv.Error as error:
        # The line where the row begins: a quote that is not closed ends far below.
        reason = f"is not CSV ({reason_of(error)}); fix it"
        msg = f"{who}: {path}, line {after + 1}: {reason}."
        raise InputError(msg) from error
    return rows, lines


def saved_rows(who: str, folder: Path) -> tuple[list[dict], dict[str, list[str]]]:
    """A folder of ``save_to_disk`` of Hugging Face datasets, read without the package.

    Returns its rows, and the names of numbered classes (``ClassLabel``) by field.
    """
    splits = (folder / "dataset_dict.json").exists()
    one = f"{folder} holds several splits; give one of its folders"
    require(not splits, who, one)
    listed = _json_file(who, folder / "state.json").get("_data_files") or []
    names = [item.get("filename") for item in listed if isinstance(item, dict)]
    paths = [folder / Path(str(name)).name for name in names]
    paths = paths or sorted(folder.glob("*.arrow"))
    if not paths:
        remedy = "give a folder that save_to_disk wrote, or a file"
        msg = f"{who}: {folder} holds no Arrow files; {remedy}."
        raise MissingFileError(msg)
    features = _json_file(who, folder / "dataset_info.json").get("features")
    classes = {
        field: [str(name) for name in feature.get("names") or []]
        for field, feature in (features if isinstance(features, dict) else {}).items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    return table_rows(who, paths), classes


def _json_file(who: str, path: Path) -> dict[str, Any]:
    """The object in a file, empty without a file."""
    held: Any = None
    reason = "holds no object"
    try:
        held = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, *_NOT_JSON) as error:
        reason = reason_of(error)
    damaged = f"{path} is damaged ({reason}); save the folder again"
    require(isinstance(held, dict), who, damaged)
    return held


def table_rows(who: str, paths: list[Path]) -> list[dict[str, Any]]:
    """The rows of parquet and Arrow files."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        msg = f"{who}: {paths[0].name} needs pyarrow; pip install '.[data]'."
        raise ModuleNotFoundError(msg, name=error.name) from error
    rows = []
    for path in paths:
        existing_file(who, path, "put it there, or save the folder again")
        try:
            is_parquet = path.suffix.lower() == ".parquet"
            table = parquet.read_table(path) if is_parquet else _arrow(pa, path)
            rows += table.to_pylist()
        except Exception as error:  # the readers raise errors of many kinds
            reason = f"is not a table of rows ({reason_of(error)}); save it again"
            msg = f"{who}: {path} {reason}."
            raise InputError(msg) from error
    return rows


def _arrow(pa: Any, path: Path) -> Any:
    """Arrow's two formats: a stream, as Hugging Face datasets write it, or a file."""
    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_file(file).read_all()
