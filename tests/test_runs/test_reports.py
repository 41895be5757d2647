"""The report of any run folder: of runs with matrices, with curves, and of one `learn`."""

import csv
import html
import json
import shutil

import jax
import numpy as np
import optax
import pytest

from jaxcl.data import Task, array_dataset
from jaxcl.errors import InputError, MissingFileError
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric, classification
from jaxcl.models import mlp
from jaxcl.report import figures
from jaxcl.runs.reports import page_of_run
from jaxcl.training import Options, learn
from jaxcl.tree import as_batch

LINE = {"setting": "s", "arm": "er", "hyper": {}, "status": "done", "seconds": 60.0}


def folder_of(path, lines, experiment="toy"):
    path.mkdir()
    text = "".join(json.dumps({**LINE, **line}) + "\n" for line in lines)
    (path / "results.jsonl").write_text(text)
    (path / "config.json").write_text(json.dumps({"experiment": experiment}))
    return path


@pytest.fixture
def drawn(monkeypatch):
    """Figures by name, not painted."""
    found = {}
    keep = lambda figure, path: found.update({path.name: figure})
    monkeypatch.setattr(figures, "save", keep)
    return found


def test_runs_with_matrices_are_reported_by_what_they_keep(tmp_path, drawn, capsys):
    """Oracle: by hand, two seeds; the run that diverged is named and counts nowhere."""
    matrix = lambda last: [[0.8, None], [last, 0.6]]
    lines = [
        {"run": f"er/{n}", "seed": n, "accuracy": [0.8, 0.6], "matrix": matrix(last)}
        for n, last in enumerate((0.4, 0.6))
    ]
    lost = {"run": "er/2", "seed": 2, "accuracy": [None, None], "status": "diverged"}
    page = page_of_run(folder_of(tmp_path / "run", [*lines, lost]))
    assert page == tmp_path / "run" / "report.html"
    text = page.read_text()
    assert "<title>toy</title>" in text
    assert "er/2" in text
    assert "er: 55.0 % over all tasks at the end" in capsys.readouterr().out
    assert set(drawn) == {"matrices", "so-far"}  # these lines have no loss
    row = (tmp_path / "run" / "tables" / "forgetting.csv").read_text().splitlines()[1]
    assert row.startswith("er,2,55,")


def test_runs_with_curves_alone_are_reported_by_them(tmp_path, drawn, capsys):
    """Oracle: by hand, two settings; nothing is compared, for no arm is the baseline."""
    lines = [
        {"run": f"{s}/{arm}", "setting": s, "arm": arm, "seed": 0, "accuracy": curve}
        for s, arm, curve in (("a", "x", [0.5, 0.7]), ("b", "y", [0.1, 0.3, 0.2]))
    ]
    lines[0]["measures"] = {"rank": [1.0, 3.0]}
    page = page_of_run(folder_of(tmp_path / "run", lines), title="Mine", claim="C.")
    assert "<title>Mine</title>" in page.read_text()
    said = capsys.readouterr().out
    assert "a, x: 60.0 %" in said
    assert "b, y: 20.0 %" in said
    assert set(drawn) == {"accuracy", "measures-a"}
    text = (tmp_path / "run" / "tables" / "accuracy.md").read_text()
    assert text.count("no baseline") == 2


RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(3, 16, 4)).astype(np.float32)
Y = RANDOM.integers(0, 3, (3, 16))
DATA = [array_dataset(as_batch(X[t], Y[t], task=t)) for t in range(3)]
TASKS = [Task(name, DATA[t], DATA[t]) for t, name in enumerate(("first", "2nd", "3rd"))]
MODEL = mlp((4, 3))
LOGITS = single_head(MODEL.apply)
METRIC = classification(LOGITS)
OPTIONS = Options(num_steps=4, batch_size=8, eval_batch_size=16)


