"""What the speed scripts share: the job's data, the clock, and how they answer.

``python speed_X.py JOB.npz`` prints its versions, then answers each line of its input with
a line; both are JSON. A request holds ``method`` and ``own_stream``; an answer
``train_cpu`` and ``eval_cpu`` (seconds per task), the same on the wall, the ``accuracy``
matrix, and whether the parameters stayed ``finite``.
"""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np


def load():
    """The arrays of the job, and its settings as attributes."""
    arrays = np.load(sys.argv[1])
    settings = json.loads(str(arrays["settings"]))
    held = {name: arrays[name] for name in arrays.files if name != "settings"}
    return SimpleNamespace(**held, **settings)


def task_images(job, task):
    """Inputs and labels of a task: training x, y, test x, y."""
    order = job.order[task]
    permute = lambda x: np.ascontiguousarray(x[:, order])
    return permute(job.train_x), job.train_y, permute(job.test_x), job.test_y


class Ledger:
    """CPU and wall seconds, per task, of training and of evaluation."""

    def __init__(self):
        self.answer = {
            "train_cpu": [],
            "train_wall": [],
            "eval_cpu": [],
            "eval_wall": [],
            "accuracy": [],
        }

    def time(self, what, work):
        """Do the work; enter its cost under ``what``."""
        cpu, wall = time.process_time(), time.perf_counter()
        done = work()
        self.answer[f"{what}_cpu"].append(time.process_time() - cpu)
        self.answer[f"{what}_wall"].append(time.perf_counter() - wall)
        return done


def serve(versions, work):
    """Print the versions, then answer each request by ``work(request)``.

    What libraries print goes to the standard error.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line))), file=answers, flush=True)
