"""What the host loop, its checkpoints, SAM and many devices cost a language model.

A decoder on random bytes, on one thread of the CPU, or on the accelerator that
JAX_PLATFORMS names; what is compared takes turns within a round, and ratios are taken
within rounds. Many devices are pretend ones on all cores, so that they show what
splitting costs, not what it gains.

    python -m experiments.benchmarks.host smoke      # a minute
    python -m experiments.benchmarks.host full       # minutes
    JAX_PLATFORMS=cuda python -m experiments.benchmarks.host accelerator
    python -m experiments.benchmarks.host full --out experiments/benchmarks/results/host

The last one reports the committed results again; none of an accelerator are committed.
"""

from dataclasses import dataclass

from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields, check_names

#: The loop over the bare step, save and restore, SAM's step and memory, many devices.
JOBS = ("loop", "checkpoint", "sam", "memory", "devices")
NUM_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Config:
    """Seconds and bytes of the host loop."""

    jobs: tuple[str, ...] = JOBS
    """What is done, in the order of a round."""
    rounds: int = 3
    """How often; memory, which does not vary, is asked once."""

    num_layers: int = 4
    """Blocks of the decoder."""
    hidden_size: int = 128
    """Numbers per position."""
    num_heads: int = 4
    """Queries per position; half as many keys."""
    length: int = 128
    """Bytes per row."""
    batch_size: int = 2
    """Rows per step: about 50 ms on one thread of a server's CPU."""
    chunk_size: int | None = None
    """Rows whose activations are held at once; all if None."""
    num_steps: int = 100
    """Steps that are timed together."""

    large_hidden_size: int = 512
    """The same for checkpoints and memory, where parameters should outweigh the rest."""
    large_batch_size: int = 1
    """Rows per step, for memory."""

    devices: tuple[int, ...] = (1, 2, 4, 8)
    """How many pretend devices share a batch."""
    devices_batch_size: int = 32
    """Rows per step of all devices together."""
    devices_steps: int = 20
    """Steps that are timed together."""
    devices_rounds: int = 1
    """The first rounds, in which this is done: most of its time goes into starting."""
    seed: int = 0
    """Of rows, network and batches."""


PRESETS = {
    "smoke": Config(
        rounds=1,
        num_layers=1,
        hidden_size=16,
        num_heads=2,
        length=16,
        num_steps=5,
        large_hidden_size=32,
        devices=(2,),
        devices_batch_size=8,
        devices_steps=2,
    ),
    "full": Config(),
    # A step of 64 rows took 1.3 s on an H100 without autotuning (see results/accelerator),
    # too long for the minutes that one is lent for. The gradient needs 413 MiB of a row
    # (2 x 4 layers x 16 heads x 512 x 512 probabilities, 33,000 numbers per position and
    # layer), and XLA takes that of all rows in one piece: 27 GiB of 64, 3.5 of 8.
    "accelerator": Config(
        jobs=("loop", "checkpoint", "sam", "memory"),
        rounds=3,
        hidden_size=1024,
        num_heads=16,
        length=512,
        batch_size=16,
        chunk_size=8,
        num_steps=10,
        large_hidden_size=1024,
        large_batch_size=8,
    ),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    check_fields(config, runs=("rounds",))
    check_names("jobs", config.jobs, JOBS)
    for name in ("batch_size", "large_batch_size", "devices_batch_size"):
        size = getattr(config, name)
        most = f"at most the {NUM_ROWS} rows there are, got {size}"
        require(size <= NUM_ROWS, name, most)
    for count in config.devices:
        size = config.devices_batch_size
        multiple = f"must be a multiple of all devices, got {size} for {count}"
        require(size % count == 0, "devices_batch_size", multiple)


EXPERIMENT = Experiment(
    "experiments.benchmarks.host", PRESETS, "smoke", __doc__ or "", check
)
