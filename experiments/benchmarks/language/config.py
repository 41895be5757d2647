"""What steps and generation of language models cost, beside Transformers and PEFT.

Random weights and tokens, on one thread of the CPU. Every system does the same
work on the same tokens, and takes its turn within a round; ratios are taken within rounds.
Counted are CPU seconds; the first call, which compiles, apart.

    python -m experiments.benchmarks.language smoke    # a minute, jaxcl only
    JAXCL_PEERS_PYTHON=PYTHON python -m experiments.benchmarks.language full --out FOLDER
    python -m experiments.benchmarks.language full --out FOLDER    # its tables again

PYTHON is an interpreter with third_party/peers/requirements-transformers.txt installed;
without it jaxcl is measured alone. FOLDER is one for each set of systems; the committed one
is experiments/benchmarks/results/language.

A job is the name of a model, of those in ``shapes.py``, and what is done with it:

- ``forward`` and ``gradient``, of a decoder: logits of a batch, and the gradient of the
  mean loss with respect to all weights;
- ``products``: the matrix products of ``gradient`` alone, the least that it can cost;
- ``step``: a training step of all weights, with AdamW;
- ``lora``: a training step of adapters of all projections, with AdamW;
- ``sam``: the same after SAM, against ``lora`` of the round;
- ``fisher``: the empirical Fisher of an adapter, and the gradient of the same rows;
- ``memory``: bytes of a ``lora`` step with EWC and an average;
- ``generate_1``, ``generate_5``: greedy tokens after so many prompts.
"""

from dataclasses import dataclass

from experiments.benchmarks.language.shapes import SHAPES
from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields, check_names

DECODERS = ("small", "smollm2", "smollm2_bf16", "billion", "tiny")
ENCODERS = ("bert", "tiny_bert")
TRAINED = ("step", "lora", "sam")
#: By whom ``jaxcl`` is accompanied.
COMPARED = ("forward", "gradient", "step", "lora", "generate_1", "generate_5")
ONLY_OURS = ("products", "sam", "fisher", "memory")

JOBS = (
    *("small-step", "small-lora", "small-sam", "small-fisher"),
    *("bert-step", "bert-lora"),
    *("smollm2-forward", "smollm2-products", "smollm2-gradient"),
    *("smollm2-step", "smollm2-lora", "smollm2-sam", "smollm2-memory"),
    *("smollm2-generate_1", "smollm2-generate_5"),
)
KNOWN = (
    *(f"{model}-{what}" for model in DECODERS for what in COMPARED + ONLY_OURS),
    *(f"{model}-{what}" for model in ENCODERS for what in TRAINED),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """CPU seconds, and bytes, of steps and of generation."""

    jobs: tuple[str, ...] = JOBS
    """What is done, in the order of a round."""
    rounds: int = 5
    """How often; memory, which does not vary, is asked once."""

    rank: int = 8
    """Of the adapters."""
    learning_rate: float = 1e-4
    """Of AdamW, on which the cost does not depend."""
    rho: float = 0.05
    """Radius of SAM, likewise."""
    fisher_rows: int = 128
    """Sequences of the Fisher."""
    new_tokens: int = 64
    """Tokens that are generated after each prompt."""
    seed: int = 0
    """Of weights, tokens and batches."""


PRESETS = {
    "smoke": Config(
        jobs=(
            *(f"tiny-{what}" for what in (*COMPARED, *ONLY_OURS)),
            *("tiny_bert-step", "tiny_bert-lora"),
        ),
        rounds=1,
        rank=2,
        fisher_rows=8,
        new_tokens=4,
    ),
    "full": Config(),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    sizes = "rounds", "rank", "fisher_rows", "new_tokens"
    check_fields(config, runs=sizes)
    check_names("jobs", config.jobs, KNOWN)
    for job in config.jobs:
        name, what = job.split("-")
        size = SHAPES[name].batch_size
        if what == "fisher":
            wanted = f"expected a multiple of the {size} rows of a batch of {name}"
            came = f"{wanted}, got {config.fisher_rows}"
            require(config.fisher_rows % size == 0, "fisher_rows", came)


EXPERIMENT = Experiment(
    "experiments.benchmarks.language", PRESETS, "smoke", __doc__ or "", check
)
