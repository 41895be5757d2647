"""The reference: no warnings, all public names, and no numbers but committed ones."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(
    f"jaxcl.{file.parent.name}"
    for file in (ROOT / "jaxcl").glob("*/__init__.py")
    if file.parent.name
    not in ("cli", "finetune", "runs")  # commands, and files to import from
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


TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("experiments/**/*.md"),
    *ROOT.glob("docs/*.rst"),
]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_and_file_of_a_text_is_there(path):
    """Oracle: the file system."""
    text = path.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    wanted = [path.parent / link for link in links if link and "://" not in link]
    wanted += [
        ROOT / file
        for file in re.findall(r"\b(?:jaxcl|tests|docs)/[\w/]+\.\w+\b", text)
        if "NAME" not in file
    ]
    assert [str(file) for file in wanted if not file.exists()] == []


def test_the_citation_names_this_version_and_four_papers():
    """Oracle: pyproject.toml, and the keys that a citation file must have."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    papers = cited["references"]
    assert all({"type", "title", "authors"} <= set(paper) for paper in papers)
    found = {paper["identifiers"][0]["value"] for paper in papers}
    numbers = ("2309.11305", "2406.04836", "2409.17300", "2402.18865")
    assert found == {f"arXiv:{number}" for number in numbers}


def test_commits_are_checked_without_a_download():
    """Oracle: ``make lint``, which calls the same commands."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    makefile = (ROOT / "Makefile").read_text()
    for hook in hooks[0]["hooks"]:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert command.replace(".venv/bin", "$(BIN)") in makefile


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
