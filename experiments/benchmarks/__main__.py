"""``python -m experiments.benchmarks {smoke|full} [--field value]``."""

import os

import jax

from experiments.benchmarks import config
from experiments.benchmarks.report import report
from experiments.benchmarks.run import run
from experiments.harness import main

#: One thread in every library, here and in the scripts started from here.
ONE_THREAD = {
    "NPROC": "1",  # of XLA's pool: with more, half of the time goes into handing over
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}

if __name__ == "__main__":
    os.environ.update(ONE_THREAD)  # read when the first array is made
    if hasattr(os, "sched_setaffinity"):  # one core, also for the scripts
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    raise SystemExit(main(config.PRESETS, run, config.__doc__ or "", report=report))
