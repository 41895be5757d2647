"""Figures as files and as text.

All figures are drawn without ``pyplot``, hence without global state: they work in threads,
on machines without a display, and in notebooks.
"""

import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from jaxcl.report.style import styled


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write ``path.svg`` and ``path.png`` atomically; return both paths."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, data in (("svg", to_svg(figure).encode()), ("png", to_png(figure))):
        target = path.with_name(f"{path.name}.{kind}")
        partial = target.with_name(f"{target.name}.tmp")
        partial.write_bytes(data)
        os.replace(partial, target)
        written.append(target)
    return written


def to_svg(figure: Figure) -> str:
    """The figure as SVG text; deterministic."""
    with styled(), io.StringIO() as stream:
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        return stream.getvalue()


def to_png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG on white."""
    with styled(), io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=dpi)
        return stream.getvalue()
