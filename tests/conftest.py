"""What every test stands on: pretend devices, a key, 64 bits for oracles, real data."""

import hashlib
import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_KEPT = 10**9  # bytes of compiled programs


def programs_folder() -> Path:
    """Where compiled programs are kept for all checkouts of a user.

    One folder for each kind of CPU: a program may use instructions that another lacks.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    kind = {line for line in lines if line.startswith(("model", "flags", "Features"))}
    digest = hashlib.sha256("\n".join(sorted(kind or lines)).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(home, "jaxcl", f"programs-{digest[:16]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        folder = ROOT / ".cache" / folder.name
    return folder


# Before JAX is imported: no network and no windows. Compiled programs are kept: a second
# run takes a third of the CPU time.
PROGRAMS = programs_folder()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Nearly all programs run once, for microseconds: without optimizations and the fusion
# emitters XLA compiles them in a sixth of the time. Workers of pytest fill the cores: a
# program is compiled whole, not in parts side by side.
WHOLE = "--xla_cpu_parallel_codegen_split_count=1"
QUICK = [
    WHOLE,
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if metadata.version("jaxlib").startswith("0.10."):  # later ones end at a flag they lack
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
flags = QUICK if os.environ["JAX_PLATFORMS"] == "cpu" else [WHOLE]
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# XLA's pool has a thread per core: too few for eight devices that wait in it.
os.environ.setdefault("NPROC", "18")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


def pytest_sessionfinish(session):
    """Remove the oldest programs where they are too many, of any CPU and version of JAX.

    JAX has a limit of its own, for which it looks at all files whenever it writes one.
    """
    if hasattr(session.config, "workerinput"):
        return
    found = []
    for path in PROGRAMS.parent.glob("programs-*/*"):
        with suppress(FileNotFoundError):  # another session removes them, too
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > MAX_KEPT:
            path.unlink(missing_ok=True)


def pytest_runtest_setup(item):
    """Skip what this machine has no data or no device for, and say how to run it."""
    if item.get_closest_marker("realdata") and not os.environ.get("JAXCL_REALDATA"):
        pytest.skip("set JAXCL_REALDATA to the folder that holds the data sets")
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU; run with JAX_PLATFORMS=cuda,cpu")
    if item.get_closest_marker("devices") and jax.device_count() < 8:
        pytest.skip(
            "needs eight devices; run with JAX_PLATFORMS=cpu, which pretends them"
        )


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
def compilations():
    """Names of the functions that were compiled so far in the test."""
    names = []

    def count(event, _, **metadata):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(metadata.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(count)
    yield names
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.fixture
def realdata():
    """The folder of real data sets; tests that use it carry the marker `realdata`."""
    folder = Path(os.environ["JAXCL_REALDATA"])
    if not folder.is_dir():
        pytest.fail(f"JAXCL_REALDATA names no folder: {folder}")
    return folder
