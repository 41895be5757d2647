"""The benchmarks at sizes where they take seconds: turns, lines, tables, refusals."""

import json

import numpy as np
import pytest

from experiments.benchmarks import config
from experiments.benchmarks.host import config as host
from experiments.benchmarks.ours import learn, make_images, make_program, make_stream
from experiments.benchmarks.report import (
    README,
    Target,
    by_job,
    growth,
    seconds_table,
    section,
    tables,
    targets,
    targets_table,
)
from experiments.benchmarks.rounds import Turn, in_turn, take_turns
from experiments.benchmarks.run import turns
from jaxcl.files import write_json
from jaxcl.runs.command import main
from jaxcl.runs.folder import RunFolder, append, read_records
from jaxcl.runs.readme import fill

SMOKE = config.PRESETS["smoke"]
ENVIRONMENT = {
    "cpu": "a CPU",
    "versions": dict.fromkeys(("python", "jax", "optax"), "1"),
}


def test_the_smoke_preset_does_every_job_of_ours_in_every_round(tmp_path, monkeypatch):
    """Oracle: the table of jobs; each line holds as many seconds as there are tasks."""
    monkeypatch.delenv("JAXCL_PEERS_PYTHON", raising=False)
    monkeypatch.delenv("JAXCL_BASELINE", raising=False)
    out = tmp_path / "speed"
    argv = ["smoke", "--out", str(out)]
    assert main(config.EXPERIMENT, argv) == 0
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


