"""The command, the folder and the bar that all experiments share."""

import dataclasses
import errno
import fcntl
import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as experiments
from jaxcl.errors import InputError, WriteError
from jaxcl.files import lock_folder, write_json, write_text
from jaxcl.progress import pace, progress
from jaxcl.runs import command, environment
from jaxcl.runs import folder as run_folder
from jaxcl.runs.command import is_bad_input
from jaxcl.runs.experiment import Experiment, check_fields, expect_no_words

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A toy experiment."""

    seeds: int = 3
    learning_rate: float = 0.1  # size of a step
    hidden: tuple[int, ...] = (4, 4)
    head: Literal["shared", "new"] = "shared"
    limit: int | None = None
    data: str = "digits"


PRESETS = {"paper": Config(), "smoke": Config(seeds=1, hidden=(2,))}


def record(name, **others):
    return {"run": name, "status": "done", "accuracy": [0.5], **others}


def stop(_config, _folder):
    raise KeyboardInterrupt


def run_all(config, folder):
    done = run_folder.finished(folder)
    for seed in range(config.seeds):
        if f"seed={seed}" not in done:
            run_folder.append(folder, [record(f"seed={seed}")])


def toy(about="A toy.", **others):
    return Experiment("experiments.toy", PRESETS, "paper", about, **others)


def start(tmp_path, *words, run=run_all, report=lambda *_: None, out="run", **others):
    argv = [*words, "--out", str(tmp_path / out)] if out else list(words)
    return command.main(toy(**others), argv, run=run, report=report)


def status(tmp_path):
    return json.loads((tmp_path / "run" / "status.json").read_text())


def lines(tmp_path):
    return (tmp_path / "run" / "results.jsonl").read_text().splitlines()


def test_a_run_leaves_a_complete_folder(tmp_path):
    """Oracle: the documented list of files and what they must hold."""
    assert start(tmp_path, "smoke", "--seeds", "2", "--learning-rate=0.5") == 0
    folder = tmp_path / "run"
    held = json.loads((folder / "config.json").read_text())
    wanted = {"seeds": 2, "learning_rate": 0.5, "hidden": [2], "head": "shared"}
    assert held == {
        "experiment": "toy",
        "preset": "smoke",
        "config": {**wanted, "limit": None, "data": "digits"},
    }
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["command"].startswith(
        "python -m experiments.toy smoke --seeds 2"
    )
    assert {"commit", "platform", "cpu", "devices"} <= set(environment)
    assert status(tmp_path)["status"] == "done"
    assert [json.loads(line)["run"] for line in lines(tmp_path)] == ["seed=0", "seed=1"]
    assert not list(folder.rglob("*.tmp"))


def test_the_default_folder_names_experiment_preset_and_settings():
    """Oracle: equal settings give equal names, other settings other names."""

    def path(config):
        folder = run_folder.RunFolder(
            Path(), "toy", "smoke", config, cosmetic_fields=("limit",)
        )
        return run_folder.default_path(folder, Path("o"))

    assert path(Config()).parent == Path("o")
    assert path(Config()).name.startswith("toy-smoke-")
    assert path(Config()) == path(Config(seeds=3))
    assert path(Config()) == path(Config(limit=5))  # free: it changes no result
    assert path(Config()) != path(Config(seeds=4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["somke"], "somke"),
        (["somke"], "Available subcommands: paper, smoke"),
        (["smoke", "--sedes", "3"], "--seeds INT"),  # what is meant
        (["--sedes", "3"], "--seeds INT"),
        (["smoke", "--learning-rate", "x"], "Error parsing --learning-rate"),
        (["smoke", "--seeds", "x"], "Error parsing --seeds"),
        (["smoke", "--seeds", "1.5"], "Error parsing --seeds"),
        (["smoke", "--seeds"], "--seeds"),
        (["smoke", "--seeds", "1", "2"], "Unrecognized options: 2"),
        (["smoke", "--hidden", "4", "a"], "--hidden"),
        (["smoke", "--head", "old"], "invalid choice"),
        (["smoke", "3"], "Unrecognized options: 3"),
    ],
)
def test_bad_words_are_explained_with_exit_code_two(
    tmp_path, capsys, monkeypatch, words, message
):
    """Oracle: the word that is wrong, or what was meant; nothing is run or left."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        start(tmp_path, *words, out=None, run=lambda *_: pytest.fail("it runs"))
    assert left.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_is_explained_by_the_command_that_lists_them(capsys):
    """Oracle: every command that the message names begins as the one that was given."""
    with pytest.raises(SystemExit):
        command.main(toy(), ["somke", "--seeds", "3", "--limit", "4"])
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "Unrecognized options: somke" in said
    assert "Available subcommands: paper, smoke" in said
    assert re.findall(r"python \S+ \S+", said) == ["python -m experiments.toy"]


