"""``python -m experiments.benchmarks {smoke|full} [--field value]``."""

from experiments.benchmarks import config
from experiments.benchmarks.one_thread import use_one_thread
from experiments.benchmarks.report import report
from experiments.benchmarks.run import run
from experiments.harness import main

if __name__ == "__main__":
    use_one_thread()
    raise SystemExit(main(config.PRESETS, run, config.__doc__ or "", report=report))
