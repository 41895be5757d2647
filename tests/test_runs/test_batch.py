"""Batches of runs: which are done, which are skipped, which failed, and one table."""

import csv
import importlib.util
import io
import json
import os
import signal
import sys
import time

import pytest

from experiments.class_stream.config import EXPERIMENT
from jaxcl.runs import batch, launch
from jaxcl.runs.experiment import parse
from jaxcl.runs.folder import read_records
from jaxcl.runs.launch import Job, execute, run_here, run_on_cluster

SLEEP = "import time, os; print(os.getpid(), flush=True); time.sleep(60)"
TINY = ["--arms", "none", "--num-tasks", "1", "--num-steps", "2"]
STREAM = "experiments.class_stream"
SMOKE = (STREAM, "smoke")
NUMBERS = list(map(str, range(200)))
LONG = ["--grid", "rho", *NUMBERS]
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="needs the extra cluster"
)


@pytest.mark.slow
def test_a_batch_skips_what_finished_and_names_what_failed(tmp_path, capsys):
    """Oracle: the grid by hand, and the same command given twice.

    A width of 6 cannot be: the groups of the network do not divide it.
    """
    out = tmp_path / "widths"
    words = [*SMOKE, *TINY, "--grid", "width", "4", "6"]
    words += ["--out", str(out)]
    assert batch.main(words) == 1
    said = capsys.readouterr().err
    assert f"failed: width=6, see {out / 'logs' / 'width=6.txt'}" in said
    assert "groups must divide width" in (out / "logs" / "width=6.txt").read_text()
    with (out / "runs.csv").open() as file:
        good, bad = csv.DictReader(file)
    assert (good["width"], good["arm"], good["status"]) == ("4", "none", "done")
    (line,) = read_records(out / "width=4")
    assert float(good["accuracy at the end"]) == pytest.approx(
        line["final"][0], abs=1e-4
    )
    assert (bad["width"], bad["status"], bad["accuracy at the end"]) == (
        "6",
        "not begun",
        "",
    )

    held = (out / "logs" / "width=4.txt").read_bytes()
    assert batch.main(words) == 1
    assert (out / "logs" / "width=4.txt").read_bytes() == held  # it was not run again


def job(tmp_path, name, code):
    return Job(name, [sys.executable, "-c", code], tmp_path / "logs" / f"{name}.txt")


def test_jobs_run_a_few_at_a_time_and_all_are_told(tmp_path):
    """Oracle: each job notes how many are there; exit codes by hand."""
    note = (
        "import os, sys, time; here = sys.argv[0]; place = {place!r}; "
        "open(place + '/' + {name!r}, 'w').close(); time.sleep(0.3); "
        "print(len(os.listdir(place))); os.remove(place + '/' + {name!r}); "
        "sys.exit({code})"
    )
    place = tmp_path / "here"
    place.mkdir()
    jobs = [
        job(tmp_path, f"{n}", note.format(place=str(place), name=f"{n}", code=n % 2))
        for n in range(5)
    ]
    on_progress = {done.name: code for done, code in run_here(jobs, parallel=2)}
    assert on_progress == {f"{n}": n % 2 for n in range(5)}
    assert max(int(one.log.read_text()) for one in jobs) == 2


def test_who_stops_looking_ends_what_runs(tmp_path):
    """Oracle: the process, asked by number; it sleeps for a minute."""
    sleeper = job(tmp_path, "a", SLEEP)
    quick = job(tmp_path, "b", "pass")
    going = run_here([sleeper, quick], parallel=2)
    assert next(going)[0] == quick
    limit = time.monotonic() + 20
    while not sleeper.log.read_text().endswith("\n"):
        assert time.monotonic() < limit
        time.sleep(0.05)
    number = int(sleeper.log.read_text())
    os.kill(number, 0)  # it is there
    going.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_job_whose_time_is_up_is_told_by_sigterm(tmp_path):
    """Oracle: what the job says. An alarm stands for the signal that submitit raises at."""
    code = (
        "import signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved'))); "
        "print(signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN, flush=True); "
        "time.sleep(60)"
    )
    one = job(tmp_path, "a", code)

    def end(number, frame):
        del number, frame
        while not one.log.exists() or not one.log.read_text():
            time.sleep(0.05)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError):
            execute(one)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert one.log.read_text() == "True\nsaved\n"


def test_a_batch_says_what_runs_and_how_to_go_on(tmp_path, capsys, monkeypatch):
    """Oracle: the words, before any of three runs has ended; SIGTERM comes by hand."""
    began = []

    def end(jobs, *, parallel):
        began.append((len(jobs), parallel, capsys.readouterr().err))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        yield

    monkeypatch.setattr(launch, "run_here", end)
    words = [
        *SMOKE,
        "--grid",
        "rho",
        "1",
        "2",
        "3",
        "--parallel",
        "2",
    ]
    assert batch.main([*words, "--out", str(tmp_path)]) == 0
    assert began == [(3, 2, "runs: 0/3 (rho=1; rho=2)\n")]
    said = f"terminated; the same command goes on from here: {tmp_path}\n"
    assert capsys.readouterr().err == said


