"""The report of the plasticity experiment on records made by hand: all, some, none."""

import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.plasticity.arms import arms, from_the_start, trials
from experiments.plasticity.causes import (
    ahead_table,
    cause_table,
    relative_table,
)
from experiments.plasticity.comparisons import (
    MARGIN,
    accuracy_table,
    compare,
    fresh_table,
    in_order,
    minus_fresh,
    slope_table,
    verdict,
)
from experiments.plasticity.config import PRESETS, Config
from experiments.plasticity.correlations import (
    ahead,
    cells,
    partial_correlation,
    permuted_methods,
    within_methods,
)
from experiments.plasticity.report import (
    COMMITTED,
    HERE,
    readme_text,
    report,
)
from jaxcl.files import write_json
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import default_learner
from jaxcl.models import mlp
from jaxcl.report import figures, page
from jaxcl.report.records import settings_with
from jaxcl.report.tables import to_markdown
from jaxcl.runs.folder import RunFolder, append
from jaxcl.runs.readme import fill
from jaxcl.training.device import fit_task
from jaxcl.tree import as_batch

CONFIG = Config(
    settings=("permuted", "pairs-one-head"),
    seeds=3,
    other_seeds=3,
    sweep_seeds=1,
    learning_rates=(0.1, 0.01),
    rhos=(0.05, 0.5),
    radii=(0.125,),
    penalties=(0.1,),
)
NUM_TASKS = 6
#: What each arm is put above plain SGD, in shares; the others are level with it.
SHIFT = {"sam": -0.05, "gnp": 0.004, "fresh": 0.02, "reverse-sphere": -0.03}
SHARPER = {"sam-sphere": 0.5, "reverse-sphere": 2.0}


def made(trial, setting, *, diverged=False):
    """One line as the run writes it, its numbers known."""
    rng = np.random.default_rng([len(setting), trial.seed])  # what the seeds share
    own = np.random.default_rng([*trial.arm.encode(), trial.seed, len(setting)])
    level = 0.6 + SHIFT.get(trial.arm, 0.0) + 0.02 * rng.normal(size=NUM_TASKS)
    accuracy = level + 0.0005 * own.normal(size=NUM_TASKS)
    sharp = SHARPER.get(trial.arm, 1.0) * own.uniform(1.0, 1.1, NUM_TASKS)
    looks = [None, 9.0 * sharp[1], None, 9.0 * sharp[3], None, None]
    numbers = ",".join(f"{name}={value:g}" for name, value in trial.hyper.items())
    return {
        "run": f"{setting}/{trial.arm}/{numbers}/seed={trial.seed}",
        "setting": setting,
        "arm": trial.arm,
        "group": trial.group,
        "hyper": trial.hyper,
        "seed": trial.seed,
        "status": "diverged" if diverged else "done",
        "first_bad_task": 2 if diverged else None,
        "accuracy": [None] * NUM_TASKS if diverged else accuracy.tolist(),
        "loss": [None if diverged else 0.5] * NUM_TASKS,
        "measures": {
            "loss": [0.5] * NUM_TASKS,
            "sam_sharpness": (0.01 * sharp).tolist(),
            "top_eigenvalue": looks,
            "effective_rank": own.uniform(20, 30, NUM_TASKS).tolist(),
            "dormant_fraction": [0.0] * NUM_TASKS,
            "weight_norm": [5.0] * NUM_TASKS,
            "grad_norm": sharp.tolist(),
        },
        "seconds": 1.0,
        "device": "none",
    }


def every(keep=lambda trial, setting: True, diverged=lambda trial, setting: False):
    """A record per run of the experiment, each once, as the runner writes them."""
    records = {}
    for trial, setting in itertools.product(trials(CONFIG), CONFIG.settings):
        if keep(trial, setting):
            line = made(trial, setting, diverged=diverged(trial, setting))
            records.setdefault(line["run"], line)
    return list(records.values())


def folder_with(path, records, config=CONFIG):
    folder = RunFolder(path, "plasticity", "test", config)
    path.mkdir()
    append(folder, records)
    write_json(path / "config.json", {"preset": "test"})
    write_json(path / "environment.json", {"cpu": "a CPU", "versions": {"jax": "0"}})
    write_json(path / "status.json", {"status": "running"})
    return folder


