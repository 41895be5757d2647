"""Curves against the task number: accuracy, and measures of plasticity."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from jaxcl.errors import InputError
from jaxcl.report.records import (
    Group,
    Record,
    check,
    curves,
    group,
    measure_names,
    split,
    task_names,
)
from jaxcl.report.statistics import mean_band
from jaxcl.report.style import (
    DAGGER,
    INK,
    LineStyle,
    arranged,
    finish,
    names_and_styles,
    one_setting,
    panels,
    styled,
    task_axis,
)


def learning_curves(
    records: Sequence[Record],
    *,
    name: str = "accuracy",
    label: str = "accuracy on the new task, %",
    scale: float = 100.0,
    window: int = 1,
    title: str = "",
) -> Figure:
    """Accuracy on the task just learned against its number, a panel per setting.

    A line per group with its 95 % interval over seeds, labelled at its end. If tasks are
    equally hard, a falling line is a loss of plasticity.

    Args:
      records: runs of any number of settings and arms; the first arm is drawn in black.
      name: ``accuracy``, ``loss`` or a measure.
      label: of the vertical axes.
      scale: factor of the values; fractions are shown in per cent.
      window: smoothing: each point is the mean of this many consecutive tasks, taken
        before the interval; the axis label says so.
      title: above all panels.

    Raises:
      ValueError: for malformed records or a window longer than the stream.
    """
    check(records)
    with styled():
        settings = list(dict.fromkeys(record["setting"] for record in records))
        most = max(len({g for g in group(records) if g.setting == s}) for s in settings)
        height = max(3.7, 0.9 + 0.19 * most)  # space for the names beside the lines
        figure, axes = panels(len(settings), 2, width=5.4, height=height)
        named, styles = names_and_styles(records)
        for ax, setting in zip(axes, settings, strict=True):
            chosen = [record for record in records if record["setting"] == setting]
            _lines(ax, chosen, name, named, styles, window=window, scale=scale)
            ax.set_title(setting if len(settings) > 1 or not title else "")
            ax.set_xlabel("task" + _smoothing(window))
            _label_ends(ax, inches=height - 0.9)
        axes[0].set_ylabel(label)
        finish(figure, records, title)
        return figure


def measure_curves(
    records: Sequence[Record],
    names: Sequence[str] | None = None,
    *,
    columns: int = 3,
    window: int = 1,
    title: str = "",
) -> Figure:
    """Small multiples: one panel per measure of plasticity, against the task number.

    Args:
      records: runs of one setting.
      names: which measures, including ``accuracy`` and ``loss`` if wanted; all
        measures that every finished run has, if absent.
      columns: panels side by side.
      window: each point is the mean of this many consecutive tasks; a measure that was
        taken at some tasks only is drawn there, without smoothing.
      title: above all panels.

    Raises:
      ValueError: for malformed records, several settings, or no measure to draw.
    """
    check(records)
    one_setting("measure_curves", records)
    names = measure_names(records) if names is None else list(names)
    if not names:
        msg = "measure_curves: the finished runs have no measure in common."
        raise InputError(msg)
    with styled():
        figure, axes = panels(len(names), columns, width=3.6, height=2.4)
        named, styles = names_and_styles(records)
        for ax, name in zip(axes, names, strict=True):
            _lines(ax, records, name, named, styles, window=window)
            ax.set_title(name.replace("_", " "), fontsize=10.5)
        for ax in axes[-arranged(len(names), columns)[1] :]:
            ax.set_xlabel("task" + _smoothing(window))
        _legend(figure, axes[0], title)
        finish(figure, records, "")
        return figure


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """Move numbers apart to at least ``gap``, as little as possible, keeping order."""
    order = np.argsort(places, kind="stable")
    gaps = gap * np.arange(len(places))
    result = np.empty_like(places, dtype=float)
    result[order] = isotonic_regression(places[order] - gaps).x + gaps
    return result


def _lines(
    ax: Axes,
    records: Sequence[Record],
    name: str,
    named: dict[Group, str],
    styles: dict[Group, LineStyle],
    *,
    window: int,
    scale: float = 1.0,
) -> None:
    """Mean and interval of every group that has a finished run."""
    for key, runs in group(records).items():
        done, lost = split(runs)
        if not done:
            continue
        values = scale * curves(done, name)
        num_tasks = values.shape[1]
        if not 1 <= window <= num_tasks:
            msg = (
                f"figures: window must be within 1 and {num_tasks} tasks, got {window}."
            )
            raise InputError(msg)
        task, values = _smoothed(values, window)
        band = mean_band(values)
        colour, dashes, zorder = styles[key]
        missing = f" {DAGGER}" if lost else ""
        marker = "o" if len(task) <= 12 else None
        ax.plot(
            task,
            band.mean,
            color=colour,
            linestyle=dashes,
            zorder=zorder,
            label=named[key] + missing,
            marker=marker,
            markersize=3.5,
        )
        ax.fill_between(
            task, band.low, band.high, color=colour, alpha=0.13, linewidth=0, zorder=2
        )
    task_axis(ax.xaxis, task_names(records) if window == 1 else None, slant=20)
    ax.margins(x=0.015)


def _smoothed(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Task numbers and moving means; a measure of some tasks only is not smoothed."""
    known = ~np.isnan(values).all(axis=0)
    if not known.all():
        return 1 + np.flatnonzero(known), values[:, known]
    smooth = np.lib.stride_tricks.sliding_window_view(values, window, axis=1)
    return np.arange(smooth.shape[1]) + (window + 1) / 2, smooth.mean(axis=-1)


def _label_ends(ax: Axes, inches: float) -> None:
    """The name of each line beside its last point, without overlaps."""
    lines = ax.get_lines()
    if not lines:
        return
    low, high = ax.get_ylim()
    gap = (high - low) * 0.165 / inches
    ends = np.array([np.asarray(line.get_ydata(), float)[-1] for line in lines])
    places = spread(ends, gap)
    places -= max(0.0, places.max() - high)
    places += max(0.0, low - places.min())
    right = max(float(np.asarray(line.get_xdata(), float)[-1]) for line in lines)
    for line, end, place in zip(lines, ends, places, strict=True):
        colour = line.get_color()
        ax.annotate(
            str(line.get_label()),
            xy=(right, end),
            xytext=(1.035, place),
            textcoords=ax.get_yaxis_transform(),
            color=colour,
            fontsize=9.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "linestyle": line.get_linestyle(),
                "relpos": (0, 0.5),  # from the left end of the name
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )
    ax.set_ylim(low, high)


def _smoothing(window: int) -> str:
    return f" (moving mean of {window})" if window > 1 else ""


def _legend(figure: Figure, ax: Axes, title: str) -> None:
    """One legend for all panels, with the figure's title above it."""
    handles, names = ax.get_legend_handles_labels()
    if handles:
        legend = figure.legend(
            handles,
            names,
            title=title or None,
            alignment="left",
            title_fontproperties={"weight": "bold", "size": 12.5},
            loc="outside upper left",
            ncols=min(4, len(names)),
            frameon=False,
            borderaxespad=0.2,
            fontsize=9.5,
        )
        legend.get_title().set_color(INK)
