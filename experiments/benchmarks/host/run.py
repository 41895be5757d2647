"""Rounds in which every job is done once; what is compared is timed side by side."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments.benchmarks.host.config import NUM_ROWS, Config
from experiments.benchmarks.one_thread import use_all_cores
from experiments.benchmarks.rounds import (
    Turn,
    compiled,
    in_turn,
    take_turns,
    timed,
)
from jaxcl.data import Task, array_dataset
from jaxcl.losses import single_head, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.models import DecoderConfig, decoder
from jaxcl.runs.folder import RunFolder
from jaxcl.sharding import replicate
from jaxcl.training import Options, ShardingPlan, make_mesh, restore, save
from jaxcl.training.batches import shapes_of, take_rows
from jaxcl.training.checkpoint import saving
from jaxcl.training.compiled import Program, Rows, compile_program
from jaxcl.training.logging import metrics_file
from jaxcl.training.loop import Run, fit
from jaxcl.training.results import begin_records
from jaxcl.training.run_state import begin
from jaxcl.transforms import sam
from jaxcl.tree import as_batch
from jaxcl.typing import Batch, Params

NUM_BYTES = 256
RHO = 0.05  # SAM's radius, on which its cost does not depend
KEY_SEED = 1  # no array before main has chosen threads and device


def run(config: Config, folder: RunFolder) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet."""
    decoder(sizes(config, large=False))  # refuses those that do not fit each other
    take_turns(folder, turns(config), lambda turn: partial(JOBS[turn.job], config))


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


class Job(NamedTuple):
    """What is learned from what, and by what."""

    task: Task
    params: Params  # at the start
    program: Program  # the functions of the host loop
    batch: Batch  # the first rows, on the device


def make_job(
    config: Config,
    batch_size: int,
    *,
    with_sam: bool = False,
    large: bool = False,
    sharding: ShardingPlan | None = None,
) -> Job:
    """Random bytes, of which the next is predicted; AdamW, alone or after SAM."""
    model = decoder(sizes(config, large=large))
    loss = token_cross_entropy(single_head(model.apply))

    def build(_frozen):
        gradient = sam(RHO) if with_sam else None
        optimizer, size = optax.adamw(1e-3), config.chunk_size
        return make_method(loss, optimizer, gradient=gradient, chunk_size=size)

    text = np.random.default_rng(config.seed).integers(
        NUM_BYTES, size=(NUM_ROWS, config.length + 1), dtype=np.int32
    )
    rows = array_dataset(as_batch(text[:, :-1], text[:, 1:]))
    params, key = model.init(jax.random.key(config.seed)), jax.random.key(0)
    example = rows.read(np.arange(1))
    rows_of = shapes_of(example, batch_size, sharding)
    shapes = Rows(example, rows_of, rows_of, rows_of, "bytes")
    program = compile_program(build, params, (), shapes, key=key, sharding=sharding)
    numbers = np.arange(batch_size)
    batch = take_rows(rows, numbers, size=batch_size, sharding=sharding)
    return Job(Task("bytes", rows, rows), params, program, batch)


