"""``python -m experiments.benchmarks {smoke|full} [--field value]``, or ``accelerator``."""

import sys

from experiments.benchmarks import config
from experiments.benchmarks.accelerator import command
from experiments.benchmarks.one_thread import use_one_thread
from experiments.benchmarks.report import report
from experiments.benchmarks.run import run
from jaxcl.runs import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["accelerator"]:  # on all cores, and what device there is
        raise SystemExit(command.main(sys.argv[2:]))
    use_one_thread()
    raise SystemExit(main(config.PRESETS, run, config.__doc__ or "", report=report))
