"""The tokenizer in a GGUF file, as the files of a Hugging Face folder.

``tokenizer.json`` is what the package ``tokenizers`` reads; it is written without it. Two
models are supported: byte-level BPE (``gpt2``), whose merges are in the file, and the BPE
of sentencepiece (``llama``), whose merges follow from the scores of its vocabulary.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxcl.errors import shown
from jaxcl.interop.gguf_file import GgufFile

_KEY = "tokenizer.ggml."
#: Kinds of tokens in the file; the others are normal, unknown, unused and single bytes.
_CONTROL, _USER_DEFINED = 3, 4


class Split(NamedTuple):
    """How a byte-level tokenizer cuts text into words, before it merges bytes."""

    pattern: str | None = None  # of words; that of GPT-2 if absent
    digits: bool = False  # whether each digit is first cut off by itself
    ignore_merges: bool = False  # whether a word of the vocabulary is one token at once
    add_bos: bool = False  # whether text begins with a token, where the file is silent


def _words(digits: str) -> str:
    """The pattern of GPT-4 and its relatives, with so many digits in a word."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        rf"\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_LLAMA_3 = Split(_words("{1,3}"), ignore_merges=True, add_bos=True)
#: By ``tokenizer.ggml.pre``. Words, merges and first tokens are as in llama.cpp and the
#: models' own tokenizers; transformers reads from GGUF files the words of Llama 3 and
#: Qwen 2 only, those of GPT-2 for all others, and no merges that are ignored.
SPLITS = {
    "gpt-2": Split(),
    "default": Split(),
    "smollm": Split(digits=True),
    "llama-bpe": _LLAMA_3,
    "llama-v3": _LLAMA_3,
    "llama3": _LLAMA_3,
    "qwen2": Split(_words("")),
}


class Tokens(NamedTuple):
    """The vocabulary of a file, and the numbers of its special tokens by their names."""

    texts: list[str]
    kinds: list[int]
    special: dict[str, int]  # bos_token, ...: those that the file has
    bos: bool  # whether text begins with bos_token
    eos: bool  # whether it ends with eos_token


def tokenizer_files(
    file: GgufFile, vocab_size: int, max_length: int, split: str | None = None
) -> dict[str, Any]:
    """The contents of ``tokenizer.json`` and the files beside it, by their names.

    Args:
      file: of a model.
      vocab_size: rows of its embedding.
      max_length: tokens that it was trained for.
      split: a name of :data:`SPLITS`, for a file that does not say how it cuts text.

    Raises:
      InputError: for another kind of tokenizer, and for one that is not complete.
    """
    model = file.value(f"{_KEY}model", str, "gpt2 or llama, as text")
    known = "tokenizers gpt2 (byte-level BPE) and llama (sentencepiece) are supported"
    file.expect(model in ("gpt2", "llama"), f"{known}, got {shown(model)}")
    cut = _split_of(file, split) if model == "gpt2" else None
    tokens = _tokens_of(file, vocab_size, add_bos=cut is None or cut.add_bos)
    parts = (
        _sentencepiece(file, tokens) if cut is None else _byte_level(file, tokens, cut)
    )
    held = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added(tokens)),
        "normalizer": None,
        "post_processor": _template(tokens),
        **parts,
    }
    named = {name: tokens.texts[number] for name, number in tokens.special.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: named.get(name) for name in _SPECIAL},
        "add_bos_token": tokens.bos,
        "add_eos_token": tokens.eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    template = file.values.get("tokenizer.chat_template")
    if template is not None:
        wanted = "tokenizer.chat_template must be text"
        file.expect(isinstance(template, str), f"{wanted}, got {shown(template)}")
        settings["chat_template"] = template
    return {"tokenizer.json": held, "tokenizer_config.json": settings}


