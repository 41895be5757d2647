"""Work shared out to processes: on a CPU, small networks learn fastest one per core."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

import jax

#: ``(job, send) -> None``: do a job, and ``send`` what there is to tell meanwhile.
Do = Callable[[Any, Callable[[Any], None]], None]


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
      receive: called in this process with everything that a job sends.
      num_workers: processes; with one, all is done in this one.

    Raises:
      Whatever a job raises; the other workers are then ended. Workers also end when this
      process ends, however it does.
    """
    if num_workers == 1:
        do = prepare(*args)
        for job in jobs:
            do(job, receive)
        return
    context = multiprocessing.get_context("spawn")
    box, stop = context.SimpleQueue(), context.Event()
    start = (prepare, args, box, stop)
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=start)
    with pool:
        try:
            left = {pool.submit(_work, job) for job in jobs}
            while left:
                done, left = wait(left, timeout=0.1, return_when=FIRST_COMPLETED)
                while not box.empty():  # what a job sent is here before its end is
                    receive(box.get())
                for job in done:
                    job.result()
        except BaseException:
            stop.set()
            raise


def worker_count(wanted: int | None) -> int:
    """The wanted number; by default one per core on a CPU and one on an accelerator."""
    if wanted is not None:
        return wanted
    if jax.default_backend() != "cpu":
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_worker: dict[str, Any] = {}  # what this process was started with


def _start(prepare: Callable[..., Do], args: tuple, box: Any, stop: Any) -> None:
    """Make this process ready, and bind its life to that of its parent."""

    def watch():
        parent = multiprocessing.parent_process()
        while parent is not None and parent.is_alive() and not stop.wait(0.5):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _worker.update(do=prepare(*args), send=box.put)


def _work(job: Any) -> None:
    _worker["do"](job, _worker["send"])


__all__ = ["share_out", "worker_count"]
