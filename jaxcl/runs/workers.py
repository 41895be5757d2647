"""Work shared out to processes: on a CPU, small networks learn fastest one per core.

Every worker has a pipe of its own. A worker that is killed in the middle of a message
closes its pipe by that, so the parent sees the end of it and never waits for the rest.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import jax

from jaxcl.errors import InputError
from jaxcl.runs.ending import Terminated
from jaxcl.runs.errors import is_bad_input, one_line

#: ``(job, send) -> None``: do a job, and ``send`` what there is to tell meanwhile.
Do = Callable[[Any, Callable[[Any], None]], None]


GRACE = 25.0  # seconds; clusters commonly give 30 between SIGTERM and SIGKILL


class Message(NamedTuple):
    """A message of a worker: something a job sent, its end, or what it raised."""

    kind: str  # sent | done | raised
    value: Any = None


def share_out(
    prepare: Callable[..., Do],
    args: tuple,
    jobs: Iterable[Any],
    receive: Callable[[Any], None],
    *,
    num_workers: int,
) -> None:
    """Do all jobs in a number of processes; return when they are done.

    Args:
      prepare: called once per process as ``prepare(*args)``, where it can load data and
        keep programs; what it returns does one job after the other. With more than one
        worker it must be found by its name in a module.
      args: for ``prepare``; these, jobs and what is sent travel by pickle.
      jobs: begun in this order.
      receive: called in this process with everything that a job sends, in its order.
      num_workers: processes, never more than jobs; with one, all is done in this one.

    Raises:
      Whatever a job raises, bad input as an ``InputError``; RuntimeError if a worker
      ended without a word. The other workers are then ended; when this process is to be
      terminated they have some time to save. Workers also end when this process ends,
      however it does.
    """
    if num_workers == 1:
        do = prepare(*args)
        for job in jobs:
            do(job, receive)
        return
    todo = list(jobs)[::-1]
    with _workers(prepare, args, min(num_workers, len(todo))) as idle:
        busy: dict[Connection, Any] = {}
        while todo or busy:
            while todo and idle:
                pipe, process = idle.popitem()
                busy[pipe] = process
                _give(pipe, process, todo.pop())
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                on_progress = _receive(pipe, busy[pipe])
                if on_progress.kind == "sent":
                    receive(on_progress.value)
                elif on_progress.kind == "raised":
                    raise on_progress.value
                else:
                    idle[pipe] = busy.pop(pipe)


def worker_count(wanted: int | None) -> int:
    """The wanted number; by default one per core on a CPU and one on an accelerator."""
    if wanted is not None:
        return wanted
    if jax.default_backend() != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _workers(prepare: Callable[..., Do], args: tuple, count: int) -> Iterator[dict]:
    """Processes by their pipes; on the way out none of them is left."""
    context = multiprocessing.get_context("spawn")
    started = {}
    try:
        with _deaf_to_interrupts():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(prepare, args, theirs))
                process.start()
                theirs.close()  # the worker holds the only other end
                started[ours] = process
        yield dict(started)
    except Terminated:
        limit = time.monotonic() + GRACE
        for process in started.values():
            process.terminate()  # a host loop saves its run
        for process in started.values():
            process.join(max(0.0, limit - time.monotonic()))
        raise
    finally:
        for pipe, process in started.items():
            process.kill()  # it is idle, or its work is in vain
            process.join()
            pipe.close()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started here leave Ctrl-C to their parent, which then ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _give(pipe: Connection, process: Any, job: Any) -> None:
    try:
        pipe.send(job)
    except OSError:
        raise _lost(process) from None


def _receive(pipe: Connection, process: Any) -> Message:
    try:
        return pipe.recv()
    except (EOFError, OSError):  # nothing more comes, or not the rest of a message
        raise _lost(process) from None


def _lost(process: Any) -> RuntimeError:
    process.join(10)
    return RuntimeError(
        f"a worker ended without a word, with code {process.exitcode} (-9: killed, as "
        "when memory runs out); the same command goes on from here."
    )


def _serve(prepare: Callable[..., Do], args: tuple, pipe: Connection) -> None:
    """Do jobs until the pipe ends, or the parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    send = lambda value: pipe.send(Message("sent", value))
    do = None
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            do = do or prepare(*args)
            do(job, send)
            on_progress = Message("done")
        except KeyboardInterrupt:  # a signal came, and what was at hand is saved
            return
        except Exception as error:
            on_progress = Message("raised", _portable(error))
        pipe.send(on_progress)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """What the parent shall raise: bad input is recognised here, where the trace is."""
    if is_bad_input(error):
        return InputError(one_line(error))
    trace = f"In a worker:\n{traceback.format_exc()}"
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    error.add_note(trace)
    return error


__all__ = ["share_out", "worker_count"]
