"""Rounds in which every job is done once; what is compared is timed side by side."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.host.config import Config
from experiments.benchmarks.host.job import Job, make_job, make_program
from experiments.benchmarks.ours import timed
from jaxcl.runs.folder import RunFolder, append, finished
from jaxcl.training import Options, restore, save
from jaxcl.training.batches import take_rows
from jaxcl.training.checkpoint import saving
from jaxcl.training.compiled import Program
from jaxcl.training.files import plain
from jaxcl.training.logging import metrics_file, progress
from jaxcl.training.loop import Run, fit
from jaxcl.training.processes import interruptible
from jaxcl.training.results import spent_so_far
from jaxcl.training.run_state import begin

KEY_SEED = 1  # no array before main has chosen threads and device


class Turn(NamedTuple):
    """One job in one round; for devices, on so many of them."""

    round: int
    job: str
    devices: int = 1

    @property
    def name(self) -> str:
        """``round=1/devices/4``."""
        name = f"round={self.round}/{self.job}"
        return f"{name}/{self.devices}" if self.job == "devices" else name


def run(config: Config, folder: RunFolder) -> None:
    """Do every turn that has no line in ``results.jsonl`` yet."""
    make_job(config)  # refuses sizes that do not fit each other
    every = turns(config)
    todo = [turn for turn in every if turn.name not in finished(folder)]
    prepare = {
        "loop": prepare_loop,
        "checkpoint": prepare_checkpoint,
        "sam": prepare_sam,
        "memory": lambda config: partial(memory, config),
    }
    named = sorted({turn.job for turn in todo} & set(prepare))
    with progress(len(every), "turns", done=len(every) - len(todo)) as advance:
        ready = {name: prepare[name](config) for name in named}
        for turn in todo:
            work = ready.get(turn.job, partial(on_devices, config, turn.devices))
            load = round(os.getloadavg()[0], 1)
            head = {"run": turn.name, **turn._asdict(), "load": load}
            append(folder, [{**head, "status": "done", **work()}])
            advance(1, turn.name)


def turns(config: Config) -> list[Turn]:
    """All turns in their order."""
    times = {"memory": 1, "devices": config.devices_rounds}  # memory does not vary
    return [
        Turn(number, job, count)
        for number in range(config.rounds)
        for job in config.jobs
        if number < times.get(job, config.rounds)
        for count in (config.devices if job == "devices" else (1,))
    ]


def prepare_loop(config: Config) -> Callable[[], dict[str, Any]]:
    """The host loop over one task, against its own step in a bare Python loop."""
    job = make_job(config)
    program = make_program(job, config.batch_size)
    options = Options(num_steps=config.num_steps, batch_size=config.batch_size)
    bare = partial(bare_loop, config, job, program)
    walked = partial(host_loop, job, program, options)
    for loop in (bare, walked):
        timed(loop)  # compiles

    def work():
        cost = in_turn({"bare": bare, "loop": walked}, next(rounds) % 2)
        return cost | {"steps": config.num_steps}

    rounds = itertools.count()

    return work


def bare_loop(config: Config, job: Job, program: Program):
    """The jitted step and nothing else, on batches that are ready."""
    state, key = program.start(job.start), jax.random.key(KEY_SEED)
    numbers = np.arange(config.batch_size)
    batch = take_rows(job.task.train, numbers, size=config.batch_size)
    for step in range(config.num_steps):
        state, _ = program.step(
            state, key, np.int32(step), np.int32(config.num_steps), batch
        )
    return state


def host_loop(job: Job, program: Program, options: Options):
    """The part of :func:`jaxcl.training.learn` that walks the steps of a task."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        enter, folder = stack.enter_context, Path(place)
        run = Run(
            jax.random.key(KEY_SEED),
            [job.task],
            {},
            options,
            None,
            program,
            results={},
            measured=np.zeros((2, 1), bool),
            spent=spent_so_far({}, 1),
            interrupted=enter(interruptible()),
            save=enter(saving(folder / "checkpoints")),
            write=enter(metrics_file(folder / "metrics.jsonl")),
            scalar=lambda name, value, step: None,
            advance=lambda steps, words: None,
        )
        run_state, status = fit(run, begin(program.start(job.start), options))
    if status != "done":  # a signal came: what was timed is not the whole
        raise KeyboardInterrupt
    return run_state.state


def prepare_checkpoint(config: Config) -> Callable[[], dict[str, Any]]:
    """Save and restore a whole state, beside NumPy's own file of the same arrays."""
    job = make_job(config, large=True)
    program = make_program(job, config.batch_size)
    state = jax.block_until_ready(program.start(job.start))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]

    def work():
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

    return work


def prepare_sam(config: Config) -> Callable[[], dict[str, Any]]:
    """The same steps with SAM and without."""
    jobs = [make_job(config, with_sam=perturbed) for perturbed in (False, True)]
    made = [make_program(job, config.batch_size) for job in jobs]
    loops = [partial(bare_loop, config, *both) for both in zip(jobs, made, strict=True)]
    for loop in loops:
        timed(loop)

    def work():
        named = {"plain": loops[0], "sam": loops[1]}
        return in_turn(named, next(rounds) % 2) | {"steps": config.num_steps}

    rounds = itertools.count()

    return work


def in_turn(works: Mapping[str, Callable], backwards: int) -> dict[str, float]:
    """Seconds of each, and wall seconds; who goes first changes from round to round.

    On a CPU they are those of its thread, else those that pass until the device is done.
    """
    order = list(works)[:: -1 if backwards else 1]
    costs = {name: timed(works[name])[1] for name in order}
    on_cpu = jax.default_backend() == "cpu"
    seconds = {name: cost.cpu if on_cpu else cost.wall for name, cost in costs.items()}
    return seconds | {f"{name}_wall": cost.wall for name, cost in costs.items()}


def memory(config: Config) -> dict[str, Any]:
    """Bytes of the state, and what XLA sets aside within a step besides its arguments."""
    found = {}
    for name in ("plain", "sam"):
        job = make_job(config, with_sam=name == "sam", large=True)
        size, key = config.large_batch_size, jax.random.key(KEY_SEED)
        program = make_program(job, size)
        state = program.start(job.start)
        batch = take_rows(job.task.train, np.arange(size), size=size)
        step = lambda state, batch, run=program, key=key: run.step(
            state, key, 0, 0, batch
        )
        lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
        used = lowered.compile().memory_analysis()
        assert used is not None  # every backend here has one
        found[f"{name}_state"] = sum(x.nbytes for x in jax.tree.leaves(state))
        found[f"{name}_temporary"] = used.temp_size_in_bytes
        found["parameters"] = sum(x.nbytes for x in jax.tree.leaves(job.start))
    return found


def on_devices(config: Config, count: int) -> dict[str, Any]:
    """Rows per second on so many pretend devices, in a process of its own."""
    settings = json.dumps(plain(config) | {"count": count})
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    flag = f"--xla_force_host_platform_device_count={count}"
    script = [sys.executable, "-m", "experiments.benchmarks.host.devices"]
    done = subprocess.run(
        script,
        input=settings,
        env=environment | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        msg = f"benchmarks: {count} devices ended with {done.returncode}: {done.stderr}"
        raise RuntimeError(msg)
    return json.loads(done.stdout.splitlines()[-1])


__all__ = ["Turn", "run", "turns"]
