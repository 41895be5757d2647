"""The example scripts run, stay short, and show what they say."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from experiments.examples import growing, own_loop, own_network, sharpness, sweep

FOLDER = Path(__file__).parents[2] / "experiments" / "examples"
SCRIPTS = sorted(FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_at_most_60_lines_and_listed(path):
    """Oracle: its lines, the README beside it, and its own docstring."""
    text = path.read_text()
    command = f"experiments.examples.{path.stem}"
    assert len(text.splitlines()) <= 60
    assert f"[`{command}`]({path.name})" in (FOLDER / "README.md").read_text()
    assert f"python -m {command}\n" in text


def test_ewc_keeps_the_first_task_in_a_loop_of_ones_own():
    """Oracle: the same loop with a strength of zero, whose first task is forgotten."""
    kept, forgotten = own_loop.main(num_steps=120), own_loop.main(0.0, num_steps=120)
    assert kept[0] > forgotten[0] + 0.05
    assert min(kept[1], forgotten[1]) > 0.8


def test_a_network_of_ones_own_has_both_learners_evaluated():
    """Oracle: zero for classes not seen yet, and above chance for all at the end."""
    found = own_network.main(num_steps=60)
    assert {name: matrix.shape for name, matrix in found.items()} == {
        "params": (6, 5),
        "nearest_mean": (6, 5),
    }
    assert all(matrix[-1].mean() > 0.5 for matrix in found.values())
    assert all(matrix[1, 1:].max() < 0.1 for matrix in found.values())


def test_a_grown_stream_ends_where_the_full_one_does():
    """Oracle: all three tasks in one call, in another folder; the same bits."""
    two, three, at_once = growing.main(num_steps=20)
    np.testing.assert_array_equal(three[:2, :2], two)
    np.testing.assert_array_equal(three[2], at_once[2])


def test_a_sweep_has_every_run_and_names_what_diverged():
    """Oracle: its own first strength, zero, and EWC's bound of stability."""
    grid = np.asarray(sweep.main(num_seeds=2, num_steps=100))
    assert grid.shape == (4, 2)
    assert np.isnan(grid[-1]).all()
    assert (grid[2] > grid[0] + 0.02).all()


def test_sam_ends_at_a_flatter_point_and_the_script_prints_it(capsys):
    """Oracle: SGD from the same start on the same batches; the printed line is main's."""
    runpy.run_path(str(FOLDER / "sharpness.py"), run_name="__main__")
    found = sharpness.main()
    assert found["SAM"][0] < 0.9 * found["SGD"][0]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["SGD", "SAM"]
    assert f"top eigenvalue {found['SAM'][0]:.2f}" in lines[1]
