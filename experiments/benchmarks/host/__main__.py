"""``python -m experiments.benchmarks.host {smoke|full|accelerator} [--field value]``."""

import os

from experiments.benchmarks.host import config
from experiments.benchmarks.host.report import report
from experiments.benchmarks.host.run import run
from experiments.benchmarks.one_thread import use_one_thread
from jaxcl.runs import main

if __name__ == "__main__":
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":  # no accelerator is asked for
        use_one_thread()
    words = config.__doc__ or ""
    raise SystemExit(
        main(config.PRESETS, run, words, report=report, name="benchmarks.host")
    )