def special_numbers(file: GgufFile) -> dict[str, Any]:
    """``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` of a file, None if absent.

    Generation ends at ``eos_token_id``: a list where turns and messages end with other
    tokens than texts.
    """
    number = lambda name: file.values.get(f"{_KEY}{name}_token_id")
    ends = [number(name) for name in ("eos", "eot", "eom")]
    ends = [end for end in dict.fromkeys(ends) if end is not None]
    return {
        "bos_token_id": number("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": number("padding"),
    }


_SPECIAL = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def _split_of(file: GgufFile, split: str | None) -> Split:
    """How text is cut, by the file or by the one who converts it."""
    name = split or file.values.get(f"{_KEY}pre")
    known = ", ".join(SPLITS)
    asked = f"give it by --split: one of {known} (Llama 3 is llama-bpe)"
    file.expect(
        name is not None, f"it does not say how text is cut into words; {asked}"
    )
    usable = isinstance(name, str) and name in SPLITS
    file.expect(usable, f"{_KEY}pre must be one of {known}, got {shown(name)}; {asked}")
    return SPLITS[str(name)]


def _tokens_of(file: GgufFile, vocab_size: int, *, add_bos: bool) -> Tokens:
    """The vocabulary, a text for each row of the embedding."""
    texts = _list_of(file, "tokens", str, vocab_size)
    seen: dict[str, int] = {}
    for number, text in enumerate(texts):
        again = f"tokens {seen.get(text)} and {number} are both {shown(text)}"
        file.expect(seen.setdefault(text, number) == number, again)
    kinds = [1] * vocab_size
    if f"{_KEY}token_type" in file.values:
        kinds = _list_of(file, "token_type", int, vocab_size)
    special = {}
    for name, key in _SPECIAL.items():
        if f"{_KEY}{key}_token_id" in file.values:
            number = file.size(f"{_KEY}{key}_token_id", least=0)
            above = f"{_KEY}{key}_token_id must be below {vocab_size}, got {number}"
            file.expect(number < vocab_size, above)
            special[name] = number
    flag = lambda name, default: file.value(
        f"{_KEY}add_{name}_token", bool, "true or false", default
    )
    # Without such a token none is added.
    bos = flag("bos", add_bos) and "bos_token" in special
    eos = flag("eos", False) and "eos_token" in special
    return Tokens(texts, kinds, special, bos, eos)


def _list_of(file: GgufFile, name: str, kind: Any, count: int | None) -> list[Any]:
    """A list of values of one type, of a known length if one is given."""
    found = file.value(f"{_KEY}{name}", list, "a list")
    fits = all(isinstance(value, kind) for value in found)
    file.expect(fits, f"{_KEY}{name} must be a list of {kind.__name__}")
    if count is not None:
        came = f"the model has {count} tokens, and {_KEY}{name} {len(found)}"
        file.expect(len(found) == count, came)
    return found


def _added(tokens: Tokens) -> Iterator[dict[str, Any]]:
    """Tokens that are found in a text as they are, before it is cut."""
    chosen = set(tokens.special.values())
    for number, (text, kind) in enumerate(zip(tokens.texts, tokens.kinds, strict=True)):
        special = kind == _CONTROL or number in chosen
        if text and (special or kind == _USER_DEFINED):
            plain = dict.fromkeys(
                ("single_word", "lstrip", "rstrip", "normalized"), False
            )
            yield {"id": number, "content": text, **plain, "special": special}


def _template(tokens: Tokens) -> dict[str, Any] | None:
    """What is added at the beginning and the end of each text of a pair."""
    if not (tokens.bos or tokens.eos):
        return None
    ends = ("bos_token", tokens.bos), ("eos_token", tokens.eos)
    names = [tokens.texts[tokens.special[n]] if added else "" for n, added in ends]
    token = lambda name, side: {"SpecialToken": {"id": name, "type_id": side}}

    def around(text: str, side: int) -> list[dict]:
        first, last = ([token(name, side)] if name else [] for name in names)
        return [*first, {"Sequence": {"id": text, "type_id": side}}, *last]

    number = {tokens.texts[number]: number for number in tokens.special.values()}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [number[name]], "tokens": [name]}
            for name in filter(None, names)
        },
    }


def _bpe(tokens: Tokens, merges: list[tuple[str, str]], **options: Any) -> dict:
    """A model of merges; the vocabulary has the numbers of the file."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": {text: number for number, text in enumerate(tokens.texts)},
        "merges": merges,
    }


# ------------------------------------------------------------------ byte-level (gpt2)


def _byte_level(file: GgufFile, tokens: Tokens, cut: Split) -> dict[str, Any]:
    """BPE of bytes that are written as letters, with the merges of the file."""
    known, merges = set(tokens.texts), []
    for number, line in enumerate(_list_of(file, "merges", str, None)):
        pair = tuple(line.split(" "))
        usable = len(pair) == 2 and known.issuperset((*pair, "".join(pair)))
        wanted = "merges must be two tokens that make a third, with a space between"
        if not usable:
            file.refuse(f"{wanted}, got {shown(line)} as number {number}")
        merges.append(pair)
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level = {**bytes_of, "use_regex": cut.pattern is None}
    steps = [{"type": "Digits", "individual_digits": True}] * cut.digits
    if cut.pattern is not None:
        pattern = {"pattern": {"Regex": cut.pattern}, "behavior": "Isolated"}
        steps.append({"type": "Split", **pattern, "invert": False})
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
        "decoder": {**bytes_of, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=cut.ignore_merges),
    }


# -------------------------------------------------------------- sentencepiece (llama)

_SPACE = "\u2581"  # how sentencepiece writes one


def _sentencepiece(file: GgufFile, tokens: Tokens) -> dict[str, Any]:
    """BPE of characters, bytes for those that are unknown, by the scores of the file."""
    scores = _list_of(file, "scores", float, len(tokens.texts))
    prefix = file.value(f"{_KEY}add_space_prefix", bool, "true or false", True)
    unknown = tokens.special.get("unk_token")
    metaspace = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    steps = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix,
    ]
    merges = merges_of_scores(tuple(tokens.texts), tuple(scores))
    options: dict[str, Any] = {"fuse_unk": True, "byte_fallback": True}
    if unknown is not None:
        options["unk_token"] = tokens.texts[unknown]
    return {
        "pre_tokenizer": {
            **metaspace,
            "prepend_scheme": "first" if prefix else "never",
        },
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": _bpe(tokens, merges, **options),
    }


@functools.lru_cache(maxsize=1)
def merges_of_scores(
    texts: tuple[str, ...], scores: tuple[float, ...]
) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, that of the highest score first.

    Sentencepiece merges the neighbours that make the token of the highest score. Equal
    scores: a longer left part first, then the order of the vocabulary, as transformers has
    it.
    """
    known = set(texts)
    found = []
    for number, (text, score) in enumerate(zip(texts, scores, strict=True)):
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in known and right in known:
                found.append((-score, -len(left), -len(right), number, left, right))
    found.sort(key=lambda pair: pair[:4])
    return [pair[4:] for pair in found]
