"""Refusals of settings that cannot run, which need no JAX."""

import os

from jaxcl.errors import InputError, MissingFileError, require
from jaxcl.files import differences, lock_folder
from jaxcl.finetune.config import (
    Config,
    as_adapter,
    identity,
    named,
    read_settings,
    replayed,
)
from jaxcl.finetune.words import REPLAY, flag
from jaxcl.runs.experiment import check_fields


def check(config: Config) -> None:
    """Refuse what cannot run, before anything slow is loaded."""
    _check_numbers(config)
    adapter, method = as_adapter(config), config.method
    alone = "l2p trains prompts, all other methods lora or full"
    fits = (adapter == "prompts") == (method == "l2p")
    require(fits, "--adapter", f"{alone}, got {adapter} with {method}")
    own = f"olora has an adapter for each task, got {adapter}; give --adapter lora"
    require(adapter == "lora" or method != "olora", "--adapter", own)
    products = config.numbers.average == "products" and method == "ilora"
    factors = f"an average of products needs --adapter lora, got {adapter}"
    require(adapter == "lora" or not products, "--average", factors)
    folder = config.model
    if not (folder / "config.json").is_file():
        came = "a file" if folder.is_file() else "a folder without config.json"
        came = came if folder.exists() else "nothing"
        wanted = f"expected the folder of a Hugging Face model, got {came} at {folder}"
        msg = f"--model: {wanted}; download one, or see --demo."
        raise MissingFileError(msg)
    tasks = named("--tasks", config.tasks)
    require(tasks, "--tasks", "expected at least one file, got none")
    named("--general", config.general)
    room = config.numbers.max_tasks
    wanted = f"room for at least the {len(tasks)} tasks given, got {room}"
    require(room is None or room >= len(tasks), "--max-tasks", wanted)
    _check_out(config)


def _check_numbers(config: Config) -> None:
    zero = ("warmup", "weight_decay", "dropout", "general_every", "save_every")
    zero += ("start_after", "max_labels", "decay", "mix", "beta", "strength", "seed")
    parts = (config.training, config.text, config.lora, config.numbers, config.testing)
    rules = {"may_be_zero": zero, "fractions": ("warmup", "test_fraction", "dropout")}
    for part in parts:
        try:
            check_fields(part, **rules)
        except InputError as error:
            name, _, rest = str(error).partition(":")
            msg = f"{flag(name)}:{rest}"
            raise InputError(msg) from error
    numbers = config.numbers
    for name in ("decay", "mix"):
        value = getattr(numbers, name)
        require(value <= 1, f"--{name}", f"expected a number up to 1, got {value}")
    # gem draws rows with replacement, so that it can replay more than it holds of a task.
    held, rows = numbers.memory, replayed(config)
    few = f"expected at least the {rows} rows that a step replays, got {held}"
    fits = config.method not in REPLAY or rows <= held
    require(fits, "--memory", f"{few}; raise it, or give --replay {held}")
    few = f"expected at most the {numbers.prompts} of --prompts"
    fits = config.method != "l2p" or numbers.num_selected <= numbers.prompts
    require(fits, "--num-selected", f"{few}, got {numbers.num_selected}")


def _check_out(config: Config) -> None:
    """Refuse a folder that holds something else, or a run with other settings."""
    out = config.out
    if not out.exists():
        above = next(path for path in out.absolute().parents if path.exists())
        closed = f"{above} may not be written to; give another folder"
        require(os.access(above, os.W_OK), "--out", closed)
        return
    require(out.is_dir(), "--out", f"{out} is a file; give a folder for the run")
    if (out / ".lock").exists():
        with lock_folder(out):  # refused while another process is at it
            pass
    held = read_settings(out)
    if held is None:
        some = any(path.name != ".lock" for path in out.iterdir())
        other = f"{out} holds other files; give a new folder for the run"
        require(not some, "--out", other)
        return
    differ = differences(held["settings"], identity(config))
    message = f"{out} holds a run with {differ}; give another folder, or the same words"
    require(not differ, "--out", message)
    cut, longest = held.get("max_new_tokens"), config.testing.max_new_tokens
    same = cut in (None, longest) or not any(out.glob("answers/*.jsonl"))
    other = f"answers of the run have at most {cut} tokens, got {longest}"
    require(same, "--max-new-tokens", f"{other}; give {cut}, or another --out")
    names = [one.name for one in named("--tasks", config.tasks)]
    before = [task["name"] for task in held["tasks"]]
    grown = names[: len(before)] == before
    wanted = f"the tasks of a run stay, {' '.join(before)}; new ones come after them"
    require(grown, "--tasks", f"{wanted}, got {' '.join(names)}")
    more = len(names) > len(before) and config.method in ("mtl",)
    together = "mtl learns all tasks at once; for more give another --out"
    require(not more, "--tasks", together)
    held_room = held["max_tasks"]
    full = f"the run has room for {held_room} tasks, got {len(names)}"
    remedy = "give --max-tasks at its start"
    require(
        held_room is None or len(names) <= held_room, "--tasks", f"{full}; {remedy}"
    )
