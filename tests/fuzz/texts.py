"""Damaged files of text: JSON lines of classes and of instructions, tags in columns."""

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from jaxcl.data import (
    Dataset,
    instruct_dataset,
    instruct_prompts,
    label_names,
    read_conll,
    tagging_dataset,
    text_dataset,
)
from tests.fuzz import mutate
from tests.fuzz.battery import main, run_battery
from tests.tiny_tokenizers import byte_level, word_pieces

LABELLED = [
    {"text": f"Stocks rose {i} times in Tokyo.", "label": "uvw"[i % 3]}
    for i in range(5)
]
PAIRS = [
    {"prompt": f"How many apples are left of {i}?", "answer": f" {i // 2}."}
    for i in range(5)
]
ALPACA = [
    {"instruction": "Count.", "input": "a b" * (i % 2), "output": f"{i}"}
    for i in range(5)
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"And {i}?"},
            {"role": "assistant", "content": f"It is {i + 1}."},
        ]
    }
    for i in range(5)
]
COLUMNS = [
    "Stocks O",
    "rose O",
    "",
    "Madrid B-ORG",
    "FC I-ORG",
    "in O",
    "",
    "Tokyo B-LOC",
]

encoder = functools.cache(word_pieces)
decoder = functools.cache(byte_level)


def assert_usable(dataset: Dataset, tokenizer: Any, most: int) -> int:
    """Tokens of the vocabulary, padding on the right, labels that fit, weights above 0."""
    batch = dataset.read(np.arange(dataset.count))
    tokens, mask = batch.x["tokens"], batch.x["mask"]
    assert tokens.shape == mask.shape
    assert len(tokens) == dataset.count > 0
    assert 0 <= tokens.min() <= tokens.max() < len(tokenizer)
    assert (np.diff(mask) <= 0).all()
    assert mask[:, 0].all()
    assert (batch.weight > 0).all()
    assert batch.y.dtype == tokens.dtype == np.int32
    if batch.y.ndim == 2:
        assert ((batch.y >= 0) | (batch.y == -100)).all()
        assert (batch.y[mask == 0] == -100).all()
        assert ((batch.y >= 0).sum(axis=1) > 0).all()
    assert batch.y.max() < most
    return dataset.count


def damaged_lines(rng: np.random.Generator, records: list[dict]) -> bytes:
    """Records with hostile values, missing names and moved lines, then damaged bytes."""
    lines = [
        {name: json.dumps(value) for name, value in record.items()}
        for record in records
    ]
    for _ in range(rng.integers(3)):
        line = lines[rng.integers(len(lines))]
        name = list(line)[rng.integers(len(line))] if line else "text"
        value = mutate.hostile(rng)
        line[name] = json.dumps(value) if rng.integers(2) else value
        if rng.integers(8) == 0:
            del line[name]
    texts = [
        "{" + ", ".join(f'"{k}": {v}' for k, v in line.items()) + "}" for line in lines
    ]
    if rng.integers(6) == 0:
        texts[rng.integers(5)] = mutate.hostile(rng)
    if rng.integers(6) == 0:
        text = "[" + ",\n".join(texts) + "]"
    else:
        text = ["\n", "\r\n", "\n\n"][rng.integers(3)].join(texts)
    raw = mutate.encode(text)
    return mutate.damage(rng, raw) if rng.integers(2) else raw


def quietly(call, *args, **given):
    """A call whose warnings about cut rows are not of interest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **given)


def classes(rng: np.random.Generator, folder: Path):
    """Texts and their classes, given or those of the file."""
    path = folder / "rows.jsonl"
    path.write_bytes(damaged_lines(rng, LABELLED))
    given = {"max_length": [None, 12, 3][rng.integers(3)]}
    own = bool(rng.integers(2))

    def call():
        named = label_names(path) if own else ["u", "v", "w"]
        dataset = quietly(text_dataset, path, encoder(), classes=named, **given)
        return assert_usable(dataset, encoder(), len(named))

    return call


def instructions(rng: np.random.Generator, folder: Path):
    """Instructions of three formats, with and without a chat template."""
    path = folder / "rows.jsonl"
    path.write_bytes(damaged_lines(rng, [PAIRS, ALPACA, CHATS][rng.integers(3)]))
    given = {
        "max_length": [None, 40, 9][rng.integers(3)],
        "skip_bad_rows": bool(rng.integers(2)),
    }
    given["pack"] = given["max_length"] is not None and bool(rng.integers(2))
    chat = True if rng.integers(4) == 0 else None

    def call():
        dataset = quietly(instruct_dataset, path, decoder(), chat=chat, **given)
        skip = given["skip_bad_rows"]
        prompts = quietly(
            instruct_prompts, path, decoder(), chat=chat, skip_bad_rows=skip
        )
        assert len(prompts.tokens) == len(prompts.answers) > 0
        return assert_usable(dataset, decoder(), len(decoder()))

    return call


def columns(rng: np.random.Generator, folder: Path):
    """Words and tags: hostile ones, other columns, other schemes, damaged bytes."""
    lines = [line.split() for line in COLUMNS]
    for _ in range(rng.integers(3)):
        fields = lines[rng.integers(len(lines))]
        if fields and rng.integers(8):
            fields[rng.integers(len(fields))] = mutate.hostile(rng)
        else:
            fields.append(mutate.hostile(rng))
    space = "\t" if rng.integers(2) else " "
    text = ["\n", "\r\n"][rng.integers(2)].join(map(space.join, lines))
    raw = mutate.encode(text)
    raw = mutate.damage(rng, raw) if rng.integers(2) else raw
    path = folder / "rows.conll"
    path.write_bytes(raw)
    scheme = ["bio", "bio", "bio", "iob1", "types", "bioes"][rng.integers(6)]
    given = {"scheme": scheme, "repair": bool(rng.integers(2))}
    most = [None, 9, 3][rng.integers(3)]

    def call():
        read_conll(path, **given)
        tokenizer = [encoder, decoder][len(raw) % 2]()
        types = ["ORG", "LOC"]
        dataset = quietly(
            tagging_dataset, path, tokenizer, types=types, max_length=most, **given
        )
        return assert_usable(dataset, tokenizer, 5)

    return call


MAKES = {"classes": classes, "instructions": instructions, "columns": columns}


def battery(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Try so many inputs; see :func:`tests.fuzz.battery.run_battery`."""
    return run_battery("texts", MAKES, count, seed, folder)


if __name__ == "__main__":
    main("texts", MAKES)
