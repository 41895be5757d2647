"""The page of one call of `learn`, from folders written by hand in the form of `learn`."""

import json

import numpy as np
import pytest

from jaxcl.errors import MissingFileError
from jaxcl.files import write_checked
from jaxcl.report import figures
from jaxcl.report.style import SETTINGS
from jaxcl.runs.reports import page_of_run

STEPS = 4  # of each task


def folder_of(path, results, names, *, sets=(), lines=(), ended=None):
    """A folder of `learn`: results as it returns them, by columns beside a checkpoint."""
    total = len(names)
    ended = total if ended is None else ended
    columns = [*map(str, range(total)), *(f"set {name} 0f" for name in sets)]
    known = lambda column: [None if np.isnan(v) else v for v in column.tolist()]
    noted = {
        metric: {
            learner: dict(zip(columns, map(known, np.array(values).T), strict=True))
            for learner, values in learners.items()
        }
        for metric, learners in results.items()
    }
    tasks = [{"name": name, "steps": STEPS} for name in names]
    spent = {"steps": [STEPS] * ended + [0] * (total - ended), "seconds": [1.25]}
    settings = {"method": "ewc", "num_steps": STEPS, "eval_examples": None}
    note = {"notes": {"results": noted, "tasks": tasks, "spent": spent}}
    position = ended * (STEPS + 1)
    (path / "checkpoints").mkdir(parents=True)
    file = path / "checkpoints" / f"{position}.json"
    write_checked(file, note | {"metadata": settings})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


def of_steps(task, step, loss):
    at = task * (STEPS + 1) + step
    return {"at": at, "task": task, "step": step, "loss": loss, "not_finite": 0}


@pytest.fixture
def drawn(monkeypatch):
    """Figures by name, not painted."""
    found = {}
    keep = lambda figure, path: found.update({path.name: figure})
    monkeypatch.setattr(figures, "save", keep)
    return found


ACCURACY = np.array([[0.0, 0.0], [0.75, 0.0], [0.25, 1.0]])


def test_the_verdict_is_the_average_and_what_was_forgotten(tmp_path, drawn):
    """Oracle: by hand. Accuracy (0.25 + 1) / 2, forgotten 0.5; of losses, a rise is lost;
    a metric of unknown range has an average alone; half a stream that of its tasks."""
    results = {
        "accuracy": {"params": ACCURACY},
        "loss": {"params": 4 * (1 - ACCURACY), "ema": 2 + 0 * ACCURACY},
        "size": {"params": 8 * ACCURACY},
    }
    lines = [of_steps(0, 2, 3.0), of_steps(0, 4, None), of_steps(1, 4, 1.0)]
    folder = folder_of(tmp_path / "run", results, ["a", "b"], lines=lines)
    text = page_of_run(folder).read_text()
    for said in (
        "Average accuracy 0.625 at the end, forgetting 0.5.",
        "Average loss, params 1.5 at the end, forgetting 2.",
        "Average loss, ema 2 at the end, forgetting 0.",
        "Average size 5 at the end.",
    ):
        assert f"<li>{said}</li>" in text
    # Of the settings, those that are set.
    assert '<th scope="row">method</th><td>ewc</td>' in text
    assert f'<th scope="row">num_steps</th><td>{STEPS}</td>' in text
    assert "eval_examples" not in text
    # The end of a task counts in `at`, not among the steps.
    (axes,) = drawn["steps"].axes
    *ends, line = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), [2, 4, 8])
    np.testing.assert_array_equal(line.get_ydata(), [3.0, np.nan, 1.0])
    assert [end.get_xdata()[0] for end in ends] == [4, 8]


def test_half_a_stream_is_summed_up_by_its_tasks(tmp_path, drawn):
    """Oracle: by hand; the column is not of the end, and one task forgets nothing."""
    half = np.where(np.arange(3)[:, None] < 2, ACCURACY, np.nan)
    results = {"accuracy": {"params": half}}
    folder = folder_of(tmp_path / "run", results, ["a", "b"], ended=1)
    text = page_of_run(folder).read_text()
    assert "<li>Average accuracy 0.75 after 1 of 2 tasks.</li>" in text
    assert "last measured" in text
    assert "at the end" not in text
    assert "steps" not in drawn  # without lines of metrics


def test_colours_are_of_what_was_learned_and_light_is_good(tmp_path, drawn):
    """Oracle: the extremes after the first task by hand; row 0 is far beyond them. The
    lowest loss is as light as the highest accuracy."""
    loss = np.array([[90.0, 90.0], [1.0, 3.0], [2.0, 1.5]])
    results = {"accuracy": {"params": ACCURACY}, "loss": {"params": loss}}
    page_of_run(folder_of(tmp_path / "run", results, ["a", "b"]))
    good, bad = [axes.images[0] for axes in drawn["results"].axes if axes.images]
    assert bad.get_clim() == (1.0, 3.0)
    assert bad.to_rgba(1.0) == good.to_rgba(1.0)
    assert bad.to_rgba(3.0) == good.to_rgba(0.0)
    assert good.to_rgba(0.0) != good.to_rgba(1.0)


