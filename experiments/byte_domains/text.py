"""Text that is on every machine with Python, by kind; and rows of bytes made of it."""

import sys
import sysconfig
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jaxcl.data import Task, array_dataset
from jaxcl.errors import MissingFileError, require
from jaxcl.tree import as_batch


def domains(data: str, max_bytes: int) -> dict[str, bytes]:
    """The texts by name, each at most so long; InputError for a folder without any."""
    if data == "python":
        return {name: first(parts, max_bytes) for name, parts in of_python().items()}
    folder = Path(data)
    if not folder.is_dir():
        msg = f"data: no folder {folder}; give python, or a folder of .txt files."
        raise MissingFileError(msg)
    files = sorted(folder.glob("*.txt"))
    require(
        files, "data", f"{folder} holds no .txt file; put one there for each domain"
    )
    return {file.stem: first([file.read_bytes()], max_bytes) for file in files}


def of_python() -> dict[str, Iterable[bytes]]:
    """Sources, documentation, licences and words: each lazily, in a fixed order."""
    return {
        "sources": read(Path(sysconfig.get_path("stdlib")).glob("*.py")),
        "documentation": documentation(),
        "licences": licences(),
        "words": names_of_characters(),
    }


def documentation() -> Iterator[bytes]:
    """The language reference, as ``help()`` shows it."""
    from pydoc_data import topics

    return (text.encode() for _, text in sorted(topics.topics.items()))


def licences() -> Iterator[bytes]:
    """Python's own licence, and those of the installed packages, each text once."""
    site = Path(sysconfig.get_path("purelib"))
    found = [Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"]
    for pattern in ("LICENSE*", "COPYING*", "licenses/*"):
        found += site.glob(f"*.dist-info/{pattern}")
    yield from dict.fromkeys(read(file for file in found if file.is_file()))


def names_of_characters() -> Iterator[bytes]:
    """``LATIN SMALL LETTER A`` and all the others, a line each."""
    names = (unicodedata.name(chr(number), "") for number in range(sys.maxunicode))
    return (f"{name}\n".encode() for name in names if name)


def read(files: Iterable[Path]) -> Iterator[bytes]:
    """The contents of files, in the order of their names."""
    ordered = sorted(files, key=lambda file: (file.name, str(file)))
    return (file.read_bytes() for file in ordered)


def first(parts: Iterable[bytes], count: int) -> bytes:
    """The first bytes of some parts together."""
    text = b""
    for part in parts:
        text += part
        if len(text) >= count:
            break
    return text[:count]


def make_task(name: str, text: bytes, index: int, length: int) -> Task:
    """Rows of ``length`` bytes and the bytes that follow each; the last tenth tests."""
    cut = len(text) - len(text) // 10
    parts = text[:cut], text[cut:]
    few = f"too few for rows of {length} in its last tenth"
    remedy = "lower --length or leave the domain out"
    fits = min(map(len, parts)) > length
    require(fits, "data", f"{name} has {len(text)} bytes, {few}; {remedy}")
    train, test = (as_rows(part, length) for part in parts)
    rows = lambda x, y: array_dataset(as_batch(x, y, task=index))
    return Task(name, rows(*train), rows(*test))


def as_rows(text: bytes, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``[n, length]`` and what comes next at every place, without overlap."""
    numbers = np.frombuffer(text, np.uint8).astype(np.int32)
    count = (len(numbers) - 1) // length
    rows = lambda start: numbers[start : start + count * length].reshape(count, length)
    return rows(0), rows(1)