@pytest.fixture
def sketched(monkeypatch):
    """Figures are built but not painted: that is the tests of the figures' task."""
    painted = {}
    monkeypatch.setattr(
        figures, "save", lambda figure, path: painted.update({path.name: figure})
    )
    monkeypatch.setattr(page, "to_svg", lambda figure: "<svg></svg>")
    return painted


def cells_of(table, setting, method):
    (row,) = (r for r in table.rows if r[:2] == (setting, method))
    return dict(zip((column.name for column in table.columns), row, strict=True))


# what has finished is shown, whatever it is


def test_a_full_report_has_every_section(tmp_path, sketched):
    """Oracle: the list of what there is to show, and the shifts that were put in."""
    folder = folder_with(tmp_path / "full", every())
    report(CONFIG, folder)
    html = (folder.path / "report.html").read_text()
    for title in (
        "comparison",
        "fresh start",
        "preserves",
        "not try",
        "adapt",
        "cause",
    ):
        assert title in html
    tables = {p.stem for p in (folder.path / "tables").glob("*.md")}
    assert tables >= {"accuracy", "slope", "measures", "minus-fresh", "neighbours"}
    assert tables >= {"sweep", "adaptive", "controls", "controls-slope", "ahead"}
    assert tables >= {"controls-measures", "controls-relative", "cause", "matched"}
    assert {"accuracy", "minus-fresh", "controls", "cause-permuted"} <= set(sketched)
    said = " ".join(verdict([r for r in every() if r["group"] == "paper"]))
    assert "8 comparisons" in said
    assert "4 better, 4 worse, 0 neither. 4 are shown to lie within 1 point" in said
    assert "8 not to be better by as much" in said


@pytest.mark.parametrize(
    ("shift", "seeds", "words"),
    [
        (
            0.0,
            3,
            "The claim held here: neither SAM nor GNP beats SGD by 1 point.",
        ),
        (
            0.1,
            3,
            "The claim did not hold here: SAM or GNP is better than SGD in 4 of 8 ",
        ),
        (0.0, 1, "Too few seeds to tell whether the claim held here: "),
    ],
)
def test_the_verdict_is_a_sentence(shift, seeds, words):
    """Oracle: SAM five points below SGD, then as many above, then without intervals."""
    on_progress = [r for r in every() if r["group"] == "paper" and r["seed"] < seeds]
    for line in on_progress:
        more = shift if line["arm"] == "sam" else 0.0
        line["accuracy"] = [value + more for value in line["accuracy"]]
    assert verdict(on_progress)[0].startswith(words)


in_permuted = lambda trial, setting: setting == "permuted"
one_arm = lambda arm: lambda trial, setting: trial.arm == arm
HALF = {"sgd": {0, 1}, "sam": {1, 2}, "gnp": {2}, "fresh": {0}, "sgd-sphere": {0, 2}}
CASES = {
    "no paper group": (
        {"keep": lambda t, s: t.group != "paper"},
        "own arms were not run",
    ),
    "only SGD": ({"keep": one_arm("sgd")}, "permuted: only SGD has finished"),
    "nothing yet": ({"keep": lambda t, s: False}, "own arms were not run"),
    "groups in one setting": (
        {"keep": lambda t, s: t.group == "paper" or s == "permuted"},
        "8 comparisons",
    ),
    "the sweep of one arm": (
        {"keep": lambda t, s: (t.group, t.arm) in [("paper", "sgd"), ("sweep", "gnp")]},
        "points against SGD, one seed",
    ),
    "one run": (
        {"keep": lambda t, s: (t.arm, t.seed, s) == ("sam", 0, "permuted")},
        "no finished run of SGD",
    ),
    "one seed": ({"keep": lambda t, s: t.seed == 1}, "one seed"),
    "half the lines": (  # one seed of SAM has its counterpart of SGD, none of GNP
        {"keep": lambda t, s: s == "permuted" and t.seed in HALF.get(t.arm, {1})},
        "2 comparisons of SAM and GNP with SGD at the same rate",
    ),
    "SGD diverged": (
        {"keep": in_permuted, "diverged": one_arm("sgd")},
        "permuted, sgd, lr 0.1: all 3 runs diverged",
    ),
    "controls of a setting diverged": (
        {
            "keep": lambda t, s: t.group in ("paper", "controls"),
            "diverged": lambda t, s: t.group == "controls" and s == "permuted",
        },
        "8 comparisons",
    ),
    "fresh diverged": (
        {"keep": in_permuted, "diverged": one_arm("fresh")},
        "4 comparisons",
    ),
    "one seed of SAM diverged": (
        {"keep": in_permuted, "diverged": lambda t, s: (t.arm, t.seed) == ("sam", 0)},
        "(1 of 3 runs diverged)",
    ),
    "all diverged": (
        {"diverged": lambda t, s: True},
        "permuted, sam, lr 0.1: all 3 runs diverged",
    ),
}


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("case", CASES)
def test_a_report_is_made_of_whatever_is_there(case, tmp_path, capsys):
    """Oracle: no error, the stated words, and the name of each diverged run."""
    options, words = CASES[case]
    records = every(**options)
    folder = folder_with(tmp_path / "some", records)
    report(CONFIG, folder)
    html = (folder.path / "report.html").read_text()
    assert words in capsys.readouterr().out.replace("\n", " ")
    lost = [r for r in records if r["status"] == "diverged"]
    assert all(r["run"] in html for r in lost)
    assert "nan" not in "".join(
        p.read_text() for p in folder.path.glob("tables/*.*")
    ).replace("nance", "")
    assert "; ." not in html
    assert f"the {len(records)} runs" in readme_text(folder)