def test_settings_that_could_not_work_are_one_line_before_anything_is_imported(capsys):
    """Oracle: the message by hand; a module without run.py would fail to import."""
    experiment = toy(check=check_fields)
    assert command.main(experiment, ["smoke", "--seeds", "0"]) == 2
    said = capsys.readouterr().err
    assert said == "error: seeds: expected finite numbers above 0, got 0.\n"


def test_without_a_preset_the_default_one_is_meant(tmp_path):
    """Oracle: the dataclass built by hand."""
    seen = []
    run = lambda config, _: seen.append(config)
    assert start(tmp_path, "--seeds", "2", run=run) == 0
    assert start(tmp_path, run=run, out="another") == 0
    assert seen == [Config(seeds=2), Config()]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", 2**32, "an integer from 0 to 4294967295"),
        ("seed", -1, "an integer from 0 to 4294967295"),
        ("seeds", 10_001, "at most 10000"),
        ("steps", 2**31, "at most 2147483647"),
        ("rate", math.nan, "finite numbers above 0"),
        ("rate", math.inf, "finite numbers above 0"),
        ("sizes", (), "at least one"),
        ("sizes", (2, 2), "each one once"),
        ("part", 1.0, "of at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(field, value, message):
    """Oracle: the ranges: JAX's seeds have 32 bits, counts are int32."""
    names = ["seed", "seeds", "steps", "rate", "sizes", "part"]
    good = dict(zip(names, (0, 1, 1, 0.1, (1, 2), 0.0), strict=True))
    kind = dataclasses.make_dataclass("Numbers", names)
    options = {"may_be_zero": ("part",), "fractions": ("part",)}
    check_fields(kind(**good), **options)
    with pytest.raises(InputError, match=message) as refused:
        check_fields(kind(**good | {field: value}), **options)
    assert str(refused.value).startswith(f"{field}: expected")


def test_a_path_that_is_not_there_is_refused_before_the_run(tmp_path, capsys):
    """Oracle: a folder that exists, words that are no paths, and one that is neither."""
    paths = {"data": ("digits", "tfds:")}
    run = lambda *_: None
    for number, good in enumerate(("digits", "tfds:mnist", str(tmp_path))):
        words = ["smoke", "--data", good]
        assert start(tmp_path, *words, run=run, out=str(number), path_fields=paths) == 0
    assert start(tmp_path, "smoke", "--data", "nofolder", path_fields=paths) == 2
    wanted = "data: expected digits, tfds:NAME, or a path that exists, got 'nofolder'."
    assert capsys.readouterr().err == f"error: {wanted}\n"
    assert not (tmp_path / "run").exists()


def test_good_words_reach_the_settings(tmp_path):
    """Oracle: the dataclass built by hand."""
    seen = []
    words = ["--seeds", "2", "--hidden", "7", "8", "--limit=5", "--head", "new"]
    run = lambda config, _: seen.append(config)
    assert start(tmp_path, "paper", *words, run=run) == 0
    assert seen == [Config(seeds=2, hidden=(7, 8), limit=5, head="new")]


@pytest.mark.parametrize(
    "words", [["--help"], ["smoke", "--help"], ["--seeds", "3", "--help"]]
)
def test_help_teaches(capsys, monkeypatch, words):
    """Oracle: the fields, their comments and defaults, the presets."""
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as left:
        command.main(toy("A toy.\n\nWith numbers."), words)
    assert left.value.code == 0
    said = capsys.readouterr().out
    needed = ["A toy.", "With numbers."]
    if len(words) == 1:
        needed += ["paper", "smoke", "seeds 1, hidden 2", "the default"]
    else:
        hidden = "(default: 2)" if "smoke" in words else "(default: 4 4)"
        needed += ["--learning-rate FLOAT", "size of a step", "--out", hidden]
    for text in needed:
        assert text in said


@pytest.mark.parametrize("words", [["--help"], ["smoke", "--seeds", "0"]])
def test_help_and_refusals_need_no_jax(words):
    """Oracle: the modules of a process that has shown them."""
    code = (
        "import sys\n"
        "from experiments.plasticity.config import EXPERIMENT\n"
        "from jaxcl.runs.command import main\n"
        "try: main(EXPERIMENT, sys.argv[1:])\n"
        "finally: assert not {'jax', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True
    )
    assert "AssertionError" not in done.stderr
    assert "seeds" in done.stdout + done.stderr


def test_the_list_of_experiments_has_a_line_each(capsys):
    """Oracle: the folders that have settings."""
    with pytest.raises(SystemExit):
        experiments.expect_no_words("", ["--help"])
    capsys.readouterr()
    said = experiments.lines()
    for path in (ROOT / "experiments").glob("*/config.py"):
        module = f"experiments.{path.parent.name}"
        (line,) = [one for one in said if one.split()[:1] == [module]]
        about = path.read_text().splitlines()[0].strip('"')
        assert line.endswith(about)
    for one in experiments.experiments():
        assert one.default in one.presets
        one.check(one.presets[one.default])


COMMANDS = [
    path
    for path in sorted(ROOT.glob("experiments/**/*.py"))
    if path.name != "__main__.py"
    and "\nif __name__ ==" in path.read_text("utf-8")
    and path.parent.name != "examples"  # to be copied: they know no command line
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_a_command_that_asks_for_help_gets_no_job(path, monkeypatch, capsys):
    """Oracle: the file's own first line; the codes of ``main``; the job writes nothing."""
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("the job wrote a file"))
    for words, code in ((["--help"], 0), (["-h"], 0), (["--nonsense"], 2)):
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(path), run_name="__main__")
        assert left.value.code == code
        said = capsys.readouterr()
        if code:
            assert said.err.startswith("error: ")
            assert len(said.err.splitlines()) == 1
        else:
            first = path.read_text("utf-8").splitlines()[0]
            assert " ".join(first.strip('"').split()[:6]) in said.out


