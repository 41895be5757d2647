"""Items one after another, each in a process that is killed when its time is over.

An item's time is its share of what is left for it and those behind it, so what one does
not use goes to the later ones. Its facts are passed on and written down when they come;
how it ended is a line of its own. Items are forked from a process that has imported all
they need, and has started no device itself: nobody else may hold it, and importing again
for each item would take a good part of the time.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import rounds
from jaxcl.runs.environment import commit
from jaxcl.training.files import plain

#: Autotuning compiles and times many kernels for every product of a program. Zero takes
#: the compiler's first choice, which may run slower.
NO_AUTOTUNING = "--xla_gpu_autotune_level=0"
FORK = multiprocessing.get_context("fork")
STDERR = "stderr.txt"  # of an item, in its folder


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


class Item(NamedTuple):
    """One question."""

    name: str
    function: Callable[[Box], None]
    share: float  # of the time, next to those of the items behind it
    flags: str = NO_AUTOTUNING  # for XLA; what XLA_FLAGS says comes later and wins


def run_items(items: Sequence[Item], seconds: float, folder: Path) -> None:
    """Do all items in their order within so many seconds.

    Every line is printed and kept in ``folder/results.jsonl`` at once: every fact, and for
    each item how it ended: ``done``, ``time``, ``out of memory`` or ``failed``.
    """
    end = time.monotonic() + seconds
    commit()  # found once, and before the files can change: items inherit the answer
    with open(folder / "results.jsonl", "x", encoding="utf-8") as results:

        def take(line: dict[str, Any]) -> None:
            for file in (sys.stdout, results):
                print(json.dumps(line), file=file, flush=True)

        for place, item in enumerate(items):
            shares = sum(other.share for other in items[place:])
            limit = max(0.0, (end - time.monotonic()) * item.share / shares)
            ended = run_item(item, limit, folder / item.name, take)
            take({"item": item.name, "what": "end", **ended})


def run_item(
    item: Item, limit: float, place: Path, take: Callable[[dict], None]
) -> dict[str, Any]:
    """One item in a process of its own, killed with its children after so many seconds."""
    place.mkdir()
    started = time.monotonic()
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=work, args=(item, place, there))
    with warnings.catch_warnings():  # JAX warns of its threads, none of which are there
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        child.start()
    there.close()
    assert child.pid is not None
    ended: dict[str, Any] = {"status": "time"}
    try:
        while here.poll(max(0.0, started + limit - time.monotonic())):
            line = here.recv()
            if line["what"] == "end":
                ended = line
                break
            take(line)
    except EOFError:  # it is gone without a word, such as by a signal
        child.join()
        ended = lost(child.exitcode, place / STDERR)
    finally:
        with contextlib.suppress(ProcessLookupError):  # no group yet, or no longer
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        child.join(5)  # a driver that hangs may hold it for longer than we can wait
        here.close()
    seconds = round(time.monotonic() - started, 2)
    return ended | {"seconds": seconds, "limit": round(limit, 2)}


def work(item: Item, place: Path, there: Connection) -> None:
    """In the item's process: flags, files, the item itself, and how it ended."""
    os.setpgid(0, 0)
    with open(place / STDERR, "wb", buffering=0) as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{item.flags} {given}".strip()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # children need room, too
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    ended = {"status": "done"}
    try:
        item.function(make_box(item.name, place, there.send))
    except Exception as error:
        traceback.print_exc()
        ended = failure(error)
    sys.stderr.flush()
    there.send({"what": "end", **ended})


def failure(error: Exception) -> dict[str, Any]:
    """How an item ended that raised something."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in "\n".join(said):
        return {"status": "out of memory", "error": said[0][:500]}
    return {"status": "failed", "error": said[-1][:500]}


def lost(code: int | None, log: Path) -> dict[str, Any]:
    """How an item ended that could say nothing any more."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    last = text.strip().splitlines()[-1:]
    error = ": ".join([f"ended with exit code {code}", *map(str.strip, last)])
    return {"status": "failed", "error": error[:500]}


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
