"""A tiny model with its tokenizer, and files to learn, made once."""

import json
import random

import jax
import pytest

from jaxcl.interop import save_pretrained
from jaxcl.models import DecoderConfig, decoder
from tests.tiny_tokenizers import byte_level

WORDS = {"animals": ["cat", "dog", "cow"], "colours": ["red", "green", "blue"]}
COUNT = 24  # rows of a file
TESTED = 6  # of them for testing


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with ``model/``, two files of tasks, and one of questions."""
    place = tmp_path_factory.mktemp("finetune")
    tokenizer = byte_level()
    config = DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        max_position_embeddings=128,
    )
    save_pretrained(place / "model", config, decoder(config).init(jax.random.key(0)))
    tokenizer.save_pretrained(place / "model")
    draw = random.Random(0)
    for name, words in WORDS.items():
        rows = [(number, draw.choice(words)) for number in range(COUNT)]
        write(
            place / f"{name}.jsonl",
            [{"prompt": f"{n} {word}?", "answer": word} for n, word in rows],
        )
    questions = [
        {"question": f"{n}?", "choices": ["this", "that"], "answer": n % 2}
        for n in range(5)
    ]
    write(place / "general.jsonl", questions)
    return place


def write(path, lines):
    """JSON lines."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def words_of(home, out, *more, tasks=("animals", "colours")):
    """A short command line of ``jaxcl finetune``."""
    return [
        "finetune",
        *("--model", str(home / "model"), "--out", str(out)),
        *("--tasks", *(str(home / f"{name}.jsonl") for name in tasks)),
        *("--steps", "3", "--batch-size", "2", "--max-length", "48", "--rank", "2"),
        *("--learning-rate", "0.01", "--memory", "8", "--test-fraction", "0.25"),
        *("--max-new-tokens", "3", "--devices", "1", *more),
    ]
