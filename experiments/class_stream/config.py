"""Classes of CIFAR-100, five at a time: what a small ResNet keeps of twenty tasks.

Every task has outputs of its own (task-incremental). Compared: no measure against
forgetting; experience replay (ER) from a reservoir; and replay with SAM as the gradient
and EWC as a penalty on top. The host loop walks the tasks: a run killed at any moment goes
on with the same bits when the command is given again.

    python -m experiments.class_stream smoke                   # a minute or two, digits
    python -m experiments.class_stream cifar --data FOLDER     # CIFAR-100
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields

Arm = Literal["none", "er", "sam-ewc-er"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """None, ER, and SAM + EWC + ER on a stream of classes. All numbers are ours."""

    data: str = ""
    """digits (ships with scikit-learn), or a folder or file of images: CIFAR's binary
    files, .npy or .npz."""
    arms: tuple[Arm, ...] = get_args(Arm)
    """What is compared, in the order it is run."""
    seeds: int = 3
    """Runs per arm; a seed draws which classes meet, the start and the batches."""
    num_tasks: int = 20
    """Tasks; must divide the number of classes."""
    width: int = 16
    """Channels of the first of three stages."""
    stem_stride: int = 2
    """2 halves the image at once, for about a quarter of the time."""
    num_steps: int = 160
    """Steps per task: about four passes over 1,250 images."""
    batch_size: int = 32
    """Images per step."""
    learning_rate: float = 0.1
    """Of SGD without momentum, reset for each task."""
    rho: float = 0.05
    """SAM's radius."""
    strength: float = 1.0
    """EWC's, with the factor 1/2 and the mean over examples. At this learning rate 10 is
    too much: the sum of the Fishers grows with the tasks until steps overshoot."""
    fisher_rows: int = 256
    """Images that EWC's Fisher is a mean over, of each task."""
    capacity: int = 1000
    """Images that the reservoir holds."""
    replay_size: int = 32
    """Images that come back with each step."""
    test_rows: int | None = None
    """Test images per task; all if None."""
    eval_batch_size: int = 32
    """Images that are tested at once: so few stay in a CPU's cache; an accelerator wants
    more."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints inside a task."""
    workers: int | None = None
    """Processes; if None, one per core on a CPU, else one."""
    fsdp: int = 1
    """Devices that share large parameters, where there are several; rows are always
    spread over all."""
    seed: int = 0
    """Where all randomness comes from."""


#: The numbers that make an arm what it is.
REPLAY = ("capacity", "replay_size")
NUMBERS = {
    "none": ("learning_rate",),
    "er": ("learning_rate", *REPLAY),
    "sam-ewc-er": ("learning_rate", "rho", "strength", "fisher_rows", *REPLAY),
}

PRESETS = {
    "smoke": Config(  # a minute or two, to compile; a test runs a part of it
        data="digits",
        seeds=1,
        num_tasks=5,
        width=4,
        stem_stride=1,
        num_steps=12,
        batch_size=16,
        fisher_rows=32,
        capacity=64,
        replay_size=16,
        workers=1,
    ),
    "cifar": Config(),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    named = "name the images: --data FOLDER with CIFAR-100, or --data digits"
    require(config.data, "data", named)
    check_fields(config, may_be_zero=("checkpoint_seconds", "rho", "strength"))
    wanted = f"at most the capacity, {config.capacity}, got {config.replay_size}"
    require(config.replay_size <= config.capacity, "replay_size", wanted)


EXPERIMENT = Experiment(
    "experiments.class_stream",
    PRESETS,
    default="smoke",
    about=__doc__ or "",
    check=check,
    cosmetic_fields=("checkpoint_seconds", "eval_batch_size", "workers"),
    path_fields={"data": ("digits",)},
)
