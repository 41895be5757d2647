"""Rows of prompts and answers as tokens, with the next token as label."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcl.data.conversations import Conversation
from jaxcl.data.tokens import TokenRows, encode
from jaxcl.errors import InputError, require
from jaxcl.sequences import IGNORED

#: ``(place, text, ids, answers) -> (tokens, labels, length before it was cut)``.
RowOf = Callable[..., tuple[np.ndarray, np.ndarray, int]]


def encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of texts, without special ones."""
    found = encode(tokenizer, texts, add_special_tokens=False)
    return [encoded.ids for encoded in found]


def begin_tokens(tokenizer: Any) -> Int[np.ndarray, " k"]:
    """The special tokens that the tokenizer puts before a text."""
    text = tokenizer("a", add_special_tokens=False).input_ids
    framed = tokenizer("a").input_ids
    starts = range(len(framed) - len(text) + 1)
    at = next((i for i in starts if framed[i : i + len(text)] == text), 0)
    return np.array(framed[:at], np.int32)


def special_tokens(tokenizer: Any) -> list[int]:
    """The tokens that stand for no text, such as the end of a message."""
    added = tokenizer.added_tokens_decoder.items()
    return [*tokenizer.all_special_ids, *(i for i, t in added if t.special)]


def num_kept(tokenizer: Any, is_chat: bool, ids: np.ndarray, begin: np.ndarray) -> int:
    """The number of tokens at the beginning that stay where a prompt is cut."""
    if not is_chat:
        return len(begin)
    # In ChatML the "beginning of a text" begins every message, and is cut with it.
    first = tokenizer.bos_token_id
    return int(first is not None and ids[0] == first and (ids == first).sum() == 1)


def answer_rows(
    who: str,
    texts: list[tuple[str, Conversation]],
    tokenizer: Any,
    bad: list[str] | None,
    row_of: RowOf,
) -> TokenRows:
    """Rows of texts at their places; what is bad about a row goes to a list, if given."""
    tokens, labels, cut, merged = [], [], [], 0
    spans = _answer_spans(tokenizer, [text for _, text in texts])
    for (place, text), (ids, answers, crosses) in zip(texts, spans, strict=True):
        with skipping(bad):
            row, label, length = row_of(place, text, ids, answers)
            tokens.append(row)
            labels.append(label)
            cut += [length] if length > len(row) else []
            merged += crosses
    first = bad[0] if bad else ""
    require(tokens, who, f"none of the rows can be used, the first is bad: {first}")
    return TokenRows(
        tokens=np.concatenate(tokens),
        lengths=np.array([len(row) for row in tokens]),
        y=np.concatenate(labels),
        weight=np.ones(len(tokens), np.float32),
        by_token=True,
        cut=len(cut),
        longest=max(cut, default=0),
        merged=merged,
        skipped=len(bad or ()),
        first=first,
    )


@contextmanager
def skipping(bad: list[str] | None):
    """Keep the message about a row that cannot be used; without a list it is refused."""
    try:
        yield
    except InputError as error:
        if bad is None:
            raise
        bad.append(str(error))


def row_maker(
    who: str, tokenizer: Any, loss_on: str, limit: int | None, truncate: bool
) -> RowOf:
    """Make rows of tokens and the places of answers among them, cut to a limit."""
    begin, end = begin_tokens(tokenizer), tokenizer.eos_token_id
    special = special_tokens(tokenizer)

    def make(place, text, ids, answers):
        last = answers[-1][0]
        if text.is_chat:
            # The template ends answers by a token of its own; a few do not.
            ended, shift = np.isin(ids[last:], special).any(), 0
        else:
            ended, shift = ids[-1] == end, len(begin)
            ids = np.concatenate([begin, ids])
        counts = np.full(len(ids), loss_on == "all")
        for start, stop in answers:
            counts[start + shift : stop + shift] = True
        if not ended:
            ids, counts = np.append(ids, np.int32(end)), np.append(counts, True)
        length, keep = len(ids), num_kept(tokenizer, text.is_chat, ids, begin)
        over = 0 if limit is None else max(length - limit, 0)
        if over:
            answer = length - last - shift
            _check_cut(who, place, length, answer, max(keep, 1), limit, truncate)
        cut = np.s_[keep : keep + over]
        row, counts = np.delete(ids, cut), np.delete(counts, cut)
        label = np.full(len(row), IGNORED, np.int32)
        label[:-1] = np.where(counts[1:], row[1:], IGNORED)
        return row, label, length

    return make


_Spans = tuple[np.ndarray, list[tuple[int, int]], bool]


def _answer_spans(tokenizer: Any, texts: list[Conversation]) -> Iterator[_Spans]:
    """For each text its tokens, the answers in tokens, and whether one goes across.

    A place in the text is after the tokens that the text before it has by itself, as far
    as they are those of the full text.
    """
    full = encode_plain(tokenizer, [text.text for text in texts])
    inner = [[p for span in t.answers for p in span if p < len(t.text)] for t in texts]
    heads = [t.text[:p] for t, ps in zip(texts, inner, strict=True) for p in ps]
    found = iter(encode_plain(tokenizer, heads))
    for text, ids in zip(texts, full, strict=True):
        answers, crosses = [], False
        for _, stop in text.answers:
            head = next(found)
            first, last = num_equal(head, ids), len(ids)
            crosses |= first < len(head)
            if stop < len(text.text):
                last = num_equal(next(found), ids)
            answers.append((first, last))
        yield ids, answers, crosses


def num_equal(head: np.ndarray, ids: np.ndarray) -> int:
    """How many tokens at the beginning are equal."""
    both = min(len(head), len(ids))
    differ = np.flatnonzero(head[:both] != ids[:both])
    return int(differ[0]) if len(differ) else both


def _check_cut(who, place, length, answer, least, limit, truncate) -> None:
    """Refuse a row that must not be cut, or of which the answer alone is too long."""
    long = f"{length} tokens, over max_length={limit}"
    remedy = "raise it, or cut prompts by truncate=True"
    require(truncate, who, f"{place}: {long}; {remedy}")
    full = f"an answer of {answer} tokens leaves no room for its prompt"
    remedy = f"within max_length={limit}; raise it, or drop the line"
    require(limit - answer >= least, who, f"{place}: {full} {remedy}")
