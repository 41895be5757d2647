"""Reports: statistics, tables, figures, and one page with all of them."""

from jaxcl.report.figures import (
    accuracy_matrix,
    heatmap,
    learning_curves,
    measure_curves,
    save,
    scatter,
)
from jaxcl.report.page import Picture, Section, render
from jaxcl.report.statistics import equivalence, holm, mean_interval, paired
from jaxcl.report.summaries import grid, summarize
from jaxcl.report.tables import (
    Column,
    Table,
    grid_table,
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
    "equivalence",
    "grid",
    "grid_table",
    "heatmap",
    "holm",
    "learning_curves",
    "mean_interval",
    "measure_curves",
    "measure_table",
    "paired",
    "render",
    "save",
    "scatter",
    "summarize",
    "summary_table",
    "to_csv",
    "to_markdown",
]
