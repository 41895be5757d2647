"""The style of figures: palette, fonts, light and dark backgrounds.

Colours are those of Okabe and Ito, which are distinguishable with any common kind of
colour vision; the first arm, usually the baseline, is drawn in the colour of the text.
"""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxcl.errors import InputError
from jaxcl.report.records import Group, Record, group, labels, split

INK = "#24292f"  # text and the baseline; light on the page's dark background
FAINT = "#8c959f"  # ticks and axes
GRID = "#d8dee4"
COLOURS = (
    "#0072b2",  # blue
    "#d55e00",  # vermilion
    "#009e73",  # green
    "#cc79a7",  # pink
    "#e69f00",  # orange
    "#56b4e9",  # sky
    "#7f5fc0",  # violet
    "#9a8c3c",  # olive
)
DAGGER = "\N{DAGGER}"  # marks groups that lost runs; the footnote says which
MOST_NAMES = 10  # of tasks along an axis
DASHES = ("solid", (0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.4, 1, 1.4)))

SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxcl",  # the same figure gives the same file
    "savefig.facecolor": "white",
}


class LineStyle(NamedTuple):
    """The line style of one group."""

    colour: str
    dashes: object  # a matplotlib line style
    zorder: float


def line_styles(groups: Sequence[Group]) -> dict[Group, LineStyle]:
    """A colour for each arm, a dash pattern for each choice of numbers within it."""
    arms = list(dict.fromkeys(key.arm for key in groups))
    found: dict[Group, LineStyle] = {}
    for key in groups:
        place = arms.index(key.arm)
        colour = COLOURS[(place - 1) % len(COLOURS)] if place else INK
        kinds = dict.fromkeys(other.hyper for other in groups if other.arm == key.arm)
        number = list(kinds).index(key.hyper) + max(0, place - 1) // len(COLOURS)
        found[key] = LineStyle(colour, DASHES[number % len(DASHES)], 3 - 0.01 * place)
    return found


def arranged(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for ``count`` panels, at most ``columns``, as even as possible."""
    rows = -(-count // columns)
    return rows, -(-count // rows)


def panels(
    count: int, columns: int, *, width: float = 4.6, height: float = 3.2, **shared
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` equal panels, at most ``columns`` side by side."""
    rows, columns = arranged(count, columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure, list(axes[:count])


def names_and_styles(
    records: Sequence[Record],
) -> tuple[dict[Group, str], dict[Group, LineStyle]]:
    """Names and line styles by arm and numbers, the same in all settings."""
    groups = list(group(records))
    plain = {key: key._replace(setting="") for key in groups}
    styles = line_styles(list(dict.fromkeys(plain.values())))
    return labels(groups), {key: styles[plain[key]] for key in groups}


def one_setting(who: str, records: Sequence[Record]) -> None:
    """Refuse runs of several settings; ``who`` is named in the error."""
    settings = list(dict.fromkeys(record["setting"] for record in records))
    if len(settings) > 1:
        msg = f"{who}: expected runs of one setting, got {settings}; choose one."
        raise InputError(msg)


def task_axis(axis: Axis, names: Sequence[str] | None, *, slant: int = 0) -> None:
    """Tasks along an axis: by their names if there are a few, else by their numbers."""
    if names is None or len(names) > MOST_NAMES:
        axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        return
    turned = {"rotation": slant, "ha": "right", "rotation_mode": "anchor"}
    axis.set_ticks(range(1, len(names) + 1), names, **(turned if slant else {}))


def head(figure: Figure, title: str) -> None:
    """The title above all panels, flush left."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12.5)


def finish(
    figure: Figure,
    records: Sequence[Record],
    title: str,
    shown: str = "Mean and 95 % interval over",
) -> None:
    """The title, and notes about the runs below it."""
    head(figure, title)
    done, lost = split(records)
    seeds = {len(runs) for runs in group(done).values()}
    notes = []
    if seeds and max(seeds) > 1 and shown:
        count = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else f"{max(seeds)}"
        notes.append(f"{shown} {count} seeds.")
    if lost:
        runs = group(records)
        named = labels(list(runs))
        gone = [
            f"{named[key]} ({len(mine)} of {len(runs[key])}, {key.setting})"
            for key, mine in group(lost).items()
        ]
        notes.append(f"{DAGGER} Diverged, not drawn: {'; '.join(gone)}.")
    if notes:
        figure.supxlabel(
            " ".join(notes), x=0.01, ha="left", fontsize=8.5, color=INK, wrap=True
        )


def styled():
    """A context in which figures are built and written in this style."""
    return rc_context(dict(SETTINGS))  # type: ignore[arg-type]
