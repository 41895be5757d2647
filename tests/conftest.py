"""What every test stands on: pretend devices, a key, 64 bits for oracles, real data."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Before JAX is imported: no network and no windows. Compiled programs are kept: a second
# run takes a third of the CPU time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Nearly all programs run once, for microseconds: without optimizations and the fusion
# emitters XLA compiles them in a sixth of the time. Workers of pytest fill the cores: a
# program is compiled whole, not in parts side by side.
WHOLE = "--xla_cpu_parallel_codegen_split_count=1"
QUICK = (
    WHOLE,
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
)
flags = QUICK if os.environ["JAX_PLATFORMS"] == "cpu" else (WHOLE,)
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# XLA's pool has a thread per core: too few for eight devices that wait in it.
os.environ.setdefault("NPROC", "18")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


def pytest_runtest_setup(item):
    """Skip what this machine has no data or no device for, and say how to run it."""
    if item.get_closest_marker("realdata") and not os.environ.get("JAXCL_REALDATA"):
        pytest.skip("set JAXCL_REALDATA to the folder that holds the data sets")
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU; run with JAX_PLATFORMS=cuda,cpu")


@pytest.fixture
def key():
    """A random key, the same in every run."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """64-bit numbers during one test: for oracles that float32 cannot resolve."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def realdata():
    """The folder of real data sets; tests that use it carry the marker `realdata`."""
    folder = Path(os.environ["JAXCL_REALDATA"])
    if not folder.is_dir():
        pytest.fail(f"JAXCL_REALDATA names no folder: {folder}")
    return folder
