"""Work shared out to processes: nothing lost, nothing twice, nobody left behind."""

import functools
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from jaxcl.errors import InputError
from jaxcl.runs.folder import read_records
from jaxcl.runs.jobs import Job, _deliver, _Pool, choose, run_jobs, worker_count

JOBS = """
import os, signal, time

class Odd(ValueError):
    def __init__(self, left, right):
        super().__init__("odd")

def prepare(offset):
    if offset == "unprepared":
        raise OSError("no data")

    def do(job, send):
        if job == "input":
            import jax.numpy as jnp
            from jaxcl.tree import as_batch
            as_batch(jnp.zeros((2, 1)), jnp.zeros(3))
        if job == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "cut":
            import multiprocessing.connection as pipes
            def halve(self, buffer):
                os.write(self._handle, buffer[: len(buffer) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            pipes.Connection._send = halve
            send("x" * 1000)
        if job == "exit":
            raise SystemExit(3)
        if job == "odd":
            raise Odd(1, 2)
        if job == "bad":
            raise ValueError("job: expected a number, got 'bad'.")
        if job == "long":
            send(("pid", os.getpid()))
            time.sleep(60)
        for part in range(3):
            send((job + offset, part, os.getpid()))
        return job + offset, os.getpid()
    return do
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A module that processes can import."""
    (tmp_path / "jobs_of_a_test.py").write_text(JOBS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("jobs_of_a_test")


def share_out(jobs, args, todo, receive, *, num_workers, on_result=None):
    """The results of all jobs."""
    named, found = [job if isinstance(job, Job) else Job(job) for job in todo], []
    take = on_result or (lambda job, result: found.append(result))
    prepare = functools.partial(jobs.prepare, *args)
    run_jobs(prepare, named, take, receive, num_workers=num_workers)
    return found


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_all_that_jobs_send_arrives_once_and_in_their_order(jobs, num_workers):
    """Oracle: the plain loop."""
    got = []
    results = share_out(jobs, (10,), range(4), got.append, num_workers=num_workers)
    assert sorted(result for result, _ in results) == [10, 11, 12, 13]
    assert sorted(item[:2] for item in got) == [
        (job + 10, part) for job in range(4) for part in range(3)
    ]
    for job in range(4):
        assert [part for name, part, _ in got if name == job + 10] == [0, 1, 2]
    assert (os.getpid() in {pid for *_, pid in got}) == (num_workers < 2)


@pytest.mark.parametrize(
    ("programs", "compiled", "elsewhere", "chosen"),
    [
        ("aabb", "b", "a", 2),  # what it has compiled
        ("aabb", None, "a", 2),  # what no other process is at
        ("aabb", None, "", 0),
        ("aa", None, "a", 0),  # helps with what is left
        ("ccab", "b", "c", 3),
    ],
)
def test_a_free_process_chooses_what_it_has_compiled(
    programs, compiled, elsewhere, chosen
):
    """Oracle: the place, by hand."""
    waiting = [Job(None, program) for program in programs]
    assert choose(waiting, compiled, set(elsewhere)) == chosen


def raised(jobs, *todo, args=(0,), receive=lambda _: None):
    """What sharing out the jobs raises, within a minute: a hang is a failure."""
    caught = []

    def share():
        try:
            share_out(jobs, args, todo, receive, num_workers=2)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=share, daemon=True)
    thread.start()
    thread.join(50)
    assert not thread.is_alive(), "it hangs"
    return caught[0] if caught else None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_what_a_job_raises_arrives_and_ends_the_others(jobs):
    """Oracle: the clock, and the process table: a minute's job does not hold us."""
    got = []
    error = raised(jobs, "long", "bad", receive=got.append)
    assert isinstance(error, ValueError)
    assert not isinstance(error, InputError)  # a slip, not a raise in our packages
    assert "expected a number" in str(error)
    assert "in do" in str(error.__cause__)  # its trace
    assert all(gone(pid) for name, pid in got)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_a_callback_raises_ends_the_jobs(jobs, num_workers):
    """Oracle: the error itself, from messages and from results, and no hang."""

    def fail(*_):
        msg = "mine"
        raise KeyError(msg)

    with pytest.raises(KeyError, match="mine"):
        share_out(jobs, (0,), range(4), fail, num_workers=num_workers)
    ignore = lambda _: None
    with pytest.raises(KeyError, match="mine"):
        share_out(jobs, (0,), range(4), ignore, num_workers=num_workers, on_result=fail)


