"""What an item gets: a way to tell facts, and the sizes to choose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import rounds
from jaxcl.runs.environment import commit
from jaxcl.training.files import plain


class Box(NamedTuple):
    """The surroundings of one item, in a process of its own."""

    tell: Callable[..., None]  # (what, **facts): one line, at once
    small: bool  # a CPU: sizes that give numbers within seconds
    folder: Path  # of this item's files, empty at the start


def make_box(item: str, folder: Path, send: Callable[[dict], None]) -> Box:
    """A box whose lines are sent to who prints them."""
    device = jax.devices()[0].device_kind
    base = {"device": device, "jax": jax.__version__, "commit": commit()}

    def tell(what: str, **facts) -> None:
        send(plain({"item": item, "what": what, "status": "done", **facts, **base}))

    return Box(tell, jax.default_backend() == "cpu", folder)


class Compiled(NamedTuple):
    """A program, and what it took to get it."""

    call: Any
    seconds: float  # of tracing and compiling

    @property
    def costs(self) -> dict[str, Any]:
        """For a line, with the most bytes that the process has held on the device.

        Arguments, results and scratch; what a result takes from an argument, once.
        """
        sizes, num_bytes = self.call.memory_analysis(), None
        if sizes is not None:
            num_bytes = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            num_bytes += sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
        return {
            "compile_seconds": self.seconds,
            "program_bytes": num_bytes,
            "peak_bytes": peak_bytes(),
        }


#: On a CPU, where only the way is rehearsed: code of half the compile time, and slower.
REHEARSAL = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def compiled(function: Callable, *args, donate: int | tuple[int, ...] = ()) -> Compiled:
    """Compile for arguments of these shapes; a jitted function keeps its own donations."""
    options = REHEARSAL if jax.default_backend() == "cpu" else None
    made, cost = rounds.compiled(function, *args, donate=donate, options=options)
    return Compiled(made, cost.wall)


def peak_bytes() -> int | None:
    """The most that this process has held on the device; None where it does not tell."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def seconds_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, ready on the device, and how long that took."""
    done, cost = rounds.timed(work)
    return done, cost.wall
