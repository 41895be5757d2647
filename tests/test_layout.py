"""The shape of the source: names, sizes, documentation, and nothing of one machine."""

import importlib
import inspect
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import jaxcl
from tests.names import public

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("jaxcl/**/*.py"), *ROOT.glob("experiments/**/*.py")])
FOUND = pkgutil.walk_packages(jaxcl.__path__, "jaxcl.")
MODULES = sorted(module.name for module in FOUND)
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|work|Users|mnt)/\w"  # somebody's folder
    r"|https?://[^\s\"']*/(?:simple|packages)/"  # somebody's package index
)


def name_of(path):
    return str(path.relative_to(ROOT))


def isort_order(name):
    """Sort as the linter does: CONSTANTS, then Classes, then functions."""
    return (not name.isupper(), not name[0].isupper(), name)


def undocumented(module):
    """List the public functions and classes of a module that have no words."""
    values = ((name, getattr(module, name)) for name in public(module))
    return [
        name
        for name, value in values
        if (inspect.isfunction(value) or inspect.isclass(value))
        and (
            not (doc := inspect.getdoc(value))
            or doc.startswith(f"{name}(")  # what NamedTuple writes by itself
        )
    ]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_what_it_offers(name):
    """Oracle: inspection of the imported module."""
    module = importlib.import_module(name)
    assert module.__doc__
    if "._" in name:  # a part's own affair
        return
    assert undocumented(module) == []
    if hasattr(module, "__all__"):
        assert hasattr(module, "__path__")
        offered = module.__all__
        assert len(set(offered)) == len(offered)
        assert offered == sorted(offered, key=isort_order)


def test_a_missing_docstring_is_noticed():
    """Oracle: a made-up module with one documented and three bare names."""
    module = type(inspect)("made_up")
    source = (
        "from typing import NamedTuple\n"
        "def told():\n    'Words.'\n"
        "def bare(): pass\n"
        "class Bare: pass\n"
        "class Row(NamedTuple):\n    x: int\n"
        "def _own(): pass\n"
    )
    exec(source, vars(module))
    assert sorted(undocumented(module)) == ["Bare", "Row", "bare"]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_holds_one_idea(path):
    """Oracle: its length and its name."""
    assert len(path.read_text().splitlines()) <= 450
    assert not {"utils", "util", "helpers", "common", "misc"} & set(
        path.relative_to(ROOT).with_suffix("").parts
    )


def tracked_files():
    """Paths under version control; None outside a checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if listing.returncode:
        return None
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name]


def test_no_file_names_a_place_on_one_machine():
    """Oracle: a pattern over every tracked text file."""
    files = tracked_files()
    if files is None:
        pytest.skip("not a git checkout")
    found = []
    for path in files:
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data:  # pictures and arrays
            continue
        lines = data.decode(errors="replace").splitlines()
        found += [
            f"{name_of(path)}:{number}"
            for number, line in enumerate(lines, 1)
            if MACHINE.search(line)
        ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("/".join(["", "home", "ada", "data"]), True),
        ("open('" + "/".join(["", "root", "x"]) + "')", True),
        ("https://some.index/" + "simple/" + "numpy", True),
        ("https://example.org/" + "home/page", False),
        ("outputs/" + "home/x", False),
    ],
)
def test_the_pattern_knows_a_machine_from_the_world(text, caught):
    """Oracle: five lines judged by hand."""
    assert bool(MACHINE.search(text)) == caught
