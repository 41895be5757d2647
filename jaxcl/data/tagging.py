"""Tagging of words, such as named entities: one type after another as tasks.

A model sees words in pieces: the first piece of a word has its tag, the others and
special tokens count nowhere. A task sees only its own types; words of others are ``O``::

    tokenizer = load_tokenizer("models/bert", vocab_size=30522)
    train, test = read_conll("train.conll"), read_conll("test.conll")
    types = entity_types(train)
    load = partial(tagging_dataset, tokenizer=tokenizer, types=types, max_length=128)
    tasks = []
    for number, kind in enumerate(types):
        learned = load(train, only=[kind], task=number)
        tasks.append(Task(kind, learned, load(test, only=types[: number + 1])))
    tasks = share_widths(tasks)
    result = learn(key, build, params, tasks, options, folder="runs/tags")

Needs the extra ``text``.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcl.data.conll import Sentence, read_conll, tag_names
from jaxcl.data.dataset import Dataset
from jaxcl.data.token_cache import cached_rows
from jaxcl.data.tokens import (
    Encoded,
    Tokenizer,
    TokenRows,
    check_choice,
    encode,
    encode_within,
    label_weights,
    length_limit,
    load_tokenizer,
    pad_token,
    token_dataset,
    warn_cut,
)
from jaxcl.errors import check_size, require, shown
from jaxcl.sequences import IGNORED


def tagging_dataset(
    source: str | os.PathLike[str] | Sequence[Sentence],
    tokenizer: Tokenizer,
    *,
    types: Sequence[str],
    only: Sequence[str] | None = None,
    scheme: str = "bio",
    repair: bool = False,
    mean: str = "tokens",
    task: int = 0,
    max_length: int | None = None,
    truncate: bool = True,
    widths: Sequence[int] | None = None,
    cache_folder: Any = None,
) -> Dataset:
    """Sentences and the tags of their words, tokenised for an encoder.

    ::

        types = entity_types(read_conll("train.conll"))
        train = tagging_dataset("train.conll", "models/bert", types=types)

    Args:
      source: a file for :func:`read_conll`, or sentences that it gave.
      tokenizer: of the model: its folder, or the one :func:`load_tokenizer` gave.
      types: all types of entities, in the order of their tags: :func:`tag_names`.
      only: the types that this dataset shows; words of all others are ``O``. All of them
        if absent.
      scheme: of the tags in a file, see :mod:`jaxcl.data.conll`.
      repair: whether ``I-X`` may begin an entity.
      mean: of the loss over ``"tokens"``, with the number of a sentence's tags as its
        weight, which :func:`jaxcl.metrics.tokens` must know (``weighted_by_labels``); or
        over ``"examples"``, with weight 1.
      task: number of the task.
      max_length: tokens at which sentences are cut, special tokens included; the
        tokenizer's own limit if absent.
      truncate: whether longer sentences lose their end, with a warning that counts them;
        otherwise they are refused.
      widths: to which rows are padded; :func:`choose_widths` of the lengths if absent.
      cache_folder: where tokenised rows are kept, as for :func:`text_dataset`.

    Returns:
      A dataset with ``x = {"tokens", "mask"}``, int32 ``[b, width]``, and ``y [b, width]``
      int32: ``O`` is 0, ``B-`` and ``I-`` of type ``k`` are ``1 + 2 k`` and ``2 + 2 k``,
      and -100 counts nowhere.

    Raises:
      ModuleNotFoundError: without the extra ``text``.
      InputError: naming file and line: for an entity whose type is not in ``types``, and
        for what :func:`read_conll` and :func:`load_tokenizer` refuse.
    """
    who = "tagging_dataset"
    check_size(who, least=0, task=task)
    check_choice(who, ("tokens", "examples"), mean=mean)
    types = _checked_types(who, types, "types")
    shown_types = types if only is None else _checked_types(who, only, "only")
    unknown = [kind for kind in shown_types if kind not in types]
    among = f"only must be some of types, got {shown(unknown)} besides"
    require(not unknown, who, f"{among}; add it to types")
    tokenizer = load_tokenizer(tokenizer)
    limit = length_limit(who, tokenizer, max_length)
    settings = {"types": types, "only": shown_types, "scheme": scheme}
    settings |= {"repair": repair, "limit": limit, "truncate": truncate}

    if isinstance(source, str | os.PathLike):
        read = functools.partial(read_conll, source, scheme=scheme, repair=repair)
        content: Any = source
    else:
        held = _checked_sentences(who, source)
        read = lambda: held
        # What a hash is of: without the sentences' places.
        content = [{"words": s.words, "tags": s.tags} for s in held]

    def make():
        numbers = _tag_numbers(types, shown_types)
        return _tokenised(who, tokenizer, read(), numbers, limit, truncate)

    rows = cached_rows(who, cache_folder, content, tokenizer, settings, make)
    warn_cut(who, rows, "sentences lost their end", limit)
    rows, pad = label_weights(rows, mean), pad_token(tokenizer)
    return token_dataset(who, rows, task=task, pad=pad, widths=widths, limit=limit)


def _checked_types(who: str, types: Sequence[str], name: str) -> list[str]:
    """Types of entities, each once."""
    listed = isinstance(types, Sequence) and not isinstance(types, str) and len(types)
    listed = listed and all(isinstance(kind, str) and kind for kind in types)
    wanted = f"{name} must be a list of types of entities, got {shown(types)}"
    require(listed, who, f"{wanted}; see entity_types")
    once = f"{name} list a type twice, {shown(types)}; list each once"
    require(len(set(types)) == len(types), who, once)
    return list(types)


def _tag_numbers(types: list[str], only: list[str]) -> dict[str, int]:
    """The number of each tag; 0, that of O, for the types that are not shown."""
    tags = enumerate(tag_names(types))
    return {tag: number if tag[2:] in only else 0 for number, tag in tags}


def _tokenised(who, tokenizer, sentences, numbers, limit, truncate) -> TokenRows:
    """Rows of sentences, with labels for the first piece of each word."""
    tags = [_numbered(who, sentence, numbers) for sentence in sentences]
    words, full = _words_and_encodings(who, tokenizer, sentences)
    encodings, cut = encode_within(
        who,
        tokenizer,
        words,
        limit=limit,
        truncate=truncate,
        place=lambda row: sentences[row].place(),
        encodings=full,
        is_split_into_words=True,
    )
    labels = [_labels(e, t) for e, t in zip(encodings, tags, strict=True)]
    return TokenRows(
        tokens=np.concatenate([encoding.ids for encoding in encodings]),
        lengths=np.array([len(encoding.ids) for encoding in encodings]),
        y=np.concatenate(labels),
        weight=np.ones(len(sentences), np.float32),
        by_token=True,
        cut=len(cut),
        longest=max(cut, default=0),
    )


def _checked_sentences(who: str, sentences: Any) -> list[Sentence]:
    """Sentences with as many tags as words."""
    listed = isinstance(sentences, Sequence) and len(sentences)
    wanted = f"expected a file or sentences, got {shown(sentences)}; see read_conll"
    require(listed, who, wanted)
    for number, sentence in enumerate(sentences):
        fits = isinstance(sentence, Sentence) and sentence.words
        if not (fits and len(sentence.words) == len(sentence.tags)):
            wanted = f"sentence {number} must have words and a tag for each"
            require(False, who, f"{wanted}, got {shown(sentence)}; see Sentence")
    return list(sentences)


def _numbered(who: str, sentence: Sentence, numbers: dict[str, int]) -> list[int]:
    """The numbers of a sentence's tags."""
    found = [numbers.get(tag) for tag in sentence.tags]
    if None in found:
        word = found.index(None)
        tag = f"tag {shown(sentence.tags[word])} of {shown(sentence.words[word])}"
        known = f"is none of {len(numbers)}; add its type to types, or fix it"
        require(False, who, f"{sentence.place(word)}: {tag} {known}")
    return [number for number in found if number is not None]


