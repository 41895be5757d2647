"""Curves against the task number: accuracy, and measures of plasticity; and steps."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from jaxcl.errors import require
from jaxcl.report.records import (
    Group,
    Record,
    check,
    curves,
    group,
    measure_names,
    split,
    task_names,
    values_of,
    within,
)
from jaxcl.report.statistics import mean_interval
from jaxcl.report.style import (
    COLOURS,
    DAGGER,
    DASHES,
    FAINT,
    INK,
    LineStyle,
    arranged,
    finish,
    one_setting,
    panels,
    styled,
    styles_of,
    task_axis,
)

COLUMNS = 3  # of measures side by side
MOST_POINTS = 500  # of a line against the steps


@styled()
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
      window: each point is the mean of so many consecutive tasks, before the interval.
      title: above all panels.
    """
    check(records)
    settings, styles = values_of(records, "setting"), styles_of(records)
    most = max(sum(key.setting == name for key in styles) for name in settings)
    height = max(3.7, 0.9 + 0.19 * most)  # space for the names beside the lines
    figure, axes = panels(len(settings), 2, width=5.4, height=height)
    for ax, setting in zip(axes, settings, strict=True):
        _lines(ax, within(records, [setting]), name, styles, window, scale)
        ax.set_title(setting if len(settings) > 1 or not title else "")
        _label_ends(ax, inches=height - 0.9)
        ax.set_xlabel(_tasks(window))
    axes[0].set_ylabel(label)
    finish(figure, records, title)
    return figure


@styled()
def measure_curves(
    records: Sequence[Record],
    names: Sequence[str] | None = None,
    *,
    window: int = 1,
    title: str = "",
) -> Figure:
    """Small multiples: one panel per measure of plasticity, against the task number.

    Args:
      records: runs of one setting.
      names: ``accuracy``, ``loss`` and measures; if absent, all measures that every
        finished run has.
      window: each point is the mean of so many consecutive tasks; a measure that was
        taken at some tasks only is drawn there, without smoothing.
      title: above all panels.
    """
    check(records)
    one_setting("measure_curves", records)
    names = measure_names(records) if names is None else list(names)
    require(names, "measure_curves", "the finished runs have no measure in common")
    figure, axes = panels(len(names), COLUMNS, width=3.6, height=2.4)
    styles = styles_of(records)
    for ax, name in zip(axes, names, strict=True):
        _lines(ax, records, name, styles, window)
        ax.set_title(name.replace("_", " "), fontsize=10.5)
    for ax in axes[-arranged(len(names), COLUMNS)[1] :]:
        ax.set_xlabel(_tasks(window))
    handles, shown = axes[0].get_legend_handles_labels()
    if handles:  # one legend for all panels, with the figure's title above it
        legend = figure.legend(
            handles,
            shown,
            title=title or None,
            alignment="left",
            title_fontproperties={"weight": "bold", "size": 12.5},
            loc="outside upper left",
            ncols=min(4, len(shown)),
            frameon=False,
            borderaxespad=0.2,
            fontsize=9.5,
        )
        legend.get_title().set_color(INK)
    finish(figure, records, "")
    return figure


@styled()
def step_curves(
    curves: Mapping[str, Mapping[str, tuple[Sequence, Sequence]]],
    *,
    label: str = "step",
    ends: Sequence[int] = (),
) -> Figure:
    """What one run measured along its steps, a panel below another for each quantity.

    Args:
      curves: ``{quantity: {name of a line: (steps, values)}}``; values that are None are
        not drawn, and of more than ``MOST_POINTS`` the means of neighbours are.
      label: of the horizontal axis.
      ends: of tasks, as vertical lines.
    """
    figure, axes = panels(len(curves), 1, width=9.0, height=2.3)
    for ax, (name, lines) in zip(axes, curves.items(), strict=True):
        for end in ends:
            ax.axvline(end, color=FAINT, linewidth=0.8, linestyle=DASHES[1])
        for place, (shown, (steps, values)) in enumerate(lines.items()):
            points = np.array([steps, values], float)
            if len(steps) > MOST_POINTS:
                parts = np.array_split(points, MOST_POINTS, axis=1)
                points = np.stack([part.mean(axis=1) for part in parts], axis=1)
            ax.plot(
                *points,
                color=COLOURS[place % len(COLOURS)],
                linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
                label=shown,
                marker="o" if len(steps) <= 12 else None,
                markersize=3.5,
            )
        ax.set_title(name)
        ax.margins(x=0.015)
        if ax is not axes[0]:
            ax.sharex(axes[0])
        if any(lines):  # named
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            ax.legend(**beside, frameon=False, fontsize=9.5)
    axes[-1].set_xlabel(label)
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
    styles: dict[Group, LineStyle],
    window: int,
    scale: float = 1.0,
) -> None:
    """Mean and interval of every group that has a finished run."""
    for key, runs in group(records).items():
        done, lost = split(runs)
        if not done:
            continue
        values = scale * curves(done, name)
        most = values.shape[1]
        wanted = f"window must be within 1 and {most} tasks, got {window}"
        require(1 <= window <= most, "figures", wanted)
        task, values = _smoothed(values, window)
        band, style = mean_interval(values), styles[key]
        ax.plot(
            task,
            band.mean,
            color=style.colour,
            linestyle=style.dashes,
            zorder=style.zorder,
            label=style.label + (f" {DAGGER}" if lost else ""),
            marker="o" if len(task) <= 12 else None,
            markersize=3.5,
        )
        shade = {"color": style.colour, "alpha": 0.13, "linewidth": 0, "zorder": 2}
        ax.fill_between(task, band.low, band.high, **shade)
    task_axis(ax.xaxis, task_names(records) if window == 1 else None, slant=20)
    ax.margins(x=0.015)


def _smoothed(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Task numbers and moving means; a measure of some tasks only is not smoothed."""
    known = ~np.isnan(values).all(axis=0)
    if not known.all():
        return 1 + np.flatnonzero(known), values[:, known]
    smooth = np.lib.stride_tricks.sliding_window_view(values, window, axis=1)
    return np.arange(smooth.shape[1]) + (window + 1) / 2, smooth.mean(axis=-1)


def _tasks(window: int) -> str:
    """The label of an axis of tasks."""
    return f"task (moving mean of {window})" if window > 1 else "task"


def _label_ends(ax: Axes, inches: float) -> None:
    """The name of each line beside its last point, without overlaps."""
    lines = ax.get_lines()
    if not lines:
        return
    low, high = ax.get_ylim()
    last = [np.asarray(line.get_xydata(), float)[-1] for line in lines]
    right, ends = max(x for x, _ in last), np.array([y for _, y in last])
    places = spread(ends, gap=(high - low) * 0.165 / inches)
    places -= max(0.0, places.max() - high)
    places += max(0.0, low - places.min())
    for line, end, place in zip(lines, ends, places, strict=True):
        lead = {
            "arrowstyle": "-",
            "color": line.get_color(),
            "linewidth": 0.8,
            "linestyle": line.get_linestyle(),
            "relpos": (0, 0.5),  # from the left end of the name
            "shrinkA": 1,
            "shrinkB": 2,
        }
        ax.annotate(
            str(line.get_label()),
            xy=(right, end),
            xytext=(1.035, place),
            textcoords=ax.get_yaxis_transform(),
            color=line.get_color(),
            fontsize=9.5,
            va="center",
            annotation_clip=False,
            arrowprops=lead,
        )
    ax.set_ylim(low, high)
