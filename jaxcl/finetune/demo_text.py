"""Text that ships with Python: docstrings and code of its standard library.

Source files are parsed, not imported, which has no side effects and works where docstrings
are stripped. Contents differ a little between versions of Python.
"""

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jaxcl.errors import require

_WHO = "finetune --demo"
# Tests, other people's packages, jokes, and what only some installations have.
_SKIPPED = {"antigravity", "distutils", "idlelib", "lib2to3", "pydoc_data", "test"}
_SKIPPED |= {"tests", "this", "tkinter", "turtledemo", "_vendor", "site-packages"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Source(NamedTuple):
    """A parsed source file."""

    module: str  # top level, such as "email"
    text: str
    tree: ast.Module


class Docstring(NamedTuple):
    """The paragraphs of a docstring, each on one line, without examples of code."""

    module: str
    paragraphs: tuple[str, ...]


class Library(NamedTuple):
    """The standard library."""

    sources: list[Source]
    docstrings: list[Docstring]


def read_library(
    folder: Path | None = None, *, modules: Collection[str] = sys.stdlib_module_names
) -> Library:
    """Parse the source files of the standard library in order, and find the docstrings.

    Files that cannot be parsed are left out.

    Args:
      folder: of the library; that of the running interpreter if absent.
      modules: top-level names of those to read.

    Raises:
      InputError: if there are none, as in a Python that has only compiled files.

    Cost: about 3 s.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old files
        for module, path in _files(root, modules):
            with suppress(OSError, ValueError, SyntaxError, RecursionError):
                text = path.read_text("utf-8")
                found.append(Source(module, text, ast.parse(text)))
    wanted = f"expected the sources of Python's standard library in {root}, got none"
    require(found, _WHO, f"{wanted}; use a Python with them, or your own --tasks")
    return Library(found, _docstrings(found))


def _files(root: Path, modules: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Top-level names and paths."""
    for name in sorted({*modules} - _SKIPPED):
        one = root / f"{name}.py"
        paths = [one] if one.is_file() else sorted((root / name).rglob("*.py"))
        for path in paths:
            if _SKIPPED.isdisjoint(path.relative_to(root).parts):
                yield name, path


def _docstrings(files: Iterable[Source]) -> list[Docstring]:
    """All docstrings with some prose, each once, in the order of the files."""
    found = {}
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
                found.setdefault(_paragraphs(text), file.module)
    return [Docstring(module, text) for text, module in found.items() if text]


def _paragraphs(text: str) -> tuple[str, ...]:
    """Prose as lines; spaces are one each, examples and drawings are left out."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(text))
    lines = (" ".join(part.split()) for part in parts if ">>>" not in part)
    return tuple(line for line in lines if _is_prose(line))


def _is_prose(line: str) -> bool:
    """Whether it is mostly words of English letters."""
    letters = sum(letter.isalpha() or letter == " " for letter in line)
    return line.isascii() and letters >= 0.8 * len(line)