def test_without_a_baseline_the_tables_still_hold_every_run():
    """Oracle: the records; nothing is compared where SGD has no finished run."""
    records = every(keep=one_arm("sam"))
    text = to_markdown(accuracy_table(records))
    assert text.count("no baseline") == 8  # 2 settings x 2 rates x 2 radii
    assert "worse" not in text


def test_the_first_figure_has_only_settings_that_all_three_have_run(tmp_path, sketched):
    """Oracle: the setting that lacks GNP is not drawn, but stays in the table."""
    records = every(
        keep=lambda t, s: t.group == "paper" and (t.arm != "gnp" or s == "permuted")
    )
    folder = folder_with(tmp_path / "some", records)
    report(CONFIG, folder)
    assert settings_with(records, "sgd", "sam", "gnp") == ["permuted"]
    (axes,) = sketched["accuracy"].axes
    assert len(axes.get_lines()) == 6
    assert "pairs-one-head" in (folder.path / "tables" / "accuracy.md").read_text()


def test_equality_is_tested_within_the_stated_margin():
    """Oracle: scipy's one-sided tests of GNP's means against SGD's, and Holm by hand."""
    records = [r for r in every() if r["group"] == "paper"]
    mean = lambda arm, rate: np.array(
        [
            np.mean(r["accuracy"])
            for r in records
            if (r["arm"], r["hyper"]["learning_rate"]) == (arm, rate)
            and r["setting"] == "permuted"
        ]
    )
    raw = {}
    for arm, rate in itertools.product(("sam", "gnp"), CONFIG.learning_rates):
        gap = mean(arm, rate) - mean("sgd", rate)
        low = stats.ttest_1samp(gap, -MARGIN, alternative="greater").pvalue
        high = stats.ttest_1samp(gap, MARGIN, alternative="less").pvalue
        raw[arm, rate] = max(low, high)
    smallest = min(raw, key=raw.__getitem__)
    (found,) = (
        s
        for s in compare(records)
        if s.group.setting == "permuted"
        and s.group.arm == smallest[0]
        and dict(s.group.hyper)["learning_rate"] == smallest[1]
    )
    np.testing.assert_allclose(found.p_equal, 4 * raw[smallest], rtol=1e-6)


def test_a_slope_on_pairs_is_not_called_a_loss():
    """Oracle: the note is there where pairs are, and only there."""
    paper = [r for r in every() if r["group"] == "paper"]
    permuted = [r for r in paper if r["setting"] == "permuted"]
    assert any("one order" in note for note in slope_table(paper).notes)
    assert not any("one order" in note for note in slope_table(permuted).notes)


# plasticity against a fresh start