def sizes(config: Config, *, large: bool) -> DecoderConfig:
    """The decoder's; those that do not fit each other are refused when it is made."""
    hidden = config.large_hidden_size if large else config.hidden_size
    return DecoderConfig(
        vocab_size=NUM_BYTES,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=max(1, config.num_heads // 2),
    )


def bare_loop(job: Job, num_steps: int, state: Any = None) -> Any:
    """The jitted step and nothing else, on a batch that is ready."""
    key, count = jax.random.key(KEY_SEED), np.int32(num_steps)
    state = job.program.start(job.params) if state is None else state
    for step in range(num_steps):
        state, _ = job.program.step(state, key, np.int32(step), count, job.batch)
    return state


def host_loop(job: Job, options: Options) -> Any:
    """The part of :func:`jaxcl.training.learn` that walks the steps of a task."""
    with (
        tempfile.TemporaryDirectory() as place,
        metrics_file(Path(place) / "metrics.jsonl") as write,
    ):
        run = Run(
            jax.random.key(KEY_SEED),
            [job.task._replace(num_steps=options.num_steps)],
            {},
            options,
            None,
            job.program,
            records=begin_records(job.program, [job.task], {}, {}, None)[0],
            interrupted=lambda: False,
            save=lambda *args, **kwargs: None,
            write=write,
            scalar=lambda name, value, step: None,
            advance=lambda steps, words: None,
        )
        return fit(run, begin(job.program.start(job.params), options))[0].state


@cache
def both_loops(config: Config) -> dict[str, Callable[[], Any]]:
    """One task by its own step in a bare Python loop, and by the host's."""
    job = make_job(config, config.batch_size)
    options = Options(num_steps=config.num_steps, batch_size=config.batch_size)
    return warm(
        bare=partial(bare_loop, job, config.num_steps),
        loop=partial(host_loop, job, options),
    )


@cache
def both_steps(config: Config) -> dict[str, Callable[[], Any]]:
    """The same steps without SAM and with it."""
    make, steps = partial(make_job, config, config.batch_size), config.num_steps
    plain, perturbed = make(), make(with_sam=True)
    return warm(
        plain=partial(bare_loop, plain, steps), sam=partial(bare_loop, perturbed, steps)
    )


def warm(**works: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """The same, each called once, so that it is compiled."""
    for work in works.values():
        timed(work)
    return works


def compare(works_of: Callable, config: Config, turn: Turn) -> dict[str, Any]:
    """Seconds of each of two loops.

    On a CPU they are those of its thread, else those that pass until the device is done.
    """
    costs = in_turn(works_of(config), turn.round)
    unit = "cpu" if jax.default_backend() == "cpu" else "wall"
    seconds = {name: getattr(cost, unit) for name, cost in costs.items()}
    walls = {f"{name}_wall": cost.wall for name, cost in costs.items()}
    return {**seconds, **walls, "steps": config.num_steps}


def checkpoint(config: Config, _turn: Turn) -> dict[str, Any]:
    """Save and restore a large state, beside NumPy's own file of the same arrays."""
    job = make_job(config, config.batch_size, large=True)
    state = jax.block_until_ready(job.program.start(job.params))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    with tempfile.TemporaryDirectory() as place:
        by_hand, ours, later = (Path(place) / name for name in ("a.npz", "b", "c"))
        works = {
            "numpy_save": lambda: np.savez(by_hand, *leaves),
            "numpy_load": lambda: dict(np.load(by_hand)),
            "save": lambda: save(ours, 1, state),
            "restore": lambda: restore(ours, state).tree,
        }
        walls = {name: timed(work)[1].wall for name, work in works.items()}
        with saving(later) as begin_saving:
            _, held_up = timed(lambda: begin_saving(1, state))
    megabytes = sum(leaf.nbytes for leaf in leaves) / 1e6
    return {"megabytes": megabytes, **walls, "held_up": held_up.wall}


def memory(config: Config, _turn: Turn) -> dict[str, Any]:
    """Bytes of the state, and what XLA sets aside within a step besides its arguments."""
    num_bytes = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    found = {}
    for name in ("plain", "sam"):
        size, with_sam = config.large_batch_size, name == "sam"
        job = make_job(config, size, with_sam=with_sam, large=True)
        state, key = job.program.start(job.params), jax.random.key(KEY_SEED)
        inputs = state, key, np.int32(0), np.int32(1), job.batch
        step, _ = compiled(job.program.step, *inputs, donate=0)
        found[f"{name}_state"] = num_bytes(state)
        found[f"{name}_temporary"] = step.memory_analysis().temp_size_in_bytes
        found["parameters"] = num_bytes(job.params)
    return found


def devices(config: Config, turn: Turn) -> dict[str, Any]:
    """Rows per second on pretend devices, which need a process of their own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(on_devices, config, turn.by["devices"]).result()


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
    "loop": partial(compare, both_loops),
    "checkpoint": checkpoint,
    "sam": partial(compare, both_steps),
    "memory": memory,
    "devices": devices,
}
