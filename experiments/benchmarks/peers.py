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
from jaxcl.errors import require
from jaxcl.files import plain

SCRIPTS = Path(__file__).parents[2] / "third_party" / "peers"

#: ``(request) -> answer``.
Ask = Callable[[dict[str, Any]], dict[str, Any]]


def write_job(path: Path, config: Config, images: Images) -> None:
    """The images as inputs to a network, the permutations, and the settings."""
    mean, std = NORMALISE
    flat = lambda x: ((x.reshape(len(x), -1) / 255 - mean) / std).astype(np.float32)
    stream = make_stream(config, images, num_tasks=config.num_tasks)
    np.savez(
        path,
        train_x=flat(images.train_x),
        train_y=np.asarray(images.train_y, np.int64),
        test_x=flat(images.test_x),
        test_y=np.asarray(images.test_y, np.int64),
        order=np.asarray(stream.plan.order),
        settings=json.dumps(plain(config)),
    )


@contextmanager
def workers(config: Config, job: Path) -> Iterator[dict[str, Ask]]:
    """The scripts, by name, ready to be asked.

    Those that need PyTorch or Avalanche run if ``JAXCL_PEERS_PYTHON`` names an interpreter,
    and this library as it was if ``JAXCL_BASELINE`` names a checkout of it.
    """
    before = os.environ.get("JAXCL_BASELINE")
    theirs = interpreter("requirements-avalanche.txt")
    require(
        not before or (Path(before) / "experiments/benchmarks/ours.py").exists(),
        "JAXCL_BASELINE",
        f"no checkout of jaxcl at {before}; make one by git worktree add PATH COMMIT",
    )
    wanted = {
        "jax": (sys.executable if config.by_hand else None, None),
        "baseline": (sys.executable if before else None, before),
        "torch": (theirs, None),
        "avalanche": (theirs, None),
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(worker(job, name, python, checkout))
            for name, (python, checkout) in wanted.items()
            if python
        }


def interpreter(requirements: str) -> str | None:
    """The Python of other libraries, if ``JAXCL_PEERS_PYTHON`` names one."""
    python = os.environ.get("JAXCL_PEERS_PYTHON")
    remedy = f"make an environment from third_party/peers/{requirements}"
    message = f"no interpreter at {python}; {remedy}"
    require(not python or Path(python).exists(), "JAXCL_PEERS_PYTHON", message)
    return python or None


@contextmanager
def worker(
    job: Path, name: str, python: str, checkout: str | None = None
) -> Iterator[Ask]:
    """One script, started, on the code of a checkout if given; ended on the way out."""
    script = f"speed_{name}.py"
    code = {"PYTHONPATH": str(Path(checkout).resolve())} if checkout else {}
    with subprocess.Popen(
        [python, str(SCRIPTS / script), str(job)],
        cwd=checkout,
        env=os.environ | code,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # its loop ends with its input, which is closed on the way out

        def answer() -> dict[str, Any]:
            if line := process.stdout and process.stdout.readline():
                return json.loads(line)
            ended = f"{script} ended with code {process.wait()}"
            msg = f"{ended}; its message stands above."
            raise RuntimeError(msg)

        versions = answer()

        def ask(request: dict[str, Any]) -> dict[str, Any]:
            print(json.dumps(request), file=process.stdin, flush=True)
            return answer() | {"versions": versions}

        yield ask
