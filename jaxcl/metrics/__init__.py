"""Metrics on data, and metrics of a stream of tasks."""

from jaxcl.metrics.evaluation import (
    RowMetric,
    TaskMetric,
    classification,
    evaluate,
    macro_f1,
    regression,
    tokens,
)
from jaxcl.metrics.matrix import (
    Floats,
    Matrix,
    Value,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forgetting_from_initial,
    forward_transfer,
    intransigence,
    learning_accuracy,
    learning_curve_area,
    minimum_accuracy,
    worst_case_accuracy,
)
from jaxcl.metrics.summary import Metric, summary

__all__ = [
    "Floats",
    "Matrix",
    "Metric",
    "RowMetric",
    "TaskMetric",
    "Value",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "classification",
    "evaluate",
    "forgetting",
    "forgetting_from_initial",
    "forward_transfer",
    "intransigence",
    "learning_accuracy",
    "learning_curve_area",
    "macro_f1",
    "minimum_accuracy",
    "regression",
    "summary",
    "tokens",
    "worst_case_accuracy",
]
