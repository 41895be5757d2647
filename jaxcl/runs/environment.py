"""Where a number comes from: versions, machine, devices, commit, command."""

import functools
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def describe_environment(command: str) -> dict[str, Any]:
    """All that a reader needs to judge or repeat a run, as a dict for JSON."""
    import jax  # here, because the import takes a second

    devices = jax.devices()
    return {
        "command": command,
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "backend": jax.default_backend(),
        "x64": getattr(jax.config, "jax_enable_x64", None),
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None),
    }


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8") if listing.exists() else ""
    model = re.search(r"^model name\s*:(.*)", text, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()


@functools.cache  # the code that runs is the one that this process began with
def commit() -> str | None:
    """The commit of the source, and whether it was changed since; None outside git.

    An installed copy has none, also where its environment lies in some repository.
    """
    is_source = _git("ls-files", Path(__file__).name)
    if not is_source or not (held := _git("rev-parse", "HEAD")):
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    if changes is None:
        return f"{held}, changes unknown"
    return f"{held} with changes" if changes else held


def _git(*words: str) -> str | None:
    """What git answers; None if it cannot."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    run = functools.partial(subprocess.run, capture_output=True, text=True)
    try:
        return run(command, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
