"""``python -m experiments.finetune [PRESET] [--field value ...]``."""

from experiments.finetune.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
