"""The grid of the plasticity experiment as a few programs: which runs, and what it says."""

import dataclasses

import pytest

from experiments.plasticity.arms import arms, trials
from experiments.plasticity.config import PRESETS
from experiments.plasticity.packing import run as packing
from experiments.plasticity.packing.config import EXPERIMENT as PACKING
from experiments.plasticity.packing.config import PRESETS as PACKS
from experiments.plasticity.program import Program
from experiments.plasticity.settings import load, make_setting
from jaxcl.runs.command import main
from jaxcl.runs.folder import RunFolder, read_records

SMOKE = PACKS["smoke"]


def test_the_grid_is_that_of_the_paper():
    """Oracle: the names of the runs that the experiment itself would do."""
    grid, paper = PACKS["grid"], PRESETS["paper"]
    for field in dataclasses.fields(paper):
        if field.name not in ("data", "tasks_per_call"):
            assert getattr(grid, field.name) == getattr(paper, field.name)
    listed = packing.by_arm(grid)
    assert set(listed) == set(arms(paper, 1))
    names = [trial.run for runs in listed.values() for trial in runs]
    assert len(set(names)) == len(names)
    wanted = {trial.run for trial in trials(paper) if trial.setting == "permuted"}
    assert set(names) == wanted


class Clock:
    """A program whose parts take seconds set by hand, and the clock that shows them."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def start(self):
        self.now += 7

    def lower(self, _state):
        return self

    def compile(self):
        self.now += 5
        return self

    def memory_analysis(self):
        return None

    def __call__(self, _state):
        self.now += 2


def test_only_the_time_of_tasks_is_scaled_to_the_stream(tmp_path, monkeypatch):
    """Oracle: a clock by hand. The start takes 7 s, compilation 5 s, and each of the 2
    tasks timed of 4 takes 2 s: 8 s for all tasks, and 12 s before the first one."""
    clock, trial = Clock(), trials(SMOKE)[0]

    def learn(_config, setting, program, packed, *_others):
        program.start()
        for task in range(setting.num_tasks):
            program.advance(task)
        return [{"accuracy": [0.5], "measures": {}} for _ in packed]

    monkeypatch.setattr(packing, "time", clock)
    monkeypatch.setattr(packing, "learn", learn)
    monkeypatch.setattr(packing, "make_program", lambda *_: Program(clock.start, clock))
    setting = make_setting("permuted", SMOKE, load(SMOKE))
    folder = RunFolder(tmp_path, "plasticity.packing", "smoke", SMOKE)
    found = packing.time_pack(SMOKE, setting, [trial], folder)
    assert (found["seconds"], found["compile_seconds"]) == (8.0, 12.0)


@pytest.mark.slow
def test_packing_learns_as_the_experiment_does_and_records_every_pack(tmp_path):
    """Oracle: the grid of arms and packs; measures are there; a table for each."""
    out = tmp_path / "packing"
    assert main(PACKING, ["smoke", "--out", str(out)]) == 0
    records = read_records(out)
    assert [(r["arm"], r["pack"]) for r in records] == [
        (arm, pack) for arm in ("sgd", "sam") for pack in (1, 2)
    ]
    for record in records:
        assert record["status"] == "done"
        assert "sam_sharpness" in record["measures"]
        assert (record["tasks"], record["tasks_timed"]) == (4, 2)
        assert min(record["seconds"], record["compile_seconds"]) > 0
        assert record["program_bytes"] > 0
    table = (out / "tables" / "packing.md").read_text()
    assert "6 runs in 4 programs" in table
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--arms", "sgdd", "arms: unknown 'sgdd'; did you mean sgd?"),
        ("--packs", "0", "packs: expected finite numbers above 0"),
        ("--rho", "inf", "rho: expected finite numbers above 0"),
    ],
)
def test_bad_fields_are_refused(tmp_path, capsys, flag, value, words):
    """Oracle: exit code and message."""
    argv = ["smoke", flag, value, "--out", str(tmp_path / "packing")]
    assert main(PACKING, argv) == 2
    assert words in capsys.readouterr().err
