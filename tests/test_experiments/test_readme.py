"""Text between the marks of a README."""

import pytest

from experiments.harness.readme import fill

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