def test_a_command_without_arguments_goes_on_without_any(capsys):
    """Oracle: it returns and is silent; control: with a word it leaves, and names it."""
    assert len(COMMANDS) >= 4
    expect_no_words("What it is.", [])
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit):
        expect_no_words("What it is.", ["now"])
    assert "unexpected 'now'; this command takes no" in capsys.readouterr().err


def test_bad_input_found_by_the_run_is_one_line_and_leaves_nothing(tmp_path, capsys):
    """Oracle: an error that the library raises on purpose."""
    from jaxcl.tree import as_batch

    def run(_config, _folder):
        as_batch(jnp.zeros((2, 1)), jnp.zeros(3))

    assert start(tmp_path, "smoke", run=run) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: as_batch")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_bug_keeps_its_traceback(tmp_path):
    """Oracle: the same kind of error, raised by numpy."""

    def run(_config, _folder):
        np.zeros(2).reshape(3)

    with pytest.raises(ValueError, match="reshape"):
        start(tmp_path, "smoke", run=run)
    assert status(tmp_path)["status"] == "failed"
    assert "Traceback" in status(tmp_path)["error"]


def test_only_errors_that_we_raise_on_purpose_are_bad_input():
    """Oracle: four errors of one kind, judged by where and how they arise."""
    from jaxcl.report.records import check, curves

    def caught(action):
        with pytest.raises(ValueError, match=r".") as info:
            action()
        return info.value

    slip = {**record("a"), "accuracy": ["x"]}  # numpy refuses it in a line of ours
    assert is_bad_input(caught(lambda: check([])))
    assert not is_bad_input(caught(lambda: curves([slip])))
    assert not is_bad_input(caught(lambda: np.stack([])))
    assert not is_bad_input(caught(lambda: np.zeros(2).reshape(3)))
    assert is_bad_input(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="bad") as broken:
        raise OSError(errno.EIO, "bad cable")
    assert not is_bad_input(broken.value)


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    """Oracle: the bytes that were there."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert start(tmp_path, "smoke") == 2
    assert "not the folder of a run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_configuration_is_left_alone(tmp_path, capsys):
    """Oracle: the bytes that were there, and the field that differs."""
    start(tmp_path, "smoke")
    files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert start(tmp_path, "smoke", "--seeds", "2") == 2
    assert "(seeds 1, not 2)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in files} == before


def test_anybody_can_take_up_a_folder_that_differs_in_what_changes_no_result(
    tmp_path, capsys
):
    """Oracle: the free field, and the last component of a place; others are refused."""
    others = {"cosmetic_fields": ("limit",), "path_fields": {"data": ("digits",)}}
    assert start(tmp_path, "smoke", "--limit", "1", run=stop, **others) == 130
    assert start(tmp_path, "smoke", "--limit", "2", **others) == 0
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert held["config"]["limit"] == 2  # everything is recorded all the same

    assert start(tmp_path, "smoke", "--data", "/far/away/digits", **others) == 0
    assert "is finished" in capsys.readouterr().out
    assert start(tmp_path, "smoke", "--data", "/far/away/letters", **others) == 2
    assert "holds another configuration" in capsys.readouterr().err
    assert start(tmp_path, "smoke", "--data", "/far/away/digits") == 2
    capsys.readouterr()
    held["config"]["data"] = 3  # by hand
    (tmp_path / "run" / "config.json").write_text(json.dumps(held))
    assert start(tmp_path, "smoke", "--data", "/far/away/digits", **others) == 2
    assert "(data '3', not 'digits')" in capsys.readouterr().err


def test_a_folder_remembers_its_data(tmp_path, capsys):
    """Oracle: the same numbers again, and one of them changed."""
    images = np.arange(6.0)

    def run(config, folder):
        run_folder.check_data_hash(folder, [images, np.zeros(2)])
        stop(config, folder)

    for _ in range(2):
        assert start(tmp_path, "paper", run=run) == 130
    images = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.5])
    assert start(tmp_path, "paper", run=run) == 2
    assert "holds runs on other data (sha256:" in capsys.readouterr().err


def test_a_finished_run_is_only_reported_again(tmp_path, capsys):
    """Oracle: counting the calls."""
    calls = []
    report = lambda *_: calls.append("report")
    run = lambda config, folder: (calls.append("run"), run_all(config, folder))
    start(tmp_path, "smoke", run=run, report=report)
    assert start(tmp_path, "smoke", run=run, report=report) == 0
    assert calls == ["run", "report", "report"]
    assert "is finished" in capsys.readouterr().out


def test_sigterm_is_an_end_without_error_and_the_handler_is_put_back(tmp_path, capsys):
    """Oracle: the exit code, the status, and the handler before."""

    def end(config, folder):
        del config
        run_folder.append(folder, [record("seed=0")])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    assert start(tmp_path, "paper", run=end) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert "terminated; the same command goes on" in capsys.readouterr().err
    assert status(tmp_path)["status"] == "interrupted"
    assert start(tmp_path, "paper") == 0
    assert status(tmp_path)["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_program_is_compiled_has_its_exit_code(tmp_path, number):
    """Oracle: the documented codes. Python's own exit used to crash after such a signal."""
    # A shell lets its background jobs ignore Ctrl-C, and what they start inherits that. (A
    # preexec_fn would fork this process, of which JAX warns.)
    heeding = (
        "import runpy, signal; signal.signal(2, signal.default_int_handler); "
        "runpy.run_module('experiments.plasticity', run_name='__main__')"
    )
    words = ["-u", "-c", heeding, "smoke", "--out", str(tmp_path / "run")]
    settings = {"env": {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}, "cwd": ROOT}
    with subprocess.Popen(
        [sys.executable, *words], stderr=subprocess.PIPE, text=True, **settings
    ) as process:
        assert process.stderr is not None
        while "runs: 0/6" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.3)
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == {signal.SIGTERM: 0, signal.SIGINT: 130}[number]
    assert status(tmp_path)["status"] == "interrupted"


