"""Figures: what is drawn is read back from the artists, not looked at."""

import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from jaxcl import report as figures
from jaxcl.report.curves import spread
from jaxcl.report.statistics import mean_interval
from jaxcl.report.style import COLOURS, INK, styles_of
from jaxcl.report.summaries import grid
from tests.test_report.test_summaries import noisy, sweep
from tests.test_report.toy_records import record, runs


def words(figure):
    """Every text of a figure."""
    found = figure.findobj(matplotlib.text.Text)
    return " ".join(text.get_text() for text in found)


def test_curves_draw_the_mean_and_its_band():
    """Oracle: the statistics of the same numbers."""
    records = [*noisy("sgd", 0), *noisy("sam", 0.01)]
    (ax,) = figures.learning_curves(records).axes
    raw = 100 * np.array([r["accuracy"] for r in records if r["arm"] == "sam"])
    line = ax.get_lines()[1]
    assert line.get_label() == "sam"
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 11))
    np.testing.assert_allclose(line.get_ydata(), raw.mean(axis=0))
    corners = ax.collections[1].get_paths()[0].vertices[:, 1]
    band = mean_interval(raw)
    np.testing.assert_allclose(corners.max(), band.high.max())
    np.testing.assert_allclose(corners.min(), band.low.min())


def test_smoothing_is_a_moving_mean_and_says_so():
    """Oracle: a loop."""
    records = noisy("sgd", 0)
    figure = figures.learning_curves(records, window=4)
    line = figure.axes[0].get_lines()[0]
    raw = 100 * np.mean([r["accuracy"] for r in records], axis=0)
    wanted = [raw[t : t + 4].mean() for t in range(7)]
    np.testing.assert_allclose(line.get_ydata(), wanted)
    np.testing.assert_array_equal(line.get_xdata(), np.arange(7) + 2.5)
    assert "moving mean of 4" in words(figure)
    with pytest.raises(ValueError, match="within 1 and 10 tasks, got 11"):
        figures.learning_curves(records, window=11)


def test_diverged_runs_are_named_not_drawn():
    """Oracle: one arm lost a run, another all; only the finished ones make lines."""
    lost = [record("sam", 9, [None] * 10, status="diverged")]
    gone = [record("gnp", s, [None] * 10, status="diverged") for s in range(2)]
    records = [*noisy("sgd", 0), *noisy("sam", 0.01), *lost, *gone]
    figure = figures.learning_curves(records)
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["sgd", "sam †"]
    raw = 100 * np.mean([r["accuracy"] for r in records if r["arm"] == "sam"][:-1], 0)
    np.testing.assert_allclose(lines[1].get_ydata(), raw)
    assert "sam (1 of 7, permuted); gnp (2 of 2, permuted)" in words(figure)


def test_each_setting_has_a_panel_and_arms_keep_their_colour():
    """Oracle: the panels' titles and the colours of equal names."""
    records = [
        *noisy("sgd", 0),
        *noisy("sam", 0.01),
        *noisy("sam", 0.01, setting="pairs", num_tasks=6),
    ]
    left, right = figures.learning_curves(records).axes
    assert [ax.get_title("left") for ax in (left, right)] == ["permuted", "pairs"]
    assert right.get_lines()[0].get_color() == left.get_lines()[1].get_color()


def test_another_quantity_can_be_drawn_the_same_way():
    """Oracle: the numbers that went in, and the label that was asked for."""
    records = runs("sgd", [(0.5, 0.5)] * 2, measures={"gap": [-0.02, 0.03]})
    (ax,) = figures.learning_curves(records, name="gap", label="points").axes
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), [-2, 3])
    assert ax.get_ylabel() == "points"


def test_arms_and_their_numbers_can_be_told_apart():
    """Oracle: no two of 16 groups look the same; the first is in ink."""
    records = [
        record(f"arm{a}", hyper={"learning_rate": rate})
        for a in range(8)
        for rate in (0.1, 0.01)
    ]
    found = styles_of(records)
    assert len({look[:2] for look in found.values()}) == 16
    assert next(iter(found.values())).colour == INK
    assert {look.colour for look in found.values()} <= {INK, *COLOURS}


def test_names_are_moved_apart_and_no_further():
    """Oracle: by hand, and the law that order and the mean stay."""
    np.testing.assert_allclose(spread(np.array([0.0, 5.0]), 1.0), [0, 5])
    np.testing.assert_allclose(spread(np.array([1.0, 1.0]), 1.0), [0.5, 1.5])
    places = np.random.default_rng(0).uniform(0, 3, 8)
    moved = spread(places, 0.5)
    assert (np.diff(np.sort(moved)) >= 0.5 - 1e-9).all()
    np.testing.assert_array_equal(np.argsort(moved), np.argsort(places))
    np.testing.assert_allclose(moved.mean(), places.mean())