def run(folder, num_tasks, metrics=METRIC, *, tasks=TASKS, options=OPTIONS, **sets):
    """A short run of the host loop, or more of it."""
    return learn(
        jax.random.key(0),
        lambda frozen: make_method(cross_entropy(LOGITS), optax.sgd(0.1)),
        MODEL.init(jax.random.key(1)),
        tasks[:num_tasks],
        options,
        folder=folder,
        metrics=metrics,
        evaluation={
            name.replace("_", " "): DATA[place] for name, place in sets.items()
        },
        quiet=True,
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run of two tasks, and its folder."""
    folder = tmp_path_factory.mktemp("learn") / "run"
    return folder, run(folder, 2, other=0)


def test_one_call_of_learn_is_reported_from_its_checkpoints(learned, tmp_path, drawn):
    """Oracle: the results that `learn` returned: the same arrays, the same last row."""
    folder, result = learned
    here = shutil.copytree(folder, tmp_path / "run")
    assert page_of_run(here).exists()
    (axes, *_) = (ax for ax in drawn["results"].axes if ax.images)
    metric = next(iter(result.results))
    (values,) = result.results[metric].values()
    assert axes.get_title("left") == metric
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, values)
    lines = (here / "tables" / "final.csv").read_text().splitlines()
    first, second, other = (line.split(",") for line in lines[1:])
    assert [first[0], second[0], other[0]] == ["first", "2nd", "other"]
    np.testing.assert_allclose(float(first[1]), values[1, 0], rtol=1e-6)
    np.testing.assert_allclose(float(second[1]), values[2, 1], rtol=1e-6)
    assert other[1] == ""
    last = [float(row[2]) for row in (first, second, other)]
    np.testing.assert_allclose(last, values[-1], rtol=1e-6)
    assert "Measured after 2 of 2 tasks." in (here / "report.html").read_text()


def test_a_grown_run_is_reported_task_by_task_and_set_by_set(learned, tmp_path, drawn):
    """Oracle: what `learn` returned. The sets of the first call stand before the third
    task in its notes; a metric that came last was measured on other sets."""
    folder = shutil.copytree(learned[0], tmp_path / "run")
    grown = run(folder, 3, other=0, general_ability=1, general_other=2).results
    error = RowMetric(lambda params, frozen, batch: {"size": batch.x[:, 0] ** 2})
    late = run(folder, 3, metrics=error, general_late=1).results["size"]["params"]
    page_of_run(folder)
    with (folder / "tables" / "final.csv").open() as file:
        header, *cells = csv.reader(file)
    sets = ["other", "general ability", "general other", "general late"]
    assert [row[0] for row in cells] == ["first", "2nd", "3rd", *sets]
    found = {
        name: [float(row[place] or np.nan) for row in cells]
        for place, name in enumerate(header)
        if place
    }
    unknown = [np.nan] * 4
    for metric in ("accuracy", "loss"):
        values = grown[metric]["params"]
        learned_then = [*values[[1, 2, 3], [0, 1, 2]], *unknown]
        compare(found[f"{metric}, just learned"], learned_then)
        compare(found[f"{metric}, at the end"], [*values[3], np.nan])
    compare(found["size, just learned"], [np.nan, np.nan, late[3, 2], *unknown])
    compare(found["size, at the end"], [*late[3, :3], *unknown[:3], late[3, 3]])
    shown = [axes for axes in drawn["results"].axes if axes.images]
    assert [len(axes.images[0].get_array().T) for axes in shown] == [7, 7, 7]
    assert "Measured after 3 of 3 tasks." in (folder / "report.html").read_text()


def compare(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def with_bad(place):
    """Tasks of which one has rows that are not finite."""
    rows = as_batch(X[place] * np.nan, Y[place], task=place)
    bad = Task("bad", array_dataset(rows), DATA[place])
    return [*TASKS[:place], bad, *TASKS[place + 1 :]]


@pytest.mark.filterwarnings("ignore:learn. :UserWarning")
@pytest.mark.parametrize(
    ("place", "said"),
    [
        (0, "Diverged by step 4 of task 1: 4 steps were not finite; no task ended."),
        (
            1,
            "Diverged by step 4 of 'bad': 4 steps were not finite; 1 of 3 tasks ended.",
        ),
    ],
)
def test_a_run_that_diverged_is_reported_as_such(tmp_path, drawn, place, said):
    """Oracle: the status that `learn` returned, and the task with rows of NaN; in its
    first task a run has no checkpoint, hence no names of tasks."""
    result = run(tmp_path, 3, tasks=with_bad(place))
    assert result.status == "diverged"
    text = page_of_run(tmp_path).read_text()
    assert html.escape(said) in text
    assert '<span class="badge diverged">' in text
    header, *rows = (tmp_path / "tables" / "final.csv").read_text().splitlines()
    assert "at the end" not in header  # the stream did not get there
    assert header.count("last measured") == 2
    (values,) = result.results["accuracy"].values()
    shown = np.ma.filled(drawn["results"].axes[0].images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown[: place + 1], values[: place + 1])
    assert len(rows) == 3


@pytest.mark.usefixtures("drawn")
@pytest.mark.filterwarnings("ignore:learn. :UserWarning")
def test_a_run_that_skips_steps_has_not_diverged(tmp_path):
    """Oracle: the status that `learn` returned; all steps of one task are skipped."""
    options = OPTIONS._replace(on_non_finite="skip")
    assert run(tmp_path, 3, tasks=with_bad(1), options=options).status == "done"
    text = page_of_run(tmp_path).read_text()
    assert "All tasks ended. 4 steps were not finite." in text
    assert '<span class="badge done">' in text


@pytest.mark.usefixtures("drawn")
def test_a_run_that_has_not_ended_says_so(learned, tmp_path):
    """Oracle: the lines of metrics, cut in the second task, as a kill leaves them; and
    those of the first task alone, before a checkpoint."""
    here = shutil.copytree(learned[0], tmp_path / "run")
    newest = max((here / "checkpoints").glob("*.json"), key=lambda p: int(p.stem))
    newest.unlink()
    file = here / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert [json.loads(line).get("step") for line in lines] == [None, 4, None, 4, None]
    for kept, said in (
        (4, "1 of 2 tasks ended, the last report is step 4 of '2nd', "),
        (2, "no task ended, the last report is step 4 of task 1, "),
    ):
        file.write_text("".join(lines[:kept]))
        text = page_of_run(here).read_text()
        assert "Not finished, it runs still or was stopped: " in text
        assert html.escape(said) in text
        assert '<span class="badge unfinished">' in text
        shutil.rmtree(here / "checkpoints", ignore_errors=True)


def test_sets_are_evaluated_within_tasks_too(tmp_path, drawn):
    """Oracle: the results after the task, for its end changes no parameters here; the
    figure has the lines of the file."""
    values = run(tmp_path, 1, options=OPTIONS._replace(eval_every=2), other=1).results
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    within = [line for line in lines if "sets" in line]
    assert [line["step"] for line in within] == [2, 4]
    last = within[-1]["sets"]["other"]["accuracy"]["params"]
    assert last == values["accuracy"]["params"][1, 1]
    page_of_run(tmp_path)
    (panel,) = (a for a in drawn["steps"].axes if a.get_title("left") == "accuracy")
    found = {line.get_label(): line.get_ydata()[-1] for line in panel.get_lines()}
    assert found["other"] == last
    assert found["first"] == values["accuracy"]["params"][1, 0]


@pytest.mark.parametrize("text", ['{"notes": 3}', "[" * 5000, "[1]", "null"])
def test_a_damaged_note_is_passed_over(learned, tmp_path, drawn, text):
    """Oracle: the note before it, in which one task had been learned."""
    here = shutil.copytree(learned[0], tmp_path / "run")
    notes = sorted((here / "checkpoints").glob("*.json"), key=lambda p: int(p.stem))
    assert len(notes) == 2
    notes[-1].write_text(text)
    page_of_run(here)
    assert "Measured after 1 of 2 tasks." in (here / "report.html").read_text()
    assert "results" in drawn


def test_what_is_no_run_is_refused_in_a_line(tmp_path):
    """Oracle: the folder's name; for lines of another kind, the field that they lack."""
    with pytest.raises(MissingFileError, match=f"{tmp_path.name} has neither"):
        page_of_run(tmp_path)
    with pytest.raises(InputError, match="lacks the field 'accuracy'"):
        page_of_run(folder_of(tmp_path / "other", [{"run": "x", "seed": 0}]))


@pytest.mark.parametrize("name", ["config", "status", "environment"])
def test_json_of_another_kind_is_refused_in_a_line(tmp_path, name):
    """Oracle: its name."""
    path = folder_of(tmp_path / "run", [])
    (path / f"{name}.json").write_text("[1]")
    with pytest.raises(InputError, match=f"{name}.json is damaged"):
        page_of_run(path)


def test_a_run_of_which_nothing_has_finished_has_a_page(tmp_path, capsys):
    """Oracle: the words; the folder has a configuration and no line."""
    assert page_of_run(folder_of(tmp_path / "run", [])).exists()
    assert "No run has finished." in capsys.readouterr().out
