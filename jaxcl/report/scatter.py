"""Scatter plots: a point per run."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from jaxcl.errors import require
from jaxcl.report.records import Record, check, curves, group, group_of, split
from jaxcl.report.statistics import known_means
from jaxcl.report.style import (
    FAINT,
    finish,
    one_setting,
    panels,
    styled,
    styles_of,
)


@styled()
def scatter(records: Sequence[Record], x: str, *, title: str = "") -> Figure:
    """Scatter plot of accuracy against a measure, one point per finished run.

    Both are means over the tasks at which they are known. The line is the least-squares
    fit over all runs of all arms; the correlation (Pearson and Spearman) is written below
    the title. It is descriptive and not a test: it has no interval, because runs of one
    arm are not independent, and does not imply a cause.

    Args:
      records: runs of one setting, of which three have both numbers.
      x: name of the measure.
      title: above the figure.
    """
    check(records)
    one_setting("scatter", records)
    done = split(records)[0]
    means = [known_means(curves(done, n)) if done else [] for n in (x, "accuracy")]
    points = np.stack(means, axis=1) * [1, 100]
    known = np.isfinite(points).all(axis=1)
    fault = f"expected three runs with {x} and accuracy, got {known.sum()}"
    require(known.sum() >= 3, "scatter", fault)
    figure, (ax,) = panels(1, 1, width=6.4, height=4.1)
    styles = styles_of(records)
    for key in group(done):
        mine = np.array([group_of(r) == key for r in done]) & known
        colour, dashes, _, label = styles[key]
        hollow = dashes != "solid"
        ax.scatter(
            *points[mine].T,
            s=36,
            color="none" if hollow else colour,
            edgecolor=colour if hollow else "white",
            linewidth=1.4 if hollow else 0.6,
            alpha=0.9,
            zorder=3,
            label=label,
        )
    ax.set_title(_fit(ax, points[known]), fontweight="normal", fontsize=10)
    ax.set_xlabel(x.replace("_", " "))
    ax.set_ylabel("accuracy, %")
    ax.grid(axis="x")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    finish(figure, records, title, shown="")
    return figure


def _fit(ax: Axes, points: np.ndarray) -> str:
    """Draw the least-squares line; returns the text for the correlation."""
    if np.any(np.ptp(points, axis=0) == 0):
        return f"no correlation: one of the two is the same in all {len(points)} runs"
    slope, intercept = np.polyfit(points[:, 0], points[:, 1], 1)
    ends = np.array([points[:, 0].min(), points[:, 0].max()])
    ax.plot(ends, intercept + slope * ends, color=FAINT, linewidth=1.4, zorder=2)
    r = stats.pearsonr(*points.T)[0]
    rho = stats.spearmanr(*points.T)[0]
    text = f"Pearson r = {r:.2f}, Spearman ρ = {rho:.2f}, {len(points)} runs"
    return text.replace("-", "\N{MINUS SIGN}")
