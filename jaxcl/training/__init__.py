"""Who walks the stream: the device loop, the host loop, checkpoints for exact resume."""

from jaxcl.training.device import (
    Moment,
    Observer,
    TaskRecord,
    accuracies,
    accuracy_row,
    current_accuracy,
    first_example,
    fit_task,
    over_runs,
    run_stream,
    steps_for,
)
from jaxcl.training.host import Learned, Options, learn
from jaxcl.training.order import batch_order
from jaxcl.training.segments import Walked, in_segments, segment_size

__all__ = [
    "Learned",
    "Moment",
    "Observer",
    "Options",
    "TaskRecord",
    "Walked",
    "accuracies",
    "accuracy_row",
    "batch_order",
    "current_accuracy",
    "first_example",
    "fit_task",
    "in_segments",
    "learn",
    "over_runs",
    "run_stream",
    "segment_size",
    "steps_for",
]
