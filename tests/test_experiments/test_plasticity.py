"""The plasticity experiment from the command line, in small."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest

from experiments.plasticity.arms import arms, fixed_norm, trials
from experiments.plasticity.config import (
    EXPERIMENT,
    FRACTIONS,
    MAY_BE_ZERO,
    PRESETS,
    Config,
    SettingName,
    check,
)
from experiments.plasticity.program import make_program
from experiments.plasticity.run import run
from experiments.plasticity.settings import SETTINGS, load, make_model, make_setting
from jaxcl.data import synthetic_images
from jaxcl.losses import cross_entropy
from jaxcl.runs.command import main
from jaxcl.runs.folder import RunFolder, append, finished, read_records
from jaxcl.training import first_example
from jaxcl.tree import at, norm

SMOKE = PRESETS["smoke"]


def command(*words, folder):
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-m", "experiments.plasticity", *words, "--out", str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        check=False,
    )


@pytest.mark.slow
def test_the_smoke_preset_goes_from_data_to_page(tmp_path):
    """Oracle: what a run folder promises to hold, and a second call that only reports."""
    folder = tmp_path / "smoke"
    done = command("smoke", folder=folder)
    assert done.returncode == 0, done.stderr
    records = read_records(folder)
    assert len(records) == 6
    assert {record["arm"] for record in records} == {"sgd", "sam", "gnp"}
    assert all(len(record["accuracy"]) == 4 for record in records)
    assert json.loads((folder / "status.json").read_text())["status"] == "done"
    assert (folder / "report.html").stat().st_size > 10_000
    assert {"accuracy.md", "slope.csv"} <= {
        p.name for p in (folder / "tables").iterdir()
    }
    assert (folder / "figures" / "accuracy.png").stat().st_size > 5_000

    kept = (folder / "results.jsonl").read_bytes()
    again = command("smoke", folder=folder)
    assert again.returncode == 0
    assert "finished" in again.stdout
    assert (folder / "results.jsonl").read_bytes() == kept

    other = command("smoke", "--rho", "0.1", folder=folder)
    assert other.returncode == 2
    assert "another configuration" in other.stderr


@pytest.mark.slow
def test_a_run_killed_between_segments_ends_with_the_same_numbers(
    tmp_path, monkeypatch
):
    """Oracle: the run left alone, compared digit for digit."""
    config = dataclasses.replace(
        SMOKE, groups=("controls",), seeds=1, runs_per_call=1, checkpoint_seconds=0.0
    )
    only = lambda config: [t for t in trials(config) if t.arm == "noise-sphere"]
    monkeypatch.setattr("experiments.plasticity.run.trials", only)
    whole = RunFolder(tmp_path / "whole", "plasticity", "smoke", config)
    cut = RunFolder(tmp_path / "cut", "plasticity", "smoke", config)
    for folder in (whole, cut):
        folder.path.mkdir()
    run(config, whole)

    from jaxcl.training import device as module

    save, calls = module.save, []

    def save_and_die(*args):
        save(*args)
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(config, cut)
    monkeypatch.setattr(module, "save", save)
    assert not finished(cut)
    run(config, cut)
    assert calls == [1]
    for left, right in zip(read_records(whole), read_records(cut), strict=True):
        left.pop("seconds")
        right.pop("seconds")
        assert left == right


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rho", "0"], "rho"),
        (["--rho", "-1"], "rho"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--seeds", "0"], "seeds"),
        (["--data", ""], "data: name the images: --data FOLDER"),
        (["--rho", "inf"], "rho: expected finite numbers above 0, got inf"),
        (["--rhos", "0.1", "nan"], "rhos: expected finite"),
        (["--perturb", "-1"], "perturb: expected finite numbers of at least 0"),
        (["--checkpoint-seconds", "-1"], "checkpoint_seconds: expected finite"),
        (["--resnet-width", "-3"], "resnet_width: expected finite numbers of at least"),
        (["--resnet-width", "-1", "--workers", "2"], "resnet_width: expected"),
        (["--settings"], "settings: expected at least one, got none"),
        (["--groups"], "groups: expected at least one"),
        (["--learning-rates"], "learning_rates: expected at least one"),
        (["--hidden"], "hidden: expected at least one"),
        (["--hidden", "8", "0"], "hidden: expected finite numbers above 0"),
        (
            ["--momentum", "1"],
            "momentum: expected finite numbers of at least 0 and below 1",
        ),
        (["--seed", "4294967296"], "seed: expected an integer from 0 to 4294967295"),
        (["--seed", "9223372036854775808"], "seed: expected an integer"),
        (["--seeds", "999999999999"], "seeds: expected at most 10000"),
        (["--settings", "permuted", "permuted"], "settings: expected each one once"),
    ],
)
def test_bad_input_is_one_line_before_any_compute(words, message, tmp_path, capsys):
    """Oracle: exit code 2, one line that names the trouble, and no folder left."""
    folder = tmp_path / "out"
    code = main(EXPERIMENT, ["smoke", *words, "--out", str(folder)])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.strip().count("\n") == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    "words", [["--settings", "permuted-pixels"], ["--groups", "papers"]]
)
def test_names_are_those_of_the_settings(words, tmp_path, capsys):
    """Oracle: exit code 2, the choices, and no folder left."""
    with pytest.raises(SystemExit) as left:
        main(EXPERIMENT, ["smoke", *words, "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert words[0] in said
    assert "paper" in said if "groups" in words[0] else "pairs-one-head" in said
    assert not (tmp_path / "out").exists()


def test_every_setting_that_can_be_named_is_made():
    """Oracle: the two lists against each other; numbers are fields of the settings."""
    assert set(SETTINGS) == set(get_args(SettingName))
    fields = {field.name for field in dataclasses.fields(Config)}
    assert {*MAY_BE_ZERO, *FRACTIONS} <= fields


def test_numbers_of_arms_do_not_change_the_instruments():
    """Oracle: the measures of one step at equal parameters, traced with other numbers of
    SAM and ReDo; negative control: the instruments' own numbers change the program."""
    setting = make_setting("permuted", SMOKE, load(SMOKE))

    def program(**changes):
        config = dataclasses.replace(SMOKE, **changes)
        arm = arms(config, setting.num_steps)["sgd"]
        made = make_program(config, setting, arm)
        keys = jax.random.split(jax.random.key(0), 2)
        hyper = {"learning_rate": np.full(2, 0.1, np.float32)}
        states = jax.eval_shape(made.start, keys, hyper)
        shared = setting.streams.pool, setting.streams.plan
        args = (states, keys, hyper, np.arange(2), *shared, np.arange(2))
        return made.advance.lower(*args).as_text()

    before = program()
    assert program(rho=0.5, dormant=0.5) == before
    assert program(measured_rho=0.5) != before
    assert program(measured_dormant=0.5) != before


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_pass_and_zero_turns_things_off(preset):
    """Oracle: the presets themselves; numbers that may be zero are."""
    config = dataclasses.replace(PRESETS[preset], data="mnist")
    check(config)
    check(dataclasses.replace(config, **dict.fromkeys(MAY_BE_ZERO, 0)))