def test_a_run_whose_report_fails_is_not_done_and_the_next_makes_the_report(tmp_path):
    """Oracle: the status after a report that fails, and after one that does not."""

    def fail(*_):
        {}["no such column"]

    with pytest.raises(KeyError):
        start(tmp_path, "smoke", report=fail)
    assert status(tmp_path)["status"] == "failed"
    assert "no such column" in status(tmp_path)["error"]
    assert start(tmp_path, "smoke", report=stop) == 130
    assert status(tmp_path)["status"] == "interrupted"
    seen = []
    report = lambda *_: seen.append(status(tmp_path)["status"])
    assert start(tmp_path, "smoke", report=report) == 0
    assert seen == ["done"]  # what its page shows
    assert len(lines(tmp_path)) == 1


def test_the_time_of_a_run_is_that_between_its_marks(tmp_path, monkeypatch):
    """Oracle: a clock set by hand; a second end adds nothing."""
    folder = run_folder.RunFolder(tmp_path, "toy", "smoke", Config())
    for clock, state, seconds in (
        (100.0, "running", 0.0),
        (107.0, "done", 7.0),
        (109.0, "failed", 7.0),
        (200.0, "running", 7.0),
        (203.0, "done", 10.0),
    ):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        run_folder.mark(folder, state)
        assert run_folder.read_json(tmp_path / "status.json")["seconds"] == seconds


