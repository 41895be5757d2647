"""Steps on a mesh of pretend devices: ``run.py`` starts this with as many as it wants.

Reads settings as JSON from its input, and prints what the steps cost as JSON.
"""

import json
import os
import sys
from functools import partial

import jax
import numpy as np

from experiments.benchmarks.host.config import Config
from experiments.benchmarks.host.job import make_job, make_program
from experiments.benchmarks.one_thread import use_all_cores
from experiments.benchmarks.ours import timed
from jaxcl.runs.experiment import expect_no_words
from jaxcl.sharding import replicate
from jaxcl.training import ShardingPlan, make_mesh
from jaxcl.training.batches import take_rows


def measure(config: Config, count: int) -> dict[str, float]:
    """Wall seconds of the steps, rows split over all devices, parameters on each."""
    sharding = ShardingPlan(make_mesh(), replicate) if count > 1 else None
    job, size = make_job(config), config.devices_batch_size
    program = make_program(job, size, sharding)
    batch = take_rows(job.task.train, np.arange(size), size=size, sharding=sharding)

    def steps(state):
        for step in range(config.devices_steps):
            state, _ = program.step(
                state, jax.random.key(1), np.int32(step), np.int32(0), batch
            )
        return state

    state = jax.block_until_ready(steps(program.start(job.start)))
    _, cost = timed(partial(steps, state))
    rows = size * config.devices_steps
    return {"rows_per_second": rows / cost.wall, "cores": len(os.sched_getaffinity(0))}


def main() -> None:
    """From the input to the output."""
    use_all_cores()
    settings = json.loads(sys.stdin.read())
    count = settings.pop("count")
    if jax.device_count() != count:
        msg = f"benchmarks: expected {count} devices, got {jax.device_count()}."
        raise RuntimeError(msg)
    lists = {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
    print(json.dumps(measure(Config(**settings | lists), count)))


if __name__ == "__main__":
    expect_no_words(__doc__)
    main()
