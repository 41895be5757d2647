"""Tokenizers of a few hundred tokens, trained in a tenth of a second."""

import functools
import os
from pathlib import Path

import pytest

from jaxcl.data import load_tokenizer

SENTENCES = [
    "Stocks rose in London on Monday, and fell in Tokyo.",
    "The striker scored twice for Madrid in the last minutes of the match.",
    "A new telescope has found water on a small planet, scientists said.",
    "What is the capital of France? Paris is the capital of France.",
    "Question: how many apples are left? Answer: three apples are left.",
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def _byte_level_json() -> str:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    # No space is put before a text, as in GPT-2 and its like.
    pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>", "<|begin|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    return tokenizer.to_str()


def byte_level(*, begin: bool = False, **settings):
    """A byte-level BPE as decoders have it, with a ChatML template.

    ``begin`` puts ``<|begin|>`` before every text, as Llama's tokenizers do.
    """
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.Tokenizer.from_str(_byte_level_json())
    if begin:
        number = tokenizer.token_to_id("<|begin|>")
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", number)]
        )
        settings = {"bos_token": "<|begin|>", **settings}
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"eos_token": "<|end|>", "pad_token": "<|end|>", **settings},
    )
    made.chat_template = CHATML
    return made


@functools.cache
def _word_pieces_json() -> str:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=WORDS, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer.to_str()


def word_pieces(**settings):
    """Word pieces between ``[CLS]`` and ``[SEP]``, as BERT has them."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    roles = dict(zip(("pad", "unk", "cls", "sep"), WORDS, strict=True))
    named = {f"{role}_token": word for role, word in roles.items()}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(_word_pieces_json()),
        **{**named, "model_input_names": ["input_ids"], **settings},
    )


def real_tokenizer(name: str):
    """That of a pretrained model, ``smollm2`` or ``minilm``; skips where it is not."""
    pytest.importorskip("transformers")
    folder = Path(os.environ.get("JAXCL_MODELS", ""), name)
    if not os.environ.get("JAXCL_MODELS") or not folder.is_dir():
        pytest.skip(f"set JAXCL_MODELS to the folder that holds {name}")
    return load_tokenizer(folder)
