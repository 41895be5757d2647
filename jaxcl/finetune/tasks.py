"""The files of a run as tasks: rows to learn, rows kept for testing, and their prompts."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcl.data import Prompts, Task, instruct_dataset, instruct_prompts, task_free
from jaxcl.data.choices import Choices
from jaxcl.data.dataset import subset
from jaxcl.data.label_choices import label_choices
from jaxcl.data.records import digest_of
from jaxcl.data.widths import by_group, choose_widths, row_lengths, share_widths
from jaxcl.errors import require, warn
from jaxcl.finetune.config import (
    Config,
    Named,
    Text,
    named,
    parts_of,
    read_settings,
)
from jaxcl.finetune.measure import drawn, some_rows
from jaxcl.training import Options
from jaxcl.training.options import steps_of


class Tested(NamedTuple):
    """The rows of a file that are kept for testing, in words."""

    name: str
    digest: str  # of the file
    prompts: Prompts
    labels: list[str]  # the different answers of the task, where they are few
    choices: Choices | None  # the labels after each prompt, if there are any
    numbers: np.ndarray  # of the rows in their file, in order
    rest: (
        np.ndarray | None
    )  # of those that are learned; None if they have their own file

    @property
    def asked(self) -> tuple[str, Prompts, Choices | None]:
        """What a test of it needs."""
        return self.name, self.prompts, self.choices


class TaskFile(NamedTuple):
    """A task, and what its test rows are in words."""

    task: Task
    tested: Tested


def read_tasks(config: Config, tokenizer: Any) -> tuple[list[TaskFile], list[int]]:
    """All tasks, and the widths to which their rows are padded."""
    tests = read_tests(config, tokenizer)
    files = named("--tasks", config.tasks)
    tasks = [
        _rows_of(config, tokenizer, number, *pair)
        for number, pair in enumerate(zip(files, tests, strict=True))
    ]
    widths = _widths(config, tasks)
    tasks = share_widths(tasks, widths=widths)
    return [TaskFile(*pair) for pair in zip(tasks, tests, strict=True)], widths


def _widths(config: Config, tasks: list[Task]) -> list[int]:
    """Those of the run, or ones of which little is padding; a run keeps its own."""
    if held := read_settings(config.out):
        return held["widths"]
    longest, size = config.text.max_length, config.training.batch_size
    lengths = np.concatenate([row_lengths(task.train) for task in tasks])
    options = Options(num_steps=None, batch_size=size)
    most = most_widths(sum(steps_of(task, options) for task in tasks))
    chosen = choose_widths(lengths, most=most, longest=longest)
    return sorted({*chosen, longest})  # rows of later files may be longer


def most_widths(num_steps: int) -> int:
    """How many programs a run may compile: in a long one less padding makes up for them.

    Steps take seconds on a CPU and fractions of one elsewhere; compiling is slow on both.
    """
    worth = 64 if jax.default_backend() == "cpu" else 1024
    return min(max(4, num_steps // worth), 12)


def most_labels(tasks: list[TaskFile]) -> int:
    """The largest number of labels in a row that is learned: of tokens of answers."""
    rows = (by_group("most_labels", one.task.train) for one in tasks)
    return max(int((batch.y >= 0).sum(1).max()) for part in rows for _, batch in part)


def read_tests(config: Config, tokenizer: Any) -> list[Tested]:
    """The rows of all tasks that are kept for testing."""
    return [_tests_of(config, tokenizer, one) for one in named("--tasks", config.tasks)]


def format_of(text: Text, tokenizer: Any) -> dict[str, Any]:
    """How records become prompts and answers."""
    chat = text.chat
    if chat is None and getattr(tokenizer, "chat_template", None):
        chat = True
    return {
        "prompt": text.prompt,
        "answer": text.answer,
        "template": text.template,
        "join": text.join,
        "max_length": text.max_length,
        "chat": chat,
    }


def _rows_of(
    config: Config, tokenizer: Any, number: int, file: Named, tested: Tested
) -> Task:
    """The rows of one task: those of two files, or of one that is split."""
    own = {"task": number, "mean": "examples", **format_of(config.text, tokenizer)}
    rows = partial(instruct_dataset, tokenizer=tokenizer, **own)
    if tested.rest is None:
        train, test = map(rows, parts_of(file))
    else:
        test = rows(file.path)
        train = subset(test, tested.rest)
    steps = config.training.steps
    length: dict[str, Any] = (
        {"num_steps": steps} if steps else {"num_epochs": config.training.epochs}
    )
    return Task(file.name, train, subset(test, tested.numbers), **length)


def _tests_of(config: Config, tokenizer: Any, file: Named) -> Tested:
    """The test rows of one task."""
    prompts = partial(
        instruct_prompts, tokenizer=tokenizer, **format_of(config.text, tokenizer)
    )
    most = config.testing.test_rows
    paths = parts_of(file)
    if len(paths) > 1:
        learned, asked = prompts(paths[0]), prompts(paths[1])
        numbers, rest = drawn(len(asked.answers), most), None
    else:
        asked = prompts(file.path)
        numbers = kept_apart(config, file.path, len(asked.answers))
        rest = np.setdiff1d(np.arange(len(asked.answers)), numbers)
        learned = some_rows(asked, rest)
    digest = " ".join(digest_of("--tasks", path)[:16] for path in paths)
    kept = some_rows(asked, numbers)
    _warn_known(file.name, learned, kept)
    most = config.testing.max_labels
    labels, choices = few_labels(most, learned.answers, kept.answers), None
    if labels:
        given = tokenizer, labels, numbers
        choices = label_choices(paths[-1], *given, **format_of(config.text, tokenizer))
    return Tested(file.name, digest, kept, labels, choices, numbers, rest)


def _warn_known(name: str, learned: Prompts, tested: Prompts) -> None:
    """Say how many test rows are learned as well: they measure memory alone."""
    pairs = lambda rows: [
        (ids.tobytes(), text) for ids, text in zip(*rows, strict=True)
    ]
    known, found = {*pairs(learned)}, pairs(tested)
    if count := sum(row in known for row in found):
        among = f"{count} of {len(found)} test rows of {name} are among those learned"
        warn(f"--tasks: {among}; drop rows that are there twice.")


def kept_apart(config: Config, path: Path, count: int) -> np.ndarray:
    """The numbers of the rows of a file that are kept for testing, in order."""
    testing = config.testing
    wanted = f"{path} has a single row, and one is kept for testing; give more"
    require(count > 1, "--tasks", wanted)
    size = max(1, round(testing.test_fraction * count))
    size = min(testing.test_rows, size, count - 1)  # one is learned
    return drawn(count, size)


def few_labels(most: int, learned: list[str], tested: list[str]) -> list[str]:
    """The different answers of a task, if they are few and come again and again."""
    different = sorted({*learned, *tested})
    few = 2 <= len(different) <= most
    return different if few and len(learned) >= 2 * len(different) else []


def joined(tasks: list[Task]) -> Task:
    """All tasks as one, as many steps as they have together: the upper bound."""
    epochs, steps = tasks[0].num_epochs, tasks[0].num_steps
    length = {"num_epochs": epochs, "num_steps": steps and steps * len(tasks)}
    return task_free(tasks, name="all tasks")._replace(shuffle=True, **length)
