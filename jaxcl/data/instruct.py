"""Instructions for decoders: prompts and answers, with a loss on the answers.

Each folder has ``train.jsonl`` and ``test.jsonl``, with lines such as
``{"prompt": "Capital of France?", "answer": "Paris"}``::

    tokenizer = load_tokenizer("models/smollm2", vocab_size=config.vocab_size)
    tasks = []
    for number, name in enumerate(["maths", "science"]):
        load = partial(instruct_dataset, tokenizer=tokenizer, chat=True, task=number)
        load = partial(load, max_length=512, cache_folder="cache")
        train, test = load(f"{name}/train.jsonl"), load(f"{name}/test.jsonl")
        tasks.append(Task(name, train, test))
    tasks = share_widths(tasks)
    result = learn(key, build, params, tasks, options, folder="runs/chat")

Needs the extra ``text``.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcl.data.answers import (
    answer_rows,
    begin_tokens,
    encode_plain,
    num_kept,
    row_maker,
    skipping,
)
from jaxcl.data.conversations import Conversation, Format, conversations
from jaxcl.data.dataset import Dataset
from jaxcl.data.packing import packed
from jaxcl.data.records import Source, read_records
from jaxcl.data.token_cache import cached_rows
from jaxcl.data.tokens import (
    Tokenizer,
    TokenRows,
    check_choice,
    label_weights,
    length_limit,
    load_tokenizer,
    pad_token,
    token_dataset,
    warn_cut,
)
from jaxcl.errors import check_kind, check_size, require, shown, warn


class Prompts(NamedTuple):
    """Prompts for generation, and what the answers should be."""

    tokens: list[np.ndarray]  # int32, of different lengths, without padding
    answers: list[str]


def instruct_dataset(
    source: Source,
    tokenizer: Tokenizer,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    template: str | None = None,
    classes: Sequence[str] | None = None,
    chat: bool | None = None,
    join: str | None = None,
    loss_on: str = "answer",
    mean: str = "tokens",
    task: int = 0,
    max_length: int | None = None,
    truncate: bool = True,
    widths: Sequence[int] | None = None,
    pack: bool = False,
    skip_bad_rows: bool = False,
    cache_folder: Any = None,
) -> Dataset:
    """Prompts and their answers, tokenised for a decoder; labels are the next tokens.

    Formats, by the fields of the first record:

    - ``{"prompt", "answer"}``, or other names by ``prompt=`` and ``answer=``;
    - any fields by a ``template`` of the prompt, such as a text and its class::

        instruct_dataset(
            "news.jsonl", tokenizer, template="Topic of: {text}", answer="label",
            classes=["World", "Sports"], join=" ",
        )

    - ``{"instruction", "input", "output"}``, Alpaca's; the prompt is the instruction and,
      after an empty line, the input, if there is any;
    - ``{"messages": [{"role", "content"}, ...]}``, a chat that ends with the assistant's
      answer; all of the assistant's messages are answers.

    A text is tokenised at once, prompt and answer, as transformers does. An answer begins
    after the tokens of the text before it. If one token goes across, as where a prompt
    ends with a space, a warning counts such rows: the prompt alone does not lead to it.

    Args:
      source: as for :func:`text_dataset`.
      tokenizer: of the model: its folder, or the one :func:`load_tokenizer` gave. It must
        have an end token, which follows each answer; without a chat template the tokenizer
        also adds what it puts before any text.
      prompt: field of the prompt.
      answer: field of the answer; a whole number is written in digits.
      template: of the prompt, with ``{field}`` for fields of the record.
      classes: names of numbered answers; answers that are text must be among them.
      chat: whether prompt and answer are messages of the tokenizer's chat template, as
        models tuned on chats expect; always for ``messages``.
      join: text between prompt and answer, a part of the answer; a new line for Alpaca's
        records and nothing for others if absent.
      loss_on: ``"answer"``, or ``"all"`` tokens.
      mean: of the loss over ``"tokens"``, as Hugging Face's trainer: the weight of an
        example is the number of its labels, which :func:`jaxcl.metrics.tokens` must know
        (``weighted_by_labels``); or over ``"examples"``, with weight 1.
      task: number of the task.
      max_length: tokens at which rows are cut; the tokenizer's own limit if absent.
      truncate: whether prompts of longer rows lose their beginning, with a warning that
        counts them; otherwise they are refused. The last answer is never cut; what comes
        before it, such as earlier answers, is a part of its prompt.
      widths: to which rows are padded; :func:`choose_widths` of the lengths if absent.
      pack: whether rows are put together, first fit, into rows of ``max_length`` tokens;
        ``x`` then has ``segments`` from 1, of which none sees another.
      skip_bad_rows: leave out rows with an empty or too long answer, or that cannot be
        used for another reason, with a warning that counts them; otherwise the first of
        them is refused.
      cache_folder: where tokenised rows are kept, as for :func:`text_dataset`.

    Returns:
      A dataset with ``x = {"tokens", "mask"}``, int32 ``[b, width]``, padded on the right,
      and ``y [b, width]`` int32: ``y[:, i]`` is the token after position ``i``, or -100
      where it does not count.

    Raises:
      ModuleNotFoundError: without the extra ``text``.
      InputError: naming file and line: for a field that is missing or holds no text, an
        empty answer, an answer longer than ``max_length``; and for what
        :func:`load_tokenizer` refuses.
    """
    who = "instruct_dataset"
    check_size(who, least=0, task=task)
    check_choice(who, ("answer", "all"), loss_on=loss_on)
    check_choice(who, ("tokens", "examples"), mean=mean)
    size = _pack_size(who, mean, max_length, widths) if pack else None
    tokenizer = _with_end(who, tokenizer)
    limit = length_limit(who, tokenizer, max_length)
    given = _format(who, prompt, answer, template, classes, chat, join)
    settings = {**given._asdict(), "loss_on": loss_on, "limit": limit}
    settings |= {"truncate": truncate, "skip": skip_bad_rows}

    def make():
        texts, bad = _texts(who, source, tokenizer, given, skip_bad_rows)
        row_of = row_maker(who, tokenizer, loss_on, limit, truncate)
        return answer_rows(who, texts, tokenizer, bad, row_of)

    rows = cached_rows(who, cache_folder, source, tokenizer, settings, make)
    _warn_skipped(who, int(rows.skipped), str(rows.first))
    _warn_merged(who, rows)
    warn_cut(who, rows, "prompts lost their beginning", limit)
    rows = label_weights(rows, mean)
    if size is not None:
        rows, widths = packed(rows, size), (size,)
    pad = pad_token(tokenizer)
    return token_dataset(who, rows, task=task, pad=pad, widths=widths, limit=limit)


def instruct_prompts(
    source: Source,
    tokenizer: Tokenizer,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    template: str | None = None,
    classes: Sequence[str] | None = None,
    chat: bool | None = None,
    join: str | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
) -> Prompts:
    """The prompts of a source for generation, and the answers to compare with.

    The tokens are those before the last answer of each row of :func:`instruct_dataset`,
    whose arguments are the same; ``join`` belongs to the answer. Prompts of more than
    ``max_length`` tokens lose their beginning, with a warning that counts them::

        prompts = instruct_prompts("test.jsonl", tokenizer, chat=True)
    """
    who = "instruct_prompts"
    tokenizer = _with_end(who, tokenizer)
    limit = length_limit(who, tokenizer, max_length)
    given = _format(who, prompt, answer, template, classes, chat, join)
    places, bad = _texts(who, source, tokenizer, given, skip_bad_rows)
    if bad:
        _warn_skipped(who, len(bad), bad[0])
    texts = [text for _, text in places]
    heads = [text.text[: text.answers[-1][0]] for text in texts]
    begin = begin_tokens(tokenizer)
    tokens, cut = [], []
    for text, ids in zip(texts, encode_plain(tokenizer, heads), strict=True):
        ids = ids if text.is_chat else np.concatenate([begin, ids])
        if limit is not None and len(ids) > limit:
            keep = num_kept(tokenizer, text.is_chat, ids, begin)
            cut.append(len(ids))
            ids = np.delete(ids, np.s_[keep : keep + len(ids) - limit])
        tokens.append(ids)
    if cut:
        counted = f"{len(cut)} of {len(texts)} prompts lost their beginning"
        longest = f"up to {max(cut)} tokens with max_length={limit}"
        warn(f"{who}: {counted}: {longest}; raise it.")
    return Prompts(tokens, [text.reference for text in texts])


def instruct_texts(
    who: str,
    source: Source,
    tokenizer: Tokenizer,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    template: str | None = None,
    chat: bool | None = None,
    join: str | None = None,
    max_length: int | None = None,
) -> list[tuple[str, Conversation]]:
    """The place and the text of each row; ``max_length`` does not change texts."""
    del max_length
    given = _format(who, prompt, answer, template, None, chat, join)
    return _texts(who, source, tokenizer, given, False)[0]


# -------------------------------------------------------------------------- arguments


def _pack_size(who: str, mean: str, max_length: int | None, widths: Any) -> int:
    """The width of packed rows."""
    wide = "pack=True needs max_length, the width of a packed row; give it"
    require(max_length is not None, who, wide)
    spare = "packed rows have one width, max_length; leave widths out"
    require(widths is None, who, spare)
    # The loss is a mean over a row's labels, and packed rows have several examples.
    by_tokens = "packed rows are weighted by tokens; leave mean='examples' out"
    require(mean == "tokens", who, by_tokens)
    return max_length or 0


def _with_end(who: str, tokenizer: Tokenizer) -> Any:
    """A tokenizer that has an end token."""
    tokenizer = load_tokenizer(tokenizer)
    none = "the tokenizer has no end token, which follows each answer"
    remedy = "set tokenizer.eos_token to the one that the model knows"
    require(tokenizer.eos_token_id is not None, who, f"{none}; {remedy}")
    return tokenizer


def _format(who, prompt, answer, template, classes, chat, join) -> Format:
    check_kind(who, str, "name a field", prompt=prompt, answer=answer)
    check_kind(who, str, "give text", optional=True, template=template, join=join)
    check_kind(who, bool, "say True or False", optional=True, chat=chat)
    if classes is not None:
        listed = isinstance(classes, Sequence) and not isinstance(classes, str)
        named = listed and all(
            isinstance(name, str) and name.strip() for name in classes
        )
        wanted = f"classes must be a list of names, got {shown(classes)}"
        require(named and len(classes), who, f"{wanted}; give the text of each answer")
        classes = list(classes)
    return Format(prompt, answer, template, classes, chat, join)


def _texts(who, source, tokenizer, given, skip):
    """The place and the text of each row, and what was bad about others, if skipped."""
    records = read_records(who, source)
    text_at = conversations(who, records, tokenizer, given)
    texts, bad = [], [] if skip else None
    for row in range(len(records.rows)):
        with skipping(bad):
            texts.append((records.place(row), text_at(row)))
    first = bad[0] if bad else ""
    require(texts, who, f"none of the rows can be used, the first is bad: {first}")
    return texts, bad


def _warn_skipped(who: str, count: int, first: str) -> None:
    if count:
        counted = f"skipped {count} rows, the first of them"
        warn(f"{who}: {counted}: {first}")


def _warn_merged(who: str, rows: TokenRows) -> None:
    """Say once how many rows are not as at generation."""
    if rows.merged:
        counted = f"in {int(rows.merged)} of {len(rows.lengths)} rows"
        across = "a token goes across the end of the prompt"
        remedy = "let prompts end without a space, and answers begin with it (join=' ')"
        warn(f"{who}: {counted} {across}; {remedy}.")