def test_an_unfinished_run_goes_on_and_drops_a_torn_line(tmp_path):
    """Oracle: the lines of a run that was never stopped."""

    def begin(_config, folder):
        run_folder.append(folder, [record("seed=0"), record("seed=1")])
        raise KeyboardInterrupt

    assert start(tmp_path, "paper", run=begin) == 130
    results = tmp_path / "run" / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-4])
    assert run_folder.finished(tmp_path / "run") == {"seed=0"}
    assert start(tmp_path, "paper") == 0
    names = [json.loads(line)["run"] for line in lines(tmp_path)]
    assert names == ["seed=0", "seed=1", "seed=2"]
    assert status(tmp_path)["status"] == "done"


def test_lines_of_another_machine_or_program_are_announced(tmp_path, capsys):
    """Oracle: two facts changed by hand; nothing is said where nothing changed."""
    assert start(tmp_path, "paper", run=stop) == 130
    assert start(tmp_path, "paper", run=stop) == 130
    assert "note:" not in capsys.readouterr().out
    path = tmp_path / "run" / "environment.json"
    held = json.loads(path.read_text())
    held["versions"]["jax"] = "0.1"
    write_json(path, {**held, "cpu": "an abacus"})
    assert start(tmp_path, "paper", run=stop) == 130
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "note:" in line)
    assert f"jax 0.1 -> {jax.__version__}; cpu an abacus -> " in said
    assert "numpy" not in said


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path, capsys):
    """Oracle: line 2 of 3, damaged by hand."""
    start(tmp_path, "paper")
    results = tmp_path / "run" / "results.jsonl"
    results.write_text(results.read_text().replace('{"run": "seed=1"', "{"))
    (tmp_path / "run" / "status.json").write_text('{"status": "failed"}')
    assert start(tmp_path, "paper") == 2
    assert "line 2, is damaged" in capsys.readouterr().err
    assert status(tmp_path) == {"status": "failed"}  # it does not run


DAMAGE = {
    "config.json": ["{", "[1]", "null", "3", "[" * 5000, '{"config": 3}'],
    "status.json": ["{", "[1]", "null", "3", "[" * 5000, '{"seconds": null}'],
    "environment.json": ["{", "[1]", "null", "3", "[" * 5000, '{"versions": 3}'],
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in DAMAGE.items() for text in texts]
)
def test_json_of_another_kind_is_an_error_that_names_it(tmp_path, capsys, name, text):
    """Oracle: the message, and the results as they were."""
    assert start(tmp_path, "paper", run=stop) == 130
    run_folder.append(run_folder.RunFolder(tmp_path / "run", "", "", 0), [record("a")])
    held = lines(tmp_path)
    (tmp_path / "run" / name).write_text(text)
    capsys.readouterr()
    assert start(tmp_path, "paper") == 2
    wanted = f"error: {tmp_path / 'run' / name} is damaged; choose another --out.\n"
    assert capsys.readouterr().err == wanted
    assert lines(tmp_path) == held


def test_a_folder_in_place_of_a_file_is_an_error_that_names_it(tmp_path, capsys):
    """Oracle: the message."""
    (tmp_path / "run" / "config.json").mkdir(parents=True)
    assert start(tmp_path, "smoke") == 2
    assert "config.json is damaged" in capsys.readouterr().err


