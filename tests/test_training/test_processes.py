"""Two processes as one run: same numbers, half the reading, one end, one resume."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcl.errors import InputError
from jaxcl.training.processes import any_across_processes, exit_together, is_primary

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture
def start():
    """Starts processes, none of which outlives the test."""
    started = []

    def one(*words):
        started.append(launch(*words))
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def launch(folder, devices, *rest):
    words = [sys.executable, str(SCRIPT), str(folder), str(devices), *map(str, rest)]
    return subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ended(process, seconds=240):
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("it does not end")
    return process.returncode, said


def results(folder):
    with np.load(folder / "result.npz") as found:
        return {name: found[name] for name in found}


def assert_same_run(found, want):
    np.testing.assert_allclose(found["matrix"], want["matrix"], atol=0.04)
    for name in want:
        if name.isdigit():
            np.testing.assert_allclose(found[name], want[name], atol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with all four devices comes to."""
    folder = tmp_path_factory.mktemp("one")
    code, said = ended(launch(folder, 4))
    assert code == 0, said
    return results(folder)


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path, start, alone):
    """Oracle: one process with all four devices; each of two reads half the rows."""
    port = free_port()
    both = [start(tmp_path / "two", 2, index, 2, port) for index in (0, 1)]
    for process in both:
        code, said = ended(process)
        assert code == 0, said
    found = results(tmp_path / "two")
    assert_same_run(found, alone)
    assert found["rows_read"] <= alone["rows_read"] / 2


@pytest.mark.slow
def test_processes_end_together_and_the_run_goes_on_with_another_number(
    tmp_path, start, alone
):
    """Oracle: one process with all four devices.

    One of two processes is told to end, and both do, with a checkpoint; then one is
    killed: the other must end too, with a message, and the run go on with one process.
    """
    port = free_port()
    both = [start(tmp_path / "cut", 2, index, 2, port, "slow") for index in (0, 1)]
    while not (tmp_path / "cut" / "metrics.jsonl").exists():
        assert both[0].poll() is None, both[0].communicate()[0]
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)  # one is asked, and all end
    for process in both:
        code, said = ended(process)
        assert code == 0, said
        assert "interrupted" in said
    assert [path.stem for path in (tmp_path / "cut").rglob("[0-9]*.json")] == ["20"]

    port = free_port()
    both = [start(tmp_path / "cut", 2, index, 2, port, "slow") for index in (0, 1)]
    deadline = time.monotonic() + 200
    while len(list((tmp_path / "cut" / "checkpoints").glob("*.json"))) < 2:
        assert both[0].poll() is None, both[0].communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    both[1].kill()
    code, said = ended(both[0], 120)
    assert code == 1, said
    assert "another process ended or cannot be reached. Start all" in said
    both[1].communicate()
    code, said = ended(start(tmp_path / "cut", 4))
    assert code == 0, said
    assert_same_run(results(tmp_path / "cut"), alone)


def test_an_abort_by_jax_ends_in_a_sentence():
    """Oracle: the exit code of an abort from another thread, as JAX does it: 1, not -6."""
    code = (
        "import os, threading, time\n"
        "from jaxcl.training.processes import explain_abort\n"
        "explain_abort()\n"
        "threading.Thread(target=os.abort).start()\n"
        "time.sleep(60)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "another process ended or cannot be reached" in ended.stderr


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Socket closed"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), False),
        (ValueError("rows differ"), False),
        (InputError("learn: ..."), False),
    ],
)
def test_errors_of_the_network_are_told_from_others(monkeypatch, error, meant):
    """Oracle: five errors judged by hand; the first is what JAX 0.10 raises."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(Exception, match=r".") as caught, exit_together():
        raise error
    assert ("another process ended" in str(caught.value)) == meant


def test_one_process_leads_and_agrees_with_itself():
    """Oracle: the flags."""
    assert is_primary()
    assert any_across_processes(True, False) == (True, False)
