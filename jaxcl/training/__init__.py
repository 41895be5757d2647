"""Who walks the stream: the device loop, the host loop, checkpoints for exact resume."""

from jaxcl.training.checkpoint import restore, save
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
from jaxcl.training.parallel import Layout, make_mesh, split_large
from jaxcl.training.processes import start_processes
from jaxcl.training.segments import Walked, in_segments, segment_size

__all__ = [
    "Layout",
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
    "make_mesh",
    "over_runs",
    "restore",
    "run_stream",
    "save",
    "segment_size",
    "split_large",
    "start_processes",
    "steps_for",
]