def test_every_arm_can_be_built_and_every_trial_has_its_arm():
    """Oracle: the two lists against each other; run names are unique within a group."""
    config = Config(seeds=2)
    known = arms(config, num_steps=10)
    listed = trials(config)
    assert {trial.arm for trial in listed} <= set(known)
    assert {trial.group for trial in listed} == set(config.groups)
    keys = [(t.group, t.run) for t in listed]
    assert len(set(keys)) == len(keys)


def test_settings_have_the_tasks_of_the_paper():
    """Oracle: counting. 45 pairs in order; one head has 2 outputs, own heads have 90."""
    images = load(SMOKE)
    config = dataclasses.replace(SMOKE, task_limit=None)
    one = make_setting("pairs-one-head", config, images)
    own = make_setting("pairs-new-head", config, images)
    assert one.num_tasks == own.num_tasks == 45
    assert (one.num_outputs, own.num_outputs) == (2, 90)
    assert make_setting("permuted", config, images).num_tasks == config.num_tasks


def test_labels_are_permuted_among_ten_classes_that_all_seeds_share():
    """Oracle: counting; ten of twelve classes, with all their images."""
    images = synthetic_images(
        jax.random.key(0), size=8, num_classes=12, num_train=600, num_test=240
    )
    config = dataclasses.replace(SMOKE, settings=("permuted-labels",), seeds=3)
    made = make_setting("permuted-labels", config, images)
    assert made.num_outputs == 10
    pool = made.streams.pool
    kept = list(made_of(pool, images))
    assert len(pool.train_x) == np.isin(images.train_y, kept).sum() < 600
    np.testing.assert_array_equal(np.unique(pool.train_y), np.arange(10))
    assert at(0, made.streams.plan).labels.shape == (4, 10)


