"""``python -m experiments.class_stream [PRESET] [--field value ...]``."""

from experiments.class_stream.config import EXPERIMENT
from jaxcl.runs.command import main

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
