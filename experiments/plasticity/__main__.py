"""``python -m experiments.plasticity {smoke|quick|paper|...} [--field value]``."""

import os

import jax

from experiments.harness import main
from experiments.plasticity import config
from experiments.plasticity.report import report
from experiments.plasticity.run import run

if __name__ == "__main__":
    # Small networks do not fill a core: spread the runs over all of them. XLA's pool
    # of threads, one per core by default, can starve when every device waits in it.
    os.environ.setdefault("NPROC", str(2 * os.cpu_count() + 2))
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    raise SystemExit(main(config.PRESETS, run, config.__doc__ or "", report=report))
