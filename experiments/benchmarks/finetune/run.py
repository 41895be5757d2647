"""Rounds in which every job is done once."""

import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

from experiments.benchmarks.finetune.config import Config
from experiments.benchmarks.rounds import Turn, Work, take_turns
from jaxcl.runs.folder import RunFolder


def run(config: Config, folder: RunFolder) -> None:
    """Take every turn that has no line in ``results.jsonl`` yet."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        # Docstrings are longer than rows may be, as texts of users are.
        warnings.filterwarnings("ignore", ".*lost their beginning")
        take_turns(folder, turns(config), partial(prepare, config, Path(place)))


def turns(config: Config) -> list[Turn]:
    """All turns in their order."""
    return [
        Turn(f"round={number}/{job}", number, job, {})
        for number in range(config.rounds)
        for job in config.jobs
        if number == 0 or job != "padding"
    ]


def prepare(config: Config, place: Path, turn: Turn) -> Work:
    """Compile a job, or make its files; what is returned does it once."""
    if turn.job.endswith("-steps"):
        from experiments.benchmarks.finetune.steps import steps

        return steps(config, turn.job.removesuffix("-steps"))
    from experiments.benchmarks.finetune import loop, text  # needs the extra "text"

    if not (place / "model").exists():
        text.make_files(config, place)
    works = {"padding": loop.padding, "loop": loop.loop, "start": loop.start}
    return works[turn.job](config, place)
