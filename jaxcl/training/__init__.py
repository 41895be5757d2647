"""Who walks the stream: the device loop, and checkpoints for exact resume."""

from jaxcl.training.device import (
    Moment,
    Observer,
    TaskRecord,
    accuracies,
    accuracy_row,
    batch_order,
    current_accuracy,
    first_example,
    fit_task,
    over_runs,
    run_stream,
    steps_for,
)

__all__ = [
    "Moment",
    "Observer",
    "TaskRecord",
    "accuracies",
    "accuracy_row",
    "batch_order",
    "current_accuracy",
    "first_example",
    "fit_task",
    "over_runs",
    "run_stream",
    "steps_for",
]