def test_a_status_without_fields_is_of_a_run_that_goes_on(tmp_path):
    """Oracle: the lines of a run that was not stopped."""
    assert start(tmp_path, "paper", run=stop) == 130
    (tmp_path / "run" / "status.json").write_text("{}")
    assert start(tmp_path, "paper") == 0
    assert len(lines(tmp_path)) == 3


def test_a_line_without_the_name_of_its_run_is_an_error_that_names_it(tmp_path, capsys):
    """Oracle: line 2 of 2, written by hand; nothing is run."""
    assert start(tmp_path, "paper", run=stop) == 130
    results = tmp_path / "run" / "results.jsonl"
    for line in ("{}", '{"run": 3}'):
        results.write_text(json.dumps(record("seed=0")) + f"\n{line}\n")
        assert start(tmp_path, "paper", run=lambda *_: pytest.fail("it runs")) == 2
        said = capsys.readouterr().err
        assert f"{results}, line 2, has no name of a run; delete that line" in said
    assert status(tmp_path)["status"] == "interrupted"


def test_a_diverged_run_is_named_in_the_status(tmp_path, capsys):
    """Oracle: one run marked by hand among three."""

    def run(_config, folder):
        names = [record("a"), record("b", status="diverged"), record("c")]
        run_folder.append(folder, names)

    assert start(tmp_path, "smoke", run=run) == 0
    assert status(tmp_path)["status"] == "diverged"
    assert status(tmp_path)["diverged"] == ["b"]
    assert "1 of 3 runs diverged: b" in capsys.readouterr().out


