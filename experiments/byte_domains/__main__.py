"""``python -m experiments.byte_domains [PRESET] [--field value ...]``."""

from experiments.byte_domains.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
