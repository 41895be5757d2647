"""Text between the marks of a README."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcl.runs.readme import fill

HELD = "# Head\n\n<!-- results: begin -->old<!-- results: end -->\n\ntail\n"
MADE = "# Head\n\n<!-- results: begin -->\n\nnew\n\n<!-- results: end -->\n\ntail\n"


def test_the_text_between_the_marks_is_replaced_and_nothing_else(tmp_path):
    """Oracle: the file written out by hand; a second call changes no byte."""
    path = tmp_path / "README.md"
    path.write_text(HELD)
    for _ in range(2):
        fill(path, "\nnew\n")
        assert path.read_text() == MADE


def test_each_pair_of_marks_has_its_own_text(tmp_path):
    """Oracle: only the named pair changes."""
    path = tmp_path / "README.md"
    path.write_text(HELD + "<!-- speed: begin --><!-- speed: end -->")
    fill(path, "fast", "speed")
    assert path.read_text() == HELD + (
        "<!-- speed: begin -->\n\nfast\n\n<!-- speed: end -->"
    )


def test_a_readme_is_utf_8_wherever_it_is_filled(tmp_path):
    """Oracle: the bytes, from a process whose own encoding is ASCII."""
    path = tmp_path / "README.md"
    path.write_text("± " + HELD, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path\n"
        "from jaxcl.runs.readme import fill\n"
        "fill(Path(sys.argv[1]), 'new')"
    )
    words = [sys.executable, "-X", "utf8=0", "-c", code, str(path)]
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    root = Path(__file__).parents[2]
    subprocess.run(words, cwd=root, env={**os.environ, **locale}, check=True)
    assert path.read_bytes() == ("± " + MADE).encode()


@pytest.mark.parametrize(
    "held",
    [
        "no marks",
        "<!-- results: begin --> never ends",
        HELD + HELD,
        "<!-- results: end --><!-- results: begin -->",
    ],
)
def test_marks_that_are_missing_double_or_swapped_are_refused(held, tmp_path):
    """Oracle: an error that names the file, which stays as it was."""
    path = tmp_path / "README.md"
    path.write_text(held)
    with pytest.raises(ValueError, match=r"README.md: expected the marks"):
        fill(path, "new")
    assert path.read_text() == held
