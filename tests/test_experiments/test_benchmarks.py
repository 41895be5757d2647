"""The benchmarks at sizes where they take seconds: turns, lines, tables, refusals."""

import json

import pytest

from experiments.benchmarks import config, packing
from experiments.benchmarks.report import (
    MARKS,
    Target,
    between_marks,
    growth,
    report,
    targets_table,
)
from experiments.benchmarks.run import run, turns
from experiments.harness import main, read_records

SMOKE = config.PRESETS["smoke"]


def test_the_smoke_preset_does_every_job_of_ours_in_every_round(tmp_path, monkeypatch):
    """Oracle: the table of jobs; each line holds as many seconds as there are tasks."""
    monkeypatch.delenv("JAXCL_PEERS_PYTHON", raising=False)
    out = tmp_path / "speed"
    argv = ["smoke", "--out", str(out)]
    assert main(config.PRESETS, run, "", argv, report=report) == 0
    records = read_records(out)
    names = {record["run"] for record in records}
    assert names == {turn.name for turn in turns(SMOKE, {"jaxcl"})}
    assert {record["job"] for record in records} == set(SMOKE.jobs)
    for record in records:
        if record["job"] == "seeds":
            assert len(record["alone_cpu"]) == SMOKE.num_seeds
            continue
        long = record["job"] == "ewc-long"
        tasks = SMOKE.long_tasks if long else SMOKE.num_tasks
        assert len(record["train_cpu"]) == tasks
        assert min(record["train_cpu"]) > 0
        assert record["finite"]
    table = (out / "tables" / "targets.md").read_text()
    assert "SAM's step against the plain one" in table
    assert "Avalanche" not in table  # it did not run


def test_others_take_their_turn_next_to_ours():
    """Oracle: two rounds by hand. The long turns come in the first one only."""
    order = [
        ("naive", "jaxcl"),
        ("naive", "torch"),
        ("naive", "avalanche"),
        ("naive", "avalanche-own-stream"),
        ("sam", "jaxcl"),
        ("seeds", "jaxcl"),
        ("ewc-long", "jaxcl"),
    ]
    found = turns(SMOKE, {"jaxcl", "torch", "avalanche"})
    assert [turn[1:] for turn in found if turn.round == 0] == order
    short = [
        one for one in order if one[1][10:] != "own-stream" and "long" not in one[0]
    ]
    assert [turn[1:] for turn in found if turn.round == 1] == short


@pytest.mark.parametrize(
    ("at_least", "values", "verdict"),
    [
        (True, [2.9, 3.1, 9.0], "met"),
        (True, [2.9, 2.8, 9.0], "missed"),
        (False, [2.9, 3.1, 9.0], "missed"),
        (False, [2.9, 2.8, 9.0], "met"),
    ],
)
def test_the_median_round_decides(at_least, values, verdict):
    """Oracle: medians by eye, against a bound of 3."""
    rows = targets_table([Target("it", 3.0, at_least, values)]).rows
    assert rows[0][-1] == verdict


def test_growth_compares_the_last_quarter_with_tasks_two_to_five():
    """Oracle: arithmetic; the first task, which warms up, does not count."""
    assert growth([100, 1, 1, 1, 1, 5, 3, 3]) == 3
    assert growth([100.0] + [2.0] * 19) == 1


def test_only_what_stands_between_the_marks_is_replaced():
    """Oracle: the text by hand; twice is the same as once."""
    text = f"above\n{MARKS[0]}\nold\n{MARKS[1]}\nbelow\n"
    once = between_marks(text, "new")
    assert once == f"above\n{MARKS[0]}\n\nnew\n{MARKS[1]}\nbelow\n"
    assert between_marks(once, "new") == once


def test_a_missing_interpreter_is_refused_before_any_work(
    tmp_path, capsys, monkeypatch
):
    """Oracle: exit code, one line, no folder."""
    out = tmp_path / "speed"
    monkeypatch.setenv("JAXCL_PEERS_PYTHON", "nowhere/python")
    argv = ["smoke", "--out", str(out)]
    assert main(config.PRESETS, run, "", argv, report=report) == 2
    assert "no interpreter at nowhere/python" in capsys.readouterr().err
    assert not (out / "results.jsonl").exists()


def test_packing_records_time_and_memory_of_every_pack(tmp_path):
    """Oracle: the grid of settings, arms and packs, and the definition of the rate."""
    out = tmp_path / "packing"
    assert packing.command(["smoke", "--out", str(out)]) == 0
    records = read_records(out)
    asked = packing.PRESETS["smoke"]
    assert len(records) == len(asked.settings) * len(asked.arms) * len(asked.packs)
    for record in records:
        rate = 3600 * record["pack"] / record["seconds"]
        assert record["runs_per_hour"] == pytest.approx(rate)
        assert record["program_bytes"] > 0
    assert json.loads((out / "config.json").read_text())["experiment"] == (
        "benchmarks.packing"
    )
    assert "runs per hour" in (out / "tables" / "packing.md").read_text()


@pytest.mark.parametrize(
    ("flag", "value"), [("--arms", "sgdd"), ("--settings", "pears")]
)
def test_unknown_names_are_refused_with_the_known_ones(tmp_path, capsys, flag, value):
    """Oracle: exit code and message."""
    argv = ["smoke", flag, value, "--out", str(tmp_path / "packing")]
    assert packing.command(argv) == 2
    assert "expected" in capsys.readouterr().err
