"""Rounds in which every system does every job, one after the other."""

import json
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from experiments.benchmarks.language.config import COMPARED, Config
from experiments.benchmarks.language.ours import make_prompts, make_tokens, ready
from experiments.benchmarks.language.shapes import NUM_CLASSES, SHAPES
from experiments.benchmarks.peers import Ask, interpreter, worker
from experiments.benchmarks.rounds import Turn, Work, take_turns
from jaxcl.files import plain
from jaxcl.runs.folder import RunFolder

PEER = "transformers"
REQUIREMENTS = "requirements-transformers.txt"


def run(config: Config, folder: RunFolder) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet."""
    python = interpreter(REQUIREMENTS)
    if python is None:
        return take_turns(folder, turns(config, ()), partial(prepare, config, None))
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "job.npz"
        write_job(data, config)
        with worker(data, PEER, python) as ask:
            take_turns(folder, turns(config, (PEER,)), partial(prepare, config, ask))
    return None


def turns(config: Config, others: tuple[str, ...]) -> list[Turn]:
    """All turns in their order, with others where they do the same."""
    return [
        Turn(f"round={number}/{job}/{system}", number, job, {"system": system})
        for number in range(config.rounds)
        for job in config.jobs
        if number == 0 or not job.endswith("-memory")
        for system in ("jaxcl", *others)
        if system == "jaxcl" or job.split("-")[1] in COMPARED
    ]


def prepare(config: Config, ask: Ask | None, turn: Turn) -> Work:
    """Compile a job of ours, or word the request for it; what is returned does it."""
    if ask is None or turn.by["system"] == "jaxcl":
        return ready(config, turn.job)
    return lambda _: ask({"job": turn.job})


def write_job(path: Path, config: Config) -> None:
    """Tokens and prompts of all models, their sizes and the settings."""
    arrays, shapes = {}, {}
    for name in sorted({job.split("-")[0] for job in config.jobs}):
        shape = SHAPES[name]
        arrays[name] = make_tokens(config, name, shape.batch_size)
        for number, prompt in enumerate(make_prompts(config, name, 5)):
            arrays[f"{name}_{number}"] = np.asarray(prompt)
        sizes = {"config": shape.config._asdict(), "steps": shape.steps}
        shapes[name] = sizes | {"num_classes": NUM_CLASSES}
    settings = json.dumps(plain({"shapes": shapes, **plain(config)}))
    np.savez(path, settings=settings, **arrays)
