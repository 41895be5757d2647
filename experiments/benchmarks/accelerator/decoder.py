"""A decoder's step: what SAM adds to it, and what the host loop does."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from experiments.benchmarks.accelerator.schedule import (
    Box,
    Compiled,
    compiled,
    peak_bytes,
    seconds_of,
)
from experiments.benchmarks.host.config import PRESETS, Config
from experiments.benchmarks.host.run import both_loops, make_job, one_step
from experiments.benchmarks.rounds import in_turn


def sizes(box: Box) -> Config:
    """The host benchmark's: less than half a second a step on a large GPU."""
    return PRESETS["smoke" if box.small else "accelerator"]


def sam_step(box: Box) -> None:
    """A step of SAM and AdamW against one of AdamW alone, taking turns."""
    config, works = sizes(box), {}
    made = {name: steps(config, with_sam=name == "sam") for name in ("plain", "sam")}
    for name, (step, walk) in made.items():
        first = seconds_of(partial(walk, 1))[1]
        box.tell(f"{name}: the first step", **step.costs, run_seconds=first)
        works[name] = partial(walk, config.num_steps)
    compare(box, works)


def steps(config: Config, *, with_sam: bool) -> tuple[Compiled, Callable[[int], Any]]:
    """A compiled step, and ``walk(count)``: so many more of them, on one batch."""
    job = make_job(config, config.batch_size, with_sam=with_sam)
    state = job.program.start(job.params)
    step = compiled(one_step(job), state, job.batch, donate=0)

    def walk(count: int) -> Any:
        nonlocal state
        for _ in range(count):
            state, _ = step.call(state, job.batch)
        return state

    return step, walk


def host_loop(box: Box) -> None:
    """The loop for large models against its own step in a bare Python loop."""
    works = both_loops(sizes(box))
    first = {name: seconds_of(work)[1] for name, work in works.items()}
    box.tell("both once, compilation included", compile_and_run_seconds=first)
    ratios = compare(box, works)
    box.tell("a step of the loop against a bare one", ratio=statistics.median(ratios))


def compare(box: Box, works: Mapping[str, Callable[[], Any]]) -> list[float]:
    """Seconds of a step by each of two, taking turns, and their ratio in every round."""
    config, ratios = sizes(box), []
    for number in range(config.rounds):
        costs = in_turn(works, number)
        took = {name: cost.wall / config.num_steps for name, cost in costs.items()}
        base, other = took.values()
        ratios.append(other / base)
        box.tell(
            f"a step, round {number}",
            **{f"{name}_seconds": seconds for name, seconds in took.items()},
            ratio=ratios[-1],
            steps=config.num_steps,
            peak_bytes=peak_bytes(),
        )
    return ratios