HOLDER = """
import sys, time
from pathlib import Path
from jaxcl.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_living_process_keeps_its_folder_and_a_dead_one_does_not(tmp_path, capsys):
    """Oracle: a second process, killed without a chance to clean up."""
    path = tmp_path / "run"
    words = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            assert start(tmp_path, "smoke") == 2
            assert f"in use by process {other.pid} on" in capsys.readouterr().err
            assert [entry.name for entry in path.iterdir()] == [".lock"]
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait()
    assert start(tmp_path, "smoke") == 0


def test_a_lock_that_was_deleted_meanwhile_is_not_held(tmp_path, monkeypatch):
    """Oracle: a second claim, which must be refused. Another process ends, and deletes
    its lock, between our opening the file and our locking it."""
    path = tmp_path / "run"
    flock = fcntl.flock

    def late(lock, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        (path / ".lock").unlink()
        path.rmdir()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_folder(path) as made:
        assert made
        with pytest.raises(ValueError, match="in use by process"), lock_folder(path):
            pass
    with lock_folder(path) as made:
        assert not made


def test_a_folder_that_was_there_stays_after_bad_input(tmp_path):
    """Oracle: an empty folder of the caller; one that the command made goes."""

    def refuse(_config, _folder):
        msg = "no."
        raise run_folder.InputError(msg)

    (tmp_path / "run").mkdir()
    assert start(tmp_path, "smoke", run=refuse) == 2
    assert list((tmp_path / "run").iterdir()) == []
    assert start(tmp_path, "smoke", run=refuse, out="other") == 2
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_a_new_run_that_goes_on(tmp_path, capsys):
    """Oracle: the checkpoint of its first run, which is found again."""
    left = tmp_path / "run" / "checkpoints" / "abc" / "1.json"

    def fill(_config, _folder):
        left.parent.mkdir(parents=True)
        left.write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    assert start(tmp_path, "smoke", run=fill) == 2
    assert "No space left" in capsys.readouterr().err
    assert status(tmp_path)["status"] == "failed"
    assert left.exists()
    assert start(tmp_path, "smoke") == 0


def test_a_run_that_exits_is_marked_as_failed(tmp_path):
    """Oracle: the status, and the code."""

    def leave(_config, _folder):
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        start(tmp_path, "smoke", run=leave)
    assert status(tmp_path)["status"] == "failed"


def test_a_finished_run_that_lost_its_results_runs_again(tmp_path):
    """Oracle: the lines; it used to be reported as an empty one."""
    assert start(tmp_path, "smoke") == 0
    (tmp_path / "run" / "results.jsonl").unlink()
    assert start(tmp_path, "smoke") == 0
    assert len(lines(tmp_path)) == 1


def test_no_checkpoint_outlives_the_last_run(tmp_path):
    """Oracle: a state left by a kill between the line of a run and its removal."""
    left = tmp_path / "run" / "checkpoints" / "abc"

    def run(config, folder):
        left.mkdir(parents=True)
        (left / "1.json").write_text("{}")
        run_all(config, folder)

    assert start(tmp_path, "smoke", run=run) == 0
    assert not left.parent.exists()


def test_appending_does_not_read_everything_again(tmp_path, monkeypatch):
    """Oracle: counting the lines that are parsed; a line of somebody else is seen."""
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(1) or loads(text))
    folder = run_folder.RunFolder(tmp_path, "toy", "smoke", None)
    for number in range(20):
        run_folder.append(folder, [record(f"seed={number}")])
    assert len(parsed) == 0
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write(json.dumps(record("theirs")) + "\n")
    with pytest.raises(ValueError, match="finished before"):
        run_folder.append(folder, [record("theirs")])
    with pytest.raises(ValueError, match="finished before"):
        run_folder.append(folder, [record("twice"), record("twice")])
    assert len(lines_of(tmp_path)) == 21


def lines_of(path):
    return (path / "results.jsonl").read_text().splitlines()


def test_every_line_names_its_commit(tmp_path, monkeypatch):
    """Oracle: git itself, asked by hand; two programs in one file stay apart."""
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    environment.commit.cache_clear()
    run_folder.append(run_folder.RunFolder(tmp_path, "toy", "", None), [record("a")])
    monkeypatch.setattr(run_folder, "commit", lambda: "another")
    run_folder.append(run_folder.RunFolder(tmp_path, "toy", "", None), [record("b")])
    first, second = [line["commit"] for line in run_folder.read_records(tmp_path)]
    if asked.returncode == 0:
        assert first.startswith(asked.stdout.strip())
    assert second == "another"


def test_a_tree_is_called_clean_only_if_git_says_so(monkeypatch):
    """Oracle: three answers of git by hand; None stands for its failure."""
    for answer, expected in (
        ("", "abc"),
        (" M a.py", "abc with changes"),
        (None, "abc, changes unknown"),
    ):
        git = {"ls-files": "a.py", "rev-parse": "abc", "status": answer}
        monkeypatch.setattr(environment, "_git", lambda word, *_, git=git: git[word])
        assert environment.commit.__wrapped__() == expected
    monkeypatch.setattr(environment, "_git", lambda *_: None)
    assert environment.commit.__wrapped__() is None


def test_a_copy_in_a_repository_of_others_has_no_commit(tmp_path, monkeypatch):
    """Oracle: git itself, before and after the copy is part of the repository."""
    me = ["-c", "user.name=x", "-c", "user.email=x"]
    git = lambda *words: subprocess.run(
        ["git", "-C", str(tmp_path), *me, *words],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    git("init", "-q")
    (tmp_path / ".gitignore").write_text(".venv")
    git("add", ".gitignore")
    git("commit", "-qm", "Theirs")
    copy = tmp_path / ".venv" / "environment.py"
    copy.parent.mkdir()
    copy.write_text("")
    monkeypatch.setattr(environment, "__file__", str(copy))
    assert environment.commit.__wrapped__() is None
    git("add", "--force", str(copy))
    git("commit", "-qm", "Ours")
    assert environment.commit.__wrapped__() == git("rev-parse", "HEAD")


def test_results_hold_exact_numbers_and_no_nan(tmp_path):
    """Oracle: the arrays themselves, read back."""
    third = np.float32(1) / np.float32(3)
    values = jnp.array([third, jnp.nan, 0.1])
    half = jnp.array([1.5, 1 / 3], jnp.bfloat16)
    run = lambda _, folder: run_folder.append(
        folder,
        [record("a", x=values, n=jnp.int32(3), half=half, wide=np.float64(1) / 3)],
    )
    assert start(tmp_path, "smoke", run=run) == 0
    (held,) = run_folder.read_records(tmp_path / "run")
    assert np.float32(held["x"][0]) == third
    assert held["x"][1:] == [None, 0.1]
    assert held["n"] == 3
    assert held["wide"] == 1 / 3
    np.testing.assert_array_equal(jnp.array(held["half"], jnp.bfloat16), half)
    assert "0.33333334" in lines(tmp_path)[0]


def test_a_name_is_used_once(tmp_path):
    """Oracle: the same record twice."""

    def run(_config, folder):
        run_folder.append(folder, [record("a")])
        run_folder.append(folder, [record("b"), record("a")])

    assert start(tmp_path, "smoke", run=run) == 2
    assert [json.loads(line)["run"] for line in lines(tmp_path)] == ["a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """Oracle: the old content, after a rename that never came."""
    path = tmp_path / "deep" / "page.html"
    write_text(path, "old")

    def fail(*_):
        raise OSError

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):  # noqa: PT011
        write_text(path, "new")
    assert path.read_text() == "old"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Oracle: the order of the calls of the operating system."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, n=name, real=real: (calls.append(n), real(*a))
        )
    write_text(tmp_path / "a", "text")
    assert calls == ["fsync", "replace"]


def test_text_is_utf_8_wherever_it_is_written(tmp_path):
    """Oracle: the bytes, from a process whose own encoding is ASCII."""
    code = (
        "import sys; from pathlib import Path\n"
        "from jaxcl.runs.folder import read_json\n"
        "from jaxcl.files import write_json\n"
        "path = Path(sys.argv[1]); write_json(path, {'a': chr(177)})\n"
        "assert read_json(path) == {'a': chr(177)}"
    )
    words = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path / "a.json")]
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(words, cwd=ROOT, env={**os.environ, **locale}, check=True)
    assert "±".encode() in (tmp_path / "a.json").read_bytes()


def test_pace_counts_like_a_stopwatch():
    """Oracle: worked out by hand."""
    assert pace(10, 80, 4.0) == "2.5/s, 0:32 left"
    assert pace(2, 3600, 8.0) == "4 s each, 4:00:00 left"
    assert pace(5, 0, 1.0) == "5/s"
    assert pace(0, 5, 1.0) == ""
    assert pace(Fraction(1, 1000), 2, 5.0) == ""  # compiling, not the rate
    assert pace(Fraction(1, 10), 2, 5.0) == "50 s each, 1:40 left"


def test_progress_in_a_log_is_a_few_plain_lines(capsys):
    """Oracle: one at once and one per tenth, none of them with control characters."""
    with progress(100, "runs") as advance:
        for _ in range(100):
            advance(1, "sam")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11
    assert said[0].startswith("runs: 1/100")
    assert said[-1].startswith("runs: 100/100")
    assert "sam" in said[0]
    assert "\x1b" not in "".join(said)


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    """Oracle: the characters of a bar, and the count at its end."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress(4, "runs", done=2) as advance:
        time.sleep(0.01)
        advance(Fraction(1, 3))
        advance(Fraction(5, 3))
    said = capsys.readouterr().err
    assert "\x1b" in said
    assert "4/4" in said


