"""``python -m experiments.benchmarks [PRESET] [--field value ...]``, or ``accelerator``."""

import sys

from experiments.benchmarks.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["accelerator"]:  # on all cores, and what device there is
        from experiments.benchmarks.accelerator import command

        raise SystemExit(command.main(sys.argv[2:]))
    from experiments.benchmarks.one_thread import use_one_thread

    use_one_thread()
    raise SystemExit(main(EXPERIMENT))
