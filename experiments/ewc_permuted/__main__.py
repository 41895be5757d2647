"""``python -m experiments.ewc_permuted [PRESET] [--field value ...]``."""

from experiments.ewc_permuted.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
