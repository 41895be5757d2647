"""Files of a run: arrays, written completely or not at all."""

import os

import numpy as np
import pytest

from jaxcl.files import write_arrays

ARRAYS = {
    "tokens": np.arange(5, dtype=np.int32),
    "cut": np.array(3),
    "a": np.array("x"),
}


def test_arrays_are_written_completely(tmp_path):
    """Oracle: NumPy's reader; folders are made, and only the file is left."""
    path = tmp_path / "deep" / "rows.npz"
    for _ in range(2):  # the second time over the first
        write_arrays(path, ARRAYS)
    with np.load(path, allow_pickle=False) as held:
        assert set(held) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert held[name].dtype == array.dtype
            np.testing.assert_array_equal(held[name], array)
    assert [p.name for p in path.parent.iterdir()] == ["rows.npz"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    """Oracle: the bytes before; nothing partial is left."""
    path = tmp_path / "rows.npz"
    write_arrays(path, ARRAYS)
    before = path.read_bytes()

    def fails(number):
        del number
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(path, {"tokens": np.array([object()])})
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        write_arrays(path, {"tokens": np.arange(9)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["rows.npz"]
