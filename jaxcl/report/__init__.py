"""Reports: statistics, tables, figures, and one page with all of them.

Records are plain dicts, one per run, as :mod:`jaxcl.report.records` describes them.
"""

from jaxcl.report.curves import learning_curves, measure_curves
from jaxcl.report.figures import save, to_png, to_svg
from jaxcl.report.heatmaps import accuracy_matrix, heatmap, result_heatmaps
from jaxcl.report.page import Picture, Section, render
from jaxcl.report.records import frame
from jaxcl.report.scatter import scatter
from jaxcl.report.sections import curve_pictures, measure_pictures
from jaxcl.report.statistics import (
    equivalence,
    holm,
    mean_interval,
    paired,
)
from jaxcl.report.summaries import grid, summarize
from jaxcl.report.tables import (
    Column,
    Table,
    interval_table,
    measure_table,
    summary_table,
    to_csv,
    to_markdown,
)

__all__ = [
    "Column",
    "Picture",
    "Section",
    "Table",
    "accuracy_matrix",
    "curve_pictures",
    "equivalence",
    "frame",
    "grid",
    "heatmap",
    "holm",
    "interval_table",
    "learning_curves",
    "mean_interval",
    "measure_curves",
    "measure_pictures",
    "measure_table",
    "paired",
    "render",
    "result_heatmaps",
    "save",
    "scatter",
    "summarize",
    "summary_table",
    "to_csv",
    "to_markdown",
    "to_png",
    "to_svg",
]
