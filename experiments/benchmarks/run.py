"""Rounds in which every system does every job, one after the other."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks.config import Config
from experiments.benchmarks.ours import (
    learn,
    make_images,
    make_program,
    side_by_side,
)
from experiments.benchmarks.peers import workers, write_job
from experiments.benchmarks.rounds import Turn, Work, take_turns
from jaxcl.data import Images
from jaxcl.runs.folder import RunFolder

#: Who does a job besides jaxcl and its baseline; neighbours in a round are compared.
OTHERS = {
    "naive": ("jax", "torch", "avalanche", "avalanche-own-stream"),
    "sam": ("jax",),
    "ewc": ("torch", "avalanche"),
    "er": ("avalanche",),
    "agem": ("avalanche",),
}
#: What no other system does.
ALONE = ("seeds", "ewc-long")
#: What is done in the first ``long_rounds`` rounds only.
LONG = ("ewc-long", "avalanche-own-stream")


def run(config: Config, folder: RunFolder) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet."""
    images = make_images(config)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "job.npz"
        write_job(data, config, images)
        with workers(config, data) as ask:

            def prepare(todo: Sequence[Turn]):
                jobs = {turn.job for turn in todo if turn.by["system"] == "jaxcl"}
                ours = {job: ready(job, config, images) for job in sorted(jobs)}

                def take(turn: Turn) -> dict[str, Any]:
                    worker, _, own_stream = turn.by["system"].partition("-")
                    if worker == "jaxcl":
                        return rounded(ours[turn.job]())
                    request = {"method": turn.job, "own_stream": bool(own_stream)}
                    return rounded(ask[worker](request))

                return take

            take_turns(folder, turns(config, {"jaxcl", *ask}), prepare)


def turns(config: Config, here: set[str]) -> list[Turn]:
    """All turns in their order, of the systems that are here."""
    return [
        Turn(f"round={number}/{job}/{system}", number, job, {"system": system})
        for number in range(config.rounds)
        for job in config.jobs
        for system in ("jaxcl", *others(job))
        if system.split("-")[0] in here
        and (number < config.long_rounds or not {job, system} & {*LONG})
    ]


def others(job: str) -> tuple[str, ...]:
    """Who does a job besides jaxcl, if they are here."""
    return () if job in ALONE else ("baseline", *OTHERS.get(job, ()))


def ready(job: str, config: Config, images: Images) -> Work:
    """Compile a job of ours; the function does it and returns what it cost."""
    if job == "seeds":
        return side_by_side(config, images)
    long = job in LONG
    num_tasks = config.long_tasks if long else config.num_tasks
    program = make_program(config, images, job.split("-")[0], num_tasks)
    return partial(learn, config, program, evaluate=not long)


def rounded(answer: Any) -> Any:
    """Microseconds are more than any clock here can tell."""
    if isinstance(answer, dict):
        return {name: rounded(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [rounded(value) for value in answer]
    return round(answer, 6) if isinstance(answer, float) else answer
