"""A decoder's step: what SAM adds to it, and what the host loop does."""

import statistics
from functools import partial

import jax
import numpy as np

from experiments.benchmarks.accelerator.box import (
    Box,
    Compiled,
    compiled,
    peak_bytes,
    seconds_of,
)
from experiments.benchmarks.host.config import PRESETS, Config
from experiments.benchmarks.host.job import Job, make_job, make_program
from experiments.benchmarks.host.run import bare_loop
from experiments.benchmarks.host.run import host_loop as walk
from jaxcl.training import Options
from jaxcl.training.batches import take_rows


def sizes(box: Box) -> Config:
    """The host benchmark's: less than half a second a step on a large GPU."""
    return PRESETS["smoke" if box.small else "accelerator"]


def sam_step(box: Box) -> None:
    """A step of SAM and AdamW against one of AdamW alone, taking turns."""
    config = sizes(box)
    plain, sam = (Steps(config, make_job(config, with_sam=on)) for on in (False, True))
    for name, steps in {"plain": plain, "sam": sam}.items():
        first = steps.seconds(1)
        facts = {**steps.step.costs, "run_seconds": first}
        box.tell(f"{name}: the first step", **facts)
    for number in range(config.rounds):
        order = (plain, sam) if number % 2 == 0 else (sam, plain)
        took = {id(steps): steps.seconds(config.num_steps) for steps in order}
        base, with_sam = took[id(plain)], took[id(sam)]
        box.tell(
            f"a step, round {number}",
            plain_seconds=base,
            sam_seconds=with_sam,
            ratio=with_sam / base,
            steps=config.num_steps,
            peak_bytes=peak_bytes(),
        )


class Steps:
    """Compiled steps on one batch that is there already; the state goes on."""

    def __init__(self, config: Config, job: Job):
        size, key = config.batch_size, jax.random.key(1)
        program = make_program(job, size)
        self.batch = take_rows(job.task.train, np.arange(size), size=size)
        self.state = program.start(job.start)
        step = lambda state, batch: program.step(
            state, key, np.int32(0), np.int32(0), batch
        )
        self.step: Compiled = compiled(step, self.state, self.batch, donate=0)

    def seconds(self, count: int) -> float:
        """Of one of so many steps."""

        def steps():
            for _ in range(count):
                self.state, _ = self.step.call(self.state, self.batch)
            return self.state

        return seconds_of(steps)[1] / count


def host_loop(box: Box) -> None:
    """The loop for large models against its own step in a bare Python loop."""
    config = sizes(box)
    job = make_job(config)
    program = make_program(job, config.batch_size)
    options = Options(num_steps=config.num_steps, batch_size=config.batch_size)
    bare = partial(bare_loop, config, job, program)
    walked = partial(walk, job, program, options)
    first = {
        name: seconds_of(loop)[1] for name, loop in (("bare", bare), ("loop", walked))
    }
    box.tell("both once, compilation included", compile_and_run_seconds=first)
    ratios = []
    for number in range(config.rounds):
        order = (bare, walked) if number % 2 == 0 else (walked, bare)
        took = {id(loop): seconds_of(loop)[1] / config.num_steps for loop in order}
        ratios.append(took[id(walked)] / took[id(bare)])
        box.tell(
            f"a step, round {number}",
            bare_seconds=took[id(bare)],
            loop_seconds=took[id(walked)],
            ratio=ratios[-1],
            steps=config.num_steps,
            peak_bytes=peak_bytes(),
        )
    box.tell("a step of the loop against a bare one", ratio=statistics.median(ratios))
