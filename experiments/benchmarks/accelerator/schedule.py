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
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import rounds
from jaxcl.files import plain
from jaxcl.runs.environment import commit

#: Autotuning compiles and times many kernels for every product of a program. Zero takes
#: the compiler's first choice, which may run slower.
NO_AUTOTUNING = "--xla_gpu_autotune_level=0"
#: On a CPU, where only the way is rehearsed: half the time of compiling, slower programs.
HASTE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
FORK = multiprocessing.get_context("fork")
STDERR = "stderr.txt"  # of an item, in its folder

#: A line of the results: ``what`` was measured, and numbers.
Fact = dict[str, Any]


class Item(NamedTuple):
    """One question.

    Attributes:
      name: for the command line, and of its folder.
      find: ``find(small, folder)`` yields its facts; sizes are ``small`` on a CPU, and the
        folder is empty at the start.
      share: of the time, next to those of the items behind it.
      flags: for XLA; what XLA_FLAGS says comes later and wins.
    """

    name: str
    find: Callable[[bool, Path], Iterable[Fact]]
    share: float
    flags: str = NO_AUTOTUNING


def run_items(items: Sequence[Item], seconds: float, folder: Path) -> None:
    """Do all items in their order within so many seconds.

    Every line is printed and kept in ``folder/results.jsonl`` at once: every fact, and for
    each item how it ended: ``done``, ``time``, ``out of memory`` or ``failed``.
    """
    end = time.monotonic() + seconds
    commit()  # found once, and before the files can change: items inherit the answer
    with open(folder / "results.jsonl", "x", encoding="utf-8") as results:

        def take(line: Fact) -> None:
            for file in (sys.stdout, results):
                print(json.dumps(line), file=file, flush=True)

        for place, item in enumerate(items):
            shares = sum(other.share for other in items[place:])
            limit = max(0.0, (end - time.monotonic()) * item.share / shares)
            ended = run_item(item, limit, folder / item.name, take)
            take({"item": item.name, "what": "end", **ended})


def run_item(
    item: Item, limit: float, place: Path, take: Callable[[Fact], None]
) -> Fact:
    """One item in a process of its own, killed with its children after so many seconds."""
    place.mkdir()
    (place / STDERR).touch()
    started = time.monotonic()
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=work, args=(item, place, there))
    with warnings.catch_warnings():  # JAX warns of its threads, none of which are there
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        child.start()
    there.close()
    assert child.pid is not None
    ended: Fact = {"status": "time"}
    try:
        while here.poll(max(0.0, started + limit - time.monotonic())):
            line = here.recv()
            if line["what"] == "end":
                ended = line
                break
            take(line)
    except EOFError:  # it ended without a line, such as by a signal
        child.join()
        said = (place / STDERR).read_text(encoding="utf-8", errors="replace").strip()
        words = [f"ended with exit code {child.exitcode}", *said.splitlines()[-1:]]
        ended = {"status": "failed", "error": ": ".join(words)[:500]}
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
    haste = HASTE if os.environ.get("JAX_PLATFORMS") == "cpu" else ""
    flags = f"{haste} {item.flags} {os.environ.get('XLA_FLAGS', '')}"
    os.environ["XLA_FLAGS"] = flags.strip()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # children need room, too
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    ended = {"status": "done"}
    try:
        (device, *_), small = jax.devices(), jax.default_backend() == "cpu"
        base = {"device": device.device_kind, "jax": jax.__version__}
        base["commit"] = commit()
        for fact in item.find(small, place):
            head = {"item": item.name, "what": fact["what"], "status": "done"}
            # The most that this process has held; not every device counts it.
            peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
            there.send(plain({**head, **fact, "peak_bytes": peak, **base}))
    except Exception as error:
        traceback.print_exc()
        ended = failure(error)
    sys.stderr.flush()
    there.send({"what": "end", **ended})


def failure(error: Exception) -> Fact:
    """How an item ended that raised something."""
    said = f"{type(error).__name__}: {error}".strip().splitlines()
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in "\n".join(said):
        return {"status": "out of memory", "error": said[0][:500]}
    return {"status": "failed", "error": said[-1][:500]}


def compiled(function: Callable, *args: Any, donate: int | tuple[int, ...] = ()) -> Any:
    """The program for arguments of these shapes, and for its line what it cost.

    Its bytes are arguments, results and scratch; what a result takes from an argument
    counts once.
    """
    program, cost = rounds.compiled(function, *args, donate=donate)
    sizes = program.memory_analysis()
    num_bytes = sizes and (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )
    return program, {"compile_seconds": cost.wall, "program_bytes": num_bytes}
