"""Rounds in which every job is done once; what is compared is timed side by side."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.host.config import Config
from experiments.benchmarks.host.job import (
    bare_loop,
    both_loops,
    make_job,
    one_step,
    sizes,
)
from experiments.benchmarks.one_thread import use_all_cores
from experiments.benchmarks.rounds import Turn, compiled, in_turn, take_turns, timed
from jaxcl.models import llama
from jaxcl.runs.folder import RunFolder
from jaxcl.sharding import replicate
from jaxcl.training import ShardingPlan, make_mesh, restore, save
from jaxcl.training.checkpoint import saving

Take = Callable[[Turn], dict[str, Any]]


def run(config: Config, folder: RunFolder) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet."""
    llama(sizes(config, large=False))  # refuses those that do not fit each other

    def prepare(todo: Sequence[Turn]) -> Take:
        takes = {job: JOBS[job](config) for job in sorted({turn.job for turn in todo})}
        return lambda turn: takes[turn.job](turn)

    take_turns(folder, turns(config), prepare)


def turns(config: Config) -> list[Turn]:
    """All turns in their order."""
    times = {"memory": 1, "devices": config.devices_rounds}  # memory does not vary
    return [
        Turn(
            f"round={number}/{job}" + (f"/{count}" if job == "devices" else ""),
            number,
            job,
            {"devices": count},
        )
        for number in range(config.rounds)
        for job in config.jobs
        if number < times.get(job, config.rounds)
        for count in (config.devices if job == "devices" else (1,))
    ]


def loop(config: Config) -> Take:
    """The host loop over one task, against its own step in a bare Python loop."""
    return compare(config, both_loops(config))


def with_sam(config: Config) -> Take:
    """The same steps with SAM and without."""
    make = partial(make_job, config, config.batch_size)
    jobs = {"plain": make(), "sam": make(with_sam=True)}
    steps = config.num_steps
    works = {name: partial(bare_loop, job, steps) for name, job in jobs.items()}
    return compare(config, works)


def compare(config: Config, works: dict[str, Callable]) -> Take:
    """Compile all; then seconds of each, and wall seconds.

    On a CPU they are those of its thread, else those that pass until the device is done.
    """
    for work in works.values():
        timed(work)

    def take(turn: Turn):
        costs = in_turn(works, turn.round)
        unit = "cpu" if jax.default_backend() == "cpu" else "wall"
        seconds = {name: getattr(cost, unit) for name, cost in costs.items()}
        walls = {f"{name}_wall": cost.wall for name, cost in costs.items()}
        return {**seconds, **walls, "steps": config.num_steps}

    return take


def checkpoint(config: Config) -> Take:
    """Save and restore a whole state, beside NumPy's own file of the same arrays."""
    job = make_job(config, config.batch_size, large=True)
    state = jax.block_until_ready(job.program.start(job.params))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]

    def take(turn: Turn):
        del turn
        with tempfile.TemporaryDirectory() as place:
            by_hand, ours, later = (Path(place) / name for name in ("a.npz", "b", "c"))
            _, numpy_save = timed(lambda: np.savez(by_hand, *leaves))
            _, numpy_load = timed(lambda: dict(np.load(by_hand)))
            _, saved = timed(lambda: save(ours, 1, state))
            _, restored = timed(lambda: restore(ours, state).tree)
            start = time.perf_counter()
            with saving(later) as begin_saving:
                begin_saving(1, state)
                waited = time.perf_counter() - start
        return {
            "megabytes": sum(leaf.nbytes for leaf in leaves) / 1e6,
            "numpy_save": numpy_save.wall,
            "numpy_load": numpy_load.wall,
            "save": saved.wall,
            "restore": restored.wall,
            "held_up": waited,
        }

    return take


def memory(config: Config) -> Take:
    """Bytes of the state, and what XLA sets aside within a step besides its arguments."""

    def take(turn: Turn):
        del turn
        found, num_bytes = {}, lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
        for name in ("plain", "sam"):
            size, perturbed = config.large_batch_size, name == "sam"
            job = make_job(config, size, with_sam=perturbed, large=True)
            state = job.program.start(job.params)
            step, _ = compiled(one_step(job), state, job.batch, donate=0)
            found[f"{name}_state"] = num_bytes(state)
            found[f"{name}_temporary"] = step.memory_analysis().temp_size_in_bytes
            found["parameters"] = num_bytes(job.params)
        return found

    return take


def devices(config: Config) -> Take:
    """Rows per second on pretend devices, which need a process of their own."""
    spawn = multiprocessing.get_context("spawn")

    def take(turn: Turn):
        with ProcessPoolExecutor(1, spawn) as pool:
            return pool.submit(on_devices, config, turn.by["devices"]).result()

    return take


def on_devices(config: Config, count: int) -> dict[str, float]:
    """The steps, rows split over all devices, parameters on each; in a new process."""
    use_all_cores()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    sharding = ShardingPlan(make_mesh(), replicate) if count > 1 else None
    size, steps = config.devices_batch_size, config.devices_steps
    job = make_job(config, size, sharding=sharding)
    state = jax.block_until_ready(bare_loop(job, steps))
    _, cost = timed(partial(bare_loop, job, steps, state))
    rows = size * steps
    return {"rows_per_second": rows / cost.wall, "cores": len(os.sched_getaffinity(0))}


JOBS = {
    "loop": loop,
    "checkpoint": checkpoint,
    "sam": with_sam,
    "memory": memory,
    "devices": devices,
}
