"""A run killed at random moments ends with the bits of one left alone."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcl.training.checkpoint import steps

SCRIPT = Path(__file__).with_name("killed_run.py")
COUNTS = {"read": (1, 8), "save": (1, 3), "note": (1, 3), "boundary": (1, 1)}
TEN = ["read"] * 4 + ["save"] * 2 + ["note"] * 2 + ["boundary"] * 2


@pytest.fixture
def go(tmp_path):
    """Does the run in a new process; tells its exit status, and what all have said."""
    said = tmp_path / "said"
    with (
        said.open("w") as errors,
        subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as runs,
    ):

        def one(*words):
            print(*words, file=runs.stdin, flush=True)
            return int(runs.stdout.readline()), said.read_text()

        yield one
        runs.stdin.close()


@pytest.mark.parametrize(
    ("num_tasks", "moments", "least"),
    [(1, ["read", "save", "note"], 3), pytest.param(6, TEN, 1, marks=pytest.mark.slow)],
    ids=["three", "ten"],
)
def test_kills_change_no_bit(tmp_path, go, num_tasks, moments, least):
    """Oracle: the run left alone: every leaf of the last position, and its metrics.

    The moments are drawn: while rows are read and a step is computed, while a checkpoint
    is written, between the checkpoint and the note that makes it count, at the end of a
    task; each up to 30 ms later.
    """
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert go(alone, num_tasks) == (0, "")
    rng = random.Random(7)
    seen = []
    for snapshot in rng.sample(moments, len(moments)):
        # Few enough to come before the end, whatever has been done already.
        low, high = COUNTS[snapshot]
        count = rng.randint(max(low, least), high)
        delay = round(rng.uniform(0, 0.03), 4)
        status, said = go(killed, num_tasks, snapshot, count, delay)
        assert status == -9, said
        seen.append(max(steps(killed / "checkpoints"), default=-1))
    assert seen == sorted(seen)  # nothing that was on the disk is ever lost
    assert len(set(seen)) > len(seen) / 2  # and the kills came all along the run
    status, said = go(killed, num_tasks)
    assert status == 0, said
    with np.load(alone / "end.npz") as want, np.load(killed / "end.npz") as found:
        assert set(found) == set(want)
        for name in want:
            np.testing.assert_array_equal(found[name], want[name])
    lines = [
        list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
        for folder in (alone, killed)
    ]
    timeless = [
        [{k: v for k, v in line.items() if "second" not in k} for line in some]
        for some in lines
    ]
    assert timeless[0] == timeless[1]