def test_measures_have_a_panel_each():
    """Oracle: the values that went in."""
    measures = {"weight_norm": [1.0, 2.0], "rank": [5.0, 4.0], "dead": [0.0, 0.0]}
    records = runs("sgd", [(0.5, 0.5)] * 2, measures=measures)
    figure = figures.measure_curves(records)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["weight norm", "rank", "dead"]
    np.testing.assert_array_equal(figure.axes[1].get_lines()[0].get_ydata(), [5, 4])
    with pytest.raises(ValueError, match="no measure"):
        figures.measure_curves(runs("sgd", [(0.5, 0.5)]))
    with pytest.raises(ValueError, match="one setting, got"):
        figures.measure_curves([*records, record(setting="pairs")])


def test_a_heatmap_frames_the_best_and_says_what_diverged():
    """Oracle: the sweep made by hand: best .9 at rate .01 and rho .5."""
    figure = figures.heatmap(grid(sweep(), rows="rho", columns="learning_rate"))
    ax = figure.axes[0]
    (frame,) = (patch for patch in ax.patches if not patch.get_fill())
    assert frame.get_xy() == (-0.5, -0.5)
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "90.0"
    assert texts[1].startswith("40.0\n±")
    assert texts[3] == "diverged"


def test_an_accuracy_matrix_is_the_mean_over_finished_runs():
    """Oracle: by hand."""
    matrices = [[[0.8, None], [0.6, 0.9]], [[0.6, None], [0.4, 0.7]]]
    records = [record("sgd", seed, matrix=m) for seed, m in enumerate(matrices)]
    lost = record("sgd", 2, status="diverged", matrix=[[0.1, 0.1]] * 2)
    figure = figures.accuracy_matrix([*records, lost])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(shown, -1), [[70, -1], [50, 80]])
    assert [text.get_text() for text in figure.axes[0].texts] == ["70", "50", "80"]
    with pytest.raises(ValueError, match="no finished run has a matrix"):
        figures.accuracy_matrix([record()])


def test_a_few_tasks_are_called_by_their_names():
    """Oracle: the names of one run of two; eleven names are too many, and stay out."""
    matrix = [[0.5, 0.1], [0.4, 0.6]]
    records = [record(matrix=matrix), record(seed=1, matrix=matrix, tasks=["b", "a"])]
    words = lambda axis: [label.get_text() for label in axis.get_ticklabels()]
    ax = figures.accuracy_matrix(records).axes[0]
    assert words(ax.xaxis) == words(ax.yaxis) == ["b", "a"]
    assert words(figures.learning_curves(records).axes[0].xaxis) == ["b", "a"]
    smooth = figures.learning_curves(records, window=2).axes[0]
    many = [record(accuracy=[0.5] * 11, tasks=["a"] * 11)]
    for ax in (smooth, figures.learning_curves(many).axes[0]):
        assert "a" not in words(ax.xaxis)
    with pytest.raises(ValueError, match="'tasks' has 1 values, expected 2"):
        figures.accuracy_matrix([record(matrix=matrix, tasks=["a"])])


def test_a_scatter_shows_every_run_and_the_correlation():
    """Oracle: scipy; no interval, for runs of one arm are not independent."""
    from scipy import stats

    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, 12)
    y = np.clip(0.5 + 0.1 * x + 0.05 * rng.normal(size=12), 0, 1)
    records = [
        record("ab"[i % 2], i, [y[i]] * 2, measures={"sharpness": [None, x[i]]})
        for i in range(12)
    ]
    figure = figures.scatter(records, "sharpness")
    ax = figure.axes[0]
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    wanted = np.stack([x, 100 * y], axis=1)
    np.testing.assert_allclose(np.sort(points, 0), np.sort(wanted, 0))
    text = words(figure)
    assert f"r = {stats.pearsonr(x, y).statistic:.2f}, Spearman" in text
    assert f"= {stats.spearmanr(x, y).statistic:.2f}, 12 runs" in text
    np.testing.assert_allclose(
        ax.get_lines()[0].get_ydata(),
        np.polyval(np.polyfit(x, 100 * y, 1), [x.min(), x.max()]),
    )
    with pytest.raises(ValueError, match="three runs"):
        figures.scatter(records[:2], "sharpness")


def test_saving_gives_svg_and_png_the_same_each_time(tmp_path):
    """Oracle: an XML parser, an image reader, and a second drawing."""
    draw = lambda: figures.learning_curves(noisy("sgd", 0))
    svg, png = figures.save(draw(), tmp_path / "figures" / "curves.v1")
    assert [svg.name, png.name] == ["curves.v1.svg", "curves.v1.png"]
    assert ET.parse(svg).getroot().tag.endswith("svg")
    assert imread(png).std() > 0.01
    assert figures.to_svg(draw()) == svg.read_text()
    assert len(list(svg.parent.iterdir())) == 2


def test_drawing_changes_no_global_setting():
    """Oracle: matplotlib's settings before and after, and no figure left open."""
    before = dict(matplotlib.rcParams)
    figures.to_svg(figures.learning_curves(noisy("sgd", 0)))
    assert dict(matplotlib.rcParams) == before
