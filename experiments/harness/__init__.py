"""What every experiment shares: a command with presets, a folder per run, a bar.

An experiment is a frozen dataclass of settings, a function that runs it, and one that
reports it; ``__main__.py`` of its folder is::

    raise SystemExit(main(PRESETS, run, __doc__, report=report, free=FREE))
"""

from experiments.harness.command import main
from experiments.harness.fields import check_fields, check_names, nearest
from experiments.harness.readme import fill
from experiments.harness.run_folder import (
    CHECKPOINTS,
    RunFolder,
    append,
    finished,
    read_json,
    read_records,
    recognise,
    write_json,
    write_text,
)
from experiments.harness.workers import share_out, worker_count
from jaxcl.training.progress import progress

__all__ = [
    "CHECKPOINTS",
    "RunFolder",
    "append",
    "check_fields",
    "check_names",
    "fill",
    "finished",
    "main",
    "nearest",
    "progress",
    "read_json",
    "read_records",
    "recognise",
    "share_out",
    "worker_count",
    "write_json",
    "write_text",
]
