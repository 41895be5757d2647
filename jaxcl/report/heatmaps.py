"""Heatmaps: sweeps over two numbers, and accuracy matrices."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from jaxcl.errors import InputError
from jaxcl.report.records import (
    Record,
    check,
    group,
    labels,
    show_number,
    split,
    task_names,
)
from jaxcl.report.style import INK, MOST_NAMES, finish, head, panels, styled, task_axis
from jaxcl.report.summaries import Grid


def heatmap(grid: Grid, *, scale: float = 100.0, title: str = "") -> Figure:
    """A sweep over two numbers: the mean over seeds in each cell, the best one framed.

    Cells whose runs all diverged say so; cells where some did show their number; cells
    without runs have a dash.

    Args:
      grid: from :func:`jaxcl.report.grid`.
      scale: 100 shows fractions as per cent.
      title: above the figure.
    """
    with styled():
        rows, columns = grid.mean.shape
        figure, (ax,) = panels(
            1, 1, width=2.3 + 0.95 * columns, height=1.4 + 0.55 * rows
        )
        image = _image(ax, grid.mean * scale)
        for r, c in np.ndindex(rows, columns):
            lost, found = grid.diverged[r, c], grid.count[r, c]
            text = "diverged" if lost and not found else "–" if not found else ""
            if found and np.isnan(grid.mean[r, c]):
                text = "–"
            elif found:
                text = f"{grid.mean[r, c] * scale:.1f}"
                half = grid.half_width[r, c] * scale
                text += "" if np.isnan(half) else f"\n± {half:.1f}"
                text += f"\n({lost} diverged)" if lost else ""
            _cell(ax, image, r, c, text)
        if np.any(np.isfinite(grid.mean)):
            r, c = np.unravel_index(np.nanargmax(grid.mean), grid.mean.shape)
            box = {"fill": False, "edgecolor": INK, "linewidth": 2.2, "clip_on": False}
            ax.add_patch(Rectangle((float(c) - 0.5, float(r) - 0.5), 1, 1, **box))
        ax.set_xticks(range(columns), [show_number(v) for v in grid.columns])
        ax.set_yticks(range(rows), [show_number(v) for v in grid.rows])
        ax.set_xlabel(grid.column_name.replace("_", " "))
        ax.set_ylabel(grid.row_name.replace("_", " "))
        figure.colorbar(image, ax=ax, label=_unit(grid.quantity, scale), pad=0.03)
        head(figure, title)
        return figure


def accuracy_matrix(
    records: Sequence[Record], *, columns: int = 3, title: str = ""
) -> Figure:
    """Accuracy on task j (columns) after learning task i (rows), a panel per group.

    Means over the finished runs that have a ``matrix``; numbers are written into the
    cells of streams of at most ten tasks. Unknown entries (null) are blank.

    Raises:
      InputError: for malformed records, or if no finished run has a matrix.
    """
    check(records)
    carrying = [r for r in split(records)[0] if r.get("matrix") is not None]
    if not carrying:
        msg = "accuracy_matrix: no finished run has a matrix; evaluate all tasks."
        raise InputError(msg)
    groups = group(carrying)
    named = labels(list(groups))
    several = len({key.setting for key in groups}) > 1
    with styled():
        figure, axes = panels(len(groups), columns, width=3.2, height=3.1)
        for ax, (key, runs) in zip(axes, groups.items(), strict=True):
            stacked = np.stack([np.array(r["matrix"], np.float64) for r in runs])
            mean = 100 * stacked.mean(axis=0)
            image = _image(ax, mean, low=0, high=100, first=1)
            if len(mean) <= MOST_NAMES:
                for i, j in np.argwhere(np.isfinite(mean)).tolist():
                    _cell(ax, image, i, j, f"{mean[i, j]:.0f}", size=8.5, first=1)
            ax.set_title(f"{key.setting}: {named[key]}" if several else named[key])
            ax.set_xlabel("evaluated on task")
            ax.set_ylabel("after learning task")
            task_axis(ax.xaxis, task_names(runs), slant=35)
            task_axis(ax.yaxis, task_names(runs))
        figure.colorbar(image, ax=axes, label="accuracy, %", aspect=30, pad=0.02)
        finish(figure, records, title, shown="Mean over")
        return figure


def result_heatmaps(
    results: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    *,
    columns: int = 3,
    title: str = "",
) -> Figure:
    """The results of one run: a panel per metric and learner.

    Learners share the colours of a metric.

    Args:
      results: ``{metric: {learner: [T + 1, E]}}``, as ``learn`` returns them: row 0 is
        before the first task, row i after i tasks; NaN where nothing was measured.
      names: of the E columns.
      columns: panels side by side.
      title: above the figure.
    """
    shown = [
        (metric, metric if len(learners) == 1 else f"{metric}, {learner}", values)
        for metric, learners in results.items()
        for learner, values in learners.items()
    ]
    known = {m: np.stack([*learners.values()]) for m, learners in results.items()}
    limits = {
        metric: (np.nanmin(values), np.nanmax(values))
        for metric, values in known.items()
        if np.isfinite(values).any()
    }
    with styled():
        width = max(3.4, 1.6 + 0.45 * len(names))
        figure, axes = panels(len(shown), columns, width=width, height=3.2)
        for ax, (metric, name, values) in zip(axes, shown, strict=True):
            image = _image(ax, values, *limits.get(metric, ()))
            if len(values) <= MOST_NAMES:
                for i, j in np.argwhere(np.isfinite(values)).tolist():
                    _cell(ax, image, i, j, f"{values[i, j]:.3g}", size=8.0)
            ax.set_title(name)
            ax.set_xlabel("evaluated on")
            ax.set_ylabel("tasks learned")
            ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            ax.set_xticks(
                range(len(names)),
                names,
                rotation=35,
                ha="right",
                rotation_mode="anchor",
            )
            figure.colorbar(image, ax=ax, pad=0.03)
        head(figure, title)
        return figure


def _image(ax: Axes, values: np.ndarray, low=None, high=None, first: int = 0):
    """A heatmap; rows and columns are numbered from ``first``."""
    rows, columns = values.shape
    edges = (first - 0.5, columns + first - 0.5, rows + first - 0.5, first - 0.5)
    colours = colormaps["viridis"].with_extremes(bad="none")
    image = ax.imshow(
        values, cmap=colours, vmin=low, vmax=high, aspect="auto", extent=edges
    )
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return image


def _cell(
    ax: Axes, image, row: int, column: int, text: str, size: float = 9.0, first: int = 0
) -> None:
    """Text in a cell, light on dark colours and dark on light ones."""
    value = image.get_array()[row, column]
    colour = INK
    if not np.ma.is_masked(value) and np.isfinite(value):
        linear = np.asarray(image.to_rgba(value)[:3]) ** 2.2
        dark = (
            linear @ [0.2126, 0.7152, 0.0722] < 0.18
        )  # both contrasts are equal there
        colour = "#ffffff" if dark else "#000000"
    where = (column + first, row + first)
    ax.text(*where, text, color=colour, ha="center", va="center", fontsize=size)


def _unit(quantity: str, scale: float) -> str:
    return f"{quantity}, %" if scale == 100 else quantity
