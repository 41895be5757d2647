"""Instructions as text: prompts and answers of several formats, and chat templates."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxcl.data.records import Records, text_of
from jaxcl.errors import reason_of, require, shown


class Format(NamedTuple):
    """How records are written as text; see :func:`jaxcl.data.instruct_dataset`."""

    prompt: str = "prompt"
    answer: str = "answer"
    template: str | None = None
    classes: Sequence[str] | None = None
    chat: bool | None = None
    join: str | None = None


class Conversation(NamedTuple):
    """A text, and which parts of it are answers."""

    text: str
    answers: tuple[tuple[int, int], ...]  # begin and end of each, in characters
    reference: str  # the last answer as the record has it
    is_chat: bool


def conversations(
    who: str, records: Records, tokenizer: Any, given: Format
) -> Callable[[int], Conversation]:
    """A function from the number of a record to its text, chosen by the first record.

    ``messages`` are a chat; ``instruction``, ``input`` and ``output`` those of Alpaca;
    all others have a prompt, or a template of one, and an answer.
    """
    first = records.rows[0]
    is_chat, join = given.chat, given.join
    chats = given.template is None and "messages" in first
    if chats:
        chatted = "records with messages need their template; leave chat=False out"
        require(is_chat is not False, who, chatted)
    if chats or is_chat:
        check_template(who, tokenizer, given.join)
    if chats:
        return lambda row: _rendered(
            who, records.place(row), tokenizer, _messages(who, records, row)
        )
    pair_of, default = _pairs(who, records, given)
    join = default if join is None else join

    def conversation(row):
        prompt, answer = pair_of(row)
        if is_chat:
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            return _rendered(who, records.place(row), tokenizer, messages)
        text = f"{prompt}{join}{answer}"
        return Conversation(text, ((len(prompt), len(text)),), answer, False)

    return conversation


def check_template(who: str, tokenizer: Any, join: str | None) -> None:
    """Refuse a tokenizer without a chat template, and what would join its parts."""
    none = "the tokenizer has no chat template"
    remedy = "set tokenizer.chat_template, or leave chat out"
    require(tokenizer.chat_template, who, f"{none}; {remedy}")
    spare = "join is for prompts without a chat template; leave one of them out"
    require(join is None, who, spare)


# ------------------------------------------------------------------ prompts and answers


def _pairs(
    who: str, records: Records, given: Format
) -> tuple[Callable[[int], tuple[str, str]], str]:
    """A function from the number of a record to its prompt and answer, and what joins."""
    first, answer = records.rows[0], given.answer
    if given.template is not None:
        names, join = template_fields(who, given.template), ""
        prompt_of = lambda place, record: _filled(who, place, record, given, names)
    elif given.prompt not in first and "instruction" in first:
        join, prompt_of = "\n", partial(_alpaca_prompt, who)
        answer = "output" if answer == "answer" else answer
    else:
        join = ""
        prompt_of = lambda place, record: text_of(
            who, place, record, given.prompt, "prompt"
        )

    def pair(row):
        place, record = records.place(row), records.rows[row]
        prompt = prompt_of(place, record)
        if given.classes and records.is_text:
            record = _with_number(record, answer, given.classes)
        return prompt, _answer(who, place, record, answer, given.classes)

    return pair, join


def _with_number(record: Mapping, field: str, classes: Sequence[str]) -> Mapping:
    """A record of text, as in a CSV file, with the number of its class as a number."""
    text = record.get(field) or ""
    numbered = text not in classes and re.fullmatch("[0-9]{1,9}", text)
    return {**record, field: int(text)} if numbered else record


def _alpaca_prompt(who: str, place: str, record: Mapping) -> str:
    """The instruction and, after an empty line, the input if there is any."""
    prompt = text_of(who, place, record, "instruction", "prompt")
    if record.get("input"):
        prompt += "\n\n" + text_of(who, place, record, "input", "prompt")
    return prompt


def _answer(who: str, place: str, record: Mapping, field: str, classes: Any) -> str:
    """The text of an answer, or the name of a numbered class."""
    value = record.get(field)
    if classes is not None and field in record:
        known = f"{field!r} must be a class or its number, got {shown(value)}"
        if isinstance(value, int) and not isinstance(value, bool):
            fits = 0 <= value < len(classes)
            require(fits, who, f"{place}: {known}, of {len(classes)} classes; fix it")
            return classes[value]
        require(value in classes, who, f"{place}: {known}; add it to classes")
    answer = text_of(who, place, _with_numbers(record, [field]), field, "answer")
    if not answer.strip():
        require(False, who, f"{place}: {field!r} is empty; write an answer or drop it")
    return answer


def template_fields(who: str, template: str) -> list[str]:
    """The fields that a template names, such as ``text`` in ``"Topic of {text}?"``."""
    remedy = "name fields, such as 'Topic of {text}?'; {{ and }} are braces"
    require(isinstance(template, str), who, f"template must be text; {remedy}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        bad = f"template {shown(template)} is not usable ({reason_of(error)})"
        return require(False, who, f"{bad}; {remedy}")  # pyright: ignore
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(
        name and not set(name) & set(".[]") and not (spec or conversion)
        for _, name, spec, conversion in parts
        if name is not None
    )
    bad = f"template {shown(template)} must name fields only"
    none = f"template {shown(template)} names no field"
    require(names and plain, who, f"{bad if names else none}; {remedy}")
    return names


def _filled(
    who: str, place: str, record: Mapping, given: Format, names: list[str]
) -> str:
    """A template with the fields of a record."""
    fields = _with_numbers(record, names)
    return str(given.template).format(
        **{name: text_of(who, place, fields, name, "template") for name in names}
    )


def _with_numbers(record: Mapping, names: list[str]) -> Mapping:
    """The record with whole numbers in some fields as text, as a CSV file has them."""
    whole = lambda value: isinstance(value, int) and not isinstance(value, bool)
    texts = {n: str(record[n]) for n in names if n in record and whole(record[n])}
    return {**record, **texts}


# -------------------------------------------------------------------------------- chats


def _messages(who: str, records: Records, row: int) -> list[dict[str, str]]:
    """The messages of a record; the last one is an answer."""
    place, held = records.place(row), records.rows[row].get("messages")
    _refuse_tools(who, place, records.rows[row])
    listed = isinstance(held, list | tuple) and len(held)
    wanted = f"expected a list of messages, got {shown(held)}"
    if not listed:
        require(False, who, f"{place}: {wanted}; fix it")
    messages = []
    for number, message in enumerate(held or ()):
        fields = message if isinstance(message, Mapping) else {}
        inner = f"{place}, message {number}"
        _refuse_tools(who, inner, fields)
        role = text_of(who, inner, fields, "role", "messages")
        content = text_of(who, inner, fields, "content", "messages")
        if role == "assistant" and not content.strip():
            require(False, who, f"{inner}: the answer is empty; write one or drop it")
        messages.append({"role": role, "content": content})
    ends = messages[-1]["role"] == "assistant" and messages[0]["role"] != "assistant"
    if not ends:
        roles = f"{messages[0]['role']} to {messages[-1]['role']}"
        wanted = "messages must begin with a prompt and end with the assistant's answer"
        require(False, who, f"{place}: {wanted}, got {shown(roles)}; cut them so")
    return messages


def _refuse_tools(who: str, place: str, fields: Mapping) -> None:
    """Refuse calls of tools, which a text of roles and contents would lose."""
    held = [name for name in _TOOLS if fields.get(name)]
    if held:
        lost = f"{held[0]!r} is not used, and would be lost"
        require(False, who, f"{place}: {lost}; write calls of tools as content")


#: Where messages and records hold calls of tools, and what can be called.
_TOOLS = "tool_calls", "function_call", "tools", "functions"


def _rendered(
    who: str, place: str, tokenizer: Any, messages: list[dict[str, str]]
) -> Conversation:
    """A chat by the tokenizer's template.

    An answer begins where the template asks for one, after the messages before it, and
    ends where the template goes on to the next message.
    """
    text = chat_text(who, place, tokenizer, messages, False)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = chat_text(who, place, tokenizer, messages[:number], True)
            last = number + 1 == len(messages)
            after = text
            if not last:
                after = chat_text(who, place, tokenizer, messages[: number + 1], False)
            if not (text.startswith(before) and text.startswith(after)):
                changed = "the chat template writes earlier messages differently later"
                remedy = "give conversations of one answer each"
                if last and not spans:  # there is one answer
                    changed = (
                        "the chat template begins an answer unlike it asks for one"
                    )
                    remedy = "give another template"
                require(False, who, f"{place}: {changed}; {remedy}")
            if len(before) >= len(after):
                absent = "the chat template leaves the answer out"
                require(False, who, f"{place}: {absent}; give another template")
            spans.append((len(before), len(after)))
    return Conversation(text, tuple(spans), messages[-1]["content"], True)


def chat_text(who: str, place: str, tokenizer: Any, messages: list, ask: bool) -> str:
    """The template's text for messages, and the beginning of an answer if asked for."""
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask
        )
    except ImportError as error:
        msg = f"{who}: chat templates need jinja2; pip install '.[text]'."
        raise ModuleNotFoundError(msg, name="jinja2") from error
    except Exception as error:  # templates raise errors of their own
        refused = f"the chat template refuses it ({reason_of(error)})"
        return require(False, who, f"{place}: {refused}; fix it")  # pyright: ignore


def answer_beginning(tokenizer: Any) -> str:
    """What a chat template writes before each answer, after it has asked for one.

    Qwen3's writes an empty block of thoughts; most write nothing.
    """
    mark = "0a1b2c3d"
    asked = [{"role": "user", "content": "a"}]
    chat = [*asked, {"role": "assistant", "content": mark}]
    text = partial(chat_text, "answer_beginning", "a chat", tokenizer)
    written = text(chat, False).removeprefix(text(asked, True))
    return written[: max(written.find(mark), 0)]
