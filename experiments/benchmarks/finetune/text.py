"""Rows of text that every Python has: docstrings, and a tokenizer learned from them."""

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from experiments.benchmarks.finetune.config import Config
from experiments.benchmarks.language.shapes import SHAPES
from jaxcl.data import load_tokenizer
from jaxcl.finetune.config import Config as Settings
from jaxcl.finetune.config import LoRA, Numbers, Text, Training
from jaxcl.interop import save_pretrained
from jaxcl.models import DecoderConfig, decoder

#: Modules of the standard library by task, of which pydoc would show these docstrings.
TASKS = {
    "containers": (
        *("builtins", "array", "collections", "heapq", "bisect", "queue", "types"),
        *("itertools", "functools", "operator", "weakref", "enum", "dataclasses"),
        *("statistics", "random", "decimal", "fractions", "numbers", "datetime"),
    ),
    "text": (
        *("string", "re", "textwrap", "difflib", "csv", "json", "configparser"),
        *("argparse", "optparse", "shlex", "gettext", "locale", "html.parser"),
        *("email.message", "email.policy", "xml.dom.minidom", "codecs", "tokenize"),
    ),
    "system": (
        *("os", "os.path", "pathlib", "shutil", "tempfile", "subprocess", "signal"),
        *("socket", "ssl", "selectors", "asyncio", "threading", "multiprocessing"),
        *("http.client", "urllib.request", "ftplib", "smtplib", "logging", "zipfile"),
    ),
}
END = "<|end|>"
QUESTION = "\n\nWhat is described?"
#: Of the loop at sizes for tests; its vocabulary holds all bytes.
TOY = DecoderConfig(400, 16, 32, 2, 2, 1)


def docstrings(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The public names of modules and of their classes, each docstring once."""
    seen: set[str] = set()
    for module in map(importlib.import_module, names):
        for path, thing in _things(module):
            words = inspect.getdoc(thing)
            if words and words not in seen:
                seen.add(words)
                yield path, words


def _things(module: Any) -> Iterator[tuple[str, Any]]:
    """Functions, classes and their methods, in alphabetical order."""
    public = lambda thing: [name for name in sorted(dir(thing)) if name[0] != "_"]
    for name in public(module):
        thing = getattr(module, name)
        if not callable(thing):
            continue
        yield f"{module.__name__}.{name}", thing
        for inner in public(thing) if inspect.isclass(thing) else ():
            path = f"{module.__name__}.{name}.{inner}"
            yield path, inspect.getattr_static(thing, inner)


def make_files(config: Config, place: Path) -> None:
    """A model of random weights, its tokenizer, and the rows of the tasks."""
    sizes, texts = sizes_of(config), []
    for task, names in TASKS.items():
        rows = list(docstrings(names))[: config.most_rows]
        asked = [
            {"prompt": words + QUESTION, "answer": f" {path}"} for path, words in rows
        ]
        lines = "".join(json.dumps(row) + "\n" for row in asked)
        (place / f"{task}.jsonl").write_text(lines, encoding="utf-8")
        texts += [row["prompt"] + row["answer"] for row in asked]
    params = decoder(sizes).init(jax.random.key(config.seed))
    save_pretrained(place / "model", sizes, params)
    learned_tokenizer(texts, sizes.vocab_size).save_pretrained(place / "model")


def sizes_of(config: Config) -> DecoderConfig:
    """Of the model of the loop."""
    if config.loop_model == "toy":
        return TOY
    found = SHAPES[config.loop_model].config
    assert isinstance(found, DecoderConfig)
    return found


def learned_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Byte pairs of these texts, as small decoders have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = {"eos_token": END, "pad_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def settings(config: Config, place: Path, max_length: int) -> Settings:
    """Those of ``jaxcl finetune`` with replay, on the files that were made."""
    tasks = tuple(str(place / f"{task}.jsonl") for task in TASKS)
    size, rate = config.loop_batch_size, config.learning_rate
    return Settings(
        model=place / "model",
        tasks=tasks,
        out=place / "run",
        training=Training(batch_size=size, learning_rate=rate, seed=config.seed),
        text=Text(max_length=max_length),
        lora=LoRA(rank=config.rank),
        numbers=Numbers(memory=config.capacity),
    )


def tokenizer_of(config: Config, place: Path) -> Any:
    """The learned one, from its files."""
    size = sizes_of(config).vocab_size
    return load_tokenizer(place / "model", vocab_size=size)
