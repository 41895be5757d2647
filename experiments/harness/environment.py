"""Where a number comes from: versions, machine, devices, commit, command."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


def describe_environment(command: str) -> dict[str, Any]:
    """All that a reader needs to judge or repeat a run, as a dict for JSON."""
    devices = jax.devices()
    return {
        "command": command,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "backend": jax.default_backend(),
        "x64": getattr(jax.config, "jax_enable_x64", None),
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the source, with a mark if it was changed since; None outside git."""

    def git(*words: str) -> str | None:
        here = Path(__file__).parent
        try:
            answer = subprocess.run(
                ["git", "-C", str(here), *words],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        return f"{commit} with changes"
    return commit


__all__ = ["PACKAGES", "describe_environment"]
