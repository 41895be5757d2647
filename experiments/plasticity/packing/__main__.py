"""``python -m experiments.plasticity.packing [PRESET] [--field value ...]``."""

from experiments.plasticity.packing.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
