"""Experiments of the host loop in small: learned, killed, gone on with, on a mesh."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.byte_domains.config import EXPERIMENT as BYTE_DOMAINS
from experiments.byte_domains.text import as_rows, domains, first, make_task
from experiments.class_stream.config import EXPERIMENT as CLASS_STREAM
from jaxcl.runs import trials
from jaxcl.runs.command import main
from jaxcl.runs.folder import read_records
from jaxcl.runs.forgetting import forgetting_table, so_far

ROOT = Path(__file__).parents[2]
EXPERIMENTS = {"class_stream": CLASS_STREAM, "byte_domains": BYTE_DOMAINS}
ENVIRONMENT = {**os.environ, "COLUMNS": "100"}


FEW = [
    "--num-tasks",
    "2",
    "--num-steps",
    "3",
    "--fisher-rows",
    "8",
    "--test-rows",
    "16",
]


def words_of(folder, *more):
    return ["smoke", "--arms", "er", "--num-layers", "1", *more, "--out", str(folder)]


def command(name, folder, *more):
    return [sys.executable, "-m", f"experiments.{name}", *words_of(folder, *more)]


def timeless(folder):
    """Lines by run, without what depends on the clock: rates, and where means are cut."""
    left_out = ("seconds", "loss")
    plain = lambda line: {k: v for k, v in line.items() if k not in left_out}
    by_run = sorted(read_records(folder), key=lambda line: line["run"])
    return [plain(line) for line in by_run]


@pytest.mark.slow
def test_a_killed_run_ends_as_one_left_alone_and_so_does_one_on_a_mesh(tmp_path):
    """Oracle: the run left alone, on one device. The mesh has eight pretend ones."""
    name = "byte_domains"
    alone, killed, mesh = (tmp_path / part for part in ("alone", "killed", "mesh"))
    run = {"cwd": ROOT, "env": ENVIRONMENT, "text": True, "capture_output": True}
    done = subprocess.run(command(name, alone), check=False, **run)
    assert done.returncode == 0, done.stderr
    assert (alone / "report.html").stat().st_size > 10_000
    assert json.loads((alone / "status.json").read_text())["status"] == "done"
    assert not (alone / "checkpoints").exists()
    names = ["sources", "documentation", "licences", "words"]
    assert [line["tasks"] for line in read_records(alone)] == [names]

    often = command(name, killed, "--checkpoint-seconds", "0")
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(often, cwd=ROOT, env=ENVIRONMENT, **silent) as process:
        limit = time.monotonic() + 240
        while not list(killed.glob("checkpoints/*/checkpoints/*.json")):
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not read_records(killed)  # it was in the middle of the first run
    done = subprocess.run(often, check=False, **run)
    assert done.returncode == 0, done.stderr
    assert timeless(killed) == timeless(alone)
    for ours, theirs in zip(read_records(killed), read_records(alone), strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=2e-4)

    assert main(BYTE_DOMAINS, words_of(mesh)) == 0
    lines = read_records(mesh)
    assert {line["device"].split()[0] for line in lines} == {"8"}
    assert jax.device_count() == 8
    for ours, theirs in zip(lines, read_records(alone), strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=0.02)
        np.testing.assert_allclose(ours["matrix"], theirs["matrix"], atol=0.06)


@pytest.mark.slow
def test_a_stream_of_classes_is_learned_with_sam_ewc_and_replay(tmp_path, monkeypatch):
    """Oracle: the contract of a line: every task tested after every task, and nothing
    that was not finite. On one device: a ResNet compiles for minutes on eight."""
    words = ["smoke", "--arms", "sam-ewc-er", *FEW, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(trials, "sharding_of", lambda fsdp: None)
    assert main(CLASS_STREAM, words) == 0
    (line,) = read_records(tmp_path / "run")
    matrix = np.array(line["matrix"])
    assert matrix.shape == (2, 2)
    assert ((matrix >= 0) & (matrix <= 1)).all()
    assert line["final"] == line["matrix"][-1]
    assert (line["on_non_finite"], line["not_finite"]) == ("stop", 0)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_sigterm_saves_every_run_at_hand_and_exits_with_0(tmp_path):
    """Oracle: the runs left alone; no checkpoint inside a task is due before the signal."""
    script = [sys.executable, str(Path(__file__).with_name("ended_run.py")), "toy"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    run = {
        "cwd": ROOT,
        "env": {**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        "text": True,
        **both,
    }
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    whole = [*script, "--workers", "1", "--out", str(alone)]
    done = subprocess.run(whole, check=False, **run)
    assert done.returncode == 0, done.stdout

    again = [*script, "--workers", "2", "--out", str(ended)]
    with subprocess.Popen([*again, "--pause", "0.05"], **run) as process:
        limit = time.monotonic() + 240
        while len(begun(ended)) < 2:
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # as clusters and parents do, once more
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "terminated; the same command goes on from here" in said
    assert "Traceback" not in said
    assert not read_records(ended)
    assert len(list(ended.glob("checkpoints/*/checkpoints/*.json"))) == 2
    done = subprocess.run(again, check=False, **run)
    assert done.returncode == 0, done.stdout
    assert timeless(ended) == timeless(alone)


def begun(folder):
    """The runs of which some steps were noted."""
    noted = folder.glob("checkpoints/*/metrics.jsonl")
    return [path for path in noted if path.stat().st_size]


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("class_stream", ["--data", ""], "data: name the images"),
        ("class_stream", ["--num-tasks", "11"], "num_tasks must be an int in [1, 10]"),
        ("class_stream", ["--width", "6"], "groups must divide width"),
        ("class_stream", ["--data", "no/such"], "got 'no/such'"),
        ("byte_domains", ["--data", "no/such"], "got 'no/such'"),
        ("byte_domains", ["--data", "tests"], "tests holds no .txt file"),
        ("byte_domains", ["--max-bytes", "300"], "300 bytes, too few for rows of 32"),
        ("byte_domains", ["--num-heads", "3"], "key heads must divide query heads"),
        ("byte_domains", ["--num-steps", "0"], "num_steps: expected"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    name, words, message, tmp_path, capsys, monkeypatch
):
    """Oracle: exit code 2, one line that names the trouble."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "out"
    asked = ["smoke", *words, "--out", str(folder)]
    assert main(EXPERIMENTS[name], asked) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not folder.exists()


