"""One thread and one core for this process and those that it starts."""

import os

import jax

ONE_THREAD = {
    "NPROC": "1",  # of XLA's pool: with more, half of the time goes into handing over
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
}
CORES = "JAXCL_CORES"  # the cores that there were, for use_all_cores


def use_one_thread() -> None:
    """Call it before the first array is made, when all of this is read."""
    os.environ.update(ONE_THREAD)
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        os.environ[CORES] = ",".join(map(str, sorted(cores)))
        os.sched_setaffinity(0, {max(cores)})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed


def use_all_cores() -> None:
    """In a process started by such a one: the cores that it was given, all threads."""
    for name in ONE_THREAD:
        os.environ.pop(name, None)
    if CORES in os.environ:
        os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
