"""What an item gets: a way to tell facts, the time it has, and the sizes to choose."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcl.runs.environment import commit
from jaxcl.training.files import plain


class Box(NamedTuple):
    """The surroundings of one item, in a process of its own."""

    tell: Callable[..., None]  # (what, **facts): one line, at once
    left: Callable[[], float]  # seconds until this process is killed
    small: bool  # a CPU: sizes that give numbers within seconds
    folder: Path  # of this item's files, empty at the start


def make_box(
    item: str, seconds: float, folder: Path, send: Callable[[dict], None]
) -> Box:
    """A box whose lines are sent to who prints them."""
    end = time.monotonic() + seconds
    device = jax.devices()[0]
    base = {"device": device.device_kind, "jax": jax.__version__, "commit": commit()}

    def tell(what: str, **facts) -> None:
        send(plain({"item": item, "what": what, "status": "done", **facts, **base}))

    small = jax.default_backend() == "cpu"
    return Box(tell, lambda: end - time.monotonic(), small, folder)


class Compiled(NamedTuple):
    """A program, and what it took to get it."""

    call: Callable
    seconds: float  # of tracing and compiling
    num_bytes: int | None  # arguments, results and scratch; None if it is not known

    @property
    def costs(self) -> dict[str, Any]:
        """For a line, with the most bytes that the process has held on the device."""
        return {
            "compile_seconds": self.seconds,
            "program_bytes": self.num_bytes,
            "peak_bytes": peak_bytes(),
        }


#: On a CPU, where only the way is rehearsed: code of half the compile time, and slower.
REHEARSAL = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def compiled(function: Callable, *args, donate: int | tuple[int, ...] = ()) -> Compiled:
    """Compile for arguments of these shapes; a jitted function keeps its own donations."""
    started = time.perf_counter()
    if not hasattr(function, "lower"):
        function = jax.jit(function, donate_argnums=donate)
    options = REHEARSAL if jax.default_backend() == "cpu" else None
    program = function.lower(*args).compile(compiler_options=options)
    seconds = time.perf_counter() - started
    return Compiled(program, seconds, bytes_of(program.memory_analysis()))


def bytes_of(sizes: Any) -> int | None:
    """All bytes of a program's analysis; what a result takes from an argument, once."""
    if sizes is None:
        return None
    parts = ("argument", "output", "temp")
    total = sum(getattr(sizes, f"{part}_size_in_bytes") for part in parts)
    return total - sizes.alias_size_in_bytes


def peak_bytes() -> int | None:
    """The most that this process has held on the device; None where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def seconds_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """Do it, wait for the device, and say how long that took."""
    started = time.perf_counter()
    done = jax.block_until_ready(work())
    return done, time.perf_counter() - started


def mean(values: Iterable[float]) -> float:
    """The plain mean."""
    values = list(values)
    return sum(values) / len(values)