def test_difficulty_drops_out_of_accuracy_minus_fresh():
    """Oracle: tasks get 5 points harder each, the gap grows by 1 point: by hand."""
    harder = 0.9 - 0.05 * np.arange(NUM_TASKS)
    gap = 0.03 - 0.01 * np.arange(NUM_TASKS)
    records = [
        r | {"accuracy": (harder + (gap if r["arm"] == "sgd" else 0)).tolist()}
        for r in every(keep=lambda t, s: t.arm in ("sgd", "fresh"))
    ]
    alone = [
        r for r in records if not (r["arm"] == "fresh" and r["seed"] == 2)
    ]  # seed 2 has no yardstick
    row = cells_of(fresh_table(minus_fresh(alone)), "pairs-one-head", "sgd, lr 0.1")
    assert row["runs"] == 2
    np.testing.assert_allclose(row["minus fresh, points"].mean, gap.mean())
    np.testing.assert_allclose(row["first tenth"].mean, 0.03)
    np.testing.assert_allclose(row["last tenth"].mean, -0.02)
    np.testing.assert_allclose(row["slope"].mean, -0.01)
    np.testing.assert_allclose(row["second-half slope"].mean, -0.01)
    (raw,) = (
        s.slope.mean
        for s in compare(records)
        if s.group.setting == "permuted" and s.label == "sgd, lr 0.1"
    )
    np.testing.assert_allclose(raw, -0.06)  # what the raw slope would have said


def test_a_fresh_run_reads_what_it_learned_and_begins_at_the_start():
    """Oracle: plain SGD run on each task alone from the initial parameters."""
    config = Config(seeds=1)
    model = mlp((4, 3, 2))
    loss = cross_entropy(single_head(model.apply))
    key = jax.random.key(0)
    x = jax.random.normal(jax.random.key(1), (2, 8, 4))
    tasks = [as_batch(x[i], jnp.arange(8) % 2) for i in range(2)]
    hyper = {"learning_rate": 0.1}
    fresh, sgd = (
        arms(config, 4)[name].build(loss, model, hyper, key)
        for name in ("fresh", "sgd")
    )
    params = model.init(key)
    example = jax.tree.map(lambda leaf: leaf[:1], tasks[0])
    learn = jax.jit(
        functools.partial(fit_task, num_steps=4, batch_size=4), static_argnums=1
    )
    state = fresh.init(params, example)
    for task in tasks:
        state, *_ = learn(key, fresh, state, task)
        alone, *_ = learn(key, sgd, sgd.init(params, example), task)
        read = default_learner(fresh, state)
        jax.tree.map(np.testing.assert_array_equal, read, alone.params)
        jax.tree.map(np.testing.assert_array_equal, state.params, params)
        moved = jax.tree.map(lambda a, b: jnp.any(a != b), read, params)
        assert any(jax.tree.leaves(moved))
    average = from_the_start()
    during = average.observe(key, average.init(params, example), (), read)
    jax.tree.map(np.testing.assert_array_equal, average.read(during, read), read)


# the controls


def test_the_manipulation_is_checked_against_sgd_on_the_sphere():
    """Oracle: the factors that were put in, and equal weight norms."""
    table = relative_table([r for r in every() if r["group"] == "controls"])
    for arm, factor in (
        ("sam-sphere", 0.5),
        ("reverse-sphere", 2),
        ("noise-sphere", 1),
    ):
        row = cells_of(table, "permuted", f"{arm}, lr 0.1")
        assert row["weight norm, %"].mean == 0
        np.testing.assert_allclose(
            row["top eigenvalue, %"].mean, factor - 1, atol=0.1 * factor
        )
    assert not any(row[1].startswith("sgd-sphere") for row in table.rows)


def test_controls_are_compared_with_sgd_on_the_sphere():
    """Oracle: the shift put in; plain SGD stands beside them and is compared, too."""
    records = [r for r in every() if r["group"] == "controls" or r["arm"] == "sgd"]
    table = accuracy_table(records, "sgd-sphere")
    row = cells_of(table, "permuted", "reverse-sphere, lr 0.1")
    np.testing.assert_allclose(row["difference, points"].mean, -0.03, atol=2e-3)
    assert row["verdict"] == "worse"
    verdicts = {r[1]: r[-1] for r in table.rows if r[0] == "permuted"}
    assert verdicts["sgd-sphere, lr 0.1"] == "baseline"
    assert "sgd, lr 0.1" in verdicts


