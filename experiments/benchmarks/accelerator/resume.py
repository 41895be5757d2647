"""A run that is killed and started again ends with the same bits as one left alone.

``main(folder, pause)``, in a process of its own, is that run: a few tasks of a small
network with SAM, momentum and replay, a checkpoint after every step. Started again it
goes on; in the end it writes its parameters.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import jax
import numpy as np
import optax

from jaxcl.data import Dataset, Task, array_dataset
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.training import Options, learn
from jaxcl.training.checkpoint import steps
from jaxcl.transforms import sam
from jaxcl.tree import as_batch

NUM_TASKS, NUM_STEPS = 2, 8
PAUSE = 0.2  # seconds before each batch: time for the kill to arrive inside a task
END, START = "end.npz", "began.json"


def kill_and_resume(_small: bool, folder: Path) -> Iterator[dict[str, Any]]:
    """Two runs at once: one is left alone, the other is killed inside its first task."""
    alone, killed = folder / "alone", folder / "killed"
    left_alone, first = Popen(command(alone)), Popen(command(killed, PAUSE))
    began = time.monotonic()
    while first.poll() is None and not steps(killed / "checkpoints"):
        time.sleep(0.02)
    first.kill()
    code = first.wait()
    yield {
        "what": "killed",
        "status": "done" if code == -signal.SIGKILL else "failed",
        "exit_code": code,
        "run_seconds": time.monotonic() - began,
        "last_checkpoint": steps(killed / "checkpoints")[-1:],
    }
    began = time.monotonic()
    subprocess.run(command(killed), check=True)
    seconds, start = time.monotonic() - began, json.loads((killed / START).read_text())
    yield {"what": "went on", "run_seconds": seconds, "went_on_from": start}
    if code := left_alone.wait():
        raise subprocess.CalledProcessError(code, left_alone.args)
    yield {"what": "the same bits", **compare(alone / END, killed / END)}


def command(folder: Path, pause: float = 0.0) -> list[str]:
    """The run in a process of its own, which ends with the group of this one."""
    folder.mkdir(exist_ok=True)
    call = f"import sys; from {__name__} import main; main(*sys.argv[1:])"
    return [sys.executable, "-c", call, str(folder), str(pause)]


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Whether two files hold the same arrays, bit for bit, and by how much they differ."""
    with np.load(one) as a, np.load(other) as b:
        names = sorted({*a.files, *b.files})
        same = [n for n in names if a[n].tobytes() == b[n].tobytes()]
        apart = [float(np.max(np.abs(a[n] - b[n]), initial=0.0)) for n in names]
    return {
        "status": "done" if same == names else "failed",
        "equal_arrays": len(same),
        "arrays": len(names),
        "largest_difference": max(apart),
    }


def main(folder: str, pause: str) -> None:
    """Learn, from the last checkpoint if there is one, and write the parameters."""
    home = Path(folder)
    (home / START).write_text(json.dumps(steps(home / "checkpoints")[-1:]))
    key, model = jax.random.key(0), mlp((784, 32, 10))
    loss = cross_entropy(single_head(model.apply))

    def build(_frozen):
        memory, optimizer = reservoir(64, sample_size=8), optax.sgd(0.05, momentum=0.9)
        return make_method(loss, optimizer, gradient=sam(0.05), memory=memory)

    learned = learn(
        key,
        build,
        model.init(key),
        [task(number, float(pause)) for number in range(NUM_TASKS)],
        Options(num_steps=NUM_STEPS, batch_size=16, save_every=0.0),
        folder=home,
        quiet=True,
    )
    np.savez(home / END, *map(np.asarray, jax.tree.leaves(learned.params)))


def task(number: int, pause: float) -> Task:
    """Noise with labels, whose batches come one by one, each after a pause."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(256, 784)).astype(np.float32)
    rows = array_dataset(as_batch(x, rng.integers(10, size=256)))

    def read(numbers):
        time.sleep(pause)
        return rows.read(numbers)

    return Task(f"noise {number}", Dataset(rows.count, read), rows)
