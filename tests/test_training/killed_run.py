"""Runs that kill themselves, for the test beside it.

Each line of the input, ``FOLDER TASKS [MOMENT COUNT DELAY]``, is done by a process of its
own, whose exit status is printed: the COUNT-th MOMENT (``read``, ``save``, ``note``,
``boundary``) starts a timer of DELAY seconds, and the timer sends SIGKILL. Nothing is
cleaned up, as when a machine goes away.
"""

import os
import signal
import sys
import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as orbax

from jaxcl.curvature import empirical_fisher
from jaxcl.data import Dataset, Task, digits, permuted, stream_tasks, subset
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.models import mlp
from jaxcl.regularizers import ewc
from jaxcl.training import Options, checkpoint, learn, loop
from jaxcl.transforms import sam

MODEL = mlp((64, 16, 10))
LOGITS = single_head(MODEL.apply)


def main(folder, num_tasks, snapshot="", count="0", delay="0"):
    """Learn some tasks, saving after every step; write down how it ended."""
    left = {snapshot: int(count)}

    def passing(name):
        left[name] = left.get(name, 0) - 1
        if name == snapshot and left[name] == 0:
            threading.Thread(target=die, args=(float(delay),)).start()

    wrapped(passing)
    result = learn(
        jax.random.key(3),
        build,
        MODEL.init(jax.random.key(2)),
        [watched(task, passing) for task in made(int(num_tasks))],
        Options(16, 8, report_every=2, eval_batch_size=32, save_every=0.0),
        folder=folder,
        frozen=jnp.float32(0.1),
        metrics=classification(LOGITS),
        quiet=True,
    )
    plain = lambda leaf: (
        jax.random.key_data(leaf)
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        else leaf
    )
    leaves = [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(result.run_state)]
    np.savez(f"{folder}/end.npz", **{str(i): leaf for i, leaf in enumerate(leaves)})


def die(delay):
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGKILL)


def build(rate):
    """A method with a state in every part."""
    loss = cross_entropy(LOGITS)
    return make_method(
        loss,
        optax.adam(rate),
        gradient=sam(0.05),
        regularizer=ewc(empirical_fisher(loss), 10.0),
        memory=reservoir(16, sample_size=4),
    )


def made(num_tasks):
    images = subset(digits(), key=jax.random.key(5), num_train=64, num_test=32)
    return stream_tasks(permuted(jax.random.key(1), images, num_tasks=num_tasks))


def watched(task, passing):
    def read(numbers):
        if len(numbers) > 1:  # one row of each task is looked at before the first step
            passing("read")
        return task.train.read(numbers)

    return Task(task.name, Dataset(task.train.count, read), task.test)


def wrapped(passing):
    """Tell when a checkpoint begins, when its note is written, and when a task ends."""

    def before(owner, name, snapshot):
        function = getattr(owner, name)

        def on_progress(*args, **kwargs):
            passing(snapshot)
            return function(*args, **kwargs)

        setattr(owner, name, on_progress)

    before(orbax, "save", "save")
    before(checkpoint, "checksums", "note")
    before(loop, "finish_task", "boundary")


def serve():
    """Fork for each line, so that all of them share one start of Python."""
    for line in sys.stdin:
        child = os.fork()  # safe: no device and no thread is there yet
        if not child:
            main(*line.split())
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    serve()