def test_a_field_comes_from_the_grid_or_from_the_list(tmp_path, capsys):
    """Oracle: exit code 2 and the field, however it is written."""
    listed = tmp_path / "each.jsonl"
    listed.write_text('{"num-steps": 3}')
    words = [*SMOKE, "--each", str(listed)]
    assert batch.main([*words, "--grid", "num_steps", "1", "2"]) == 2
    assert "num_steps is given in two ways" in capsys.readouterr().err
    assert batch.main([*words, "--num-steps", "2"]) == 2
    assert "num_steps is given in two ways" in capsys.readouterr().err


@pytest.mark.slow
@needs_submitit
def test_a_cluster_runs_all_jobs_and_tells_of_those_that_failed(tmp_path):
    """Oracle: submitit's executor on this machine; exit codes by hand, and a kill."""
    die = f"import os; os.kill(os.getppid(), {int(signal.SIGKILL)})"
    jobs = [
        job(tmp_path, "good", "print('here')"),
        job(tmp_path, "bad", "raise SystemExit(3)"),
        job(tmp_path, "killed", die),
    ]
    on_progress = run_on_cluster(
        jobs,
        cluster="local",
        parallel=1,
        parameters={"timeout_min": 2},
        folder=tmp_path / "submitit",
    )
    codes = {done.name: code for done, code in on_progress}
    assert codes == {"good": 0, "bad": 3, "killed": 1}
    assert jobs[0].log.read_text() == "here\n"


@needs_submitit
@pytest.mark.parametrize("parameters", [{"tiemout_min": 1}, {"timeout_min": "long"}])
def test_parameters_that_no_cluster_knows_are_bad_input(parameters, tmp_path):
    """Oracle: one line, nothing submitted."""
    on_progress = run_on_cluster(
        [job(tmp_path, "a", "pass")],
        cluster="local",
        parallel=1,
        parameters=parameters,
        folder=tmp_path / "submitit",
    )
    with pytest.raises(ValueError, match=r"batch: .*timeout_min|batch: .*tiemout_min"):
        next(on_progress)
    assert not list(tmp_path.rglob("*.pkl"))


