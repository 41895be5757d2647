"""``python -m experiments.benchmarks.host [PRESET] [--field value ...]``."""

import os

from experiments.benchmarks.host.config import EXPERIMENT
from experiments.benchmarks.one_thread import use_one_thread
from jaxcl.runs.command import main

if __name__ == "__main__":
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":  # no accelerator is asked for
        use_one_thread()
    raise SystemExit(main(EXPERIMENT))
