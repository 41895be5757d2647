"""Commands run as processes: here, a few at a time, or on a cluster by submitit."""

import importlib
import itertools
import signal
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxcl.errors import InputError
from jaxcl.signals import handling


class Job(NamedTuple):
    """A command, and where its words go."""

    name: str
    command: list[str]
    log: Path


#: Jobs that have ended, each with its exit code.
Ended = Generator[tuple[Job, int], None, None]


def run_here(jobs: Sequence[Job], *, parallel: int) -> Ended:
    """Run all jobs, at most ``parallel`` at a time; yield each with its exit code.

    Whoever stops iterating ends those that run, by SIGTERM, and waits for them.
    """
    waiting, running = iter(jobs), {}
    try:
        while True:
            for job in itertools.islice(waiting, parallel - len(running)):
                running[_begin(job)] = job
            if not running:
                return
            for process in [one for one in running if one.poll() is not None]:
                yield running.pop(process), process.returncode
            time.sleep(0.05)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def run_on_cluster(
    jobs: Sequence[Job],
    *,
    cluster: str,
    parallel: int | None,
    parameters: Mapping[str, str | int],
    folder: Path,
) -> Ended:
    """Submit all jobs as one array; yield each with its exit code when it has ended.

    ``parallel`` of them run at a time, on Slurm; ``folder`` has submitit's own files, which
    both sides must see. Whoever stops iterating cancels what is left. InputError without
    submitit or the cluster, or for an unknown parameter.
    """
    try:
        submitit = importlib.import_module("submitit")
    except ImportError:
        msg = "batch: a cluster needs the extra cluster; pip install '.[cluster]'."
        raise InputError(msg) from None
    if cluster == "slurm" and parallel:
        parameters = {"slurm_array_parallelism": parallel, **parameters}
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**{"name": "jaxcl", **parameters})
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        msg = f"batch: {' '.join(str(error).split())}"
        raise InputError(msg) from None
    with executor.batch():
        submitted = {executor.submit(execute, job): job for job in jobs}
    often = 10 if cluster == "slurm" else 0.5  # seconds between two polls
    left = dict(submitted)
    try:
        for done in submitit.helpers.as_completed(list(left), poll_frequency=often):
            del left[done]
            lost = done.exception()  # killed, out of time or memory
            yield submitted[done], 1 if lost else done.result()
    finally:
        for done in left:
            done.cancel()


def execute(job: Job) -> int:
    """Run one job to its end; its exit code.

    Before its time is up submitit has SIGUSR2 sent to all processes, and raises here. The
    job then gets SIGTERM, at which it saves.
    """
    with handling(signal.SIG_IGN, signal.SIGUSR2):  # which the job inherits
        process = _begin(job)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _begin(job: Job) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log:
        return subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT)