def test_the_correlation_without_covariates_is_pearsons():
    """Oracle: scipy.stats.pearsonr."""
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    found = partial_correlation(x, y, np.ones((20, 1)))
    np.testing.assert_allclose(found, stats.pearsonr(x, y).statistic)


def test_one_covariate_is_taken_out_by_the_textbook_formula():
    """Oracle: (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))."""
    x, y, z = np.random.default_rng(1).normal(size=(3, 20)) + np.arange(20) / 5
    (_, xy, xz), (_, _, yz), _ = np.corrcoef([x, y, z])
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    found = partial_correlation(x, y, np.column_stack([np.ones(20), z]))
    np.testing.assert_allclose(found, wanted)
    assert abs(found - xy) > 0.1


def test_nothing_is_correlated_where_nothing_is_left():
    """Oracle: residuals that are zero but for rounding, and too few runs."""
    x, y = np.random.default_rng(0).normal(size=(2, 6))
    ones = np.ones((6, 1))
    assert np.isnan(partial_correlation(x, 3 + 0 * y, ones))
    assert np.isnan(partial_correlation(x, y, np.column_stack([ones, x])))
    assert np.isnan(partial_correlation(x, y, np.eye(6)))
    assert np.isnan(partial_correlation(x, np.where(y > 0, y, np.nan), ones))


def test_permuting_methods_keeps_its_level_where_single_runs_do_not():
    """Oracle: a null with method effects, 300 draws: single runs reject far too often."""
    rng = np.random.default_rng(0)
    single, whole = [], []
    for _ in range(300):
        x, y = rng.normal(size=(2, 5, 1, 1)) + 0.3 * rng.normal(size=(2, 5, 2, 4))
        single.append(stats.pearsonr(x.ravel(), y.ravel()).pvalue < 0.05)
        whole.append(permuted_methods(x.mean(-1), y.mean(-1))[1] <= 0.05)
    assert np.mean(single) > 0.3
    assert 0.01 < np.mean(whole) < 0.09


def test_the_permutation_counts_every_order_of_the_methods():
    """Oracle: of 4 methods in equal order, 2 of 24 orders correlate as strongly."""
    x = np.array([[1.0, 11.0], [2.0, 12.0], [3.0, 13.0], [4.0, 14.0]])
    np.testing.assert_allclose(permuted_methods(x, -x), (-1, 2 / 24))
    lopsided = np.array([[0.0], [0.0], [0.0], [9.0]]) + 0.1 * x[:, :1] ** 2
    assert permuted_methods(lopsided, lopsided)[1] == 1 / 24
    assert np.isnan(permuted_methods(x[:2], x[:2])).all()
    assert np.isnan(permuted_methods(x, 0 * x)).all()


def test_cells_are_means_over_seeds_of_methods_that_have_every_rate():
    """Oracle: by hand; the arm that lacks a rate is left out."""
    run = lambda arm, rate: {"arm": arm, "hyper": {"learning_rate": rate}}
    runs = [
        run("a", 1),
        run("a", 1),
        run("a", 2),
        run("b", 1),
        run("c", 2),
        run("c", 1),
    ]
    x, y = cells(runs, np.arange(6.0), 10 * np.arange(6.0))
    np.testing.assert_array_equal(x, [[0.5, 2], [5, 4]])
    np.testing.assert_array_equal(y, 10 * x)