def test_grids_and_lists_are_multiplied_out(tmp_path):
    """Oracle: by hand."""
    listed = tmp_path / "each.jsonl"
    listed.write_text('{"width": 4, "arms": ["none", "er"]}\n\n{"width": 8}\n')
    words = [*SMOKE, "--seeds", "2", "--each", str(listed)]
    asked = batch.read_words([*words, "--grid", "rho", "0.1", "0.2", "--parallel", "3"])
    assert [batch.name_of(settings) for settings in asked.each] == [
        "width=4,arms=none+er,rho=0.1",
        "width=4,arms=none+er,rho=0.2",
        "width=8,rho=0.1",
        "width=8,rho=0.2",
    ]
    assert (asked.parallel, asked.on) == (3, "here")
    words = batch.words_for_run(asked, asked.each[1])
    config = parse(EXPERIMENT, words).config
    assert (config.width, config.rho, config.seeds) == (4, 0.2, 2)
    assert config.arms == ("none", "er")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([STREAM], "expected MODULE PRESET"),
        (["class_strea", "smoke", "--grid", "rho", "1"], "got 'class_strea'"),
        ([*SMOKE], "nothing varies"),
        (
            [*SMOKE, "--grid", "rho"],
            "a field and its values, got 'rho'",
        ),
        (
            [
                *SMOKE,
                "--grid",
                "rho",
                "1",
                "2",
                "--grid",
                "rho",
                "3",
                "4",
            ],
            "rho is given in two ways",
        ),
        (
            [*SMOKE, "--grid", "rho", "0", "-1"],
            "rho: expected",
        ),
        (
            [STREAM, "cifar", "--grid", "rho", "0", "1"],
            "data: name the images",
        ),
        (
            [*SMOKE, "--grid", "rho", "1", "1"],
            "rho=1 is there twice",
        ),
        (
            [
                *SMOKE,
                "--rho",
                "1",
                "--grid",
                "rho",
                "1",
                "2",
            ],
            "rho is given in two ways",
        ),
        (
            [*SMOKE, "--grid", "rho", "1", "--on", "mars"],
            "one of here",
        ),
        (
            [
                *SMOKE,
                "--grid",
                "rho",
                "1",
                "--parallel",
                "0",
            ],
            "above 0",
        ),
        (
            [*SMOKE, "--grid", "rho", "1", "--slurm", "x"],
            "NAME=VALUE",
        ),
        (
            [
                *SMOKE,
                "--grid",
                "rho",
                "1",
                "--slurm",
                "a=1",
            ],
            "--on slurm",
        ),
        (
            [
                *SMOKE,
                "--grid",
                "rho",
                "1",
                "--out",
                __file__,
            ],
            "is not a folder",
        ),
        (
            [*SMOKE, "--each", "nowhere.jsonl"],
            "cannot read nowhere",
        ),
        ([*SMOKE, "--each", "a\0b"], "can be printed"),
        (
            [*SMOKE, "--grid", "rho", "\udcff"],
            "can be printed",
        ),
        (
            [
                *SMOKE,
                "--grid",
                "data",
                "digits",
                "nofolder",
            ],
            "a path that exists, got 'nofolder'",
        ),
        (
            [*SMOKE, *LONG, *("--grid", "width", *NUMBERS)],
            "at most 10000 runs",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    words, message, tmp_path, capsys, monkeypatch
):
    """Oracle: exit code 2, one line that names the trouble."""
    monkeypatch.chdir(tmp_path)
    assert batch.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smok", "--grid", "rho", "1"], "Available subcommands: smoke, cifar"),
        (["smoke", "--grid", "roh", "1"], "--rho FLOAT"),
        (["smoke", "--grid", "rho", "x"], "Error parsing --rho"),
    ],
)
def test_fields_are_those_of_the_experiment(
    words, message, tmp_path, capsys, monkeypatch
):
    """Oracle: the word that is wrong, or what was meant, before any run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as left:
        batch.main([STREAM, *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_any_module_can_be_run(tmp_path, monkeypatch, capsys):
    """Oracle: a module that knows nothing of this library; its exit code and output.

    It is in the current folder, which only ``python -m`` has on its path, not a console
    script; elsewhere it is not found.
    """
    (tmp_path / "plain_module.py").write_text(
        "import sys; print(sys.argv[1:]); sys.exit(int(sys.argv[3]))"
    )
    monkeypatch.setattr(
        sys, "path", [p for p in sys.path if p not in ("", os.getcwd())]
    )
    monkeypatch.delenv("PYTHONPATH", raising=False)
    words = ["plain_module", "go", "--grid", "code", "3", "--out", str(tmp_path / "b")]
    assert batch.main(words) == 2
    assert "a module that python -m finds" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert batch.main(words) == 1
    assert "failed: code=3" in capsys.readouterr().err
    held = (tmp_path / "b" / "logs" / "code=3.txt").read_text()
    assert held.startswith("['go', '--code', '3', '--out', ")


def test_a_bad_line_of_a_list_is_named(tmp_path, capsys):
    """Oracle: its number."""
    listed = tmp_path / "each.jsonl"
    for text, said in (
        ('{"rho": 1}\nrho', "line 2 is not a JSON object"),
        ("[1]", "line 1 is not a JSON object"),
        ("[" * 5000, "line 1 is not a JSON object"),
        ('{"rho": [[1]]}', "line 1 is not a JSON object"),
        (r'{"data": "a\u0000b"}', "can be printed"),
        (r'{"data": "\udcff"}', "can be printed"),
        ("", "nothing varies"),
        ('{"out": "a"}', "out is not a field of the experiment"),
        (json.dumps({"arms": ["none"] * 99}), "too much varies"),
    ):
        listed.write_text(text)
        assert batch.main([*SMOKE, "--each", str(listed)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "failed: rho=1"),
        *((text, "status.json is damaged") for text in ("[1]", "null", "[" * 5000)),
    ],
)
def test_a_status_that_says_nothing_is_of_a_run_that_did_not_end(
    tmp_path, monkeypatch, capsys, text, said
):
    """Oracle: the run without a status is run; one with a damaged file is named."""
    (tmp_path / "plain_module.py").write_text("import sys; sys.exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    place = tmp_path / "plain_module" / "rho=1"
    place.mkdir(parents=True)
    (place / "status.json").write_text(text)
    words = ["plain_module", "go", "--grid", "rho", "1", "--out", str(place.parent)]
    assert batch.main(words) == (1 if text == "{}" else 2)
    assert said in capsys.readouterr().err


def test_a_diverged_run_has_no_accuracy_in_the_table(tmp_path):
    """Oracle: by hand."""
    words = [
        *SMOKE,
        "--grid",
        "rho",
        "1",
        "2",
        "--out",
        str(tmp_path),
    ]
    asked = batch.read_words(words)
    place = tmp_path / "rho=1"
    place.mkdir()
    head = {"setting": "s", "arm": "er", "hyper": {"a": 1}, "seconds": 2.0}
    lines = [
        {**head, "run": "0", "seed": 0, "status": "done", "final": [0.5, 0.7]},
        {**head, "run": "1", "seed": 1, "status": "diverged", "final": [0.5, 0.7]},
        {"run": "2", "status": "done", "final": 0.25, "accuracy": [0.5, None]},
        {"run": "3", "final": []},
    ]
    (place / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    with io.StringIO(batch.runs_table(asked)) as table:
        rows = [list(row.values()) for row in csv.DictReader(table)]
    assert rows[0] == ["1", "s", "er", '{"a": 1}', "0", "done", "0.6", "", "2.0"]
    assert rows[1][5:7] == ["diverged", ""]
    assert rows[2][5:8] == ["done", "0.25", ""]
    assert rows[3][5:8] == ["", "", ""]
    assert rows[4] == ["2", "", "", "{}", "", "not begun", "", "", ""]
