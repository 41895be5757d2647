"""What methods, padding, the loop and the start add to fine-tuning a language model.

Random weights, on one thread of the CPU. What is compared takes turns within a round, in
one process, and ratios are taken within rounds. Counted are CPU seconds, compilation apart;
for the time to the first step, seconds of the clock.

    python -m experiments.benchmarks.finetune smoke    # a minute
    python -m experiments.benchmarks.finetune full     # a quarter of an hour
    python -m experiments.benchmarks.finetune full --out FOLDER    # its tables again

The committed FOLDER is experiments/benchmarks/results/finetune. The extra ``text`` is
needed: the rows are docstrings of Python's library, in tokens that are learned from them.

- ``small-steps``, ``smollm2-steps``: steps of an adapter on random tokens, plain, after
  SAM, with replay, with replay and an average, and I-LoRA's with the states of the last
  layer, of all layers, and with an average of the products;
- ``padding``: the part of all positions that is padding, with the widths that
  ``jaxcl finetune`` chooses, and with a single one;
- ``loop``: steps by ``jaxcl.training.learn``, and the same compiled step in a bare loop on
  batches that are ready;
- ``start``: from the start of a process like ``jaxcl finetune`` to the end of its first
  step.
"""

from dataclasses import dataclass

from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields, check_names

JOBS = ("small-steps", "smollm2-steps", "padding", "loop", "start")
KNOWN = (*JOBS, "tiny-steps")
#: By the names of the fields of their lines: an adapter without more, with SAM; replay,
#: alone and with an average; I-LoRA with the states of the last layer, of all layers, and
#: with an average of the products.
METHODS = ("plain", "sam", "er", "average", "ilora", "ilora_all", "ilora_products")
REPORT_EVERY = 5  # steps, as in ``jaxcl finetune``


@dataclass(frozen=True, kw_only=True)
class Config:
    """CPU seconds of steps and of the loop, positions, and seconds of the start."""

    jobs: tuple[str, ...] = JOBS
    """What is done, in the order of a round."""
    rounds: int = 5
    """How often; padding, which does not vary, is asked once."""

    methods: tuple[str, ...] = METHODS
    """Whose steps are taken; each is measured against ``plain`` or ``er``."""
    rank: int = 8
    """Of the adapters."""
    learning_rate: float = 1e-4
    """Of AdamW, on which the cost does not depend."""
    rho: float = 0.05
    """Radius of SAM, likewise."""
    decay: float = 0.99
    """Of the averages, likewise."""
    capacity: int = 64
    """Rows of the memory; as many are replayed as are new."""
    average_updates: int = 20
    """Updates of the average alone that are timed together."""

    max_length: int = 512
    """Longest row of text, of which the padding is counted."""
    most_rows: int = 1000
    """Docstrings of each task."""
    loop_length: int = 128
    """Longest row of text in the loop, and of the first step."""
    loop_batch_size: int = 8
    """New rows of its steps."""
    loop_steps: int = 30
    """Of a task; those after the first report are timed."""
    loop_model: str = "small"
    """Of the loop and of the first step."""
    seed: int = 0
    """Of weights, tokens and batches."""


PRESETS = {
    "smoke": Config(
        jobs=("tiny-steps", "padding", "loop", "start"),
        rounds=1,
        methods=("er", "average", "ilora"),
        rank=2,
        capacity=4,
        average_updates=2,
        max_length=128,
        most_rows=60,
        loop_length=64,
        loop_batch_size=2,
        loop_steps=10,
        loop_model="toy",
    ),
    "full": Config(),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    sizes = "rounds", "rank", "capacity", "loop_steps", "loop_batch_size"
    check_fields(config, runs=sizes)
    check_names("jobs", config.jobs, KNOWN)
    check_names("methods", config.methods, METHODS)
    check_names("loop_model", (config.loop_model,), ("small", "toy"))
    least = f"expected more than the {REPORT_EVERY} steps of the first report"
    came = f"{least}, got {config.loop_steps}"
    require(config.loop_steps > REPORT_EVERY, "loop_steps", came)


EXPERIMENT = Experiment(
    "experiments.benchmarks.finetune", PRESETS, "smoke", __doc__ or "", check
)