def test_names_in_a_bar_are_shown_as_they_are(capsys, monkeypatch):
    """Oracle: the names; a bar has a markup of its own, in which these mean something."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress(2, "runs [b]", done=1) as advance:
        advance(1, "a[/b] :cat:")
    said = capsys.readouterr().err
    assert "runs [b]" in said
    assert "a[/b] :cat:" in said


def test_a_part_of_a_run_counts_for_the_time_left(capsys, monkeypatch):
    """Oracle: worked out by hand; two thirds of one of two runs took four seconds. What
    came before, of earlier processes or while it was compiled, is not counted."""
    clock = iter([1.0, 1.0, 2.0, 2.0, 6.0, 6.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress(2, "runs") as advance:
        advance(Fraction(1, 6), "sam, resumed")
        advance(Fraction(1, 6), "sam")
        advance(Fraction(2, 3), "sam")
    assert capsys.readouterr().err.splitlines() == [
        "runs: 0/2 (sam, resumed)",
        "runs: 0/2 (sam)",
        "runs: 1/2 (6 s each, 0:06 left, sam)",
    ]


@pytest.mark.parametrize("place", ["file/x", "file/x/y"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, place):
    """Oracle: a file where a folder should be; nothing is left behind."""
    (tmp_path / "file").write_text("")
    wanted = "cannot be written to; give another folder"
    with pytest.raises(WriteError, match=wanted), lock_folder(tmp_path / place):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_behind_a_link_to_nowhere_is_refused(tmp_path, capsys):
    """Oracle: the message; it used to try for ever."""
    (tmp_path / "link").symlink_to(tmp_path / "not" / "mounted")
    assert start(tmp_path, "smoke", out="link") == 2
    assert "link cannot be written to; choose another --out" in capsys.readouterr().err
