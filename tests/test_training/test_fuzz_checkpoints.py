"""A hundred inputs of the battery of damaged checkpoints."""

import gc

import pytest

from jaxcl.training import checkpoint, checkpoint_files
from tests.fuzz.checkpoints import battery


def test_damaged_checkpoints_give_the_tree_or_one_line(tmp_path):
    """Oracle: the trees that were saved, byte for byte."""
    found = battery(100, 1, tmp_path)
    assert found["failures"] == []
    assert min(found["restored"], found["refused"]) > 0


# The store leaves tasks behind where it fails on files that nobody has checked.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_battery_sees_a_check_that_is_left_out(tmp_path, monkeypatch):
    """Oracle: a restore that does not compare files with their checksums."""
    monkeypatch.setattr(checkpoint, "examined", checkpoint_files.read_note)
    assert battery(40, 1, tmp_path)["failures"]
    gc.collect()
