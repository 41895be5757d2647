"""Training loops: on the device, and on the host with checkpoints for exact resume."""

from jaxcl.sharding import ShardingPlan, fsdp, make_mesh
from jaxcl.training.batches import batch_order
from jaxcl.training.checkpoint import restore, save
from jaxcl.training.device import (
    Callback,
    StreamResult,
    TaskRecord,
    TaskSnapshot,
    first_example,
    fit_task,
    in_segments,
    over_runs,
    run_stream,
    segment_size,
    steps_for,
)
from jaxcl.training.evaluate import (
    accuracies,
    accuracy_row,
    current_accuracy,
    first_row,
    metric_row,
)
from jaxcl.training.host import TrainResult, learn
from jaxcl.training.options import EarlyStopping, Options
from jaxcl.training.processes import start_processes
from jaxcl.training.step_memory import step_memory

__all__ = [
    "Callback",
    "EarlyStopping",
    "Options",
    "ShardingPlan",
    "StreamResult",
    "TaskRecord",
    "TaskSnapshot",
    "TrainResult",
    "accuracies",
    "accuracy_row",
    "batch_order",
    "current_accuracy",
    "first_example",
    "first_row",
    "fit_task",
    "fsdp",
    "in_segments",
    "learn",
    "make_mesh",
    "metric_row",
    "over_runs",
    "restore",
    "run_stream",
    "save",
    "segment_size",
    "start_processes",
    "step_memory",
    "steps_for",
]
