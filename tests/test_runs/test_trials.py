"""Trials: their names, their packs, and a line of results each."""

from fractions import Fraction

import numpy as np
import pytest

from jaxcl.runs.folder import CHECKPOINTS, RunFolder, append, read_records
from jaxcl.runs.trials import (
    Trial,
    all_trials,
    checkpoint_folder,
    packs,
    result_line,
    rounded,
    run_trials,
)


def trial(arm, seed, setting="s", group="", **hyper):
    return Trial(setting, arm, hyper, seed, group)


def test_the_name_of_a_run_has_every_number():
    """Oracle: by hand."""
    one = Trial("permuted", "sam", {"learning_rate": 0.01, "rho": 0.05}, 3)
    assert one.run == "permuted/sam/learning_rate=0.01,rho=0.05/seed=3"
    near = [
        one._replace(hyper={"rho": rho, "size": 10**6 + 1})
        for rho in (0.1234567, 0.1234568)
    ]
    assert [trial.run.split("/")[2] for trial in near] == [
        "rho=0.1234567,size=1000001",
        "rho=0.1234568,size=1000001",
    ]


def test_arms_have_the_numbers_that_are_named():
    """Oracle: by hand; seed by seed."""

    class Config:
        arms, seeds, rate, rho = ("sgd", "sam"), 2, 0.1, 0.05

    found = all_trials("s", Config, {"sgd": ("rate",), "sam": ("rate", "rho")})
    assert found == [
        Trial("s", arm, hyper, seed)
        for seed in range(2)
        for arm, hyper in (("sgd", {"rate": 0.1}), ("sam", {"rate": 0.1, "rho": 0.05}))
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_packs_hold_every_trial_once_and_mix_no_programs(size):
    """Oracle: the list itself; packs of one keep its order."""
    todo = [
        trial(arm, seed, group=group)
        for group in "gh"
        for arm in ("sgd", "sam")
        for seed in range(5)
    ]
    found = packs(todo, size)
    assert sorted(one for pack in found for one in pack) == sorted(todo)
    assert max(map(len, found)) == size
    for pack in found:
        assert len({(one.group, one.arm) for one in pack}) == 1
    if size == 1:
        assert [one for (one,) in found] == todo


def test_a_line_says_where_a_run_diverged():
    """Oracle: by hand."""
    one = trial("sam", 0, rho=0.5)
    good = result_line(one, [True, True], seconds=1.234, accuracy=[0.5, 0.6])
    bad = result_line(one, [True, False], seconds=1.0)
    assert good["status"] == "done"
    assert good["first_bad_task"] is None
    assert (good["seconds"], good["hyper"]) == (1.23, {"rho": 0.5})
    assert "group" not in good
    assert (bad["status"], bad["first_bad_task"]) == ("diverged", 1)
    assert result_line(one._replace(group="g"), [True], seconds=0.0)["group"] == "g"


def test_few_digits_and_no_nan():
    """Oracle: by hand."""
    values = np.array([0.123456, np.nan, np.inf, 12345.6])
    assert rounded(values, 3) == [0.123, None, None, 12300.0]


def learn_all(folder):
    def learn(pack, tell):
        place = checkpoint_folder(folder, pack)
        place.mkdir(parents=True, exist_ok=True)
        tell(Fraction(1, 2), "half")
        return [result_line(one, [True], seconds=0.0, accuracy=[0.5]) for one in pack]

    return learn


@pytest.mark.parametrize(("size", "num_workers"), [(1, 1), (3, 1), (2, 2)])
def test_trials_that_have_a_line_are_not_done_again(
    tmp_path, capsys, size, num_workers
):
    """Oracle: the list of trials, of which one is done and one is there twice; the last
    line of progress; no checkpoint is left."""
    folder = RunFolder(tmp_path, "toy", "toy", None)
    todo = [trial("sgd", seed) for seed in range(4)] + [trial("sgd", 1, group="again")]
    append(folder, [result_line(todo[0], [True], seconds=0.0)])
    run_trials(folder, todo, learn_all, workers=num_workers, size=size)
    lines = read_records(folder)
    assert sorted(line["run"] for line in lines) == sorted(one.run for one in todo[:4])
    assert lines[0]["run"] == todo[0].run
    assert all("group" not in line for line in lines)  # the first of a name counts
    assert capsys.readouterr().err.splitlines()[-1].startswith("runs: 4/4")
    assert not list((tmp_path / CHECKPOINTS).iterdir())


@pytest.mark.parametrize(
    ("size", "said"), [(2, ""), (1, "note: runs of 2 checkpoints")]
)
def test_checkpoints_of_other_packs_are_announced(tmp_path, capsys, size, said):
    """Oracle: two packs of two that were stopped, one of them after its lines."""
    folder = RunFolder(tmp_path, "toy", "toy", None)
    todo = [trial("sgd", seed) for seed in range(4)]
    for pack in packs(todo, 2):
        checkpoint_folder(folder, pack).mkdir(parents=True)
    append(folder, [result_line(one, [True], seconds=0.0) for one in todo[:2]])
    run_trials(folder, todo, learn_all, workers=1, size=size)
    assert capsys.readouterr().out[: len(said) or None] == said
