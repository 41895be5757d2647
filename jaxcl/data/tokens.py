"""Text as numbers: tokenizers, and datasets of tokenised rows in a few widths.

Needs the extra ``text``: transformers, without torch. Rows are tokenised once and are then
in memory as int32, one after the other; padding is added when a batch is read.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxcl.data.dataset import Dataset
from jaxcl.data.widths import choose_widths, resized, usable_widths
from jaxcl.errors import (
    InputError,
    MissingFileError,
    check_size,
    reason_of,
    require,
    shown,
    warn,
)
from jaxcl.sequences import IGNORED
from jaxcl.typing import Batch

#: The folder of a tokenizer, or one that transformers has loaded.
Tokenizer = Any  # str | os.PathLike[str] | transformers.PreTrainedTokenizerFast

_CHUNK = 1000  # texts that are tokenised at a time
_NO_LIMIT = 10**9  # transformers: model_max_length is 1e30 where it is not known


def load_tokenizer(source: Tokenizer, *, vocab_size: int | None = None) -> Any:
    """The tokenizer in a folder, with everything that this library asks of one.

    ::

        tokenizer = load_tokenizer("models/smollm2", vocab_size=config.vocab_size)

    Args:
      source: a folder with ``tokenizer.json`` and its like, as ``save_pretrained`` writes
        it or beside a model's weights; or a fast tokenizer of transformers. Nothing is
        downloaded.
      vocab_size: rows of the model's embedding; a tokenizer with larger numbers is refused.

    Raises:
      ModuleNotFoundError: without the extra ``text``.
      InputError: for a folder that is missing or holds no tokenizer.
    """
    who = "load_tokenizer"
    check_size(who, optional=True, vocab_size=vocab_size)
    tokenizer = source
    if isinstance(source, str | os.PathLike):
        tokenizer = _from_folder(who, Path(source))
    kind = "a folder, or a fast tokenizer of transformers"
    remedy = "see transformers.AutoTokenizer"
    wanted = f"expected {kind}, got {shown(source)}; {remedy}"
    require(getattr(tokenizer, "is_fast", False), who, wanted)
    if vocab_size is not None:
        largest = max(tokenizer.get_vocab().values())
        beyond = f"its largest token is {largest}, the model has {vocab_size} rows"
        require(largest < vocab_size, who, f"{beyond}; give the model's own tokenizer")
    return tokenizer


def _from_folder(who: str, folder: Path) -> Any:
    transformers = _import_transformers(who)
    if not folder.is_dir():
        remedy = "give the folder that save_pretrained wrote; nothing is downloaded"
        msg = f"{who}: no folder {folder}; {remedy}."
        raise MissingFileError(msg)
    try:
        load = transformers.AutoTokenizer.from_pretrained
        return load(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged files lead to errors of many kinds
        reason = f"holds no tokenizer ({reason_of(error)}); save_pretrained writes one"
        msg = f"{who}: {folder} {reason}."
        raise InputError(msg) from error


def _import_transformers(who: str) -> Any:
    """The package, without its advice to install torch."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        msg = f"{who}: needs {error.name}; pip install '.[text]'."
        raise ModuleNotFoundError(msg, name=error.name) from error
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does to a text: vocabulary, rules, special tokens."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("padding", None)  # these two change with every call
    rules.pop("truncation", None)
    special = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    sides = [tokenizer.truncation_side, tokenizer.split_special_tokens]
    held = [rules, special, tokenizer.chat_template, sides]
    text = json.dumps(held, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def length_limit(who: str, tokenizer: Any, max_length: int | None) -> int | None:
    """The length at which rows are cut: the one given, or the tokenizer's, if known."""
    check_size(who, optional=True, max_length=max_length)
    if max_length is None:
        known = int(min(tokenizer.model_max_length, _NO_LIMIT))
        max_length = known if 0 < known < _NO_LIMIT else None
    least = tokenizer.num_special_tokens_to_add(pair=False) + 1
    short = f"max_length must be at least {least}, with the special tokens of a text"
    fits = max_length is None or max_length >= least
    require(fits, who, f"{short}, got {max_length}")
    return max_length


class Encoded(NamedTuple):
    """The tokens of one text or of a pair."""

    ids: Int[np.ndarray, " n"]
    types: np.ndarray  # [n] of a pair: which text; else empty
    words: np.ndarray  # [n] of separate words: which one, -1 for special tokens


def encode(tokenizer: Any, *texts: Sequence[Any], **settings: Any) -> list[Encoded]:
    """The tokens of texts, of pairs of them, or of lists of words."""
    pairs, split = len(texts) == 2, settings.get("is_split_into_words", False)

    def kept(encoding):  # the package's own record takes a hundred bytes a token
        types = encoding.type_ids if pairs else []
        words = encoding.word_ids if split else []
        words = [-1 if word is None else word for word in words]
        lists = (encoding.ids, types, words)
        return Encoded(*(np.array(held, np.int32) for held in lists))

    found = []
    for start in range(0, len(texts[0]), _CHUNK):
        part = [side[start : start + _CHUNK] for side in texts]
        found += map(kept, tokenizer(*part, verbose=False, **settings).encodings)
    return found


def encode_within(
    who: str,
    tokenizer: Any,
    *texts: Sequence[Any],
    limit: int | None,
    truncate: bool,
    place: Callable[[int], str],
    encodings: list[Encoded] | None = None,
    **settings: Any,
) -> tuple[list[Encoded], list[int]]:
    """Tokens of texts, at most ``limit`` of each, and the full lengths of those cut.

    A text that is too long is cut or refused, and one without a token is refused;
    ``place(row)`` says where it was. ``encodings`` are those of full length, if known.
    """
    if encodings is None:
        encodings = encode(tokenizer, *texts, **settings)
    lengths = np.array([len(encoding.ids) for encoding in encodings])
    if not lengths.min():
        empty = f"{place(int(lengths.argmin()))}: text without a token"
        require(False, who, f"{empty}; fix it, or drop it")
    over = [] if limit is None else np.flatnonzero(lengths > limit).tolist()
    if over and not truncate:
        long = f"{place(over[0])}: {lengths[over[0]]} tokens, over max_length={limit}"
        require(False, who, f"{long}; raise it, or cut by truncate=True")
    if over:
        long = [[side[row] for row in over] for side in texts]
        cutting = {"truncation": True, "max_length": limit, **settings}
        for row, short in zip(over, encode(tokenizer, *long, **cutting), strict=True):
            encodings[row] = short
    return encodings, lengths[over].tolist()


# -------------------------------------------------------------------------------- rows


class TokenRows(NamedTuple):
    """Tokenised rows of different lengths, one after the other."""

    tokens: Int[np.ndarray, " total"]
    lengths: Int[np.ndarray, " n"]
    y: Int[np.ndarray, " _"]  # a class for each row, or a label for each token
    weight: Float[np.ndarray, " n"]
    types: Int[np.ndarray, " total"] | None = None  # which text of a pair
    segments: Int[np.ndarray, " total"] | None = None  # from 1, of packed rows
    by_token: bool | np.ndarray = False  # whether y has a label for each token
    cut: int | np.ndarray = 0  # rows that were too long
    longest: int | np.ndarray = 0  # tokens of the longest before it was cut
    merged: int | np.ndarray = 0  # rows with a token across the end of the prompt
    skipped: int | np.ndarray = 0  # rows that could not be used
    first: str | np.ndarray = ""  # the reason of the first of them


def label_weights(rows: TokenRows, mean: str) -> TokenRows:
    """Rows with the weights for a mean over tokens, or over examples."""
    if mean == "examples":
        return rows
    row = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    counts = np.bincount(row[rows.y >= 0], minlength=len(rows.lengths))
    return rows._replace(weight=counts.astype(np.float32))


def check_choice(who: str, known: Sequence[str], **given: Any) -> None:
    """Refuse a value that is not one of a few words."""
    for name, value in given.items():
        wanted = f"{name} must be {' or '.join(map(repr, known))}, got {shown(value)}"
        require(isinstance(value, str) and value in known, who, wanted)


def warn_cut(who: str, rows: TokenRows, what: str, limit: int | None) -> None:
    """Say once how many rows were cut."""
    if rows.cut:
        counted = f"{int(rows.cut)} of {len(rows.lengths)} {what}"
        longest = f"up to {int(rows.longest)} tokens with max_length={limit}"
        remedy = "raise it, or refuse such rows by truncate=False"
        warn(f"{who}: {counted}: {longest}; {remedy}.")


def token_dataset(
    who: str,
    rows: TokenRows,
    *,
    task: int,
    pad: int,
    widths: Sequence[int] | None,
    limit: int | None,
) -> Dataset:
    """A dataset of tokenised rows in a few widths; ``x`` has ``tokens`` and ``mask``."""
    check_size(who, least=0, task=task)
    longest = int(rows.lengths.max())
    if widths is None:
        table = np.array(choose_widths(rows.lengths, longest=limit))
    else:
        table = np.array(usable_widths(who, widths, longest))
    groups = np.searchsorted(table, rows.lengths).astype(np.int32)
    starts = np.cumsum(rows.lengths) - rows.lengths
    extra: Mapping[str, Any] = {"types": rows.types, "segments": rows.segments}

    def read(numbers):
        lengths = rows.lengths[numbers]
        column = np.arange(int(table[groups[numbers].max(initial=0)]))
        real = column < lengths[:, None]
        # Places beyond a row's end are read and then replaced.
        place = np.minimum(starts[numbers][:, None] + column, len(rows.tokens) - 1)
        spread = lambda flat, blank: np.where(real, flat[place], np.int32(blank))
        x = {"tokens": spread(rows.tokens, pad), "mask": real.astype(np.int32)}
        x |= {name: spread(flat, 0) for name, flat in extra.items() if flat is not None}
        y = spread(rows.y, IGNORED) if rows.by_token else rows.y[numbers]
        number = np.full(len(lengths), task, np.int32)
        return Batch(x, y, rows.weight[numbers], number)

    example = read(np.array([rows.lengths.argmax()]))
    if widths is not None:  # later tasks may have longer rows
        example = resized(example, int(table[-1]))
    return Dataset(len(rows.lengths), read, groups, example)


def pad_token(tokenizer: Any) -> int:
    """The number at padding, which the mask hides; 0 if the tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