def _words_and_encodings(
    who: str, tokenizer: Any, sentences: list[Sentence]
) -> tuple[list[list[str]], list[Encoded]]:
    """Words as the tokenizer takes them, and encodings in which none is missing."""
    words = [list(sentence.words) for sentence in sentences]
    if _glues_words(tokenizer):
        words = [[first, *(f" {word}" for word in rest)] for first, *rest in words]
    encodings = encode(tokenizer, words, is_split_into_words=True)
    # A tokenizer may drop a word, such as a control character; its tag must not be lost.
    missing = [
        np.setdiff1d(np.arange(len(own)), encoding.words).tolist()
        for own, encoding in zip(words, encodings, strict=True)
    ]
    short = [row for row, lost in enumerate(missing) if lost]
    for row in short:
        for word in missing[row]:
            lost = f"the tokenizer drops {shown(sentences[row].words[word])}"
            none = f"{lost} and has no unk_token; replace the word"
            place = sentences[row].place(word)
            require(tokenizer.unk_token, who, f"{place}: {none}")
            words[row][word] = tokenizer.unk_token
    again = encode(tokenizer, [words[row] for row in short], is_split_into_words=True)
    for row, encoding in zip(short, again, strict=True):
        encodings[row] = encoding
    return words, encodings


def _glues_words(tokenizer: Any) -> bool:
    """Whether separate words are tokenised as if no space were between them."""
    apart = tokenizer(["a", "a"], is_split_into_words=True).input_ids
    return apart != tokenizer("a a").input_ids and (
        tokenizer(["a", " a"], is_split_into_words=True).input_ids
        == tokenizer("a a").input_ids
    )


def _labels(encoding: Encoded, tags: list[int]) -> np.ndarray:
    """The tag of each word at its first piece."""
    words = encoding.words
    begins = (words >= 0) & np.append(True, words[1:] != words[:-1])
    return np.where(begins, np.array(tags, np.int32)[words], np.int32(IGNORED))