def test_many_tasks_fit_on_a_page(tmp_path, drawn):
    """Oracle: the width of a page in inches, names that are apart; the averages by NumPy.
    Of few tasks, panels are side by side and nothing more is drawn."""
    values = np.random.default_rng(0).random((31, 31))
    results = {name: {"params": values} for name in ("accuracy", "loss")}
    names = [f"task {place}" for place in range(30)]
    page_of_run(folder_of(tmp_path / "run", results, names, sets=["other"]))
    figure = drawn["results"]
    assert figure.get_figwidth() < 11
    shown = [axes for axes in figure.axes if axes.images]
    assert [len(axes.get_xticks()) for axes in shown] == [16, 16]
    labels = [label.get_text() for label in shown[0].get_xticklabels()]
    assert labels == [*names[::2], "other"]
    figure.draw_without_rendering()
    places = [axes.get_position() for axes in shown]
    assert places[1].y1 < places[0].y0
    assert [place.height * figure.get_figheight() > 3 for place in places] == [True] * 2
    (line,) = drawn["averages"].axes[0].get_lines()
    wanted = [values[i, :i].mean() for i in range(1, 31)]
    np.testing.assert_allclose(line.get_ydata(), wanted)

    drawn.clear()
    few = {name: {"params": ACCURACY} for name in ("accuracy", "loss")}
    page_of_run(folder_of(tmp_path / "few", few, ["a", "b"]))
    assert set(drawn) == {"results"}
    figure = drawn["results"]
    figure.draw_without_rendering()
    left, right = [axes.get_position() for axes in figure.axes if axes.images]
    assert left.x1 < right.x0


def test_the_folder_of_a_batch_names_a_run_in_it(tmp_path):
    """Oracle: the names; a folder of nothing has other words."""
    (tmp_path / "runs.csv").touch()
    for name in ("seeds=2", "seeds=1", "logs"):
        (tmp_path / name).mkdir()
    for name in ("seeds=2", "seeds=1"):
        (tmp_path / name / "status.json").write_text("{}")
    with pytest.raises(MissingFileError, match=r"batch, see runs.csv; report .*eeds=1"):
        page_of_run(tmp_path)
    with pytest.raises(MissingFileError, match="give the folder of a run"):
        page_of_run(tmp_path / "logs")


def test_what_was_evaluated_within_tasks_is_drawn_against_the_steps(tmp_path, drawn):
    """Oracle: the lines by hand: a task that joined later begins later; sets throughout.
    Many tasks are one line, their mean."""
    within = lambda task, step, values, other: {
        **{"at": task * (STEPS + 1) + step, "task": task, "step": step},
        "results": {"accuracy": {"params": values}},
        "sets": {"other": {"accuracy": {"params": other}}},
    }
    lines = [
        of_steps(0, 4, 1.0),
        within(0, 2, [0.25], 0.75),
        within(1, 2, [0.5, None], 0.5),
    ]
    results = {"accuracy": {"params": ACCURACY}}
    page_of_run(folder_of(tmp_path / "run", results, ["a", "b"], lines=lines))
    losses, panel = drawn["steps"].axes
    assert [losses.get_title("left"), panel.get_title("left")] == [
        "training loss",
        "accuracy",
    ]
    found = {
        line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()[2:]
    }
    np.testing.assert_equal(
        found,
        {
            "a": [[2, 0.25], [6, 0.5]],
            "other": [[2, 0.75], [6, 0.5]],
            "b": [[6, np.nan]],
        },
    )
    many = {"accuracy": {"params": np.full((13, 12), 0.5)}}
    names = [f"{place}" for place in range(12)]
    lines = [within(0, 2, [0.25], 0.75), within(1, 2, [0.5, 1.0], 0.5)]
    page_of_run(folder_of(tmp_path / "many", many, names, lines=lines))
    (panel,) = drawn["steps"].axes
    mean, _ = panel.get_lines()[12:]
    np.testing.assert_array_equal(mean.get_xydata(), [[2, 0.25], [6, 0.75]])


def test_names_that_no_font_has_become_numbers_with_one_warning(
    tmp_path, drawn, monkeypatch
):
    """Oracle: the words, with the fonts that matplotlib brings; tables keep the names,
    and other scripts that they have are drawn."""
    monkeypatch.setitem(SETTINGS, "font.family", ["DejaVu Sans"])
    results = {"accuracy": {"params": ACCURACY}}
    named = lambda name: folder_of(tmp_path / name, results, [name, "b"])
    with pytest.warns(UserWarning, match="no font is installed for 'd\u4efb'") as found:
        page_of_run(named("d\u4efb"))
    assert len(found) == 1
    ticks = lambda: [t.get_text() for t in drawn["results"].axes[0].get_xticklabels()]
    assert ticks() == ["1", "2"]
    table = (tmp_path / "d\u4efb" / "tables" / "final.csv").read_text("utf-8")
    assert "d\u4efb" in table
    page_of_run(named("\u0434\u03b2\u00e9"))
    assert ticks() == ["\u0434\u03b2\u00e9", "b"]
