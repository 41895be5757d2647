"""Tests of a model in words: answers it generates, and choices among given ones.

Each test is a file of its own, written when it is complete, so that what a run was stopped
in is done again, and nothing else.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxcl.data.choices import Choices
from jaxcl.data.conversations import answer_beginning
from jaxcl.data.instruct import Prompts
from jaxcl.data.subsets import random_row_numbers
from jaxcl.errors import InputError
from jaxcl.files import read_lines, write_text
from jaxcl.finetune.config import Config
from jaxcl.finetune.pool import with_pool
from jaxcl.metrics import TextRow, choice_results, exact_match, rouge_l
from jaxcl.models import DecoderConfig, Sampling, answer_scores, generate
from jaxcl.models.generate import GREEDY
from jaxcl.typing import Key, Params

#: Files of a run, by :func:`file_of`.
ANSWERS, GENERAL = "answers", "general"


class Words(NamedTuple):
    """A decoder with its tokenizer, and how answers are generated."""

    config: DecoderConfig
    tokenizer: Any
    max_new_tokens: int = 32
    batch_size: int = 8
    num_selected: int = 3  # of a pool of prompts, if there is one


def words_of(config: Config, model: DecoderConfig, tokenizer: Any) -> Words:
    """A decoder that answers as a run has it."""
    longest, selected = config.testing.max_new_tokens, config.numbers.num_selected
    return Words(model, tokenizer, longest, num_selected=selected)


def file_of(folder: Path, kind: str, ended: int, name: str, learner: str) -> Path:
    """The file of one test: of a task or a set, after so many tasks, of a learner."""
    return folder / kind / f"{ended:03d}-{name}-{learner}.jsonl"


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, all or none."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_text(path, text)


_Rows = TypeVar("_Rows", Prompts, Choices)


def drawn(count: int, most: int | None) -> np.ndarray:
    """Numbers of at most so many of ``count`` rows, in order; the same in every run.

    The first rows of a file would not do: often its rows are sorted.
    """
    size = count if most is None else min(count, most)
    return np.sort(random_row_numbers(jax.random.key(0), count, size))


def some_rows(rows: _Rows, numbers: np.ndarray) -> _Rows:
    """Rows of prompts or questions by their numbers."""
    held: Any = ([part[number] for number in numbers] for part in rows)
    return type(rows)(*held)


def _next_rows(rows: _Rows, first: int, count: int) -> _Rows:
    held: Any = (part[first : first + count] for part in rows)
    return type(rows)(*held)


# ---------------------------------------------------------------------------- answers


def measure_answers(
    words: Words,
    params: Params,
    prompts: Prompts,
    labels: Choices | None = None,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda number: None,
) -> list[dict[str, Any]] | None:
    """Generate an answer to each prompt, and choose among labels, if there are any.

    Args:
      words: how.
      params: of the decoder, with an adapter or without one.
      prompts: with the right answers.
      labels: the same prompts with the possible answers, which are scored by their
        log-likelihood.
      interrupted: asked after each few rows whether to stop.
      advance: called with the number of rows that are done.

    Returns:
      A record for each prompt: ``prompt, answer, output, exact_match, rouge_l``, and with
      labels ``choice, choice_accuracy``. None if it was interrupted.
    """
    found: list[dict[str, Any]] = []
    step = 2 * words.batch_size
    for first in range(0, len(prompts.tokens), step):
        part = _next_rows(prompts, first, step)
        chosen = None if labels is None else _next_rows(labels, first, step)
        found += _answered(words, params, part, chosen)
        advance(len(part.tokens))
        if interrupted():
            return None
    return found


def _answered(words, params, prompts, labels) -> list[dict[str, Any]]:
    said = generated(words, params, prompts.tokens)
    is_right, overlap = exact_match(), rouge_l()
    chosen = None if labels is None else _chosen(words, params, labels)
    lines = []
    for number, (tokens, answer) in enumerate(zip(*prompts, strict=True)):
        row, output = TextRow("", [answer]), said[number]
        line = {
            "prompt": words.tokenizer.decode(tokens.tolist()),
            "answer": answer,
            "output": output,
            "exact_match": is_right(row, output),
            "rouge_l": round(overlap(row, output), 6),
        }
        if chosen is not None:
            label = chosen[number]
            line |= {"choice": label}
            line["choice_accuracy"] = float(label.strip() == answer.strip())
        lines.append(line)
    return lines


def generated(
    words: Words,
    params: Params,
    prompts: Sequence[Any],
    *,
    key: Key | None = None,
    sampling: Sampling = GREEDY,
) -> list[str]:
    """Continuations as text, without special tokens; the most likely ones by default.

    Nor with what a chat template writes before each answer, which training teaches too.
    """
    config = words.config
    if "pool" in params:
        given = params, prompts, words.num_selected
        config, params, prompts = with_pool(config, *given)
    tokens = generate(
        jax.random.key(0) if key is None else key,
        config,
        params,
        prompts,
        max_new_tokens=words.max_new_tokens,
        stop=stop_tokens(words.tokenizer),
        sampling=sampling,
        batch_size=words.batch_size,
        quiet=True,
    )
    decode = partial(words.tokenizer.decode, skip_special_tokens=True)
    begun = ""
    if getattr(words.tokenizer, "chat_template", None):
        begun = answer_beginning(words.tokenizer).strip()
    texts = (decode(new.tolist()).strip() for new in tokens)
    return [text.removeprefix(begun).strip() for text in texts]


def stop_tokens(tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the end of a text, and that of a message."""
    found = {tokenizer.eos_token_id}
    if getattr(tokenizer, "chat_template", None):
        chat = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "a"},
        ]
        tokens = tokenizer.apply_chat_template(chat, return_dict=False)
        special = {*tokenizer.all_special_ids}
        added = tokenizer.added_tokens_decoder.items()
        special |= {number for number, token in added if token.special}
        # What follows the last message, if the template ends it by a token of its own.
        asked = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_dict=False
        )
        found |= {token for token in tokens[len(asked) :] if token in special}
    return sorted(found)


