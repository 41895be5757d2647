"""Speed: one continual-learning job, by this library and by others, on one thread.

The job: permuted tasks of synthetic images, a fully connected network, plain SGD, one
pass over each task, and after each task the accuracy on all of them. Every system gets
the same images and permutations: others ready-made in memory, the cheapest way they have;
jaxcl makes them while it runs, and that time is counted. Counted are CPU seconds of one
thread, compilation apart. Systems take turns within a round, and ratios are taken within
rounds, so that other load on the machine hits all alike.

    python -m experiments.benchmarks smoke      # seconds, jaxcl only
    python -m experiments.benchmarks full       # and JAX by hand
    JAXCL_PEERS_PYTHON=PYTHON python -m experiments.benchmarks full --out outputs/all
    JAXCL_BASELINE=CHECKOUT python -m experiments.benchmarks full --out outputs/change
    python -m experiments.benchmarks full --out experiments/benchmarks/results/speed
    python -m experiments.benchmarks accelerator --help      # a few minutes of a GPU

PYTHON is an interpreter with third_party/peers/requirements-avalanche.txt installed, and
CHECKOUT the library at an earlier commit (git worktree add CHECKOUT COMMIT). A finished
folder is only reported again, like the committed one, hence one for each set of systems.
"""

from dataclasses import dataclass

from jaxcl.runs.experiment import Experiment, check_fields, check_names

METHODS = ("naive", "sam", "gnp", "looksam", "c_flat", "ewc", "er", "agem")
#: All jobs: methods, runs side by side, and EWC on a long stream. ``--jobs`` knows one
#: more, ``looksam_reset``, which is younger than the committed rounds.
JOBS = (*METHODS, "seeds", "ewc-long")


@dataclass(frozen=True, kw_only=True)
class Config:
    """CPU seconds of training, evaluation and compilation."""

    jobs: tuple[str, ...] = JOBS
    """What is done, in the order of a round."""
    rounds: int = 5
    """How often every system does every job."""
    by_hand: bool = True
    """Whether to run the scripts that need only JAX and optax."""

    num_tasks: int = 5
    """Permutations."""
    num_train: int = 10_000
    """Training images per task."""
    num_test: int = 2_000
    """Test images per task."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of the ReLU layers."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 0.1
    """Of SGD, without momentum."""

    strength: float = 1.0
    """Of EWC, in this library's unit; the Fisher is that of all training images."""
    capacity: int = 1_000
    """Slots of experience replay's memory."""
    capacity_per_task: int = 200
    """Slots per task of A-GEM's memory."""
    replay_size: int = 64
    """Remembered images per step, of both."""
    rho: float = 0.05
    """Radius of SAM, LookSAM and GNP, whose cost does not depend on it."""

    long_tasks: int = 20
    """Tasks of the stream on which EWC's cost per task is followed."""
    long_rounds: int = 2
    """Rounds that include it, and Avalanche's own stream; both take long."""
    num_seeds: int = 10
    """Runs side by side in one program."""
    seed_tasks: int = 1
    """Tasks of these runs."""
    seed: int = 0
    """Of images, permutations, networks and batches."""


PRESETS = {
    "smoke": Config(
        jobs=("naive", "sam", "seeds", "ewc-long"),
        rounds=2,
        by_hand=False,
        num_tasks=2,
        num_train=256,
        num_test=64,
        hidden=(16,),
        capacity=32,
        capacity_per_task=16,
        batch_size=16,
        replay_size=16,
        long_tasks=3,
        long_rounds=1,
        num_seeds=2,
    ),
    "full": Config(),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    check_fields(config, may_be_zero=("long_rounds", "strength"), runs=("rounds",))
    check_names("jobs", config.jobs, (*JOBS, "looksam_reset"))


EXPERIMENT = Experiment(
    "experiments.benchmarks", PRESETS, "smoke", __doc__ or "", check
)
