"""Kinds of text one after another: what a byte-level language model keeps of each.

The text ships with Python: sources of the standard library, its documentation, the
licences of the installed packages, the names of all characters. A folder of ``.txt``
files, one domain each, does as well. Compared: no measure against forgetting; experience
replay (ER) from a reservoir; SAM; and SAM, EWC and replay together. Accuracy is the share
of bytes that are predicted right from those before them.

    python -m experiments.byte_domains smoke               # a minute, without SAM and EWC
    python -m experiments.byte_domains python              # an hour or two of a CPU's core
    python -m experiments.byte_domains python --data FOLDER
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields

Arm = Literal["none", "er", "sam", "sam-ewc-er"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """None, ER, SAM, and SAM + EWC + ER on domains of text. All numbers are ours."""

    data: str = "python"
    """python (text that ships with it), or a folder with a .txt file per domain, which
    are learned in the order of their names."""
    arms: tuple[Arm, ...] = get_args(Arm)
    """What is compared, in the order it is run."""
    seeds: int = 3
    """Runs per arm; a seed draws the start and the batches."""
    max_bytes: int = 400_000
    """Bytes of a domain that are used, the first ones; the last tenth is for testing."""
    length: int = 128
    """Bytes per row."""
    hidden_size: int = 128
    """Numbers per position."""
    num_layers: int = 4
    """Blocks of attention and gated units."""
    num_heads: int = 4
    """Queries per position; half as many keys."""
    scan: bool = False
    """Compile one block and loop over the layers: faster to compile, slower on a CPU."""
    checkpoint: bool = False
    """Keep only the inputs of blocks for the gradient: less memory, more work."""
    bfloat16: bool = False
    """Compute in bfloat16 over float32 parameters: for accelerators."""
    num_steps: int = 250
    """Steps per domain."""
    batch_size: int = 8
    """Rows per step: 250 of these steps see most of a domain once."""
    chunk_size: int | None = None
    """Rows whose activations are held at once (gradient accumulation); all if None."""
    learning_rate: float = 1e-3
    """Of AdamW, after a warm-up, reset for each domain."""
    warm_steps: int = 40
    """Steps over which the rate rises from 0."""
    rho: float = 0.05
    """SAM's radius."""
    strength: float = 1000.0
    """EWC's, with the factor 1/2 and the mean over rows."""
    fisher_rows: int = 64
    """Rows that EWC's Fisher is a mean over, of each domain."""
    capacity: int = 256
    """Rows that the reservoir holds."""
    replay_size: int = 8
    """Rows that come back with each step: as many as new ones."""
    test_rows: int | None = 200
    """Test rows per domain; all if None."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints inside a domain."""
    workers: int | None = None
    """Processes; if None, one per core on a CPU, else one."""
    fsdp: int = 1
    """Devices that share large parameters, where there are several; rows are always
    spread over all."""
    seed: int = 0
    """Where all randomness comes from."""


#: The numbers that make an arm what it is.
ADAMW = ("learning_rate", "warm_steps")
REPLAY = ("capacity", "replay_size")
NUMBERS = {
    "none": ADAMW,
    "er": (*ADAMW, *REPLAY),
    "sam": (*ADAMW, "rho"),
    "sam-ewc-er": (*ADAMW, "rho", "strength", "fisher_rows", *REPLAY),
}

PRESETS = {
    "smoke": Config(  # a minute; a test runs it
        arms=("none", "er"),
        seeds=1,
        max_bytes=20_000,
        length=32,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_steps=12,
        warm_steps=2,
        fisher_rows=8,
        capacity=32,
        replay_size=4,
        test_rows=32,
        workers=1,
    ),
    "python": Config(),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    may_be_zero = "checkpoint_seconds", "rho", "strength", "warm_steps"
    check_fields(config, may_be_zero=may_be_zero)
    wanted = f"at most the capacity, {config.capacity}, got {config.replay_size}"
    require(config.replay_size <= config.capacity, "replay_size", wanted)


EXPERIMENT = Experiment(
    "experiments.byte_domains",
    PRESETS,
    default="smoke",
    about=__doc__ or "",
    check=check,
    cosmetic_fields=("checkpoint_seconds", "workers"),
    path_fields={"data": ("python",)},
)
