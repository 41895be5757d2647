"""The job by other libraries: scripts in processes of their own, asked one at a time.

A script prints its versions when it is ready, then answers each line with a line; both
are JSON. It waits idle in between, so that only one process computes at any time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.config import Config
from experiments.benchmarks.ours import NORMALISE, make_stream
from jaxcl.data import Images
from jaxcl.errors import InputError
from jaxcl.training.files import plain

SCRIPTS = Path(__file__).parents[2] / "third_party" / "peers"

#: ``(request) -> answer``.
Ask = Callable[[dict[str, Any]], dict[str, Any]]


def write_job(path: Path, config: Config, images: Images) -> None:
    """The images as inputs to a network, the permutations, and the settings."""
    flat = lambda x: ((x.reshape(len(x), -1) / 255 - mean) / std).astype(np.float32)
    mean, std = NORMALISE
    np.savez(
        path,
        train_x=flat(images.train_x),
        train_y=np.asarray(images.train_y, np.int64),
        test_x=flat(images.test_x),
        test_y=np.asarray(images.test_y, np.int64),
        order=np.asarray(
            make_stream(config, images, num_tasks=config.num_tasks).plan.order
        ),
        settings=json.dumps(plain(config)),
    )


@contextmanager
def workers(config: Config, job: Path) -> Iterator[dict[str, Ask]]:
    """The scripts, by name, ready to be asked.

    Those that need PyTorch or Avalanche run if ``JAXCL_PEERS_PYTHON`` names an interpreter,
    and this library as it was if ``JAXCL_BASELINE`` names a checkout of it.
    """
    wanted = {}
    if config.by_hand:
        wanted["jax"] = (sys.executable, "speed_jax.py")
    before = os.environ.get("JAXCL_BASELINE")
    if before:
        if not (Path(before) / "experiments" / "benchmarks" / "ours.py").exists():
            msg = (
                f"JAXCL_BASELINE: no checkout of jaxcl at {before}; make one by git "
                "worktree add PATH COMMIT."
            )
            raise InputError(msg)
        wanted["baseline"] = (sys.executable, "speed_baseline.py", Path(before))
    theirs = os.environ.get("JAXCL_PEERS_PYTHON")
    if theirs:
        if not Path(theirs).exists():
            msg = (
                f"JAXCL_PEERS_PYTHON: no interpreter at {theirs}; make an environment "
                "from third_party/peers/requirements-avalanche.txt."
            )
            raise InputError(msg)
        wanted["torch"] = (theirs, "speed_torch.py")
        wanted["avalanche"] = (theirs, "speed_avalanche.py")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(worker(job, *how)) for name, how in wanted.items()
        }


@contextmanager
def worker(
    job: Path, python: str, script: str, checkout: Path | None = None
) -> Iterator[Ask]:
    """One script, started, on the code of a checkout if given; ended on the way out."""
    code = {} if checkout is None else {"PYTHONPATH": str(checkout.resolve())}
    process = subprocess.Popen(
        [python, str(SCRIPTS / script), str(job)],
        cwd=checkout,
        env={**os.environ, **code},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    send, answers = process.stdin, process.stdout

    def answer() -> dict[str, Any]:
        line = answers.readline()
        if not line:
            msg = (
                f"{script} ended with code {process.wait()}; its message stands above."
            )
            raise RuntimeError(msg)
        return json.loads(line)

    versions = answer()

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        send.write(json.dumps(request) + "\n")
        send.flush()
        return {**answer(), "versions": versions}

    try:
        yield ask
    finally:
        send.close()  # the script's loop ends with its input
        process.wait()
        answers.close()


__all__ = ["Ask", "workers", "write_job"]
