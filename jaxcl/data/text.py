"""Classification of texts: JSON lines, CSV and saved datasets as tasks for an encoder.

Each folder has ``train.jsonl`` and ``test.jsonl``, with lines such as
``{"text": "Stocks rose", "label": "Business"}``::

    tokenizer = load_tokenizer("models/bert", vocab_size=30522)
    tasks = []
    for number, name in enumerate(["news", "reviews"]):
        load = partial(text_dataset, tokenizer=tokenizer, max_length=256, task=number)
        load = partial(load, classes=label_names(f"{name}/train.jsonl"))
        train, test = load(f"{name}/train.jsonl"), load(f"{name}/test.jsonl")
        tasks.append(Task(name, train, test))
    tasks = share_widths(tasks)
    result = learn(key, build, params, tasks, options, folder="runs/text")

Needs the extra ``text``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxcl.data.dataset import Dataset
from jaxcl.data.records import Records, Source, read_records, texts_of, values_of
from jaxcl.data.token_cache import cached_rows
from jaxcl.data.tokens import (
    Tokenizer,
    TokenRows,
    encode_within,
    length_limit,
    load_tokenizer,
    pad_token,
    token_dataset,
    warn_cut,
)
from jaxcl.errors import check_kind, check_size, require, shown


def text_dataset(
    source: Source,
    tokenizer: Tokenizer,
    *,
    text: str | tuple[str, str] = "text",
    label: str = "label",
    classes: Sequence[Any] | None = None,
    task: int = 0,
    max_length: int | None = None,
    truncate: bool = True,
    widths: Sequence[int] | None = None,
    cache_folder: Any = None,
) -> Dataset:
    """Texts, or pairs of texts, and their classes, tokenised for an encoder.

    ::

        classes = label_names("train.jsonl")
        train = text_dataset("train.jsonl", "models/bert", classes=classes)
        test = text_dataset("test.jsonl", "models/bert", classes=classes)

    Args:
      source: a file of JSON lines, a JSON list (each also ``.gz``), CSV, parquet or Arrow;
        a folder that ``save_to_disk`` of Hugging Face datasets wrote; or records in
        memory: a list of dicts, a pandas frame. CSV has a header line.
      tokenizer: of the model: its folder, or the one :func:`load_tokenizer` gave.
      text: field of the text; two fields are a pair, such as premise and hypothesis.
      label: field of the label: text, an integer or a boolean.
      classes: all labels in the order of their numbers, such as :func:`label_names` of
        the training file. If absent, labels are integers, the numbers of the classes.
      task: number of the task.
      max_length: tokens at which texts are cut, special tokens included; the tokenizer's
        own limit if absent.
      truncate: whether longer texts lose their end, with a warning that counts them, or
        what the tokenizer's ``truncation_side`` says; otherwise they are refused.
      widths: to which rows are padded; :func:`choose_widths` of the lengths if absent.
      cache_folder: where tokenised rows are kept, under a hash of the source, the
        tokenizer and the settings; nowhere if absent.

    Returns:
      A dataset with ``x = {"tokens", "mask"}``, for pairs also ``"types"``, each int32
      ``[b, width]``, padded on the right, and ``y [b]`` int32.

    Raises:
      ModuleNotFoundError: without the extra ``text``.
      InputError: naming file and line: for a field that is missing or holds no text, a
        label that is not in ``classes``, and what :func:`load_tokenizer` refuses.
    """
    who = "text_dataset"
    check_size(who, least=0, task=task)
    tokenizer = load_tokenizer(tokenizer)
    limit = length_limit(who, tokenizer, max_length)
    listed = None if classes is None else _as_classes(who, classes)
    check_kind(who, str, "name a field", label=label)
    fields = [text] if isinstance(text, str) else [*text]
    named = len(fields) in (1, 2) and all(isinstance(field, str) for field in fields)
    wanted = f"text must be a field or two of them, got {shown(text)}"
    require(named, who, f"{wanted}; name those of the file")
    settings = {"text": fields, "label": label, "limit": limit, "truncate": truncate}
    settings["classes"] = None if listed is None else [list(key) for key in listed]

    def make():
        records = read_records(who, source)
        texts = [texts_of(who, records, field, name="text") for field in fields]
        y = _numbers(who, records, label, listed)
        return _tokenised(who, records, tokenizer, texts, y, limit, truncate)

    rows = cached_rows(who, cache_folder, source, tokenizer, settings, make)
    warn_cut(who, rows, "texts lost their end", limit)
    pad = pad_token(tokenizer)
    return token_dataset(who, rows, task=task, pad=pad, widths=widths, limit=limit)


def label_names(source: Source, *, label: str = "label") -> list[Any]:
    """The different labels of a source in sorted order, as ``classes`` of the others.

    ::

        label_names([{"label": "dog"}, {"label": "cat"}, {"label": "dog"}])  # [cat, dog]

    Numbered classes of a Hugging Face dataset (``ClassLabel``) come in their own order.
    """
    who = "label_names"
    records = read_records(who, source)
    if records.names and label in records.names:
        return list(records.names[label])
    found = set(values_of(who, records, label, name="label"))
    kinds = sorted({type(value).__name__ for value in found})
    mixed = f"{records.source} has labels of several kinds, {', '.join(kinds)}"
    require(len(kinds) == 1, who, f"{mixed}; write all of them as text")
    return sorted(found)


#: A label's type and value: True is not 1.
_Label = tuple[str, Any]


def _key(label: Any) -> _Label:
    return type(label).__name__, label


def _as_classes(who: str, classes: Sequence[Any]) -> dict[_Label, int]:
    """The number of each label."""
    listed = isinstance(classes, Sequence | np.ndarray) and not isinstance(classes, str)
    items = list(classes) if listed else []
    items = [item.item() if isinstance(item, np.generic) else item for item in items]
    usable = items and all(isinstance(item, str | int) for item in items)
    wanted = "classes must be a list of text or integers, such as label_names(file)"
    require(usable, who, f"{wanted}, got {shown(classes)}")
    numbers = {_key(item): number for number, item in enumerate(items)}
    twice = next((item for item in items if items.count(item) > 1), None)
    once = f"classes list {shown(twice)} twice; list each class once"
    require(len(numbers) == len(items), who, once)
    return numbers


def _numbers(
    who: str, records: Records, field: str, classes: Mapping[_Label, int] | None
) -> Int[np.ndarray, " n"]:
    """The class number of each record, int32."""
    values = values_of(who, records, field, name="label")
    names = (records.names or {}).get(field)
    if records.is_text and _are_integers(values):
        of_text = classes is not None and any(kind == "str" for kind, _ in classes)
        values = values if of_text else [int(value) for value in values]
    if classes is None:
        numbers = [v if type(v) is int and 0 <= v < 2**31 else None for v in values]
        wanted = "is not the number of a class; give classes=label_names(training file)"
    else:
        if names and any(kind == "str" for kind, _ in classes):
            inside = lambda v: type(v) is int and 0 <= v < len(names)
            values = [names[value] if inside(value) else value for value in values]
        numbers = [classes.get(_key(value)) for value in values]
        wanted = f"is none of the {len(classes)} classes; add it, or drop the line"
    if None in numbers:
        row = numbers.index(None)
        bad = f"{records.place(row)}: label {shown(values[row])}"
        require(False, who, f"{bad} {wanted}")
    return np.array(numbers, np.int32)


def _are_integers(values: Sequence[str]) -> bool:
    """Whether all of the text of a column are integers that int32 can hold."""
    return all(re.fullmatch(r"-?[0-9]{1,9}", value) for value in values)


def _tokenised(who, records, tokenizer, texts, y, limit, truncate) -> TokenRows:
    """Rows of special tokens and text."""
    given = {"limit": limit, "truncate": truncate, "place": records.place}
    encodings, cut = encode_within(who, tokenizer, *texts, **given)
    types = np.concatenate([encoding.types for encoding in encodings])
    return TokenRows(
        tokens=np.concatenate([encoding.ids for encoding in encodings]),
        lengths=np.array([len(encoding.ids) for encoding in encodings]),
        y=y,
        weight=np.ones(len(y), np.float32),
        types=types if len(texts) == 2 else None,
        cut=len(cut),
        longest=max(cut, default=0),
    )
