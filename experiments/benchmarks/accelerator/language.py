"""Steps and generation of language models: tokens per second, and the work per second."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from experiments.benchmarks.accelerator.schedule import Fact
from experiments.benchmarks.language.config import PRESETS
from experiments.benchmarks.language.ours import ready
from experiments.benchmarks.language.report import tokens
from experiments.benchmarks.language.shapes import kernels
from experiments.benchmarks.rounds import Turn

JOBS = ("lora", "sam", "step", "generate_5")
NUM_TIMED = 3
#: Products per weight and token: of outputs and of inputs; of weights where they learn.
PRODUCTS = {"lora": 2, "sam": 4, "step": 3, "generate_5": 1}


def language(small: bool, _folder: Path) -> Iterator[Fact]:
    """Each job of each model: the median of a few turns after the first."""
    config = PRESETS["smoke" if small else "full"]
    for name in ("tiny",) if small else ("smollm2_bf16", "billion"):
        weights = sum(count * wide * deep for count, wide, deep in kernels(name))
        took = {}
        for what in JOBS:
            work = ready(config, f"{name}-{what}")
            turns = [work(Turn("", n, what, {})) for n in range(NUM_TIMED)]
            took[what] = median(turn["wall"] for turn in turns)
            speed = tokens(config, f"{name}-{what}") / took[what]
            # Multiplications and additions of the projections: attention comes on top, and
            # what is computed twice to save memory does not count.
            yield {
                "what": f"{name}: {what}",
                "first_seconds": turns[0]["first_wall"],
                "run_seconds": took[what],
                "tokens_per_second": speed,
                "teraflops_per_second": 2 * PRODUCTS[what] * weights * speed / 1e12,
            }
        ratio = took["sam"] / took["lora"]
        yield {"what": f"{name}: SAM against the plain step", "ratio": ratio}
