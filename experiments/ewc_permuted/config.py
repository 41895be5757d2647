"""EWC on permuted MNIST (arXiv:1809.10635, Table 4): every number, with its reason.

Published, domain-incremental, accuracy over all ten tasks at the end, mean of 20 runs:
no measure 78.51, EWC 94.31, online EWC 94.42, joint training 97.59 per cent.

Everything not marked *ours* is the protocol of van de Ven and Tolias 2018, in numbers
from the paper or the defaults of the code that the authors published with it.

    python -m experiments.ewc_permuted smoke                   # seconds, digits
    python -m experiments.ewc_permuted short --data FOLDER     # minutes, MNIST
    python -m experiments.ewc_permuted paper --data FOLDER     # days of one core
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields

#: Average accuracy over the ten tasks at the end, in per cent (Table 4, domain).
PUBLISHED = {"none": 78.51, "ewc": 94.31, "online-ewc": 94.42, "joint": 97.59}

LABELS = {"none": "none", "ewc": "EWC", "online-ewc": "online EWC", "joint": "joint"}
Arm = Literal["none", "ewc", "online-ewc", "joint"]
PENALIZED = ("ewc", "online-ewc")  # the arms with a strength


@dataclass(frozen=True, kw_only=True)
class Config:
    """None, EWC, online EWC and joint training on ten permutations of MNIST."""

    data: str = ""
    """digits (ships with scikit-learn), or a folder with MNIST's four idx files."""
    arms: tuple[Arm, ...] = get_args(Arm)
    """What is compared, in the order it is run."""
    seeds: int = 20
    """Runs per arm; a seed draws permutations, start and batches."""
    num_tasks: int = 10
    """Permutations; none of them is the identity."""
    padding: int = 2
    """Black pixels added on every side before permuting: 28x28 becomes 32x32."""
    hidden: tuple[int, ...] = (1000, 1000)
    """Units of the two ReLU layers."""
    gain: float = 3**-0.5
    """Kernels are uniform with variance gain^2 / fan_in: PyTorch's default law."""
    learning_rate: float = 1e-4
    """Of Adam, betas 0.9 and 0.999."""
    reset_optimizer: bool = False
    """Whether Adam is reset for each task; the authors' default does not."""
    iterations: int = 5000
    """Steps per task."""
    batch_size: int = 128
    """Images per step."""

    fisher: Literal["predicted", "exact", "sampled", "empirical"] = "predicted"
    """Labels of the log-likelihood: the most likely one, all weighted, drawn, given."""
    fisher_examples: int | None = None
    """Training rows that the Fisher is a mean over; all if None."""
    decay: float = 1.0
    """Share of the old Fisher that online EWC keeps per task."""
    strength: float | None = None
    """Of EWC and online EWC, with the factor 1/2 and the mean over examples; found on
    the grid if None. The authors' code has 100 in the same unit."""

    strengths: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0, 10000.0)
    """The grid, on which EWC and online EWC each find their own. Ours."""
    search_rows: int = 10_000
    """Last rows of the training set, held out to choose the strength on. Ours."""
    search_seed: int = 1000
    """Its permutations, start and batches; no reported run has it. Ours."""
    search_tasks: int = 5
    """Tasks of a search run. Ours."""
    search_iterations: int = 300
    """Steps per task of a search run. Ours."""
    search_fisher_examples: int | None = 5000
    """As ``fisher_examples``, in the search. Ours."""

    matrix_examples: int | None = 2000
    """Test images per entry of the accuracy matrix; the reported accuracy at the end is
    on all. Ours."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints, which are taken between tasks."""
    workers: int | None = None
    """Processes, each with its own copy of the images; if None, one per core on a CPU,
    else one."""
    seed: int = 0
    """Where all randomness comes from."""


PRESETS = {
    "smoke": Config(  # seconds; a test runs it
        data="digits",
        seeds=1,
        num_tasks=5,
        hidden=(64, 64),
        learning_rate=1e-3,
        iterations=200,
        batch_size=32,
        strengths=(10.0, 100.0),
        search_rows=300,
        search_tasks=4,
        search_iterations=150,
        search_fisher_examples=200,
        matrix_examples=None,
        workers=1,
    ),
    "short": Config(  # about 15 minutes of one busy core; a test runs a part of it
        seeds=1,
        hidden=(200, 200),
        learning_rate=1e-3,
        iterations=300,
        fisher_examples=2000,
        strength=100.0,
        matrix_examples=500,
    ),
    "reduced": Config(  # a tenth of the steps: about one pass over each task
        seeds=1, iterations=500, fisher_examples=10_000
    ),
    "paper": Config(  # a search as near to the protocol as a fifth of its steps allows
        search_tasks=10, search_iterations=1000
    ),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    named = "name a folder with MNIST's four idx files: --data FOLDER"
    require(config.data, "data", named)
    may_be_zero = "checkpoint_seconds", "decay", "padding", "strength", "strengths"
    check_fields(config, may_be_zero=may_be_zero, seeds=("seed", "search_seed"))
    wanted = f"expected a fraction from 0 to 1, got {config.decay:g}"
    require(config.decay <= 1, "decay", wanted)
    other = f"must not be one of the {config.seeds} reported seeds"
    apart = config.search_seed not in range(config.seeds)
    require(apart, "search_seed", f"{other}, got {config.search_seed}")


EXPERIMENT = Experiment(
    "experiments.ewc_permuted",
    PRESETS,
    default="smoke",
    about=__doc__ or "",
    check=check,
    # A run is taken up again whatever these are, and wherever the data lie.
    cosmetic_fields=("checkpoint_seconds", "workers"),
    path_fields={"data": ("digits",)},
)