def _chosen(words, params, labels: Choices) -> list[str]:
    """The most likely label of each prompt, by the log-likelihood of all its tokens."""
    scores = scored(words, params, labels.prompts, labels.answers)
    best = [int(np.argmax(row)) for row in scores]
    return [own[place] for own, place in zip(labels.choices, best, strict=True)]


def scored(
    words: Words, params: Params, prompts: Sequence[Any], answers: Sequence[Any]
) -> list[np.ndarray]:
    """The log-likelihoods of all answers to each prompt."""
    config = words.config
    if "pool" in params:
        given = params, prompts, words.num_selected
        config, params, prompts = with_pool(config, *given)
    size = {"batch_size": words.batch_size, "quiet": True}
    return answer_scores(config, params, prompts, answers, **size)


# ---------------------------------------------------------------------------- choices


def measure_choices(
    words: Words,
    params: Params,
    questions: Choices,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    advance: Callable[[int], None] = lambda number: None,
) -> list[dict[str, Any]] | None:
    """Choose among the given answers of each question, as lm-evaluation-harness does.

    Returns:
      A record for each question: ``question, choices, answer, choice, choice_accuracy``
      by log-likelihood, and ``choice_per_character, choice_accuracy_per_character`` by
      that over the number of characters. None if it was interrupted.
    """
    found: list[dict[str, Any]] = []
    step = 2 * words.batch_size
    for first in range(0, len(questions.prompts), step):
        part = _next_rows(questions, first, step)
        scores = scored(words, params, part.prompts, part.answers)
        found += _choices_of(part, scores)
        advance(len(part.prompts))
        if interrupted():
            return None
    return found


