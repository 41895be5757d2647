"""Settings as words of the command line, and which of them matter to a run."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxcl.errors import InputError
from jaxcl.finetune.config import Config, as_adapter

_FLAT = ("sam", "asam", "gnp", "gsam", "looksam", "c-flat")
#: Methods with one memory for the rows of all tasks.
REPLAY = ("er", "der++", "agem", "ilora")
_PENALTY = ("ewc", "lwf", "der++", "olora", "l2p", "ilora")
#: The methods, gradients and adapters that a number is for; all others are for every run.
_ONLY_FOR = {
    **dict.fromkeys(("memory", "replay"), (*REPLAY, "gem")),
    "strength": _PENALTY,
    "beta": ("der++",),
    "temperature": ("lwf",),
    "mix": ("wise-ft",),
    **dict.fromkeys(("decay", "hidden", "average", "start_after"), ("ilora",)),
    "fisher_rows": ("ewc",),
    "num_logits": ("der++",),
    **dict.fromkeys(("prompts", "prompt_length", "num_selected"), ("l2p",)),
    "max_tasks": ("gem", "olora"),
    "rho": _FLAT,
    "penalty": ("gnp",),
    "gsam_alpha": ("gsam",),
    **dict.fromkeys(("rank", "alpha", "dropout", "targets"), ("lora",)),
    "keep_models": ("full",),
}


def matters(config: Config, name: str) -> bool:
    """Whether a setting changes a run of this method, gradient and adapter."""
    chosen = {config.method, config.gradient, as_adapter(config)}
    return name not in _ONLY_FOR or bool(chosen & {*_ONLY_FOR[name]})


def without_effect(config: Config) -> list[str]:
    """Flags that were given for other methods, and these: ``--mix (wise-ft)``."""
    return [
        f"{flag(name)} ({', '.join(_ONLY_FOR[name])})"
        for name, value, default in changed(config)
        if not matters(config, name)
    ]


def command_of(config: Config) -> str:
    """The command line of these settings, without those that are the default."""
    words = ["jaxcl", "finetune"]
    for name, value, default in changed(config):
        if isinstance(default, bool):
            words.append(flag(name) if value else flag(f"no-{name}"))
        elif isinstance(value, tuple):
            words += [flag(name), *map(str, value)]
        else:
            words += [flag(name), str(value)]
    return shlex.join(words)


def flag(name: str) -> str:
    """A setting as a word of the command line."""
    return f"--{name.replace('_', '-')}"


def changed(part: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and default of each field that is not as by default, in all groups."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if dataclasses.is_dataclass(value):
            yield from changed(value)
        elif value != field.default:
            yield field.name, value, field.default


#: The flags for which functions of the library read something.
_FLAGS = {
    "instruct_prompts": "--tasks",
    "instruct_dataset": "--tasks",
    "label_choices": "--tasks",
    "read_choices": "--general",
    "load_tokenizer": "--model",
    "load_pretrained": "--model",
    "add_lora": "--targets",
}


@contextmanager
def in_words_of_flags() -> Iterator[None]:
    """Refusals of the library with flags in place of its functions and arguments."""
    try:
        yield
    except InputError as error:
        name, colon, rest = str(error).partition(": ")
        if not colon or name not in _FLAGS:
            raise
        if name == "read_choices":  # its fields are fixed: no flag names others
            rest = re.sub(r"(, or )?name another (field )?by \w+=(, or )?", "", rest)
        for argument in ("prompt", "answer", "template", "join", "max_length"):
            rest = re.sub(rf"\b{argument}=(?=[\w'])", f"{flag(argument)} ", rest)
            rest = re.sub(rf"\b{argument}=", flag(argument), rest)
        first = rest.partition(" ")[0]
        found = flag(first) if first in ("rank", "template") else _FLAGS[name]
        msg = f"{found}: {rest}"
        raise type(error)(msg) from error
