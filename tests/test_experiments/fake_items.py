"""Items that do what an item must not, for the test beside it: ``FOLDER SECONDS``."""

import ctypes
import subprocess
import sys
import time
from pathlib import Path

import jax

from experiments.benchmarks.accelerator.schedule import Item, run_items


def overruns(small, folder):
    """Tells something, starts a process that holds its streams, and does not end."""
    del small, folder
    yield {"what": "before the time is over", "number": 1}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"what": "child", "pid": child.pid}
    time.sleep(600)


def fails(small, folder):
    del small, folder
    yield {"what": "before the failure", "number": float("nan")}
    msg = "first line\nno such kernel"
    raise RuntimeError(msg)


def fills(small, folder):
    del small, folder
    msg = "RESOURCE_EXHAUSTED: Out of memory allocating 27 GiB\n more words"
    raise RuntimeError(msg)


def dies(small, folder):
    del small, folder
    print("its last words", file=sys.stderr, flush=True)
    ctypes.string_at(0)  # a segmentation fault, of which Python hears nothing


def well(small, folder):
    del small, folder
    yield {"what": "devices by its flags", "devices": jax.device_count()}


ITEMS = (
    Item("fails", fails, 1),
    Item("fills", fills, 1),
    Item("dies", dies, 1),
    Item("overruns", overruns, 1),
    Item("well", well, 1, "--xla_force_host_platform_device_count=3"),
)

if __name__ == "__main__":
    run_items(ITEMS, float(sys.argv[2]), Path(sys.argv[1]))
