"""Rounds in which every system does every job, one after the other."""

import tempfile
from functools import partial
from pathlib import Path

from experiments.benchmarks.config import Config
from experiments.benchmarks.ours import learn, make_images, make_program, side_by_side
from experiments.benchmarks.peers import Ask, workers, write_job
from experiments.benchmarks.rounds import Turn, Work, take_turns
from jaxcl.data import Images
from jaxcl.runs.folder import RunFolder

#: Who does a job besides jaxcl; neighbours in a round are compared.
OTHERS = {
    "naive": ("baseline", "jax", "torch", "avalanche", "avalanche-own-stream"),
    "sam": ("baseline", "jax"),
    "ewc": ("baseline", "torch", "avalanche"),
    "er": ("baseline", "avalanche"),
    "agem": ("baseline", "avalanche"),
    "seeds": (),
    "ewc-long": (),
}
#: What is done in the first ``long_rounds`` rounds only.
LONG = {"ewc-long", "avalanche-own-stream"}


def run(config: Config, folder: RunFolder) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet."""
    images = make_images(config)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "job.npz"
        write_job(data, config, images)
        with workers(config, data) as ask:
            here = {"jaxcl", *ask}
            take_turns(folder, turns(config, here), partial(ready, config, images, ask))


def turns(config: Config, here: set[str]) -> list[Turn]:
    """All turns in their order, of the systems that are here."""
    return [
        Turn(f"round={number}/{job}/{system}", number, job, {"system": system})
        for number in range(config.rounds)
        for job in config.jobs
        for system in ("jaxcl", *OTHERS.get(job, ("baseline",)))
        if system.split("-")[0] in here
        and (number < config.long_rounds or not {job, system} & LONG)
    ]


def ready(config: Config, images: Images, ask: dict[str, Ask], turn: Turn) -> Work:
    """Compile a job of ours, or word the request for it; what is returned does it."""
    worker, _, own_stream = turn.by["system"].partition("-")
    if worker != "jaxcl":
        request = {"method": turn.job, "own_stream": bool(own_stream)}
        return lambda _: ask[worker](request)
    if turn.job == "seeds":
        return side_by_side(config, images)
    long = turn.job in LONG
    num_tasks = config.long_tasks if long else config.num_tasks
    program = make_program(config, images, turn.job.split("-")[0], num_tasks)
    return lambda _: learn(config, program, evaluate=not long)
