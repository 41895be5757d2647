"""EWC on permuted images: the protocol in small, its parts, and its order on MNIST."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ewc_permuted.arms import make_fisher
from experiments.ewc_permuted.config import (
    EXPERIMENT,
    PRESETS,
    PUBLISHED,
    Config,
    check,
)
from experiments.ewc_permuted.joint import read_row, so_far
from experiments.ewc_permuted.report import (
    HERE,
    comparable,
    result_table,
    search_table,
    section,
    write_readme,
)
from experiments.ewc_permuted.search import choose
from jaxcl.data import permuted, synthetic_images
from jaxcl.files import plain, write_json
from jaxcl.losses import single_head
from jaxcl.models import mlp
from jaxcl.runs.command import main
from jaxcl.runs.folder import RunFolder, read_records
from jaxcl.training import device
from jaxcl.tree import at
from jaxcl.typing import Batch

#: One arm of the preset, hence a program that is compiled already.
ONE_ARM = dataclasses.replace(
    PRESETS["smoke"], arms=("online-ewc",), strength=10.0, checkpoint_seconds=0.0
)


def start(path, *words, presets=PRESETS):
    argv = [*words, "--out", str(path)]
    return main(EXPERIMENT._replace(presets=presets), argv)


def averages(path):
    """Mean accuracy at the end by arm, of the reported runs."""
    records = [r for r in read_records(path) if r["setting"] == "test"]
    assert {r["status"] for r in records} == {"done"}
    return {r["arm"]: 100 * np.mean(r["final"]) for r in records}


def test_smoke_searches_runs_and_reports(tmp_path):
    """Oracle: the list of runs asked for, and that EWC forgets less than nothing does."""
    assert start(tmp_path / "run", "smoke") == 0
    records = read_records(tmp_path / "run")
    assert [r["run"].rsplit("/", 1)[0] for r in records[:4]] == [
        "search/ewc/learning_rate=0.001,strength=10",
        "search/ewc/learning_rate=0.001,strength=100",
        "search/online-ewc/learning_rate=0.001,strength=10,decay=1",
        "search/online-ewc/learning_rate=0.001,strength=100,decay=1",
    ]
    best = {
        runs[0]["arm"]: max(runs, key=lambda r: np.mean(r["final"]))["hyper"][
            "strength"
        ]
        for runs in (records[:2], records[2:4])
    }
    assert [(r["arm"], r["hyper"].get("strength")) for r in records[4:]] == [
        ("none", None),
        ("ewc", best["ewc"]),
        ("online-ewc", best["online-ewc"]),
        ("joint", None),
    ]
    found = averages(tmp_path / "run")
    assert found["none"] + 5 < min(found["ewc"], found["online-ewc"])
    assert found["none"] + 5 < found["joint"]
    table = (tmp_path / "run" / "tables" / "accuracy.md").read_text()
    assert f"{found['ewc']:.2f}" in table
    assert f"{PUBLISHED['ewc']:.2f}" not in table  # digits are not MNIST
    assert (tmp_path / "run" / "figures" / "accuracy.svg").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    """Oracle: the same run, not killed."""
    presets = {"tiny": ONE_ARM}
    assert start(tmp_path / "whole", "tiny", presets=presets) == 0

    saved = device.save

    def save_and_die(place, step, tree):
        saved(place, step, tree)
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "save", save_and_die)
    assert start(tmp_path / "killed", "tiny", presets=presets) == 130
    monkeypatch.setattr(device, "save", saved)
    folder = RunFolder(tmp_path / "killed", "ewc_permuted", "tiny", ONE_ARM)
    assert list((folder.path / "checkpoints").rglob("1.json"))
    assert start(tmp_path / "killed", "tiny", presets=presets) == 0
    whole, killed = (read_records(tmp_path / name)[0] for name in ("whole", "killed"))
    assert {**whole, "seconds": 0} == {**killed, "seconds": 0}
    assert not (folder.path / "checkpoints").exists()


@pytest.mark.slow
def test_two_workers_write_the_lines_of_one(tmp_path):
    """Oracle: the lines of one process, digit for digit; their order may differ."""
    small = {"arms": ("none",), "num_tasks": 2, "seeds": 2}
    config = dataclasses.replace(ONE_ARM, iterations=10, hidden=(8,), **small)
    held = []
    for count in (1, 2):
        presets = {"tiny": dataclasses.replace(config, workers=count)}
        assert start(tmp_path / str(count), "tiny", presets=presets) == 0
        records = read_records(tmp_path / str(count))
        held.append({r["run"]: {**r, "seconds": 0} for r in records})
    assert held[0] == held[1]
    assert len(held[0]) == 2


def test_joint_rows_are_those_of_every_task_so_far(key):
    """Oracle: the tasks themselves, one after another."""
    images = synthetic_images(key, num_train=6, num_test=4, size=4, num_classes=3)
    stream = permuted(key, images, num_tasks=3)
    joint = so_far(stream)
    for task in range(3):
        rows = joint.train(joint.pool, at(task, joint.plan))
        held = np.asarray(rows.weight) > 0
        shown = jax.vmap(lambda row, task: read_row(stream, row, task))(
            rows.x[held], rows.task[held]
        )
        tasks = [stream.train(stream.pool, at(t, stream.plan)) for t in range(task + 1)]
        np.testing.assert_array_equal(shown, np.concatenate([t.x for t in tasks]))
        labels = np.concatenate([t.y for t in tasks])
        np.testing.assert_array_equal(np.asarray(rows.y)[held], labels)


def test_the_predicted_fisher_squares_gradients_of_the_likeliest_label(key):
    """Oracle: a loop over examples; the empirical Fisher is the negative control."""
    model = mlp((5, 4, 3))
    params = model.init(key)
    x = jax.random.normal(key, (7, 5))
    y = jnp.argmin(model.apply(params, x), axis=1)
    task = Batch(x, y, jnp.ones(7), jnp.zeros(7, jnp.int32))

    @jax.jit
    def squared(params, x):
        (scores,) = model.apply(params, x[None])
        score = lambda p: jax.nn.log_softmax(model.apply(p, x[None])[0])[
            scores.argmax()
        ]
        return jax.tree.map(jnp.square, jax.grad(score)(params))

    each = [squared(params, row) for row in x]
    wanted = jax.tree.map(lambda *leaves: sum(leaves) / 7, *each)
    logits = single_head(model.apply)
    of = lambda name: jax.jit(make_fisher(Config(fisher=name), logits))
    found, control = (
        of("predicted")(key, params, task),
        of("empirical")(key, params, task),
    )
    for leaf, other, far in zip(
        *map(jax.tree.leaves, (found, wanted, control)), strict=True
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-7)
        assert not np.allclose(far, other, rtol=0.1)


def search(strength, accuracy, status="done", arm="ewc"):
    final = [accuracy, accuracy]
    hyper = {"strength": strength}
    head = {"setting": "search", "arm": arm, "status": status}
    return head | {"hyper": hyper, "final": final}


def test_each_arm_gets_its_best_strength_that_did_not_diverge():
    """Oracle: four runs judged by hand."""
    lost = search(100.0, 0.9, "diverged")
    other = search(1.0, 0.2, arm="online-ewc")
    runs = [search(10.0, 0.8), search(1.0, 0.5), lost, other]
    assert choose([*runs, {"setting": "test"}]) == {"ewc": 10.0, "online-ewc": 1.0}
    with pytest.raises(ValueError, match="all runs of ewc's search diverged"):
        choose([lost, other])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": ""}, "name a folder"),
        ({"arms": ("ewc", "ewc")}, "arms: expected each one once"),
        (
            {"strengths": (1.0, -1.0)},
            "strengths: expected finite numbers of at least 0",
        ),
        ({"strength": float("nan")}, "strength: expected finite numbers of at least 0"),
        ({"strengths": ()}, "strengths: expected at least one"),
        ({"search_seed": 0}, "must not be one of the 1 reported seeds"),
        ({"search_seed": -1}, "search_seed: expected an integer from 0"),
        ({"iterations": 0}, "iterations: expected finite numbers above 0"),
        ({"gain": -1.0}, "gain: expected finite numbers above 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected finite numbers above 0"),
        ({"fisher_examples": 0}, "fisher_examples: expected finite numbers above 0"),
        ({"decay": 2.0}, "decay: expected a fraction from 0 to 1"),
        ({"workers": 0}, "workers: expected finite numbers above 0"),
    ],
)
def test_bad_settings_are_refused(change, words):
    """Oracle: the message; the preset itself passes."""
    check(PRESETS["smoke"])
    with pytest.raises(ValueError, match=words):
        check(dataclasses.replace(PRESETS["smoke"], **change))


def test_bad_input_leaves_nothing_behind(tmp_path, capsys):
    """Oracle: exit code 2, one line, no folder."""
    for words in (
        ("paper",),
        ("paper", "--data", str(tmp_path / "none")),
        ("smoke", "--search-rows", "2000"),
    ):
        assert start(tmp_path / "run", *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def record(arm, seed, final, matrix, setting="test", **others):
    hyper = {"strength": 100.0} if "ewc" in arm else {}
    fields = {"setting": setting, "arm": arm, "seed": seed, "hyper": hyper}
    fields |= {"run": f"{setting}/{arm}/{seed}", "status": "done", "seconds": 60.0}
    return fields | {"final": final, "matrix": matrix, "iterations": 5} | others


def test_tables_hold_means_and_differences():
    """Oracle: two seeds worked out by hand."""
    runs = [
        record("ewc", 0, [0.9, 0.94], [[0.96, 0.1], [0.90, 0.94]]),
        record("ewc", 1, [0.92, 0.96], [[0.96, 0.1], [0.92, 0.96]]),
        record("ewc", 2, [0.1, 0.1], [[0.1, 0.1], [0.1, 0.1]], status="diverged"),
        record("ewc", 1000, [0.5], [[0.5]], setting="search"),
        record("online-ewc", 1000, [0.4], [[0.4]], setting="search", status="diverged"),
    ]
    table = result_table(runs)
    label, strength, count, mean, published, gap, result, transfer, minutes = (
        table.rows[0]
    )
    assert (label, strength, count, minutes) == ("EWC", "100", 2, 1.0)
    np.testing.assert_allclose([mean.mean, published, gap], [0.93, 0.9431, -0.0131])
    np.testing.assert_allclose([result.mean, transfer.mean], [0.955, -0.05])
    assert "test/ewc/2" in table.notes[-1]
    assert search_table(runs).rows == (("100", 0.5, "diverged"),)


def test_only_the_protocol_stands_beside_the_published_numbers():
    """Oracle: Table 4 is on ten permutations of MNIST with one network; fewer steps are
    told apart by the heading."""
    paper = dataclasses.replace(PRESETS["paper"], data="/some/mnist")
    assert comparable(plain(paper))
    assert comparable(plain(dataclasses.replace(paper, iterations=500)))
    for other in ({"data": "digits"}, {"hidden": (200, 200)}, {"num_tasks": 5}):
        assert not comparable(plain(dataclasses.replace(paper, **other)))


def test_a_commit_with_changes_says_so(tmp_path):
    """Oracle: the three answers of the environment by hand."""
    for held, shown in (
        ("0123456789abcdef", "012345678"),
        ("0123456789abcdef with changes", "012345678 with changes"),
        (None, "unknown"),
    ):
        environment = {"command": "x", "cpu": "a CPU", "devices": "1 x cpu"}
        environment |= {"versions": {"jax": "1"}, "commit": held}
        write_json(tmp_path / "environment.json", environment)
        write_json(tmp_path / "config.json", {"config": PRESETS["smoke"]})
        write_json(tmp_path / "status.json", {"status": "done"})
        assert f"commit {shown}." in section(tmp_path)


def test_the_readme_shows_what_the_results_say(tmp_path):
    """Oracle: the committed file, made anew from the committed lines, byte for byte."""
    held = (HERE / "README.md").read_text()
    emptied = held[: held.index("### ")] + held[held.index("<!-- results: end") :]
    assert len(emptied) < len(held) - 1000
    (tmp_path / "README.md").write_text(emptied)
    write_readme(tmp_path / "README.md", HERE / "results")
    assert (tmp_path / "README.md").read_text() == held


@pytest.mark.slow
@pytest.mark.realdata
def test_ewc_lies_between_nothing_and_joint_training_on_mnist(tmp_path, realdata):
    """Oracle: the order of the published numbers (arXiv:1809.10635, Table 4)."""
    words = ["short", "--data", str(realdata / "mnist"), "--num-tasks", "4"]
    assert start(tmp_path / "run", *words, "--iterations", "200") == 0
    found = averages(tmp_path / "run")
    assert found["none"] + 2 < found["ewc"] < found["joint"]
    assert found["none"] + 2 < found["online-ewc"] < found["joint"]