def test_rows_of_bytes_are_followed_by_what_comes_next():
    """Oracle: slicing the text by hand."""
    text = bytes(range(11))
    x, y = as_rows(text, 3)
    assert x.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert y.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    task = make_task("text", bytes(100), 4, 3)
    assert (task.train.count, task.test.count) == (29, 3)
    assert task.train.read(np.arange(2)).task.tolist() == [4, 4]


def test_pythons_texts_are_there_and_unlike():
    """Oracle: what must stand in them."""
    texts = domains("python", 50_000)
    assert {name: len(text) for name, text in texts.items()} == dict.fromkeys(
        ("sources", "documentation", "licences", "words"), 50_000
    )
    assert b"import " in texts["sources"]
    assert b"EXCLAMATION MARK\n" in texts["words"]
    assert b"copyright" in texts["licences"].lower()
    assert first([b"ab", b"cd", b"ef"], 3) == b"abc"


def test_a_folder_of_texts_is_learned_in_the_order_of_names(tmp_path):
    """Oracle: the files."""
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text(name * 9)
    assert domains(str(tmp_path), 5) == {"a": b"aaaaa", "b": b"bbbbb"}


def test_the_table_of_forgetting_is_that_of_the_matrices():
    """Oracle: by hand, two seeds of two tasks."""
    records = [
        {
            "run": f"er/seed={seed}",
            "setting": "s",
            "arm": "er",
            "hyper": {},
            "seed": seed,
            "status": "done",
            "accuracy": [0.8, 0.6],
            "matrix": [[0.8, 0.1], [0.4 + 0.2 * seed, 0.6]],
            "seconds": 60.0,
        }
        for seed in range(2)
    ]
    (row,) = forgetting_table(records).rows
    assert row[:2] == ("er", 2)
    means = [interval.mean for interval in row[2:6]]
    np.testing.assert_allclose(means, [0.55, 0.7, 0.3, -0.3])
    assert row[6] == 2.0
    seen = so_far(records[0])["measures"]["accuracy over the tasks so far"]
    np.testing.assert_allclose(seen, [0.8, 0.5])
    lost = [records[0], records[1] | {"status": "diverged"}]
    assert "er/seed=1" in forgetting_table(lost).notes[-1]
