"""``python -m experiments.benchmarks.finetune [PRESET] [--field value ...]``."""

from experiments.benchmarks.finetune.config import EXPERIMENT
from experiments.benchmarks.one_thread import use_one_thread
from jaxcl.runs.command import main

if __name__ == "__main__":
    use_one_thread()
    raise SystemExit(main(EXPERIMENT))
