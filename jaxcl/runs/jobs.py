"""Jobs in a number of processes: on a CPU, small networks learn fastest one per core."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import jax

from jaxcl.signals import handling, terminable

GRACE = 25.0  # seconds; clusters commonly give 30 between SIGTERM and SIGKILL
SPAWN = multiprocessing.get_context("spawn")


class Job(NamedTuple):
    """What one call does; jobs of one ``program`` share what a process has compiled."""

    work: Any
    program: Hashable = None


#: ``(work, send) -> result``: do a job, and ``send`` how far it is meanwhile.
Do = Callable[[Any, Callable[[Any], None]], Any]


def run_jobs(
    prepare: Callable[[], Do],
    jobs: Sequence[Job],
    on_result: Callable[[Job, Any], None],
    on_message: Callable[[Any], None] = lambda message: None,
    *,
    num_workers: int,
) -> None:
    """Do all jobs in a number of processes; return when all are done.

    A process that is free takes the next job of the program that it has compiled, else the
    first of a program that no other process is at, else the first one.

    Args:
      prepare: called once per process, where it can load data and keep programs; what it
        returns does one job after the other. It, jobs, results and messages travel by
        pickle: it is a function of a module, or a ``functools.partial`` of one.
      jobs: begun in this order.
      on_result: called with each job and its result when it is done.
      on_message: called with all that jobs send; with several workers in another thread.
      num_workers: processes, never more than jobs; with one, all is done in this one.

    What a job or a callback raises is raised here, and RuntimeError if a process was
    killed; the others are then killed, too. Where this process is interrupted or
    terminated, they have some time to save. They end when it ends, however it does.
    """
    count = min(max(num_workers, 1), len(jobs))
    if count == 1:
        do = prepare()
        for job in jobs:
            on_result(job, do(job.work, on_message))
    if count <= 1:
        return
    waiting, busy = list(jobs), {}
    ended: list[tuple[Job, Future]] = []
    with _workers(count, prepare, on_message) as pool:
        idle: list[tuple[ProcessPoolExecutor, Hashable]]
        idle = [(executor, _NOTHING) for executor in pool.executors]
        try:
            while waiting or busy:
                failed = any(future.exception() for _, future in ended)
                while waiting and idle and not failed:
                    executor, compiled = idle.pop(0)
                    elsewhere = {job.program for _, job in busy.values()}
                    job = waiting.pop(choose(waiting, compiled, elsewhere))
                    busy[executor.submit(_work, job.work)] = executor, job
                _deliver(ended, on_result, pool)  # while the others are at work
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    executor, job = busy.pop(future)
                    idle.append((executor, job.program))
                    ended.append((job, future))
            _deliver(ended, on_result, pool)
        except KeyboardInterrupt:
            for process in pool.processes:
                process.terminate()  # a host loop saves its run
            ended += [(busy[future][1], future) for future in wait(busy, GRACE).done]
            good = [one for one in ended if not one[1].exception()]
            _deliver(good, on_result, pool)
            raise


_NOTHING = object()  # the program of a process that has compiled none


def choose(waiting: Sequence[Job], compiled: Hashable, elsewhere: set) -> int:
    """The place of the job that a free process takes."""
    programs = [job.program for job in waiting]
    if compiled in programs:
        return programs.index(compiled)
    free = (at for at, program in enumerate(programs) if program not in elsewhere)
    return next(free, 0)


class _Pool(NamedTuple):
    """Executors of one process each: one for all could not choose who does a job."""

    executors: list[ProcessPoolExecutor]
    processes: list[BaseProcess]
    errors: list[Exception]  # what on_message has raised


def _deliver(
    ended: list[tuple[Job, Future]], on_result: Callable[[Job, Any], None], pool: _Pool
) -> None:
    """Hand over the results of jobs that have ended, then raise what one has raised."""
    ended.sort(key=lambda one: one[1].exception() is not None)
    while ended:
        job, future = ended.pop(0)
        on_result(job, _result(future, pool.processes))
    if pool.errors:
        raise pool.errors[0]


def _result(future: Future, processes: Sequence[BaseProcess]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool:
        limit = time.monotonic() + 15  # another thread collects the codes
        while not (codes := [p.exitcode for p in processes if p.exitcode]):
            if time.monotonic() > limit:
                break
            time.sleep(0.01)
        msg = (
            f"a worker process ended with exit code {next(iter(codes), 'unknown')} (-9: "
            "killed, as when memory runs out); the same command goes on from here."
        )
        raise RuntimeError(msg) from None


_STARTING = threading.Lock()  # children that appear meanwhile are those of one pool


@contextmanager
def _workers(
    count: int, prepare: Callable[[], Do], on_message: Callable[[Any], None]
) -> Iterator[_Pool]:
    """A pool of processes; on the way out none of them is left."""
    messages, over = SPAWN.SimpleQueue(), threading.Event()
    make = lambda: ProcessPoolExecutor(1, SPAWN, _begin, (prepare, messages))
    pool = _Pool([make() for _ in range(count)], [], [])

    def pass_on():
        while not over.is_set():
            try:
                message = messages.get()
                if message is None:
                    return
                if not over.is_set():
                    on_message(message)
            except (EOFError, OSError):  # a worker that was killed left half a message
                return
            except Exception as error:  # raised where the results are awaited
                pool.errors.append(error)

    passing = threading.Thread(target=pass_on, daemon=True)
    passing.start()
    try:
        # Only the parent gets Ctrl-C, and ends these.
        with _STARTING, handling(signal.SIG_IGN, signal.SIGINT):
            before = set(multiprocessing.active_children())
            for executor in pool.executors:
                executor.submit(int)  # starts its process
            pool.processes.extend(set(multiprocessing.active_children()) - before)
        yield pool
        messages.put(None)
        passing.join()  # all that was sent has arrived
        if pool.errors:
            raise pool.errors[0]
    finally:
        over.set()
        for process in pool.processes:
            process.kill()  # it is idle, or its work is in vain
        for executor in pool.executors:
            executor.shutdown(cancel_futures=True)


_HERE: dict[str, Any] = {}  # in a worker: what it begins with


def _begin(prepare: Callable[[], Do], messages: Any) -> None:
    """The first call in a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _HERE.update(prepare=prepare, send=messages.put)


@cache
def _prepared() -> Do:
    return _HERE["prepare"]()


def _work(work: Any) -> Any:
    """One job in a worker; what preparing raises goes to the parent, too."""
    try:
        with terminable():
            return _prepared()(work, _HERE["send"])
    except SystemExit as error:
        msg = f"a job ended its process by exit({error.code})."
        raise RuntimeError(msg) from error
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
    cores = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(cores(0))