def test_a_measurement_goes_with_the_tasks_up_to_the_next():
    """Oracle: by hand: looks after tasks 2, 4 and the last, which nothing follows."""
    nan = np.nan
    measure = np.array([[nan, 5.0, nan, 7.0, nan, nan, 9.0]])
    accuracy = np.array([[0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    x, y = ahead(measure, accuracy)
    np.testing.assert_array_equal(x, [[5, 7]])
    np.testing.assert_allclose(y, [[3, (8 + 16 + 32) / 3]])
    assert ahead(measure[:, :1], accuracy[:, :1])[1].shape == (1, 0)


def test_within_a_method_runs_and_tasks_are_taken_out():
    """Oracle: least squares on a column per run and per task."""
    x, y = np.random.default_rng(0).normal(size=(2, 5, 4))
    y += 0.5 * x
    rows, columns = np.indices(x.shape)
    design = np.column_stack(
        [rows.ravel() == i for i in range(5)] + [columns.ravel() == k for k in range(4)]
    ).astype(float)
    left = [
        v.ravel() - design @ np.linalg.lstsq(design, v.ravel(), rcond=None)[0]
        for v in (x, y)
    ]
    np.testing.assert_allclose(within_methods(x, y), np.corrcoef(left)[0, 1])
    trend = x + 100 * np.arange(4)
    np.testing.assert_allclose(within_methods(trend, y), within_methods(x, y))
    assert np.isnan(within_methods(x[:1], y[:1]))


def test_runs_without_a_logarithm_are_counted_and_left_out():
    """Oracle: the table of the other runs alone."""
    records = [r for r in every() if r["group"] == "controls"]
    bad = {r["run"] for r in records if r["seed"] == 0 and "noise" in r["arm"]}
    zero = {"top_eigenvalue": [None, 0.0, None, 0.0, None, None]}
    spoiled = [
        r | {"measures": r["measures"] | zero} if r["run"] in bad else r
        for r in records
    ]
    clean = [r for r in records if r["run"] not in bad]
    found, wanted = (
        cells_of(cause_table(some), "permuted", "top eigenvalue")
        for some in (spoiled, clean)
    )
    assert (found.pop("no logarithm"), wanted.pop("no logarithm")) == (2, 0)
    assert found == wanted
    assert found["runs"] == 22
    assert found["r, seed and rate out"] is not None
    row = cells_of(ahead_table(spoiled), "permuted", "noise-sphere, lr 0.1")
    assert (row["runs"], row["no logarithm"], row["looks"]) == (2, 1, 2)


def test_sharpness_that_only_repeats_the_gradient_norm_says_so():
    """Oracle: the records, in which SAM's measure is a multiple of the gradient norm."""
    records = [r for r in every() if r["group"] == "controls"]
    row = cells_of(cause_table(records), "permuted", "sam sharpness")
    assert row["with gradient norm"] > 0.99
    assert row["r, gradient norm out too"] is None  # nothing but itself is left


# the committed results


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.preset)
def test_the_readme_shows_what_the_committed_results_say(folder, tmp_path):
    """Oracle: the README itself, filled anew from the folder."""
    copy = tmp_path / "README.md"
    shutil.copy(HERE / "README.md", copy)
    fill(copy, readme_text(folder), folder.preset)
    assert copy.read_text() == (HERE / "README.md").read_text()
    held = json.loads((folder.path / "config.json").read_text())
    assert held["preset"] == folder.preset


def test_rows_come_in_the_order_of_the_configuration_whoever_was_first():
    """Oracle: the list of trials; the records are shuffled."""
    config = PRESETS["quick"]
    listed = sorted(trials(config), key=lambda t: config.settings.index(t.setting))
    wanted = [(t.setting, t.arm, t.hyper["learning_rate"], t.seed) for t in listed]
    records = [trial._asdict() | {"run": trial.run} for trial in listed]
    np.random.default_rng(0).shuffle(records)
    found = [
        (r["setting"], r["arm"], r["hyper"]["learning_rate"], r["seed"])
        for r in in_order(config, records)
    ]
    assert found == wanted


@pytest.mark.slow
@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize(
    "tables", sorted((HERE / "results").glob("*/tables")), ids=lambda p: p.parent.name
)
def test_the_committed_tables_show_what_the_committed_lines_say(tables, tmp_path):
    """Oracle: the committed files, made anew from the lines, byte for byte; what was
    found is read off them."""
    for name in ("results.jsonl", "config.json", "environment.json", "status.json"):
        shutil.copy(tables.parent / name, tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())["config"]
    fields = {n: tuple(v) if isinstance(v, list) else v for n, v in held.items()}
    config = Config(**fields)
    report(config, RunFolder(tmp_path, "plasticity", tables.parent.name, config))
    made, kept = (
        {path.name: path.read_text() for path in place.iterdir()}
        for place in (tmp_path / "tables", tables)
    )
    assert made == kept
