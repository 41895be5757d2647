"""Plasticity and sharpness (arXiv:2409.17300): every number, with its reason.

Claim of the paper: SAM and the gradient norm penalty (GNP) do not keep a network able to
learn any better than SGD does. On 100 permutations of MNIST all are close, SGD at 0.001 is
best, SAM and GNP decline at the high rate; on the 45 pairs of digits SAM loses plasticity
and GNP (0.01) keeps it best. The paper gives no accuracies in numbers that we know of.

Known from the paper: three linear layers with ReLU, rates 0.01 and 0.001, GNP's lambda 0.1,
100 permutations or 45 pairs, 10 runs, test accuracy of the task just learned. Everything
else is marked *ours*, or has its source.

    python -m experiments.plasticity quick                     # minutes on 2 cores
    python -m experiments.plasticity paper --data FOLDER       # MNIST's four files in it
    python -m experiments.plasticity cifar --data FOLDER       # CIFAR-100, small ResNet
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields

#: Streams of tasks; :mod:`experiments.plasticity.settings` makes them.
SettingName = Literal[
    "permuted", "pairs-new-head", "pairs-one-head", "class-splits", "permuted-labels"
]
#: Arms that are reported together.
Group = Literal["paper", "neighbours", "adaptive", "controls", "sweep"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """SGD, SAM and GNP on streams of image tasks: who stays able to learn?"""

    data: str = "digits"
    """digits (ships with scikit-learn), tfds:NAME, or a folder of images (MNIST's idx
    files, CIFAR's binary files, .npy or .npz). The long presets want one named."""
    settings: tuple[SettingName, ...] = ("permuted", "pairs-new-head", "pairs-one-head")
    """Streams of tasks."""
    groups: tuple[Group, ...] = get_args(Group)
    """paper: SGD, SAM, GNP; neighbours: what else preserves plasticity; adaptive: strengths
    that follow the run; controls: matched in norm; sweep: rho and lambda x r. Done in
    this order."""
    seeds: int = 10
    """Runs per arm of the group ``paper``, as in the paper."""
    other_seeds: int = 5
    """Runs per arm of the other groups. Ours."""
    sweep_seeds: int = 3
    """Runs per arm of the sweep. Ours."""
    num_tasks: int = 100
    """Tasks, as in the paper; pairs are always all pairs."""
    task_limit: int | None = None
    """Stop after so many tasks (for short trials)."""
    examples_per_task: int | None = 10_000
    """Training images a task may use; all if None. Online preset of L2 Init
    (arXiv:2308.11958)."""
    test_examples: int | None = 2_000
    """Test images that each accuracy is taken on; all if None. Ours."""
    batch_size: int = 16
    """Images per step. Online preset of L2 Init."""
    num_epochs: int = 1
    """Passes over each task. Online preset of L2 Init."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of the hidden layers. The paper has three linear layers; widths of L2 Init."""
    resnet_width: int = 0
    """Channels of the first stage of a small ResNet; 0 for the fully connected network."""

    learning_rates: tuple[float, ...] = (0.01, 0.001)
    """Step sizes of SGD, as in the paper."""
    momentum: float = 0.0
    """Of SGD. Ours: the paper does not say."""
    rho: float = 0.05
    """SAM's radius. Ours: the usual value (arXiv:2010.01412)."""
    r: float = 0.125
    """GNP's radius. Ours: with lambda 0.1 it makes alpha 0.8, its authors' usual blend."""
    penalty: float = 0.1
    """GNP's lambda, as in the paper."""
    rhos: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5)
    """Sweep of SAM's radius. Ours."""
    penalties: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Sweep of GNP's lambda. Ours."""
    radii: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Sweep of GNP's radius. Ours."""
    l2_init_strength: float = 1e-3
    """With the factor 1/2. Inside the range of the authors of L2 Init."""
    shrink: float = 1e-4
    """Shrink and perturb keeps 1 - shrink of each weight per step (arXiv:1910.08475)."""
    perturb: float = 1e-2
    """Share of a fresh initialisation that it adds per step, as in L2 Init's comparison."""
    renewal_period: int = 25
    """Steps between shrink-and-perturb's draws, which are compounded to the same law: one
    draw per step would cost ten times the step."""
    dormant: float = 0.025
    """ReDo's threshold (arXiv:2302.12902)."""
    redo_period: int = 625
    """Steps between ReDo's resets: once per task of the online preset."""
    replacement_rate: float = 1e-5
    """Continual backprop: share of mature units replaced per step (Dohare et al. 2024)."""
    target_sharpness: float = 0.02
    """Rise of the loss that the tracking arm adapts its radius to. Ours."""
    warm_share: float = 0.5
    """Share of a task's steps over which the re-warmed strengths rise. Ours."""

    measured_rho: float = 0.05
    """Radius of the sharpness that is measured, whatever SAM's is. Ours."""
    measured_dormant: float = 0.025
    """Threshold of the dormant units that are counted, whatever ReDo's is."""
    probe_examples: int = 128
    """Images of the current task that the plasticity figures are taken on. Ours."""
    probe_every: int = 5
    """Tasks between two looks at the largest Hessian eigenvalue. Ours."""
    tasks_per_call: int = 5
    """Tasks between two checkpoints; the program is compiled once for so many."""
    checkpoint_seconds: float = 20.0
    """Least time between two checkpoints."""
    runs_per_call: int | None = None
    """Runs that learn side by side in one program: raise it on an accelerator. If None,
    10 there and 1 on a CPU, which is no faster with more."""
    workers: int | None = None
    """Processes; if None, one per core on a CPU, else one."""
    seed: int = 0
    """Where all randomness comes from."""


