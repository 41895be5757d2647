"""Questions with several choices, one of them right, as text and as tokens.

Lines such as ``{"question": "Capital of France?", "choices": ["Paris", "Rome"], "answer":
0}``::

    found = read_choices("questions.jsonl", tokenizer)
    scores = answer_scores(config, params, found.prompts, found.answers)
    results = choice_results(scores, found.choices, found.right)
    print(results.choice_accuracy.mean())

Needs the extra ``text``.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.answers import begin_tokens, encode_plain, num_equal, num_kept
from jaxcl.data.conversations import chat_text, check_template, template_fields
from jaxcl.data.records import Source, read_records, refuse_absent, text_of
from jaxcl.data.tokens import Tokenizer, length_limit, load_tokenizer
from jaxcl.errors import check_kind, require, shown, warn

_WHO = "read_choices"


class Choices(NamedTuple):
    """Questions and their choices, and what :func:`jaxcl.models.answer_scores` takes."""

    questions: list[str]
    choices: list[list[str]]  # of each question, two or more
    right: list[int]  # the number of the right one, from 0
    prompts: list[np.ndarray]  # int32 tokens of each question
    answers: list[list[np.ndarray]]  # int32 tokens of each choice


class _Question(NamedTuple):
    place: str  # of its record, for messages
    question: str
    choices: list[str]
    right: int
    prompt: str  # all text before a choice, but for what joins them


def read_choices(
    source: Source,
    tokenizer: Tokenizer,
    *,
    question: str | None = None,
    choices: str = "choices",
    answer: str | None = None,
    context: str = "context",
    template: str | None = None,
    join: str | None = None,
    chat: bool | None = None,
    max_length: int | None = None,
) -> Choices:
    r"""Questions of a source, with their prompts and choices as tokens.

    A prompt is ``Question: {question}\nAnswer:``, after the text in ``context`` and a new
    line if there is any, and a choice begins with a space, as lm-eval scores ARC and PIQA.
    Prompt and choice are tokenised at once, and split where the prompt's own tokens end.
    If a token goes across, as where a prompt ends with a space, the prompt ends before it
    for all choices of the question, and a warning counts such questions.

    Args:
      source: as for :func:`text_dataset`; choices need lists, which CSV files do not have.
      tokenizer: of the model: its folder, or the one :func:`load_tokenizer` gave.
      question: field of the question; ``question`` or ``prompt``, whichever the first
        record has, if absent.
      choices: field of the list of choices.
      answer: field of the right one: its number from 0, or its text; ``answer`` or
        ``label`` if absent.
      context: field of a text before the question, which records may lack.
      template: of the prompt, with ``{question}`` and other fields of the record. With
        ``{context}`` the context is put there only.
      join: text between prompt and choice, a part of the choice; a space if absent.
      chat: whether the prompt is a user's message of the tokenizer's chat template, and a
        choice the beginning of the assistant's answer. The message is the question itself
        without a ``template``, and a choice begins without a space.
      max_length: tokens of prompt and longest choice; the tokenizer's own limit if absent.
        Longer prompts lose their beginning, with a warning that counts them.

    Raises:
      ModuleNotFoundError: without the extra ``text``.
      InputError: naming file and line: for a field that is missing or holds no text, for
        fewer than two choices, for an answer that is none of them, for choices that leave
        no room for the prompt; and for what :func:`load_tokenizer` refuses.
    """
    tokenizer = load_tokenizer(tokenizer)
    fields = {"question": question, "answer": answer}
    check_kind(_WHO, str, "name a field", optional=True, **fields)
    check_kind(_WHO, str, "name a field", choices=choices, context=context)
    check_kind(_WHO, str, "give text", optional=True, template=template, join=join)
    check_kind(_WHO, bool, "say True or False", optional=True, chat=chat)
    limit = length_limit(_WHO, tokenizer, max_length)
    if chat:
        check_template(_WHO, tokenizer, join)
    blank = "{question}" if chat else "Question: {question}\nAnswer:"
    template = blank if template is None else template
    named = template_fields(_WHO, template)
    asks = f"template {shown(template)} must name {{question}}"
    require("question" in named, _WHO, f"{asks}, such as {blank!r}")
    records = read_records(_WHO, source)
    first = records.rows[0]
    known = lambda *names: next((name for name in names if name in first), names[0])
    fields = {
        "question": known("question", "prompt") if question is None else question,
        "choices": choices,
        "answer": known("answer", "label") if answer is None else answer,
        "context": context,
    }
    read = partial(_question, fields=fields, template=template, named=named)
    found = [read(records.place(row), held) for row, held in enumerate(records.rows)]
    if chat:
        found = [_as_chat(tokenizer, one) for one in found]
    join = "" if chat else " " if join is None else join
    tokens = list(_tokens(tokenizer, found, join, bool(chat), limit))
    return Choices(
        [one.question for one in found],
        [one.choices for one in found],
        [one.right for one in found],
        [prompt for prompt, _ in tokens],
        [answers for _, answers in tokens],
    )


# ----------------------------------------------------------------------------- records


def _question(place: str, record: Mapping, *, fields, template, named) -> _Question:
    """One record as text."""
    text = lambda name: text_of(_WHO, place, record, fields.get(name, name), name)
    question = text("question")
    if not question.strip():
        require(False, _WHO, f"{place}: {fields['question']!r} is empty; write one")
    choices = _listed(place, record, fields["choices"])
    right = _right(place, record, fields["answer"], choices)
    prompt = template.format(**{name: text(name) for name in named})
    if "context" not in named and record.get(fields["context"]):
        prompt = text("context") + "\n" + prompt
    return _Question(place, question, choices, right, prompt)


def _listed(place: str, record: Mapping, field: str) -> list[str]:
    """The choices of a record."""
    if field not in record:
        refuse_absent(_WHO, place, record, field, "choices")
    held = record[field]
    listed = isinstance(held, Sequence | np.ndarray) and not isinstance(held, str)
    if not listed or len(held) < 2:
        wanted = f"{field!r} must be a list of two choices or more, got {shown(held)}"
        require(False, _WHO, f"{place}: {wanted}; fix it, or drop the line")
    for number, choice in enumerate(held):
        if not isinstance(choice, str) or not choice.strip():
            wanted = f"choice {number} in {field!r} must be text, got {shown(choice)}"
            require(False, _WHO, f"{place}: {wanted}; fix it")
    inner = [{field: choice} for choice in held]
    return [text_of(_WHO, place, one, field, "choices") for one in inner]


def _right(place: str, record: Mapping, field: str, choices: list[str]) -> int:
    """The number of the right choice."""
    if field not in record:
        refuse_absent(_WHO, place, record, field, "answer")
    value = record[field]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= number < len(choices):
        wanted = f"a number from 0 to {len(choices) - 1}, or the text of a choice"
        remedy = "fix it, or name another field by answer="
        came = f"{field!r} must be {wanted}, got {shown(value)}; {remedy}"
        require(False, _WHO, f"{place}: {came}")
    return number


def _as_chat(tokenizer: Any, one: _Question) -> _Question:
    """The same, with its prompt as the message that an answer is asked for."""
    messages = [{"role": "user", "content": one.prompt}]
    return one._replace(prompt=chat_text(_WHO, one.place, tokenizer, messages, True))


# ------------------------------------------------------------------------------ tokens

_Tokens = tuple[np.ndarray, list[np.ndarray]]


def _tokens(
    tokenizer: Any, questions: list[_Question], join: str, chat: bool, limit: int | None
) -> Iterator[_Tokens]:
    """Of each question the prompt and the choices, split where the prompt's tokens end."""
    heads = encode_plain(tokenizer, [one.prompt for one in questions])
    texts = [f"{one.prompt}{join}{c}" for one in questions for c in one.choices]
    full = iter(encode_plain(tokenizer, texts))
    begin = begin_tokens(tokenizer)[: 0 if chat else None]
    merged, cut = 0, []
    for one, head in zip(questions, heads, strict=True):
        own = [next(full) for _ in one.choices]
        first = min(num_equal(head, ids) for ids in own)
        merged += first < len(head)
        prompt, answers = (
            np.concatenate([begin, head[:first]]),
            [i[first:] for i in own],
        )
        _check_tokens(one.place, prompt, answers)
        length = len(prompt) + max(map(len, answers))
        if limit is not None and length > limit:
            keep = num_kept(tokenizer, chat, prompt, begin)
            _check_room(one.place, answers, max(keep, 1), limit)
            cut.append(length)
            prompt = np.delete(prompt, np.s_[keep : keep + length - limit])
        yield prompt, answers
    _warn(len(questions), merged, cut, limit)


