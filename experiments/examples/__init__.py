"""Short scripts to copy from; each runs by ``python -m experiments.examples.NAME``."""
