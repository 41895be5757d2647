"""``python -m experiments.plasticity [PRESET] [--field value ...]``."""

from experiments.plasticity.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