def _choices_of(questions: Choices, scores: Sequence[Any]) -> list[dict[str, Any]]:
    """The records of some questions."""
    found = choice_results(scores, questions.choices, questions.right)
    return [
        {
            "question": questions.questions[row],
            "choices": list(choices),
            "answer": choices[questions.right[row]],
            "choice": choices[found.choice[row]],
            "choice_accuracy": float(found.choice_accuracy[row]),
            "choice_per_character": choices[found.choice_per_character[row]],
            "choice_accuracy_per_character": float(
                found.choice_accuracy_per_character[row]
            ),
        }
        for row, choices in enumerate(questions.choices)
    ]


# ------------------------------------------------------------------------------- tests


class Measurement(NamedTuple):
    """One test, of any parameters."""

    kind: str  # ANSWERS or GENERAL
    name: str  # of the task or the set
    count: int  # of rows
    measure: Callable[..., list[dict[str, Any]] | None]  # of params


def measurements(
    words: Words,
    tasks: Iterable[tuple[str, Prompts, Choices | None]],
    general: Iterable[tuple[str, Choices]],
    most: int | None = None,
) -> list[Measurement]:
    """The tests of tasks, and then of general ability, on at most so many rows of each."""
    found = []
    for name, prompts, labels in tasks:
        numbers = drawn(len(prompts.tokens), most)
        rows = {"prompts": some_rows(prompts, numbers)}
        rows |= {"labels": some_rows(labels, numbers)} if labels else {}
        test = partial(measure_answers, words, **rows)
        found.append(Measurement(ANSWERS, name, len(numbers), test))
    for name, every in general:
        numbers = drawn(len(every.prompts), most)
        test = partial(measure_choices, words, questions=some_rows(every, numbers))
        found.append(Measurement(GENERAL, name, len(numbers), test))
    return found


def titles_of(tests: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Names of tests, by kind and name; with the kind where a task and a set share one."""
    held = sorted({*tests})
    names = [name for _, name in held]
    several = lambda name: names.count(name) > 1
    return {
        (kind, name): f"{name} ({kind})" if several(name) else name
        for kind, name in held
    }


# ----------------------------------------------------------------------------- results


Results = dict[str, dict[str, np.ndarray]]  # {metric: {learner: [T + 1, E]}}
#: Of answers, and of questions of general ability.
METRICS = (
    "exact_match",
    "rouge_l",
    "choice_accuracy",
    "choice_accuracy_per_character",
)
FRACTIONS = tuple(metric for metric in METRICS if metric != "rouge_l")  # of rows


def values_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The value of each row of a test, for the metrics that it has."""
    held = {m: [line[m] for line in lines if m in line] for m in METRICS}
    return {metric: np.array(values) for metric, values in held.items() if values}


def read_tests(
    folder: Path, kind: str, names: Sequence[str], num_tasks: int
) -> Results:
    """The means of all tests that there are, ``{metric: {learner: [T + 1, E]}}``.

    Rows are numbers of tasks that had ended, columns the names; NaN where nothing was
    measured.
    """
    found: Results = {}
    for path in sorted((folder / kind).glob("*.jsonl")):
        ended, _, rest = path.stem.partition("-")
        name, _, learner = rest.rpartition("-")
        if not ended.isdecimal() or name not in names or int(ended) > num_tasks:
            continue
        lines = read_lines(path, remedy="delete the file, and it is measured again")
        for metric, values in values_of(lines).items():
            blank = np.full((num_tasks + 1, len(names)), np.nan)
            held = found.setdefault(metric, {}).setdefault(learner, blank)
            held[int(ended), names.index(name)] = np.mean(values)
    for learners in found.values():  # before, all learners are the model itself
        first = _first_of(learners)
        for matrix in learners.values():
            matrix[0] = np.where(np.isnan(matrix[0]), first, matrix[0])
    return found


def _first_of(learners: Mapping[str, np.ndarray]) -> np.ndarray:
    """What any of the learners has before the first task."""
    rows = [matrix[0] for matrix in learners.values()]
    known = [row for row in rows if np.isfinite(row).any()]
    return known[0] if known else rows[0]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of one test; none where it was not made."""
    try:
        return read_lines(path) if path.is_file() else []
    except InputError:
        return []
