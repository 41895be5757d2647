"""A small part of each battery, and the batteries themselves."""

import time

import numpy as np
import pytest

from jaxcl.errors import InputError
from tests.fuzz import commands, gguf_files, images, models, rows, texts
from tests.fuzz.battery import outcome_of, run_battery


@pytest.mark.parametrize(
    "module",
    [rows, texts, images, models, gguf_files, commands],
    ids=lambda module: module.__name__,
)
def test_damaged_inputs_are_used_or_refused_in_one_line(tmp_path, module):
    """Law: no other exception, no hang; both outcomes occur for every kind of input."""
    summary = module.battery(200, 0, tmp_path)
    assert summary["failures"] == []
    assert summary["used"] + summary["refused"] == summary["inputs"] == 200
    for counts in summary["kinds"].values():
        assert min(counts["used"], counts["refused"]) > 5


def refuse(message):
    raise InputError(message)


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda: 1, "used"),
        (lambda: refuse("one line"), "refused"),
        (lambda: refuse("two\nlines"), "failed"),
        (lambda: np.float32(1e300), "failed"),  # a RuntimeWarning nobody caught
        (lambda: {}["x"], "failed"),
        (lambda: exit(3), "failed"),
        (lambda: time.sleep(2), "hang"),
    ],
)
def test_an_outcome_has_its_name(call, outcome):
    """Oracle: by hand, one call of each kind."""
    assert outcome_of(call, limit=0.2)[0] == outcome


def test_a_failure_is_kept_with_the_number_that_makes_it_again(tmp_path):
    """Oracle: the draws of the same seed and number, made by hand."""

    def make(rng, folder):
        assert list(folder.iterdir()) == []
        (folder / "left").touch()
        value = rng.integers(10)
        return lambda: 1 // value

    summary = run_battery("divisions", {"only": make}, 50, 3, tmp_path)
    draws = [np.random.default_rng([3, number]).integers(10) for number in range(50)]
    wanted = [number for number, value in enumerate(draws) if value == 0]
    assert [failure["number"] for failure in summary["failures"]] == wanted
    assert summary["failed"] == len(wanted) > 0
