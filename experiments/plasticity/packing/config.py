"""Packing: what the whole grid costs when runs learn side by side on one accelerator.

The runs are those of the experiment: its settings, arms, numbers and seeds, and after each
task its accuracy and measures. All runs of an arm in a setting are one compiled program.
Images are drawn in MNIST's shapes, since only time and memory are looked at.

    python -m experiments.plasticity.packing smoke    # seconds, any machine
    python -m experiments.plasticity.packing curve    # runs per hour against runs packed
    python -m experiments.plasticity.packing grid     # all runs of the preset ``paper``
"""

from dataclasses import dataclass

from experiments.plasticity import config as experiment
from jaxcl.runs.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Config(experiment.Config):
    """The experiment, with the number of runs in one program."""

    data: str = "synthetic"
    """synthetic (60,000 images of 28x28), or data as the experiment names them."""
    arms: tuple[str, ...] | None = None
    """Arms to time; all that the groups hold, if None."""
    packs: tuple[int, ...] | None = None
    """Runs in one program; all that the groups hold of an arm, if None."""


PRESETS = {
    "smoke": Config(
        data="digits",
        settings=("permuted",),
        groups=("paper",),
        arms=("sgd", "sam"),
        packs=(1, 2),
        seeds=2,
        num_tasks=4,
        task_limit=2,
        examples_per_task=64,
        test_examples=40,
        hidden=(8,),
        probe_every=2,
        probe_examples=16,
        tasks_per_call=1,
    ),
    "curve": Config(
        settings=("permuted",),
        groups=("paper",),
        packs=(1, 10, 40, 160, 640),
        task_limit=5,
    ),
    "grid": Config(tasks_per_call=20),
}

EXPERIMENT = Experiment(
    "experiments.plasticity.packing",
    PRESETS,
    default="smoke",
    about=__doc__ or "",
    check=experiment.check,
    path_fields={"data": ("synthetic", "digits", "tfds:")},
)
