"""Rounds in which every system does every job, one after the other."""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.config import Config
from experiments.benchmarks.ours import (
    learn,
    learn_side_by_side,
    make_images,
    make_pack,
    make_program,
)
from experiments.benchmarks.peers import Ask, workers, write_job
from jaxcl.data import Images
from jaxcl.runs.folder import RunFolder, append, finished
from jaxcl.training.logging import progress

#: Who does a job besides jaxcl; neighbours in a round are compared.
OTHERS = {
    "naive": ("baseline", "jax", "torch", "avalanche", "avalanche-own-stream"),
    "sam": ("baseline", "jax"),
    "gnp": ("baseline",),
    "looksam": ("baseline",),
    "looksam_reset": ("baseline",),
    "c_flat": ("baseline",),
    "ewc": ("baseline", "torch", "avalanche"),
    "er": ("baseline", "avalanche"),
    "agem": ("baseline", "avalanche"),
}
#: What is done in the first ``long_rounds`` rounds only.
LONG = ("ewc-long", "avalanche-own-stream")


class Turn(NamedTuple):
    """One system at one job in one round."""

    round: int
    job: str
    system: str

    @property
    def name(self) -> str:
        """``round=1/ewc/torch``."""
        return f"round={self.round}/{self.job}/{self.system}"


def run(config: Config, folder: RunFolder) -> None:
    """Do every turn that has no line in ``results.jsonl`` yet."""
    images = make_images(config)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "job.npz"
        write_job(data, config, images)
        with workers(config, data) as ask:
            every = turns(config, {"jaxcl", *ask})
            todo = [turn for turn in every if turn.name not in finished(folder)]
            jobs = {turn.job for turn in todo if turn.system == "jaxcl"}
            ours = {job: prepare(job, config, images) for job in sorted(jobs)}
            with progress(len(every), "turns", done=len(every) - len(todo)) as advance:
                for turn in todo:
                    append(folder, [take(turn, ours, ask)])
                    advance(1, turn.name)


def turns(config: Config, here: set[str]) -> list[Turn]:
    """All turns in their order, of the systems that are here."""
    return [
        Turn(number, job, system)
        for number in range(config.rounds)
        for job in config.jobs
        for system in ("jaxcl", *OTHERS.get(job, ()))
        if system.split("-")[0] in here
        and (number < config.long_rounds or not (job in LONG or system in LONG))
    ]


def prepare(job: str, config: Config, images: Images) -> Callable[[], dict[str, Any]]:
    """Compile a job of ours; the function does it and returns what it cost."""
    if job == "seeds":
        return partial(learn_side_by_side, config, make_pack(config, images))
    long = job in LONG
    num_tasks = config.long_tasks if long else config.num_tasks
    program = make_program(config, images, job.split("-")[0], num_tasks)
    return partial(learn, config, program, evaluate=not long)


def take(turn: Turn, ours: dict[str, Callable], ask: dict[str, Ask]) -> dict[str, Any]:
    """One turn, as a line of the results."""
    head = {"run": turn.name, **turn._asdict(), "load": round(os.getloadavg()[0], 1)}
    if turn.system == "jaxcl":
        answer = ours[turn.job]()
    else:
        worker, _, own_stream = turn.system.partition("-")
        answer = ask[worker]({"method": turn.job, "own_stream": bool(own_stream)})
    lost = answer.get("finite") is False
    return {**head, "status": "diverged" if lost else "done", **rounded(answer)}


def rounded(answer: Any) -> Any:
    """Microseconds are more than any clock here can tell."""
    if isinstance(answer, dict):
        return {name: rounded(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [rounded(value) for value in answer]
    return round(answer, 6) if isinstance(answer, float) else answer
