"""Jobs in a number of processes: on a CPU, small networks learn fastest one per core."""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import jax

from jaxcl.training.processes import terminable

GRACE = 25.0  # seconds; clusters commonly give 30 between SIGTERM and SIGKILL
SPAWN = multiprocessing.get_context("spawn")


class Job(NamedTuple):
    """What one call does; jobs of one ``program`` share what a process has compiled."""

    work: Any
    program: Hashable = None


#: ``(work, send) -> result``: do a job, and ``send`` how far it is meanwhile.
Do = Callable[[Any, Callable[[Any], None]], Any]


def run_jobs(
    prepare: Callable[..., Do],
    args: tuple,
    jobs: Sequence[Job],
    on_message: Callable[[Any], None],
    *,
    num_workers: int,
) -> Generator[tuple[Job, Any], None, None]:
    """Do all jobs in a number of processes; yield each with its result when it is done.

    A process that is free takes the next job of the program that it has compiled, else the
    first of a program that no other process is at, else the first one.

    Args:
      prepare: called once per process as ``prepare(*args)``, where it can load data and
        keep programs; what it returns does one job after the other. With more than one
        worker it must be found by its name in a module.
      args: for ``prepare``; these, jobs, results and messages travel by pickle.
      jobs: begun in this order.
      on_message: called with all that jobs send; with several workers in another thread.
      num_workers: processes, never more than jobs; with one, all is done in this one.

    Where one fails the others are killed. Where this process is to be interrupted or
    terminated, they have some time to save. They also end when this process ends, however
    it does.

    Raises:
      RuntimeError: if a process was killed; what a job raises is raised here as well.
    """
    if min(num_workers, len(jobs)) <= 1:
        do = prepare(*args) if jobs else None
        for job in jobs:
            assert do is not None
            yield job, do(job.work, on_message)
        return
    waiting, busy = list(jobs), {}
    count = min(num_workers, len(jobs))
    with _workers(count, prepare, args, on_message, busy) as (pools, processes):
        idle: list[tuple[ProcessPoolExecutor, Hashable]]
        idle = [(pool, _NOTHING) for pool in pools]
        while waiting or busy:
            while waiting and idle:
                pool, compiled = idle.pop(0)
                elsewhere = {job.program for _, job in busy.values()}
                job = waiting.pop(choose(waiting, compiled, elsewhere))
                busy[pool.submit(_work, job.work)] = pool, job
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                pool, job = busy.pop(future)
                idle.append((pool, job.program))
                yield job, _result(future, processes)


_NOTHING = object()  # the program of a process that has compiled none


def choose(waiting: Sequence[Job], compiled: Hashable, elsewhere: set) -> int:
    """The place of the job that a free process takes."""
    programs = [job.program for job in waiting]
    if compiled in programs:
        return programs.index(compiled)
    free = (at for at, program in enumerate(programs) if program not in elsewhere)
    return next(free, 0)


@contextmanager
def _workers(
    count: int,
    prepare: Callable[..., Do],
    args: tuple,
    on_message: Callable[[Any], None],
    busy: dict[Future, Any],
) -> Iterator[tuple[list[ProcessPoolExecutor], list[BaseProcess]]]:
    """Pools of one process each; on the way out none of the processes is left.

    One pool for all would not do: it cannot choose which process does a job.
    """
    messages = SPAWN.SimpleQueue()
    passing = threading.Thread(
        target=_pass_on, args=(messages, on_message), daemon=True
    )
    passing.start()
    before = set(multiprocessing.active_children())
    pools = [
        ProcessPoolExecutor(1, SPAWN, _begin, (prepare, args, messages))
        for _ in range(count)
    ]
    processes: list[BaseProcess] = []
    try:
        with (
            _ignoring_interrupts()
        ):  # the parent gets them, too, and ends the processes
            for pool in pools:
                pool.submit(int)  # starts its process
        processes += set(multiprocessing.active_children()) - before
        yield pools, processes
        messages.put(None)
        passing.join()  # all that was sent has arrived
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()  # a host loop saves its run
        wait(busy, GRACE)
        raise
    finally:
        for process in processes:
            process.kill()  # it is idle, or its work is in vain
        for pool in pools:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started here do not get Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _pass_on(messages: Any, on_message: Callable[[Any], None]) -> None:
    """Hand over messages until None; a worker that is killed may leave half a one."""
    with suppress(EOFError, OSError, pickle.UnpicklingError):
        while (message := messages.get()) is not None:
            on_message(message)


def _result(future: Future, processes: Sequence[BaseProcess]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        for process in processes:
            process.join(1)
        codes = [process.exitcode for process in processes if process.exitcode]
        msg = (
            f"a worker process ended with exit code {next(iter(codes), 'unknown')} (-9: "
            "killed, as when memory runs out); the same command goes on from here."
        )
        raise RuntimeError(msg) from None


class _Worker(NamedTuple):
    """What a process has to do its jobs."""

    prepare: Callable[..., Do]
    args: tuple
    messages: Any
    prepared: list[Do]  # empty before the first job


_HERE: list[_Worker] = []  # in a worker, its own


def _begin(prepare: Callable[..., Do], args: tuple, messages: Any) -> None:
    """The first call in a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _HERE.append(_Worker(prepare, args, messages, []))


def _work(work: Any) -> Any:
    """One job in a worker."""
    (here,) = _HERE
    try:
        with terminable():
            if not here.prepared:  # here, where what it raises goes to the parent
                here.prepared.append(here.prepare(*here.args))
            return here.prepared[0](work, here.messages.put)
    except Exception as error:
        raise _portable(error) from error


def _portable(error: Exception) -> Exception:
    """The error, or its text if it cannot be made again from a pickle."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"In a worker:\n{traceback.format_exc()}")
    return error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def worker_count(wanted: int | None) -> int:
    """The wanted number; by default one per core on a CPU and one on an accelerator."""
    if wanted is not None:
        return wanted
    if jax.default_backend() != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
