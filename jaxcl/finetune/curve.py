"""Results between the model before and a learner, as ``jaxcl interpolate`` wrote them."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.finetune.measure import ANSWERS, GENERAL, lines_of, titles_of, values_of
from jaxcl.report.curves import step_curves
from jaxcl.report.page import Picture
from jaxcl.report.tables import Column, Table, table_of

PLACE = "interpolation"
_PARTS = re.compile(r"([0-9.]+(?:e-[0-9]+)?)-(.+)")  # "1e-05-news"


def read_curve(home: Path) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """``{metric: {name: (alphas, means)}}`` of the tests that there are.

    A name has the kind of test beside it where a task and a set share it.
    """
    found: dict[str, dict[str, Any]] = {}
    files = [
        path for kind in (ANSWERS, GENERAL) for path in (home / kind).glob("*.jsonl")
    ]
    parts = [(_PARTS.fullmatch(path.stem), path) for path in files]
    places = [(float(match[1]), match[2], path) for match, path in parts if match]
    titles = titles_of((path.parent.name, name) for _, name, path in places)
    for alpha, name, path in sorted(places):
        for metric, values in values_of(lines_of(path)).items():
            title = titles[path.parent.name, name]
            own = found.setdefault(metric, {}).setdefault(title, ([], []))
            own[0].append(alpha)
            own[1].append(float(np.mean(values)))
    return found


def curve_table(home: Path) -> Table:
    """A row per metric, set and alpha."""
    rows = [
        {
            Column("metric"): metric,
            Column("set"): name,
            Column("alpha", 2): alpha,
            Column("mean", 3): value,
        }
        for metric, curves in read_curve(home).items()
        for name, (alphas, values) in curves.items()
        for alpha, value in zip(alphas, values, strict=True)
    ]
    return table_of(rows, "Alpha 0 is the model before the first task, 1 the learner.")


def curve_picture(home: Path) -> Picture:
    """All metrics against alpha."""
    drawn = step_curves(read_curve(home), label="alpha")
    alt = f"Between the model before (alpha 0) and {home.name} (alpha 1)."
    return Picture(f"{PLACE}-{home.name}", drawn, alt)
