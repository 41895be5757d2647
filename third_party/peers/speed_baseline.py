"""The speed job by jaxcl itself, as another checkout has it: what a change is held against.

Start it in that checkout and with it as PYTHONPATH; all but this file and ``speed_job.py``
is read there. It makes the job's images and permutations again, as they are no tensors
that somebody hands over but what a run computes.
"""

import dataclasses
import platform
import subprocess
from pathlib import Path

import jax
import numpy as np
from speed_job import load, serve

import jaxcl
from experiments.benchmarks import ours
from experiments.benchmarks.config import Config
from experiments.benchmarks.one_thread import use_one_thread


def main():
    """Serve requests for the jobs that are one stream by one method."""
    use_one_thread()
    here = Path.cwd()
    for module in (jaxcl, ours):
        if here not in Path(str(module.__file__)).resolve().parents:
            msg = f"baseline: expected the code of {here}, got {module.__file__}."
            raise RuntimeError(msg)
    job = load()
    config = settings(job)
    images = ours.make_images(config)
    stream = ours.make_stream(config, images, num_tasks=config.num_tasks)
    if not np.array_equal(stream.plan.order, job.order):
        msg = f"baseline: the code of {here} draws other tasks; its times say nothing."
        raise RuntimeError(msg)
    programs = {}

    def work(request):
        name = request["method"]
        if name not in programs:
            made = ours.make_program(config, images, name, config.num_tasks)
            programs[name] = made
        return ours.learn(config, programs[name])

    versions = {"python": platform.python_version(), "jax": jax.__version__}
    serve({**versions, "baseline": commit(here)}, work)


def settings(job):
    """The job's settings, as far as this checkout has them."""
    known = {field.name for field in dataclasses.fields(Config)}
    lists = lambda value: tuple(value) if isinstance(value, list) else value
    given = vars(job).items()
    return Config(**{name: lists(value) for name, value in given if name in known})


def commit(here):
    """The short name of the checkout's commit; ``unknown`` without git."""
    words = ["git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
