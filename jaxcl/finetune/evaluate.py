"""Tests of any model on any files, and its answers to prompts."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl.data.choices import read_choices
from jaxcl.data.instruct import instruct_prompts
from jaxcl.data.label_choices import label_choices
from jaxcl.errors import require
from jaxcl.files import write_text
from jaxcl.finetune.config import SETTINGS, Numbers, Testing, Text, config_of, named
from jaxcl.finetune.interpolate import tests_of
from jaxcl.finetune.measure import (
    FRACTIONS,
    Words,
    drawn,
    generated,
    measure_answers,
    measure_choices,
    some_rows,
    values_of,
    write_lines,
)
from jaxcl.finetune.tasks import few_labels, format_of
from jaxcl.finetune.trained import Trained, load
from jaxcl.finetune.words import changed
from jaxcl.models import Sampling
from jaxcl.progress import progress
from jaxcl.report.statistics import fraction_interval
from jaxcl.report.tables import Column, table_of, to_csv, to_markdown

_ROWS = 100  # of a file that is not of the run


def evaluate(asked: Any) -> str:
    """The table of a model's tests, as Markdown; see ``jaxcl evaluate --help``."""
    trained = load(asked.source, asked.learner, asked.after)
    own = _is_run(asked.source) and not (asked.tasks or asked.general)
    tests = [*(_own_tests if own else _tests)(asked, trained)]
    rows: list[dict[Column, Any]] = []
    with progress(sum(count for _, count, _ in tests), "rows tested") as advance:
        for name, _, test in tests:
            note = lambda count, name=name: advance(count, name)
            lines = test(trained.params, advance=note) or []
            if asked.out is not None:
                write_lines(asked.out / f"{name}.jsonl", lines)
            rows += _rows(name, lines)
    table = table_of(rows, "From and to: 95 % interval of Wilson over the rows.")
    if asked.out is not None:
        write_text(asked.out / "results.csv", to_csv(table))
    return to_markdown(table)


def _rows(name: str, lines: list[dict[str, Any]]) -> list[dict[Column, Any]]:
    """A row for each metric of one test."""
    rows = []
    for metric, values in values_of(lines).items():
        mean, low, high = float(np.mean(values)), None, None
        if metric in FRACTIONS:
            low, high = fraction_interval(mean, len(values))
        rows.append(
            {
                Column("file"): name,
                Column("metric"): metric,
                Column("rows", 0): len(values),
                Column("mean", 3): mean,
                Column("from", 3): low,
                Column("to", 3): high,
            }
        )
    return rows


def _is_run(source: Path) -> bool:
    return (source / SETTINGS).is_file()


def _own_tests(asked: Any, trained: Trained):
    """Those of the run itself."""
    config = config_of(asked.source)
    longest = asked.max_new_tokens or config.testing.max_new_tokens
    testing = dataclasses.replace(config.testing, max_new_tokens=longest)
    return tests_of(dataclasses.replace(config, testing=testing), trained, asked.rows)


def _tests(asked: Any, trained: Trained):
    """Name, number of rows and function of every test that was asked for."""
    words, form = _words(asked, trained), _form(asked.source, asked.text, trained)
    for file in named("--tasks", asked.tasks, folders=False):
        full = instruct_prompts(file.path, trained.tokenizer, **form)
        numbers, choices = drawn(len(full.answers), asked.rows or _ROWS), None
        if labels := few_labels(Testing.max_labels, full.answers, []):
            given = trained.tokenizer, labels, numbers
            choices = label_choices(file.path, *given, **form)
        prompts = some_rows(full, numbers)
        test = partial(measure_answers, words, prompts=prompts, labels=choices)
        yield file.name, len(numbers), test
    for file in named("--general", asked.general):
        full = read_choices(file.path, trained.tokenizer)
        numbers = drawn(len(full.prompts), asked.rows or _ROWS)
        questions = some_rows(full, numbers)
        test = partial(measure_choices, words, questions=questions)
        yield file.name, len(questions.prompts), test


def _form(source: Path, given: Text, trained: Trained) -> dict[str, Any]:
    """How prompts and answers are written: as in the run, if it is one, but as given."""
    own = config_of(source).text if _is_run(source) else Text()
    asked = {name: value for name, value, _ in changed(given)}
    form = format_of(dataclasses.replace(own, **asked), trained.tokenizer)
    has = bool(getattr(trained.tokenizer, "chat_template", None))
    none = f"{trained.base} has no chat template; leave --chat out"
    require(has or not form["chat"], "--chat", none)
    return form


def _words(asked: Any, trained: Trained) -> Words:
    """The decoder; a pool of prompts is used as in the run."""
    longest, selected = asked.max_new_tokens, Numbers.num_selected
    if _is_run(asked.source):
        config = config_of(asked.source)
        longest = longest or config.testing.max_new_tokens
        selected = config.numbers.num_selected
    longest = longest or Testing.max_new_tokens
    return Words(trained.config, trained.tokenizer, longest, num_selected=selected)


def answers_to(asked: Any, prompts: list[str]) -> list[str]:
    """The answers to prompts; see ``jaxcl generate --help``."""
    trained = load(asked.source, asked.learner, asked.after)
    tokenizer = trained.tokenizer
    if _form(asked.source, Text(chat=asked.chat), trained)["chat"]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        begun = {"add_generation_prompt": True, "return_dict": False}
        tokens = [tokenizer.apply_chat_template(chat, **begun) for chat in chats]
    else:
        tokens = [tokenizer(prompt).input_ids for prompt in prompts]
    drawn = Sampling(asked.temperature, asked.top_k, asked.top_p)
    words = _words(asked, trained)
    key = jax.random.key(asked.seed)
    return generated(words, trained.params, tokens, key=key, sampling=drawn)
