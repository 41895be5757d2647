"""The host loop's benchmark at sizes where it takes seconds: lines, tables, refusals."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.host import config
from experiments.benchmarks.host.run import turns
from experiments.benchmarks.report import by_job, costs_table, targets
from jaxcl.runs.command import main
from jaxcl.runs.folder import read_records

ROOT = Path(__file__).parents[2]
SMOKE = config.PRESETS["smoke"]


def start(folder, *words):
    argv = ["smoke", *words, "--out", str(folder)]
    return main(config.EXPERIMENT, argv)


@pytest.mark.slow
def test_the_smoke_preset_does_every_job(tmp_path, capsys):
    """Oracle: the jobs asked for, and laws of what they measure."""
    assert start(tmp_path / "host") == 0
    done = {record["run"]: record for record in read_records(tmp_path / "host")}
    assert set(done) == {turn.name for turn in turns(SMOKE)}
    memory = done["round=0/memory"]
    scalars = memory["sam_state"] - memory["plain_state"]
    assert 0 < scalars < 100  # SAM keeps a few numbers, and no copy of the parameters
    assert memory["plain_state"] > 3 * memory["parameters"]  # with AdamW's two moments
    assert memory["sam_temporary"] > memory["plain_temporary"]
    saved = done["round=0/checkpoint"]
    assert saved["megabytes"] * 1e6 >= memory["plain_state"]
    assert saved["held_up"] > 0
    for count in SMOKE.devices:
        assert done[f"round=0/devices/{count}"]["rows_per_second"] > 0
    text = (tmp_path / "host" / "tables" / "targets.md").read_text()
    assert "the host loop against its bare step" in text
    assert text in capsys.readouterr().out


def test_ratios_are_taken_within_rounds_and_costs_are_medians():
    """Oracle: by hand."""
    head = {"job": "loop", "status": "done", "steps": 20}
    turns = [
        {**head, "round": 0, "bare": 2.0, "loop": 2.1},
        {**head, "round": 1, "bare": 4.0, "loop": 4.04},
        {**head, "round": 2, "bare": 1.0, "loop": 1.0},
        {**head, "round": 0, "job": "sam", "plain": 1.0, "sam": 1.9},
    ]
    done = by_job(turns)
    loop, sam = targets(done)
    np.testing.assert_allclose(loop.values, [1.05, 1.01, 1.0])
    np.testing.assert_allclose(sam.values, [1.9])
    bare, walked = costs_table(done).rows
    assert (bare[1], walked[1]) == ("100 ms", "105 ms")


CORES = """
import os, sys
from experiments.benchmarks.one_thread import use_all_cores, use_one_thread
os.sched_setaffinity(0, map(int, sys.argv[1:]))
use_one_thread()
one = len(os.sched_getaffinity(0))
use_all_cores()
print(one, *sorted(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be had")
def test_one_thread_and_then_the_cores_that_were_given_and_no_more():
    """Oracle: the cores of this process, and of one that was given a single one."""
    every = sorted(map(str, os.sched_getaffinity(0)))
    for cores in (every, every[:1]):
        script = [sys.executable, "-c", CORES, *cores]
        done = subprocess.run(
            script, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        assert done.stdout.split() == ["1", *cores]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "looop"], "jobs: unknown 'looop'; did you mean loop?"),
        (["--num-heads", "3"], "key heads must divide query heads"),
        (["--num-steps", "0"], "num_steps: expected"),
        (
            ["--batch-size", "300"],
            "batch_size: at most the 256 rows there are, got 300",
        ),
        (["--devices", "3"], "must be a multiple of all devices, got 8 for 3"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(words, message, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the trouble."""
    assert start(tmp_path / "host", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "host").exists()