def test_results_at_hand_are_delivered_before_an_error_is_raised():
    """Oracle: by hand, two good jobs and a bad one that have ended together."""
    got = []

    def take(job, result):
        del result
        got.append(job.work)

    ended = [Future(), Future(), Future()]
    ended[0].set_exception(ValueError("bad"))
    for future in ended[1:]:
        future.set_result(0)
    pool = _Pool([], [], [])
    with pytest.raises(ValueError, match="bad"):
        _deliver([(Job(n), future) for n, future in enumerate(ended)], take, pool)
    assert got == [1, 2]


def test_a_job_that_exits_is_an_error(jobs):
    """Oracle: the message; it used to end the command with code 0."""
    assert "a job ended its process by exit(3)" in str(raised(jobs, "exit", 1))


@pytest.mark.parametrize("how", ["killed", "cut"])
def test_a_worker_that_is_killed_is_an_error_and_no_hang(jobs, how):
    """Oracle: the clock; ``cut`` dies in the middle of a message."""
    error = raised(jobs, how, *range(4))
    assert isinstance(error, RuntimeError)
    assert "ended with exit code -9" in str(error)


def test_bad_input_stays_bad_input_on_its_way_from_a_worker(jobs):
    """Oracle: an error that the library raises on purpose."""
    error = raised(jobs, "input", 1)
    assert isinstance(error, InputError)
    assert str(error).startswith("as_batch")


def test_errors_that_do_not_travel_arrive_as_text(jobs):
    """Oracle: an exception that pickle cannot make again, and one before any job."""
    assert "Odd: odd" in str(raised(jobs, "odd", 1))
    assert isinstance(raised(jobs, 1, 2, args=("unprepared",)), OSError)


def test_the_number_of_workers_is_the_wanted_one_or_that_of_the_cores():
    """Oracle: the operating system."""
    assert worker_count(3) == 3
    assert 1 <= worker_count(None) <= (os.cpu_count() or 1)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="reads /proc"
)
def test_a_killed_parent_leaves_no_worker_and_the_next_goes_on(tmp_path):
    """Oracle: one process that does everything; lines compared digit for digit."""
    words = ["smoke", "--checkpoint-seconds", "0"]
    whole = start(*words, "--out", tmp_path / "whole")
    assert whole.wait(timeout=300) == 0

    words += ["--workers", "2", "--out", tmp_path / "cut"]
    killed = start(*words)
    deadline = time.monotonic() + 200
    while not (children := list_children(killed.pid)) or not any(
        (tmp_path / "cut" / "checkpoints").glob("*/*.json")
    ):
        assert killed.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + 20
    while not all(gone(child) for child in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)

    assert start(*words).wait(timeout=300) == 0
    lines = [
        {
            record["run"]: {**record, "seconds": 0, "commit": ""}
            for record in read_records(folder)
        }
        for folder in (tmp_path / "whole", tmp_path / "cut")
    ]
    different = {
        name: [key for key in line if line[key] != lines[1][name][key]]
        for name, line in lines[0].items()
        if line != lines[1][name]
    }
    assert not different
    assert len(lines[0]) == len(lines[1]) == 6


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.plasticity", *map(str, words)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "NPROC": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def list_children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(word) for word in text.split()]


def gone(pid: int) -> bool:
    """Ended, or ended and not yet collected by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
