"""Tests of any model on any files, and its answers to prompts."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcl.data.choices import read_choices
from jaxcl.data.instruct import instruct_prompts
from jaxcl.data.label_choices import label_choices
from jaxcl.errors import require
from jaxcl.files import new_folder, write_text
from jaxcl.finetune.config import SETTINGS, Config, config_of, named, parts_of
from jaxcl.finetune.interpolate import own_tests
from jaxcl.finetune.measure import (
    FRACTIONS,
    Measurement,
    drawn,
    generated,
    measurements,
    some_rows,
    titles_of,
    values_of,
    words_of,
    write_lines,
)
from jaxcl.finetune.tasks import few_labels, format_of
from jaxcl.finetune.trained import Trained, load
from jaxcl.finetune.words import in_words_of_flags
from jaxcl.models import Sampling
from jaxcl.progress import progress
from jaxcl.report.statistics import fraction_interval
from jaxcl.report.tables import Column, Table, table_of, to_csv, to_markdown
from jaxcl.typing import Params

_ROWS = 100  # of a file that is not of the run


def evaluate(asked: Any) -> str:
    """The table of a model's tests, as Markdown; see ``jaxcl evaluate --help``."""
    trained = load(asked.source, asked.learner, asked.after)
    config = _settings(asked.source, vars(asked))
    own = _is_run(asked.source) and not (asked.tasks or asked.general)
    with in_words_of_flags():
        if own:
            tests = own_tests(config, trained, asked.rows)
        else:
            tests = _tests_of_files(asked, config, trained)
    if asked.out is None:
        return to_markdown(_table(tests, trained.params, None))
    with new_folder(asked.out) as new:
        table = _table(tests, trained.params, new)
        write_text(new / "results.csv", to_csv(table))
    return to_markdown(table)


def _table(tests: list[Measurement], params: Params, out: Path | None) -> Table:
    """The results of all tests, the lines of which are written into a folder."""
    rows: list[dict[Column, Any]] = []
    titles = titles_of((test.kind, test.name) for test in tests)
    with progress(sum(test.count for test in tests), "rows tested") as advance:
        for test in tests:
            title = titles[test.kind, test.name]
            note = lambda count, title=title: advance(count, title)
            lines = test.measure(params, advance=note) or []
            if out is not None:
                write_lines(out / test.kind / f"{test.name}.jsonl", lines)
            rows += _rows(title, lines)
    return table_of(rows, "From and to: 95 % interval of Wilson over the rows.")


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


def _settings(source: Path, given: Mapping[str, Any]) -> Config:
    """Those of the run, or the defaults for a model, but for what is given."""
    own = config_of(source) if _is_run(source) else Config(source, (), source)
    text = own.text
    if given.get("prompt") is not None:  # in place of one that a template makes
        text = dataclasses.replace(text, template=None)
    parts = _but(text, given), _but(own.testing, given)
    return dataclasses.replace(own, text=parts[0], testing=parts[1])


def _but(part: Any, given: Mapping[str, Any]) -> Any:
    """A part of the settings, but for what of it is given."""
    names = {field.name for field in dataclasses.fields(part)}
    known = {n: value for n, value in given.items() if value is not None}
    return dataclasses.replace(part, **{n: known[n] for n in names & {*known}})


def _tests_of_files(asked: Any, config: Config, trained: Trained) -> list[Measurement]:
    """The tests on all files that were asked for."""
    most, tokenizer = asked.rows or _ROWS, trained.tokenizer
    form = _form(config, trained)
    tasks, general = [], []
    for file in named("--tasks", asked.tasks, folders=False):
        paths = parts_of(file)
        parts = [instruct_prompts(path, tokenizer, **form) for path in paths]
        full, held = parts[-1], [part.answers for part in parts]
        numbers, choices = drawn(len(full.answers), most), None
        if labels := few_labels(config.testing.max_labels, held[0], held[-1]):
            choices = label_choices(paths[-1], tokenizer, labels, numbers, **form)
        tasks.append((file.name, some_rows(full, numbers), choices))
    for file in named("--general", asked.general):
        general.append((file.name, read_choices(file.path, tokenizer)))
    words = words_of(config, trained.config, tokenizer)
    return measurements(words, tasks, general, most)


def _form(config: Config, trained: Trained) -> dict[str, Any]:
    """How prompts and answers are written."""
    form = format_of(config.text, trained.tokenizer)
    has = bool(getattr(trained.tokenizer, "chat_template", None))
    none = f"{trained.base} has no chat template; leave --chat out"
    require(has or not form["chat"], "--chat", none)
    return form


def answers_to(asked: Any, prompts: list[str]) -> list[str]:
    """The answers to prompts; see ``jaxcl generate --help``."""
    trained = load(asked.source, asked.learner, asked.after)
    tokenizer = trained.tokenizer
    given = {"chat": asked.chat, "max_new_tokens": asked.max_new_tokens}
    config = _settings(asked.source, given)
    if _form(config, trained)["chat"]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        begun = {"add_generation_prompt": True, "return_dict": False}
        tokens = [tokenizer.apply_chat_template(chat, **begun) for chat in chats]
    else:
        tokens = [tokenizer(prompt).input_ids for prompt in prompts]
    drawn = Sampling(asked.temperature, asked.top_k, asked.top_p)
    words = words_of(config, trained.config, tokenizer)
    key = jax.random.key(asked.seed)
    return generated(words, trained.params, tokens, key=key, sampling=drawn)
