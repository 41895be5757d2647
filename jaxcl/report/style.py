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
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.ticker import MaxNLocator

from jaxcl.errors import require, shown, warn
from jaxcl.report.records import Group, Record, group, labels, split, values_of

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
MOST_TICKS = 24  # with names, where all data sets of one run are columns
DASHES = ("solid", (0, (4, 1.6)), (0, (1, 1.4)), (0, (5, 1.4, 1, 1.4)))

#: For what the first lacks, of those that are installed.
FURTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
)
_INSTALLED = {font.name for font in fontManager.ttflist}

SETTINGS = {
    "font.family": ["DejaVu Sans", *(f for f in FURTHER_FONTS if f in _INSTALLED)],
    **dict.fromkeys(("font.size", "axes.labelsize"), 10.5),
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.titlecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT),
    "axes.linewidth": 0.8,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "axes.grid.axis": "y",
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.use_mathtext": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "svg.fonttype": "path",
    "svg.hashsalt": "jaxcl",  # the same figure gives the same file
    "savefig.facecolor": "white",
}


class LineStyle(NamedTuple):
    """How one group is drawn, and its name."""

    colour: str
    dashes: object  # a matplotlib line style
    zorder: float
    label: str


def styles_of(records: Sequence[Record]) -> dict[Group, LineStyle]:
    """A colour for each arm, dashes for its numbers: the same in all settings."""
    named = labels(list(group(records)))
    arms = dict.fromkeys(key.arm for key in named)
    kinds = {
        arm: list(dict.fromkeys(key.hyper for key in named if key.arm == arm))
        for arm in arms
    }
    found: dict[Group, LineStyle] = {}
    for key, label in named.items():
        place = list(arms).index(key.arm)
        colour = COLOURS[(place - 1) % len(COLOURS)] if place else INK
        # colours that come again have other dashes
        number = kinds[key.arm].index(key.hyper) + max(0, place - 1) // len(COLOURS)
        dashes = DASHES[number % len(DASHES)]
        found[key] = LineStyle(colour, dashes, 3 - 0.01 * place, label)
    return found


def arranged(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for ``count`` panels, at most ``columns``, as even as possible."""
    rows = -(-count // columns)
    return rows, -(-count // rows)


def panels(
    count: int, columns: int, *, width: float, height: float
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` equal panels, at most ``columns`` side by side."""
    rows, columns = arranged(count, columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure, list(axes[:count])


def one_setting(who: str, records: Sequence[Record]) -> None:
    """Refuse runs of several settings; ``who`` is named in the error."""
    settings = values_of(records, "setting")
    fault = f"expected runs of one setting, got {settings}; choose one"
    require(len(settings) == 1, who, fault)


def task_axis(axis: Axis, names: Sequence[str] | None, *, slant: int = 0) -> None:
    """Tasks along an axis: by their names if there are a few, else by their numbers."""
    if names is None or len(names) > MOST_NAMES:
        axis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    else:
        name_ticks(axis, names, slant=slant)


def drawable(names: Sequence[str]) -> list[str]:
    """The names, or the numbers of all of them with a warning if a font lacks letters."""
    fonts = [get_font(findfont(family)) for family in SETTINGS["font.family"]]
    known = set().union(*(font.get_charmap() for font in fonts))
    lacking = [name for name in names if not {*map(ord, name)} <= known]
    if not lacking:
        return list(names)
    warn(
        f"report: no font is installed for {shown(lacking[0])}; figures number the names "
        "of tasks, tables have them. Install one, such as Noto Sans CJK."
    )
    return [str(place) for place in range(1, len(names) + 1)]


def name_ticks(
    axis: Axis, names: Sequence[str], *, first: int = 1, slant: int = 0
) -> None:
    """Names at the places from ``first`` on, slanted so that long ones have space.

    Of many, every second one is shown, or every third, and so on.
    """
    turned = {"rotation": slant, "ha": "right", "rotation_mode": "anchor"}
    every = -(-len(names) // MOST_TICKS) or 1
    places, names = range(first, first + len(names), every), drawable(names)
    axis.set_ticks(places, names[::every], **(turned if slant else {}))


def finish(
    figure: Figure,
    records: Sequence[Record],
    title: str,
    shown: str = "Mean and 95 % interval over",
) -> None:
    """The title above all panels, flush left, and notes about the runs below them."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=12.5)
    runs = group(records)
    done, lost = (group(part) for part in split(records))
    seeds = sorted({len(mine) for mine in done.values()})
    notes = []
    if shown and seeds and seeds[-1] > 1:
        count = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
        notes.append(f"{shown} {count} seeds.")
    if lost:
        named = labels(list(runs))
        gone = [
            f"{named[key]} ({len(mine)} of {len(runs[key])}, {key.setting})"
            for key, mine in lost.items()
        ]
        notes.append(f"{DAGGER} Diverged, not drawn: {'; '.join(gone)}.")
    if notes:
        small = {"x": 0.01, "ha": "left", "fontsize": 8.5, "color": INK, "wrap": True}
        figure.supxlabel(" ".join(notes), **small)


def styled():
    """A context, or a decorator, in which figures are built in this style."""
    return rc_context(dict(SETTINGS))  # type: ignore[arg-type]
