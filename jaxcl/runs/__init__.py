"""What every experiment shares: a command with presets, a folder per run, a bar.

An experiment is a frozen dataclass of settings, a function that runs it, and one that
reports it; ``__main__.py`` of its folder is::

    raise SystemExit(main(PRESETS, run, __doc__, report=report, free=FREE))
"""

from jaxcl.runs.command import expect_no_words, main
from jaxcl.runs.fields import check_fields, check_names, nearest
from jaxcl.runs.host_runs import (
    RunSpec,
    Trial,
    learn_trial,
    run_trials,
    sharding_of,
)
from jaxcl.runs.readme import fill, made_on
from jaxcl.runs.run_folder import (
    CHECKPOINTS,
    RunFolder,
    append,
    check_data_hash,
    finished,
    read_json,
    read_records,
    write_json,
    write_text,
)
from jaxcl.runs.workers import share_out, worker_count
from jaxcl.training.logging import progress

__all__ = [
    "CHECKPOINTS",
    "RunFolder",
    "RunSpec",
    "Trial",
    "append",
    "check_data_hash",
    "check_fields",
    "check_names",
    "expect_no_words",
    "fill",
    "finished",
    "learn_trial",
    "made_on",
    "main",
    "nearest",
    "progress",
    "read_json",
    "read_records",
    "run_trials",
    "sharding_of",
    "share_out",
    "worker_count",
    "write_json",
    "write_text",
]