@pytest.mark.parametrize("num_classes", [3, 12])
def test_classes_that_do_not_make_tasks_of_five_are_refused(num_classes):
    """Oracle: the message; ten classes make two tasks."""
    config = dataclasses.replace(SMOKE, seeds=1)
    draw = functools.partial(
        synthetic_images, jax.random.key(0), size=8, num_train=600, num_test=240
    )
    made = make_setting("class-splits", config, draw(num_classes=10))
    assert (made.num_tasks, made.num_outputs) == (2, 5)
    wanted = f"class-splits has 5 classes per task, got images of {num_classes}"
    with pytest.raises(ValueError, match=wanted):
        make_setting("class-splits", config, draw(num_classes=num_classes))


def made_of(pool, images):
    """The classes whose images a pool has, found by the images themselves."""
    whole = {
        image.tobytes(): y
        for image, y in zip(images.train_x, images.train_y, strict=True)
    }
    return {whole[np.asarray(image).tobytes()] for image in pool.train_x}


def test_a_resnet_keeps_its_own_normalisation_and_activation():
    """Oracle: the neighbours of the fully connected network without the two."""
    config = Config(groups=("neighbours",))
    named = lambda config: {trial.arm for trial in trials(config)}
    convolved = dataclasses.replace(config, resnet_width=8)
    assert named(config) - named(convolved) == {"crelu", "layer-norm"}


def test_the_sphere_keeps_the_norm():
    """Oracle: the norm before; the direction is that of the moved parameters."""
    start = {"a": np.array([3.0, 4.0], np.float32)}
    sphere = fixed_norm()
    moved = {"a": np.array([6.0, 2.0], np.float32)}
    kept = sphere.project(sphere.init(start, ()), moved)
    np.testing.assert_allclose(norm(kept), 5.0, rtol=1e-6)
    np.testing.assert_allclose(kept["a"][0] / kept["a"][1], 3.0, rtol=1e-6)


def test_one_line_per_run_and_no_name_twice(tmp_path):
    """Oracle: the file itself."""
    folder = RunFolder(tmp_path, "plasticity", "smoke", SMOKE)
    append(folder, [{"run": "a"}])
    with pytest.raises(ValueError, match="finished before"):
        append(folder, [{"run": "a"}])
    assert finished(folder) == {"a"}
    assert jax.device_count() == 8


def test_every_arm_takes_a_step_and_keeps_the_structure_of_its_state():
    """Oracle: the state before, by abstract evaluation of init, step and end of task."""
    config = Config(seeds=1, num_tasks=2, examples_per_task=None, test_examples=None)
    setting = make_setting("permuted", config, load(config))
    known = arms(config, setting.num_steps)
    stream = setting.streams._replace(plan=at(0, setting.streams.plan))
    hypers = {trial.arm: trial.hyper for trial in trials(config)}

    def shapes(arm, key, hyper):
        model = make_model(
            config, setting, activation=arm.activation, layer_norm=arm.layer_norm
        )
        loss = cross_entropy(setting.outputs(model.apply))
        method = arm.build(loss, model, hyper, key)
        example = first_example(stream)
        start = method.init(model.init(key), example)
        state, _ = method.step(key, start, example)
        return start, method.end_task(key, state, example)

    for name, hyper in hypers.items():
        trace = functools.partial(shapes, known[name])
        start, state = jax.eval_shape(trace, jax.random.key(0), hyper)
        assert jax.tree.structure(start) == jax.tree.structure(state), name