PRESETS = {
    "smoke": Config(  # seconds; a test runs it
        settings=("permuted",),
        groups=("paper",),
        seeds=2,
        num_tasks=4,
        task_limit=4,
        examples_per_task=None,
        test_examples=None,
        batch_size=64,
        hidden=(16, 16),
        learning_rates=(0.01,),
        tasks_per_call=2,
        probe_every=2,
        probe_examples=64,
        runs_per_call=2,
        workers=1,
    ),
    "quick": Config(  # under three minutes on two cores, real digits
        settings=("permuted", "pairs-one-head"),
        groups=("paper",),
        seeds=6,
        num_tasks=40,
        examples_per_task=None,
        test_examples=None,
        num_epochs=2,
        hidden=(64, 64),
        learning_rates=(0.1, 0.01),  # ten times the paper's: a task has few steps
        tasks_per_call=8,
    ),
    "paper": Config(data=""),  # the online preset; needs --data with MNIST
    "multi-epoch": Config(  # Dohare et al. 2024: wide, all images
        data="",
        examples_per_task=None,
        test_examples=None,
        num_epochs=1,
        hidden=(2000, 2000),
    ),
    "cifar": Config(  # the paper's own next check: another data set and architecture
        data="",
        settings=("class-splits", "permuted-labels"),
        groups=("paper", "neighbours"),
        seeds=5,
        other_seeds=3,
        num_tasks=20,
        examples_per_task=2_500,
        test_examples=1_000,
        batch_size=32,
        resnet_width=16,
        num_epochs=2,
        learning_rates=(0.1, 0.01),  # at 0.001 a task of 157 steps stays near chance
        redo_period=157,  # once per task
        tasks_per_call=2,
    ),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    files = "MNIST's four idx files (or CIFAR's binary files, .npy, .npz)"
    named = f"--data FOLDER with {files}, --data tfds:NAME, or --data digits"
    require(config.data, "data", f"name the images: {named}")
    runs = "seeds", "other_seeds", "sweep_seeds"
    check_fields(config, may_be_zero=MAY_BE_ZERO, fractions=FRACTIONS, runs=runs)
    # A quadratic penalty is stable only while learning rate * strength < 2.
    product = max(config.learning_rates) * config.l2_init_strength
    wanted = "learning rate * strength must be below 2 to be stable"
    remedy = f"got {product:g}; lower one of them"
    require(product < 2, "l2_init_strength", f"{wanted}, {remedy}")


#: Numbers that are below 1, and turn something off when they are 0; so do the others.
FRACTIONS = (
    *("dormant", "measured_dormant", "momentum"),
    *("replacement_rate", "shrink", "warm_share"),
)
MAY_BE_ZERO = (
    *FRACTIONS,
    *("checkpoint_seconds", "l2_init_strength", "perturb", "resnet_width"),
)

EXPERIMENT = Experiment(
    "experiments.plasticity",
    PRESETS,
    default="quick",
    about=__doc__ or "",
    check=check,
    # A run is taken up again whatever these are, and wherever the data lie.
    cosmetic_fields=("checkpoint_seconds", "workers"),
    path_fields={"data": ("digits", "tfds:")},
)
