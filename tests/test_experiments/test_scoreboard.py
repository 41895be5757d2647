"""The scoreboard: numbers from lines, and none of them by hand."""

import json

import numpy as np
import pytest

from experiments import scoreboard
from experiments.ewc_permuted.config import PUBLISHED
from jaxcl.files import write_json


def test_the_readme_shows_what_the_results_say(tmp_path):
    """Oracle: the committed file, made anew from the committed lines, byte for byte."""
    held = (scoreboard.HERE / "README.md").read_text()
    begin, end = "<!-- results: begin -->", "<!-- results: end -->"
    (tmp_path / "README.md").write_text(
        held.split(begin)[0] + begin + end + held.split(end)[1]
    )
    scoreboard.write(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == held


def test_their_numbers_are_those_of_the_experiment():
    """Oracle: the experiment's own copy of Table 4."""
    paper, again = (p for p in scoreboard.PAPERS if "ewc_permuted" in p.folders[0])
    wanted = {arm: value / 100 for arm, value in PUBLISHED.items()}
    theirs = {entry.what: entry.theirs for entry in paper.entries}
    assert theirs == pytest.approx(wanted)
    (entry,) = again.entries
    assert entry.theirs == pytest.approx(wanted[entry.what])


@pytest.mark.parametrize("between", [" ", "="])
def test_a_command_names_no_place_of_the_machine(between, tmp_path):
    """Oracle: the command by hand, whichever way its flags were written."""
    words = f"--data{between}'/my data' --rho{between}0.1 --out{between}/here"
    made_by = f"python -m experiments.plasticity paper {words}"
    write_json(tmp_path / "environment.json", {"command": made_by})
    wanted = "python -m experiments.plasticity paper --data FOLDER --rho 0.1"
    assert scoreboard.command(tmp_path) == wanted


def test_a_row_is_the_mean_of_its_own_runs(tmp_path):
    """Oracle: by hand. Two runs count; another stage, arm and a diverged one do not."""
    lines = [
        {"setting": "test", "arm": "ewc", "final": [0.8, 0.9], "seconds": 60},
        {"setting": "test", "arm": "ewc", "final": [0.9, 1.0], "seconds": 120},
        {"setting": "search", "arm": "ewc", "final": [0.1], "seconds": 60},
        {"setting": "test", "arm": "none", "final": [0.2], "seconds": 60},
        {"setting": "test", "arm": "ewc", "final": [0.1], "status": "diverged"},
    ]
    folder = tmp_path / "ewc_permuted" / "results" / "paper"
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text(
        "".join(
            json.dumps({"run": str(n), "status": "done", **line}) + "\n"
            for n, line in enumerate(lines)
        )
    )
    made_by = "python -m experiments.ewc_permuted paper --data '/my data' --out /here"
    write_json(folder / "environment.json", {"command": made_by})
    first, second = scoreboard.table(tmp_path).rows
    assert second[2:4] == ("ewc", 2)
    np.testing.assert_allclose(second[4].mean, 0.9)
    assert second[5:7] == (0.9431, 3.0)
    assert first[-1] == "`python -m experiments.ewc_permuted paper --data FOLDER`"
    assert second[0] == second[-1] == ""


def test_speed_counts_the_verdicts_of_each_benchmark(tmp_path):
    """Oracle: by hand; 2 of 3, 1 of 1 and 0 of 2 targets are met."""
    verdicts = {
        "speed": "met met missed",
        "language": "met",
        "finetune": "missed missed",
    }
    for name, words in verdicts.items():
        table = tmp_path / "benchmarks" / "results" / name / "tables" / "targets.md"
        table.parent.mkdir(parents=True)
        rows = "".join(f"| met a target | {word} |\n" for word in words.split())
        table.write_text("| target | verdict |\n| --- | --- |\n" + rows)
    assert scoreboard.speed(tmp_path) == (
        "Speed: 2 of 3 targets met on small networks, 1 of 1 targets met on language "
        "models, 0 of 2 targets met on fine-tuning, [benchmarks](benchmarks/)."
    )
