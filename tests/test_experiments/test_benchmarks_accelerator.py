"""The accelerator's command: items that go wrong, and the run that is killed."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.accelerator import command, forgetting, packed, resume
from experiments.benchmarks.accelerator.command import ITEMS
from experiments.benchmarks.accelerator.report import LINES, read_lines, readme_text
from experiments.finetune.config import EXPERIMENT
from experiments.plasticity.arms import arms, trials
from experiments.plasticity.config import PRESETS
from jaxcl.runs.experiment import parse

ROOT = Path(__file__).parents[2]
SECONDS = 40.0


@pytest.fixture(scope="module")
def fakes(tmp_path_factory):
    """What the fake items printed, what they wrote, and how long it took."""
    folder = tmp_path_factory.mktemp("fakes")
    script = Path(__file__).with_name("fake_items.py")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(SECONDS)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    took = time.monotonic() - began
    return [json.loads(line) for line in done.stdout.splitlines()], folder, took


def of(lines, item):
    return [line for line in lines if line["item"] == item]


def test_every_item_ends_with_a_line_that_says_how(fakes):
    """Oracle: what each fake item does."""
    lines, folder, _ = fakes
    ends = {line["item"]: line for line in lines if line["what"] == "end"}
    assert list(ends) == ["fails", "fills", "dies", "overruns", "well"]
    statuses = [line["status"] for line in ends.values()]
    assert statuses == ["failed", "out of memory", "failed", "time", "done"]
    assert ends["fails"]["error"] == "no such kernel"
    assert ends["fills"]["error"].endswith(
        "RESOURCE_EXHAUSTED: Out of memory allocating 27 GiB"
    )
    assert "exit code -11" in ends["dies"]["error"]
    assert "no such kernel" in (folder / "fails" / "stderr.txt").read_text()
    written = (folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == lines


def test_what_was_known_before_the_end_is_kept_and_says_where(fakes):
    """Oracle: what the fake items tell before they go wrong."""
    lines, _, _ = fakes
    first, second, _ = of(lines, "overruns")
    assert (first["what"], first["number"]) == ("before the time is over", 1)
    assert {"device", "jax", "commit"} <= set(first)
    assert of(lines, "fails")[0]["number"] is None  # JSON has no NaN
    deadline = time.monotonic() + 20  # the process it started went with it
    while alive(second["pid"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(second["pid"])


def alive(pid):
    """Whether a process runs; one that has ended may wait for its parent's notice."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (
        state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"
    )


def test_flags_are_those_of_the_item(fakes):
    """Oracle: a flag whose effect can be counted."""
    assert of(fakes[0], "well")[0]["devices"] == 3


def test_time_that_is_not_used_goes_to_the_later_items(fakes):
    """Oracle: equal shares of what is left, by hand from the seconds that were spent."""
    lines, _, took = fakes
    ends = [line for line in lines if line["what"] == "end"]
    left, count = SECONDS, len(ends)
    for place, end in enumerate(ends):
        assert math.isclose(end["limit"], left / (count - place), abs_tol=0.5)
        left -= end["seconds"]
    assert ends[-1]["limit"] > 1.2 * SECONDS / count
    overrun = ends[3]
    assert overrun["limit"] <= overrun["seconds"] < overrun["limit"] + 2
    assert took < SECONDS + 40  # of which starting Python is the most


CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Oracle: the run that was left alone; the kill came inside the first task."""
    monkeypatch.setenv("XLA_FLAGS", CHEAP)
    killed, went_on, same = resume.kill_and_resume(True, tmp_path)
    assert killed["exit_code"] == -9
    assert 0 < killed["last_checkpoint"][0] < resume.NUM_STEPS
    assert went_on["went_on_from"] == killed["last_checkpoint"]
    assert (same["status"], same["largest_difference"]) == ("done", 0.0)
    assert same["equal_arrays"] == same["arrays"] == 4


def test_other_bits_are_noticed(tmp_path):
    """Oracle: two files that differ in one number, and in the sign of a zero."""
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    np.savez(one, np.zeros(3, np.float32), np.arange(3.0))
    np.savez(two, -np.zeros(3, np.float32), np.array([0.0, 1.0, 2.5]))
    found = resume.compare(one, two)
    assert (found["status"], found["equal_arrays"]) == ("failed", 0)
    assert found["largest_difference"] == 0.5
    assert resume.compare(one, one)["status"] == "done"


def test_the_whole_grid_is_extrapolated_from_what_was_timed():
    """Oracle: by hand. Of two settings and two arms, three programs of four are timed."""
    timed = {
        ("long", "sgd"): (1.0, 0.1),
        ("short", "sgd"): (3.0, 0.3),
        ("long", "sam"): (2.0, 0.2),
    }
    whole = packed.extrapolated(timed, {"long": 10, "short": 5}, ["sgd", "sam"])
    np.testing.assert_allclose(whole, (1 + 2 + 3 + 2, 10 * 0.3 + 5 * 0.5))
    first = packed.extrapolated(
        {("long", "sgd"): (1.0, 0.1)},
        {"long": 10, "short": 5},
        ["sgd", "sam"],
    )
    np.testing.assert_allclose(first, (4.0, 2 * 1.5))


def test_the_grid_is_that_of_the_paper():
    """Oracle: the names of the runs that the experiment itself would do."""
    paper = PRESETS["paper"]
    assert dataclasses.replace(packed.GRID, data=paper.data) == paper
    listed = packed.by_arm(packed.GRID)
    assert set(listed) == set(arms(paper, 1))
    names = [trial.run for runs in listed.values() for trial in runs]
    wanted = {trial.run for trial in trials(paper) if trial.setting == "permuted"}
    assert len(set(names)) == len(names)
    assert set(names) == wanted


def test_a_pack_repeats_the_runs_of_an_arm():
    """Oracle: the 20 runs of SGD in the preset ``paper``: two rates, ten seeds."""
    runs = packed.pack_of(packed.GRID, "sgd", 50)
    assert len(runs) == 50
    assert runs[20:40] == runs[:20]
    assert len({(trial.seed, *trial.hyper.values()) for trial in runs}) == 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "pakcs"], "items: unknown 'pakcs'; did you mean packs?"),
        (["--minutes", "0"], "--minutes: expected a number above 0, got 0"),
        (["--minutes", "nan"], "--minutes: expected a number above 0, got nan"),
        (["--out", "."], ". is there already; choose another --out."),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    """Oracle: exit code 2, one line, and no folder."""
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_item(capsys):
    """Oracle: the tuple of items."""
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(item.name in said for item in ITEMS)


@pytest.mark.parametrize(
    ("there", "lacking"),
    [
        ((), "JAXCL_REALDATA must be a folder with text-cls/"),
        (("text-cls", "instruct"), "JAXCL_REALDATA must be a folder with trace/"),
        (
            ("text-cls", "trace", "instruct"),
            "JAXCL_MODELS must be a folder with smollm2/",
        ),
    ],
)
def test_without_data_or_model_forgetting_is_one_line(
    there, lacking, tmp_path, monkeypatch
):
    """Oracle: what is there, and no folder of a run."""
    monkeypatch.delenv("JAXCL_MODELS", raising=False)
    monkeypatch.setenv("JAXCL_REALDATA", str(tmp_path / "data"))
    for name in there:
        (tmp_path / "data" / name).mkdir(parents=True)
    (line,) = forgetting.forgetting(True, tmp_path / "runs")
    assert line["status"] == "skipped"
    assert line["what"].startswith(f"skipped: {lacking}; ")
    assert not (tmp_path / "runs").exists()


def test_what_forgetting_runs_is_taken_by_the_experiment():
    """Oracle: the experiment's parser, which refuses what it does not know."""
    for presets in (forgetting.LARGE, forgetting.SMALL):
        for preset, words in presets.items():
            assert parse(EXPERIMENT, [preset, *words.split()]).preset == preset


RUN = """
import json, pathlib, sys
place = pathlib.Path(sys.argv[-1])
line = {"setting": "trace", "arm": "er", "seed": 1, "status": "diverged"}
line |= {"seconds": 2.0, "accuracy": [0.5, 1.0], "final": [0.25, None]}
line |= {"choice": [[0.5, None], [0.75, 0.25]], "general": {"a": [0.5, 0.25]}}
with open(place / "results.jsonl", "a") as file:
    file.write(json.dumps(line) + "\\n")
raise SystemExit(len(sys.argv) - 3)
"""


def test_a_new_line_of_results_is_a_fact(tmp_path):
    """Oracle: by hand. A line that was there is not repeated; a failure is raised."""
    (tmp_path / "results.jsonl").write_text('{"run": "of before"}\n')
    (fact,) = forgetting.watched([sys.executable, "-c", RUN], tmp_path)
    assert fact["what"] == f"{tmp_path.name}: trace, er, seed 1"
    assert (fact["status"], fact["run_seconds"]) == ("diverged", 2.0)
    assert fact["score_when_learned"] == 0.75
    assert math.isnan(fact["score_at_the_end"])
    assert (fact["choice_at_the_end"], fact["general_change"]) == (0.5, -0.25)
    lines = forgetting.watched([sys.executable, "-c", RUN, "more"], tmp_path)
    assert next(lines)["what"] == fact["what"]
    with pytest.raises(subprocess.CalledProcessError, match="exit status 1"):
        next(lines)


def test_the_readme_shows_what_the_committed_lines_say():
    """Oracle: the committed lines of a GPU, and the README as it stands."""
    text = readme_text(read_lines())
    assert text in (LINES.parent.parent / "README.md").read_text()
    assert "| 50 | 8c4cd4e | 7,238 |" in text


def test_language_models_have_a_table_of_their_own():
    """Oracle: by hand."""
    line = {
        **{"item": "language", "what": "billion: lora", "first_seconds": 20.2},
        **{"run_seconds": 0.25, "tokens_per_second": 32768.0},
        "teraflops_per_second": 161.9,
    }
    text = readme_text([*read_lines(), line])
    assert "| billion: lora | 20 s | 0.250 s | 32,768 | 162 |" in text


def test_ratios_of_methods_have_a_row_for_each():
    """Oracle: by hand, of two rounds."""
    name = "smollm2_bf16, ilora"
    line = {"item": "finetune", "what": f"{name}: against replay"}
    rounds = [{**line, "ratio": ratio} for ratio in (1.5, 1.75)]
    text = readme_text([*read_lines(), *rounds])
    row = f"| a step of an adapter, {name} | the step with replay | 1.50, 1.75 |"
    assert row in text
