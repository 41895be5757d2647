"""The reference: no warnings, all public names, and no numbers but committed ones."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(
    f"jaxcl.{file.parent.name}"
    for file in (ROOT / "jaxcl").glob("*/__init__.py")
    if file.parent.name not in ("cli", "runs")  # commands, and files to import from
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the pages; every warning, such as a role without a target, fails."""
    source, pages = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("pages")
    for file in ("conf.py", "index.rst", "_templates/module.rst"):
        (source / file).parent.mkdir(exist_ok=True)
        (source / file).write_text((ROOT / "docs" / file).read_text())
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning"]
    done = subprocess.run(
        [*command, source, pages], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return pages


@pytest.mark.slow
def test_every_public_name_has_a_place_in_the_reference(built):
    """Oracle: the packages' own lists, against the inventory that Sphinx writes."""
    inventory = InventoryFile.loads((built / "objects.inv").read_bytes(), uri="").data
    found = {name for kind, names in inventory.items() for name in names}
    assert len(PACKAGES) > 8
    for package in PACKAGES:
        public = importlib.import_module(package).__all__
        assert {f"{package}.{name}" for name in public} <= found


def test_percentages_are_those_of_committed_results():
    """Oracle: the tables of the experiments' READMEs, which other tests hold to results.

    A line of the page names its folders after its numbers: ``(``class_stream``)``.
    """
    text = (ROOT / "docs/index.rst").read_text()
    cells = re.findall(
        r"\n     - (Measured.*?)(?=\n   \* - |\n     - |\n\n)", text, re.S
    )
    quoted = 0
    for cell in cells:
        folders = [f for f in re.findall(r"``(\w+)``", cell) if "_" in f]
        tables = "".join(
            (ROOT / "experiments" / folder / "README.md").read_text()
            for folder in folders
            if (ROOT / "experiments" / folder).is_dir()
        )
        known = {f"{float(n):.1f}" for n in re.findall(r"\| +(\d+\.\d\d)\b", tables)}
        for number in re.findall(r"(\d+\.\d) %", cell):
            quoted += 1
            assert number in known, f"{number} % is in no table of {folders}"
    assert quoted >= 9
