"""Steps of an adapter with replay, with an average, and by I-LoRA, which take turns."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from experiments.benchmarks.accelerator.schedule import Fact
from experiments.benchmarks.finetune.config import PRESETS
from experiments.benchmarks.finetune.steps import steps
from experiments.benchmarks.rounds import Turn

METHODS = ("er", "average", "ilora")  # each takes a while to compile
NUM_TIMED = 3


def finetune(small: bool, _folder: Path) -> Iterator[Fact]:
    """Seconds of the steps in each round, and their ratio to the one with replay."""
    name, preset = ("tiny", "smoke") if small else ("smollm2_bf16", "full")
    work = steps(dataclasses.replace(PRESETS[preset], methods=METHODS), name)
    for number in range(NUM_TIMED):
        turn = work(Turn("", number, name, {}))
        for what in METHODS:
            took = turn[f"{what}_wall"]
            fact = {"what": f"{name}: {what}", "run_seconds": took, "round": number}
            yield {**fact, "first_seconds": turn[f"{what}_first_wall"]}
        for what in METHODS[1:]:
            ratio = turn[f"{what}_wall"] / turn["er_wall"]
            yield {"what": f"{name}, {what}: against replay", "ratio": ratio}