def _check_tokens(place: str, prompt: np.ndarray, answers: list[np.ndarray]) -> None:
    """Refuse a choice without a token, and choices without one before all of them."""
    empty = [number for number, answer in enumerate(answers) if not len(answer)]
    if empty:
        require(False, _WHO, f"{place}: choice {empty[0]} is without a token; fix it")
    if not len(prompt):
        apart = "no token of the prompt comes before all choices"
        require(
            False, _WHO, f"{place}: {apart}; let them begin with a space (join=' ')"
        )


def _check_room(place: str, answers: list[np.ndarray], least: int, limit: Any) -> None:
    """Refuse choices that leave no room for a prompt of some tokens."""
    longest = max(map(len, answers))
    if longest + least > limit:
        full = f"a choice of {longest} tokens leaves no room for its prompt"
        remedy = f"within max_length={limit}; raise it, or drop the line"
        require(False, _WHO, f"{place}: {full} {remedy}")


def _warn(count: int, merged: int, cut: list[int], limit: int | None) -> None:
    """Say once how many prompts are not as they were written."""
    if merged:
        across = (
            f"in {merged} of {count} questions a token goes across the prompt's end"
        )
        remedy = (
            "let templates end without a space, and choices begin with it (join=' ')"
        )
        warn(f"{_WHO}: {across}; {remedy}.")
    if cut:
        counted = f"{len(cut)} of {count} prompts lost their beginning"
        longest = f"with choices of up to {max(cut)} tokens and max_length={limit}"
        warn(f"{_WHO}: {counted}: {longest}; raise it.")
