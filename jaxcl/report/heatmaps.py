"""Heatmaps: sweeps over two numbers, and accuracy matrices."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from jaxcl.errors import require
from jaxcl.report.records import (
    Record,
    check,
    group,
    labels,
    show_number,
    split,
    task_names,
)
from jaxcl.report.style import (
    INK,
    MOST_NAMES,
    finish,
    name_ticks,
    panels,
    styled,
    task_axis,
)
from jaxcl.report.summaries import Grid

WIDEST, TALLEST = 10.8, 6.8  # inches of panels of one run's results, for a page


@styled()
def heatmap(grid: Grid, *, title: str = "") -> Figure:
    """A sweep over two numbers: mean accuracy in each cell, the best one framed.

    Cells whose runs all diverged say so; cells where some did show their number; cells
    without runs have a dash.

    Args:
      grid: from :func:`jaxcl.report.grid`.
      title: above the figure.
    """
    mean, half_width = 100 * grid.mean, 100 * grid.half_width

    def text(cell: tuple[int, int]) -> str:
        half, lost = half_width[cell], grid.diverged[cell]
        if np.isnan(mean[cell]):
            return "diverged" if lost else "–"
        width = "" if np.isnan(half) else f"\n± {half:.1f}"
        return f"{mean[cell]:.1f}{width}" + (f"\n({lost} diverged)" if lost else "")

    rows, columns = mean.shape
    size = {"width": 2.3 + 0.95 * columns, "height": 1.4 + 0.55 * rows}
    figure, (ax,) = panels(1, 1, **size)
    image = _image(ax, mean, text, 9.0)
    if np.any(np.isfinite(mean)):
        r, c = np.unravel_index(np.nanargmax(mean), mean.shape)
        box = {"fill": False, "edgecolor": INK, "linewidth": 2.2, "clip_on": False}
        ax.add_patch(Rectangle((float(c) - 0.5, float(r) - 0.5), 1, 1, **box))
    ax.set_xticks(range(columns), [show_number(v) for v in grid.columns])
    ax.set_yticks(range(rows), [show_number(v) for v in grid.rows])
    ax.set_xlabel(grid.column_name.replace("_", " "))
    ax.set_ylabel(grid.row_name.replace("_", " "))
    figure.colorbar(image, ax=ax, label="accuracy, %", pad=0.03)
    finish(figure, [], title)
    return figure


@styled()
def accuracy_matrix(records: Sequence[Record], *, title: str = "") -> Figure:
    """Accuracy on task j (columns) after learning task i (rows), a panel per group.

    Means over the finished runs that have a ``matrix``; numbers are written into the
    cells of streams of at most ten tasks. Unknown entries (null) are blank.
    """
    check(records)
    carrying = [r for r in split(records)[0] if r.get("matrix") is not None]
    absent = "no finished run has a matrix; evaluate all tasks"
    require(carrying, "accuracy_matrix", absent)
    groups = group(carrying)
    named = labels(list(groups))
    several = len({key.setting for key in groups}) > 1
    figure, axes = panels(len(groups), 3, width=3.2, height=3.1)
    for ax, (key, runs) in zip(axes, groups.items(), strict=True):
        mean = 100 * np.mean([np.array(r["matrix"], np.float64) for r in runs], axis=0)
        texts = _numbers(mean, ".0f")
        image = _image(ax, mean, texts, 8.5, limits=(0, 100), first=1)
        ax.set_title(f"{key.setting}: {named[key]}" if several else named[key])
        ax.set_xlabel("evaluated on task")
        ax.set_ylabel("after learning task")
        task_axis(ax.xaxis, task_names(runs), slant=35)
        task_axis(ax.yaxis, task_names(runs))
    figure.colorbar(image, ax=axes, label="accuracy, %", aspect=30, pad=0.02)
    finish(figure, records, title, shown="Mean over")
    return figure


@styled()
def result_heatmaps(
    results: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    *,
    lower_is_better: Collection[str] = (),
) -> Figure:
    """The results of one run: a panel per metric and learner, colours per metric.

    Light is good: colours are reversed where lower is better. They span what was measured
    after the first task; the network before it may be anything. Wide panels are stacked.

    Args:
      results: ``{metric: {learner: [T + 1, E]}}``, as ``learn`` returns them: row 0 is
        before the first task, row i after i tasks; NaN where nothing was measured.
      names: of the E columns; where they are many, only some of them are shown.
      lower_is_better: names of such metrics.
    """
    count = sum(map(len, results.values()))
    rows = max(
        (len(m) for found in results.values() for m in found.values()), default=1
    )
    width = min(max(3.4, 1.6 + 0.45 * len(names)), WIDEST)
    height = min(max(3.2, 1.6 + 0.17 * rows), TALLEST)
    columns = max(1, min(3, int(WIDEST / width)))
    figure, axes = panels(count, columns, width=width, height=height)
    free = iter(axes)
    for metric, learners in results.items():
        both = np.stack([*learners.values()])
        trained = both[:, 1:] if np.isfinite(both[:, 1:]).any() else both
        known = trained[np.isfinite(trained)]
        limits: Any = (known.min(), known.max()) if known.size else (None, None)
        fraction = known.size and np.all((known >= 0) & (known <= 1))
        if fraction and metric not in lower_is_better:  # such as an accuracy
            limits = (0.0, 1.0)
        colours = {"limits": limits, "downward": metric in lower_is_better}
        for (learner, values), ax in zip(learners.items(), free, strict=False):
            image = _image(ax, values, _numbers(values, ".3g"), 8.0, **colours)
            ax.set_title(metric if len(learners) == 1 else f"{metric}, {learner}")
            ax.set_xlabel("evaluated on")
            ax.set_ylabel("tasks learned")
            ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            name_ticks(ax.xaxis, names, first=0, slant=35)
            figure.colorbar(image, ax=ax, pad=0.03)
    return figure


def _numbers(values: np.ndarray, form: str) -> Callable[[tuple[int, int]], str]:
    """Texts for the known cells; none at all where tasks are many."""
    few = len(values) <= MOST_NAMES
    return lambda at: f"{values[at]:{form}}" if few and np.isfinite(values[at]) else ""


def _image(
    ax: Axes,
    values: np.ndarray,
    text: Callable[[tuple[int, int]], str],
    size: float,
    *,
    limits: tuple = (None, None),
    first: int = 0,
    downward: bool = False,
):
    """A heatmap with a text in each cell; rows and columns count from ``first``.

    With ``downward``, low values are light.
    """
    rows, columns = values.shape
    edges = (first - 0.5, columns + first - 0.5, rows + first - 0.5, first - 0.5)
    colours = colormaps["viridis_r" if downward else "viridis"].with_extremes(
        bad="none"
    )
    shape = {"aspect": "auto", "extent": edges}
    low, high = limits
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, **shape)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for cell in np.ndindex(rows, columns):
        if shown := text(cell):
            where = cell[1] + first, cell[0] + first
            style = {"ha": "center", "va": "center", "fontsize": size}
            ax.text(*where, shown, color=_ink_on(image, values[cell]), **style)
    return image


def _ink_on(image, value) -> str:
    """Light on dark colours and dark on light ones, by the luminance (WCAG 2)."""
    if not np.isfinite(value):
        return INK
    linear = np.asarray(image.to_rgba(value)[:3]) ** 2.2
    dark = linear @ [0.2126, 0.7152, 0.0722] < 0.18  # both contrasts are equal there
    return "#ffffff" if dark else "#000000"
