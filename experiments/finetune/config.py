"""A pretrained language model on one text classification after another, as instructions.

DBpedia, Amazon, AG News and the domains of CLINC150, put as questions whose answer is the
name of the class: the kind of stream by which papers compare methods for language models.
Harder, and longer, is the stream of TRACE: choices, sums, code and texts in three
languages. Measured are exact match of generated answers, or ROUGE-L where these are texts,
choice among the names by likelihood, and general ability (PIQA, ARC-easy, OpenBookQA)
before and after. The data and the model are not part of this repository: see README.md.

    python -m experiments.finetune smoke --data FOLDER --model FOLDER
    python -m experiments.finetune orders --data FOLDER --model FOLDER   # hours of a core
    python -m experiments.finetune trace --data FOLDER --model FOLDER    # for a large GPU
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from experiments.finetune import trace
from jaxcl.errors import require
from jaxcl.runs.experiment import Experiment, check_fields

Arm = Literal["wise-ft", "er", "ewc", "ilora", "sam-er", "mtl"]


class Order(NamedTuple):
    """A stream of tasks, and the tokens for which it needs room."""

    tasks: tuple[str, ...]
    max_length: int = 96
    """Of a row; a longer prompt loses its beginning."""
    max_new_tokens: int = 12
    """Of a generated answer."""


#: Those of the second begin with what the first ends with; the third is that of TRACE.
ORDERS = {
    "first order": Order(("dbpedia", "amazon", "agnews", "clinc150")),
    "second order": Order(("clinc150", "agnews", "amazon", "dbpedia")),
    "trace": Order(tuple(trace.TASKS), max_length=1024, max_new_tokens=160),
}
OrderName = Literal["first order", "second order", "trace"]

#: Tasks whose answers are texts, and whose score is ROUGE-L; of all others exact match.
TEXTS = "py150", "20minuten"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Seq, WiSE-FT, ER, EWC, I-LoRA, SAM + ER and joint training with LoRA."""

    data: str = "data"
    """Folder with text-cls/, trace/ and instruct/, see README.md."""
    model: str = "smollm2"
    """Folder of a Hugging Face decoder; the results are of SmolLM2-135M-Instruct."""
    arms: tuple[Arm, ...] = get_args(Arm)
    """What is compared, in the order it is run; wise-ft also gives seq, its other
    learner."""
    orders: tuple[OrderName, ...] = ("first order", "second order")
    """Streams of tasks."""
    seeds: int = 2
    """Runs per arm and order; a seed draws adapter, order of rows, and replay."""
    num_tasks: int = 4
    """The first ones of an order."""
    words: int = 16
    """Words of a text that are kept; of those to classify at most 240 letters."""
    num_steps: int = 20
    """Steps per task."""
    batch_size: int = 8
    """Rows per step; each is seen once, where a task has as many."""
    learning_rate: float = 1e-3
    """Of AdamW, constant after a warm-up; reset for each task."""
    rank: int = 8
    """Of LoRA on all projections, with alpha 16."""
    capacity: int = 100
    """Rows that the reservoir holds."""
    replay_size: int = 4
    """Rows that come back with each step."""
    strength: float = 1e4
    """EWC's, with the factor 1/2 and the mean over rows; 64 rows of a task for the
    Fisher."""
    decay: float = 0.9
    """I-LoRA's average over steps; with 20 steps a task, 0.99 would hardly move."""
    distance: float = 1.0
    """I-LoRA's weight of the distance of hidden states."""
    rho: float = 0.02
    """SAM's radius."""
    mix: float = 0.5
    """WiSE-FT's weight of what was trained."""
    test_rows: int = 32
    """Test rows of each task."""
    general_rows: int = 100
    """Questions of each set for general ability."""
    test_on: Literal["all", "seen"] = "seen"
    """After a task: whether tasks that are still to come are tested, too."""
    seed: int = 0
    """Where all randomness comes from."""


#: The numbers that make an arm what it is.
LORA = ("learning_rate", "rank")
REPLAY = ("capacity", "replay_size")
NUMBERS = {
    "seq": LORA,
    "wise-ft": (*LORA, "mix"),
    "er": (*LORA, *REPLAY),
    "ewc": (*LORA, "strength"),
    "ilora": (*LORA, *REPLAY, "decay", "distance"),
    "sam-er": (*LORA, *REPLAY, "rho"),
    "mtl": LORA,
}

PRESETS = {
    "smoke": Config(  # a minute with a tiny model; a test runs it
        arms=("wise-ft", "er"),
        orders=("first order",),
        seeds=1,
        num_tasks=2,
        words=8,
        num_steps=4,
        batch_size=4,
        capacity=16,
        test_rows=6,
        general_rows=4,
    ),
    # Other rows than those of tune, which draws them by seed 0.
    "orders": Config(seed=1),
    # For a large GPU, as the next one; see experiments.benchmarks.
    "long": Config(
        seed=1,
        seeds=5,
        num_steps=60,
        batch_size=16,
        capacity=200,
        replay_size=8,
        decay=0.98,
        test_rows=100,
    ),
    "trace": Config(
        orders=("trace",),
        seeds=3,
        num_tasks=7,
        words=250,
        num_steps=60,
        batch_size=16,  # 960 rows, two passes over the 500 of a task
        capacity=350,  # a tenth of the rows of all tasks
        replay_size=8,
        decay=0.98,
        test_rows=100,
    ),
    # Two settings of each number, one seed, the first two tasks: run twice, the second
    # time with --strength 1000 --decay 0.95 --rho 0.05.
    "tune": Config(
        arms=("ewc", "ilora", "sam-er"),
        orders=("first order",),
        seeds=1,
        num_tasks=2,
        general_rows=1,
    ),
}


def check(config: Config) -> None:
    """Refuse settings that could not work, before any compute."""
    check_fields(config, may_be_zero=("rho", "strength", "distance", "mix"))
    most = min(len(ORDERS[name].tasks) for name in config.orders)
    wanted = f"at most the {most} tasks of an order, got {config.num_tasks}"
    require(config.num_tasks <= most, "num_tasks", wanted)


EXPERIMENT = Experiment(
    "experiments.finetune",
    PRESETS,
    default="smoke",
    about=__doc__ or "",
    check=check,
    path_fields={"data": (), "model": ()},
)