@pytest.mark.slow
def test_a_baseline_does_the_same_job_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Oracle: this very checkout as the baseline, so all accuracies are the same."""
    monkeypatch.delenv("JAXCL_PEERS_PYTHON", raising=False)
    monkeypatch.setenv("JAXCL_BASELINE", str(README.parents[2]))
    out = tmp_path / "speed"
    argv = ["smoke", "--jobs", "naive", "ewc", "--rounds", "1", "--out", str(out)]
    assert main(config.EXPERIMENT, argv) == 0
    done = {(r["job"], r["system"]): r for r in read_records(out)}
    assert len(done) == 4
    for job in ("naive", "ewc"):
        ours, before = done[job, "jaxcl"], done[job, "baseline"]
        assert before["accuracy"] == ours["accuracy"]
        assert min(before["train_cpu"]) > 0
        assert before["finite"]
    assert "x baseline" in (out / "tables" / "seconds.md").read_text()


def test_ours_is_held_against_the_baseline_of_the_same_round():
    """Oracle: by hand. Round 2 has no baseline; other systems have no ratio."""
    more = {"accuracy": [[1.0, 0.1], [0.5, 1.0]]}
    records = [
        line("naive", system, n, seconds, **more)
        for system, all_seconds in {
            "jaxcl": [1.0, 20.0, 9.0],
            "baseline": [2.0, 10.0],
            "jax": [1.0, 1.0, 1.0],
        }.items()
        for n, seconds in enumerate(all_seconds)
    ]
    table = seconds_table(config.Config(), by_job(records))
    assert table.columns[-1].name == "x baseline"
    assert [row[-1] for row in table.rows] == ["1.25 (0.50 to 2.00)", None, None]
    alone = by_job([r for r in records if r["system"] != "baseline"])
    assert len(seconds_table(config.Config(), alone).columns) == 10


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
    of_round = lambda number: [
        (turn.job, turn.by["system"]) for turn in found if turn.round == number
    ]
    assert of_round(0) == order
    short = [
        one for one in order if one[1][10:] != "own-stream" and "long" not in one[0]
    ]
    assert of_round(1) == short
    assert found[1].name == "round=0/naive/torch"


def test_only_turns_without_a_line_are_taken(tmp_path):
    """Oracle: by hand; the first one has its line, the third gives a loss that is NaN."""
    by = {"system": "jaxcl"}
    listed = [Turn(f"round={n}/naive", n, "naive", by) for n in range(3)]
    folder = RunFolder(tmp_path, "benchmarks", "full", config.Config())
    append(folder, [{"run": listed[0].name}])
    taken, prepared = [], []

    def prepare(turn):
        prepared.append((turn.job, turn.by))
        return lambda turn: taken.append(turn) or {"finite": turn.round != 2}

    take_turns(folder, listed, prepare)
    assert taken == listed[1:]
    assert prepared == [("naive", by)]
    _, second, third = read_records(folder)
    assert (second["run"], second["system"]) == ("round=1/naive", "jaxcl")
    assert [second["status"], third["status"]] == ["done", "diverged"]


def test_who_goes_first_changes_from_round_to_round():
    """Oracle: the order of calls by hand; costs keep the order of the works."""
    called = []
    works = {name: (lambda name=name: called.append(name)) for name in ("a", "b")}
    assert [list(in_turn(works, number)) for number in range(2)] == [["a", "b"]] * 2
    assert called == ["a", "b", "b", "a"]


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


def line(job, system, round, train, **others):
    """A record made by hand: two tasks of equal cost, and evaluation at a tenth."""
    cost = {"train_cpu": [train / 2] * 2, "eval_cpu": [train / 20] * 2}
    head = {"job": job, "system": system, "round": round, "status": "done"}
    return {**head, **cost, **others}


def found(records):
    """Values by what a target is about."""
    listed = targets(by_job(records))
    return {target.what: target for target in listed}


def test_being_faster_meets_a_target_and_costing_more_misses_it():
    """Oracle: seconds by hand. Others take 4 s where we take 1; a step of SAM's costs
    twice the plain one; ten seeds at once cost half of one by one."""
    ours = [
        line("naive", "jaxcl", 0, 1.0, compile_cpu=2.0),
        line("sam", "jaxcl", 0, 2.0, compile_cpu=4.0),
        line("looksam", "jaxcl", 0, 1.5),
        line("ewc", "jaxcl", 0, 2.0),
    ]
    theirs = [
        line("naive", "avalanche", 0, 4.0),
        line("naive", "torch", 0, 0.5),
        line("ewc", "avalanche", 0, 3.0),
    ]
    seeds = {"together_cpu": 5.0, "in_turn_cpu": 11.0, "alone_cpu": [1.0] * 10}
    ours.append(line("seeds", "jaxcl", 0, 0.0, **seeds))
    long = {"train_cpu": [9.0, *[1.0] * 14, *[2.0] * 5]}
    ours.append(line("ewc-long", "jaxcl", 0, 0.0, **long))
    expected = {
        "SGD against Avalanche": (4.0, "met"),
        "evaluation against Avalanche": (4.0, "met"),
        "EWC against Avalanche": (1.5, "missed"),
        "SGD against PyTorch by hand": (0.5, "missed"),
        "SAM's step against the plain one": (2.0, "met"),
        "LookSAM's step, k = 5": (1.5, "missed"),
        "10 seeds in one program, vmapped, against one by one": (0.5, "met"),
        "10 seeds in one program, in turn, against one by one": (1.1, "missed"),
        "EWC, tasks 16 to 20 against tasks 2 to 5 of 20": (2.0, "missed"),
        "compilation of the slowest method": (4.0, "met"),
    }
    judged = found([*ours, *theirs])
    assert {what: target.values[0] for what, target in judged.items()} == (
        pytest.approx({what: value for what, (value, _) in expected.items()})
    )
    verdicts = {row[0]: row[-1] for row in targets_table([*judged.values()]).rows}
    assert verdicts == {what: verdict for what, (_, verdict) in expected.items()}


def test_ratios_are_taken_within_rounds():
    """Oracle: by hand; a system that missed round 0 is not paired with ours of round 0."""
    records = [line("naive", "jaxcl", n, float(10**n)) for n in range(3)]
    records += [line("naive", "avalanche", n, 3.0 * 10**n) for n in (2, 1)]
    target = found(records)["SGD against Avalanche"]
    assert target.values == pytest.approx([3.0, 3.0])


def test_a_diverged_turn_is_named_and_counted_nowhere(tmp_path):
    """Oracle: the tables of the other turns alone; the name of the lost one."""
    write_json(tmp_path / "environment.json", ENVIRONMENT)
    same = {"accuracy": [[1.0, 0.1], [0.5, 1.0]], "load": 1.0}
    turns = [
        line("naive", "jaxcl", 0, 1.0, run="a", **same),
        line("naive", "avalanche", 0, 4.0, run="b", **same),
        line("naive", "jaxcl", 1, 9.0, run="c", **same),
        line("naive", "avalanche", 1, 9.0, run="d", status="diverged", **same),
    ]
    assert found(turns)["SGD against Avalanche"].values == [4.0]
    folder = RunFolder(tmp_path, "benchmarks", "full", config.Config())
    append(folder, turns)
    assert "Diverged, and counted nowhere: d." in section(folder.config, folder)
    (row,) = (r for r in seconds_table(folder.config, by_job(turns)).rows[1:])
    assert row[1:4] == ("Avalanche", 4.0, 4.0)


def test_tasks_that_were_learned_and_forgotten_are_told_from_others():
    """Oracle: a matrix by hand; both tasks learned, the first half lost."""
    matrix = [[1.0, 0.1], [0.5, 1.0]]
    done = by_job([line("looksam", "jaxcl", 0, 1.0, accuracy=matrix)])
    (row,) = seconds_table(config.Config(), done).rows
    assert row[-2:] == (1.0, 0.75)


@pytest.mark.slow
def test_looksam_forgets_unless_each_task_restarts_it():
    """Oracle: the committed lines of one seed, ``results/looksam``, within their spread.

    Five seeds of the full stream: its images, permutations, networks and batches.
    Negative control: SAM, which reuses no direction, keeps everything.
    """
    learned, kept = [], {}
    for name in ("looksam", "looksam_reset", "sam"):
        matrices = []
        for seed in range(5):
            full = config.Config(seed=seed)
            images = make_images(full)
            if seed == 0:
                program = make_program(full, images, name, full.num_tasks)
            stream = make_stream(full, images, num_tasks=full.num_tasks)
            done = learn(full, program._replace(stream=stream))
            matrices.append(done["accuracy"])
        matrices = 100 * np.asarray(matrices)
        learned.append(matrices.diagonal(axis1=1, axis2=2).mean())
        kept[name] = matrices[:, -1].mean()
    assert min(learned) > 99.9
    # The last bit of one step decides on several points of one seed.
    assert kept["looksam"] == pytest.approx(90, abs=4)
    assert kept["looksam_reset"] == pytest.approx(99.9, abs=0.5)
    assert kept["sam"] == pytest.approx(100, abs=0.1)


RESULTS = {
    "speed": config.Config,
    "change-10": config.Config,
    "change-64": config.Config,
    "looksam": config.Config,
    "host": host.Config,
    "loop": host.Config,
}


@pytest.mark.parametrize(("name", "kind"), RESULTS.items())
def test_the_readme_and_the_tables_show_what_the_results_say(name, kind, tmp_path):
    """Oracle: the committed files, made again from the committed lines, byte for byte."""
    path = README.parent / "results" / name
    held = json.loads((path / "config.json").read_text())["config"]
    asked = kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in held.items()})
    folder = RunFolder(path, "benchmarks", "full", asked)
    for table, text in tables(asked, folder).items():
        assert (path / "tables" / f"{table}.md").read_text() == text
    if name == "loop":  # not in the README
        return
    text, mark = README.read_text(), "results" if name == "speed" else name
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    (tmp_path / "README.md").write_text(
        text.split(begin)[0] + begin + end + text.split(end)[1]
    )
    fill(tmp_path / "README.md", section(asked, folder), mark)
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("variable", "path", "message"),
    [
        ("JAXCL_PEERS_PYTHON", "nowhere/python", "no interpreter at nowhere/python"),
        ("JAXCL_BASELINE", "nowhere", "no checkout of jaxcl at nowhere"),
    ],
)
def test_a_missing_peer_is_refused_before_any_work(
    tmp_path, capsys, monkeypatch, variable, path, message
):
    """Oracle: exit code, one line, no folder."""
    out = tmp_path / "speed"
    monkeypatch.setenv(variable, path)
    argv = ["smoke", "--out", str(out)]
    assert main(config.EXPERIMENT, argv) == 2
    assert message in capsys.readouterr().err
    assert not (out / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "nave"], "jobs: unknown 'nave'; did you mean naive?"),
        (["--jobs"], "jobs: expected at least one"),
        (["--rounds", "0"], "rounds: expected finite numbers above 0"),
        (["--learning-rate", "0"], "learning_rate: expected finite numbers above 0"),
    ],
)
def test_bad_fields_are_refused_before_any_work(tmp_path, capsys, words, message):
    """Oracle: exit code, one line, no folder."""
    out = tmp_path / "speed"
    argv = ["smoke", *words, "--out", str(out)]
    assert main(config.EXPERIMENT, argv) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
