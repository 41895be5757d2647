"""Tokenizers of GGUF files against transformers' own conversion and against rules."""

import json

import numpy as np
import pytest

from jaxcl.errors import InputError
from jaxcl.interop import convert_gguf
from jaxcl.interop.gguf_file import read_gguf
from jaxcl.interop.gguf_tokenizer import SPLITS, merges_of_scores, tokenizer_files
from tests import toy_gguf as toy

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [
    "",
    "hello the world",
    "  two  spaces   and more ",
    "a1b22 333 4,444.5",
    "tab\t\tend\n\n\nnew lines \n",
    "emoji \U0001f600 \u00e9 \u00fc \u4e2d\u6587 \u0661",
    "don't I'll WE'VE",
    "<|user|>hi<|end|>\n<|end|>",
    "    x = 10  # code\n\ty",
    "the12 12the",
    "<s>a</s> <unk>",
]


def files_of(tmp_path, values, split=None):
    """What is written for the tokenizer of a toy file."""
    path, _ = toy.toy(tmp_path / "a.gguf", tokenizer=values)
    vocab = len(values["tokenizer.ggml.tokens"])
    return tokenizer_files(read_gguf(path), vocab, 128, split)


def ours(tmp_path, values, split=None):
    """The tokenizer that the package tokenizers reads from the files."""
    held = files_of(tmp_path, values, split)["tokenizer.json"]
    return tokenizers.Tokenizer.from_str(json.dumps(held))


def theirs(values):
    """What transformers makes of the same values (it reads the file itself by torch)."""
    package = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping"
    )
    names = package.GGUF_TOKENIZER_MAPPING["tokenizer"]
    given = {name: values.get(f"tokenizer.{key}") for key, name in names.items()}
    given = {name: value for name, value in given.items() if value is not None}
    return package.convert_gguf_tokenizer("llama", given)[0]


def encoded(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def trained():
    """A byte-level vocabulary of real merges, trained on a few words by tokenizers."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    steps = tokenizers.pre_tokenizers
    made.pre_tokenizer = steps.ByteLevel(add_prefix_space=False, use_regex=True)
    text = TEXTS + ["the quick brown fox  jumps over 1234 lazy dogs, 'll 've " * 3] * 9
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=steps.ByteLevel.alphabet(),
        special_tokens=list(toy.SPECIAL),
        show_progress=False,
    )
    made.train_from_iterator(text, trainer)
    model = json.loads(made.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(pair) for pair in model["merges"]]
    kinds = [3, 3] + [1] * (len(tokens) - 2)
    return {"tokens": tokens, "merges": merges, "token_type": kinds}


@pytest.mark.parametrize("split", ["gpt-2", "default", "llama-bpe", "qwen2"])
def test_byte_level_tokens_are_those_of_transformers(tmp_path, split):
    """Oracle: transformers' conversion of the same values; decoding gives the text back.
    Negative control: the splits differ on one of the texts."""
    values = toy.bpe(**trained(), pre=split)
    found, wanted = ours(tmp_path, values), theirs(values)
    plain = [encoded(found, text) for text in TEXTS]
    assert plain == [encoded(wanted, text) for text in TEXTS]
    for text, ids in zip(TEXTS, plain, strict=True):
        assert found.decode(ids, skip_special_tokens=False) == text
    other = "qwen2" if split != "qwen2" else "llama-bpe"
    other = ours(tmp_path, toy.bpe(**trained(), pre=other))
    assert [encoded(other, text) for text in TEXTS] != plain


def test_digits_of_smollm_stand_alone(tmp_path):
    """Oracle: the steps of SmolLM's own tokenizer, digits and then GPT-2's words, put
    together from tokenizers. transformers has GPT-2's words only: the same where one space
    at most precedes a digit, and one token less in ``a  1``."""
    values = toy.bpe(**trained(), pre="smollm")
    found = ours(tmp_path, values)
    wanted = theirs({**values, "tokenizer.ggml.pre": "gpt-2"})
    steps = tokenizers.pre_tokenizers
    digits = steps.Digits(individual_digits=True)
    built = tokenizers.Tokenizer.from_str(wanted.to_str())
    built.pre_tokenizer = steps.Sequence([digits, steps.ByteLevel(False)])
    for text in [*TEXTS, "a  1", "12\n 3", "\u0661\u0662"]:
        assert encoded(found, text) == encoded(built, text)
    spaced = found.encode("a  1", add_special_tokens=False).tokens
    assert spaced[-1] == "1"
    assert len(encoded(wanted, "a  1")) == len(spaced) + 1


def test_words_of_llama_3_that_are_tokens_need_no_merges(tmp_path):
    """Oracle: by hand; there is a token for the word, and no merge that makes it. Negative
    control: the split of GPT-2 does not look for words."""
    tokens = [*toy.TOKENS, "zebra"]
    given = {"tokens": tokens, "token_type": [3, 3] + [1] * (len(tokens) - 2)}
    found = ours(tmp_path, toy.bpe(**given, pre="llama-bpe"))
    assert encoded(found, "zebra") == [len(tokens) - 1]
    other = ours(tmp_path, toy.bpe(**given, pre="gpt-2"))
    assert len(encoded(other, "zebra")) == 5
    assert encoded(other, "zebra") == encoded(theirs(toy.bpe(**given)), "zebra")


def test_control_and_user_tokens_are_found_in_text(tmp_path):
    """Oracle: by hand: kind 3 is special and skipped, kind 4 is a token that is not."""
    tokens = [*toy.TOKENS, "<think>", "x  y"]
    kinds = [3, 3] + [1] * (len(toy.TOKENS) - 2) + [4, 4]
    found = ours(tmp_path, toy.bpe(tokens=tokens, token_type=kinds))
    text = "<|user|>a<think>bx  y"
    ids = encoded(found, text)
    names = ["<|user|>", "a", "<think>", "b", "x  y"]
    assert [found.id_to_token(i) for i in ids] == names
    assert found.decode(ids) == "a<think>bx  y"
    assert found.decode(ids, skip_special_tokens=False) == text


# ---------------------------------------------------------------------- sentencepiece


def test_sentencepiece_tokens_are_those_of_transformers(tmp_path):
    """Oracle: transformers' conversion of the same values: merges, bytes, prefix space."""
    values = toy.sentencepiece()
    found, wanted = ours(tmp_path, values), theirs(values)
    for text in [*TEXTS, "hello", " hello", "hello hello", "\u00e4\u00f6", "\u2581the"]:
        ids = encoded(found, text)
        assert ids == encoded(wanted, text), text
        assert found.decode(ids, skip_special_tokens=False) == wanted.decode(
            ids, skip_special_tokens=False
        )
    assert found.encode("hello the", add_special_tokens=False).tokens == [
        "\u2581hello",
        "\u2581the",
    ]


def test_merges_are_those_of_a_loop_over_pairs():
    """Oracle: all pairs of tokens by two loops, sorted by the score of what they make."""
    rng = np.random.default_rng(0)
    texts = sorted(
        {"".join(rng.choice(list("ab"), rng.integers(1, 5))) for _ in range(40)}
    )
    scores = [float(score) for score in -rng.integers(0, 6, len(texts))]
    found = merges_of_scores(tuple(texts), tuple(scores))
    score_of = dict(zip(texts, scores, strict=True))
    every = [(a, b) for a in texts for b in texts if a + b in score_of]
    assert sorted(found) == sorted(every)
    ranks = [score_of[a + b] for a, b in found]
    assert ranks == sorted(ranks, reverse=True)
    package = pytest.importorskip("transformers.tokenization_utils_base")
    numbers = {text: number for number, text in enumerate(texts)}
    assert found == package.generate_merges(numbers, score_of)


def test_a_prefix_space_may_be_absent(tmp_path):
    """Oracle: by hand; negative control: a file that does not say has one."""
    bare = ours(tmp_path, toy.sentencepiece(add_space_prefix=False))
    assert bare.encode("hello", add_special_tokens=False).tokens == ["hello"]
    assert bare.decode(encoded(bare, " hello")) == " hello"
    usual = ours(tmp_path, toy.sentencepiece())
    assert usual.encode("hello", add_special_tokens=False).tokens == ["\u2581hello"]
    assert usual.decode(encoded(usual, "hello")) == "hello"


def test_what_is_no_token_becomes_bytes_or_the_unknown_token(tmp_path):
    """Oracle: UTF-8 by hand; without tokens of bytes it is one unknown token."""
    found = ours(tmp_path, toy.sentencepiece())
    assert found.encode("z\u00f6", add_special_tokens=False).tokens == [
        "\u2581",
        "<0x7A>",
        "<0xC3>",
        "<0xB6>",
    ]
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a"]
    few = {"tokens": tokens, "scores": [0.0] * 5, "token_type": [2, 3, 3, 1, 1]}
    found = ours(tmp_path, toy.sentencepiece(**few))
    assert found.encode("azza", add_special_tokens=False).ids == [3, 4, 0, 4]


# ----------------------------------------------------------- beginnings and templates


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        (toy.bpe(pre="gpt-2", add_bos_token=None), "a"),
        (toy.bpe(pre="gpt-2", add_bos_token=True), "<|user|> a"),
        (toy.bpe(pre="llama-bpe", add_bos_token=None), "<|user|> a"),
        (toy.bpe(pre="llama-bpe", add_bos_token=False), "a"),
        (toy.bpe(pre="gpt-2", add_eos_token=True), "a <|end|>"),
        (toy.bpe(add_bos_token=True, add_eos_token=True), "<|user|> a <|end|>"),
        (toy.bpe(add_bos_token=True, bos_token_id=None), "a"),
        (toy.bpe(add_bos_token=True, eos_token_id=None), "<|user|> a"),
        (toy.sentencepiece(), "<s> \u2581 a"),
        (toy.sentencepiece(add_bos_token=False, add_eos_token=True), "\u2581 a </s>"),
    ],
)
def test_first_and_last_tokens_are_those_that_the_file_wants(tmp_path, values, ids):
    """Oracle: by hand; where a file is silent, as llama.cpp: a first token for the
    tokenizers of Llama 3 and of sentencepiece. Pairs have those of each text."""
    found = ours(tmp_path, values)
    assert found.encode("a").tokens == ids.split()
    assert found.encode("a", "a").tokens == ids.split() * 2


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_transformers_reads_the_folder_and_its_chat_template(tmp_path, kind):
    """Oracle: the same tokens as tokenizers; the template by hand; the special tokens."""
    transformers = pytest.importorskip("transformers")
    values = getattr(toy, kind)(add_bos_token=True)
    values["tokenizer.chat_template"] = toy.TEMPLATE
    path, _ = toy.toy(tmp_path / "a.gguf", tokenizer=values)
    convert_gguf(path, tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    direct = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in TEXTS:
        assert loaded(text)["input_ids"] == direct.encode(text).ids
        assert loaded(text, "b")["input_ids"] == direct.encode(text, "b").ids
    named = [values[f"tokenizer.ggml.{n}_token_id"] for n in ("bos", "eos", "unknown")]
    found = [loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id]
    assert found == named
    assert loaded.model_max_length == 128
    chat = [{"role": "user", "content": "the 12"}, {"role": "x", "content": "a"}]
    text = loaded.apply_chat_template(chat, tokenize=False)
    assert text == "<|user|>the 12<|end|><|user|>a<|end|>"


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (toy.bpe(tokens=None), "ggml.tokens must be a list, got nothing"),
        (toy.bpe(merges=None), "ggml.merges must be a list, got nothing"),
        (toy.bpe(tokens=[*toy.TOKENS[:-1], "!"]), "tokens .* and 265 are both '!'"),
        (toy.bpe(token_type=[1, 2]), "model has 266 tokens, and .*token_type 2"),
        (toy.bpe(merges=["a b"]), "two tokens that make a third, .* got 'a b'"),
        (toy.bpe(merges=["Ġt  he"]), "got 'Ġt  he' as number 0"),
        (toy.bpe(bos_token_id=266), "bos_token_id must be below 266, got 266"),
        (toy.bpe(eos_token_id=-1), r"eos_token_id must be an int from 0 .* got -1"),
        (toy.bpe(add_bos_token="yes"), "add_bos_token must be true or false"),
        (toy.sentencepiece(scores=None), "ggml.scores must be a list, got nothing"),
        (toy.sentencepiece(scores=[1.0]), r"tokens, and tokenizer.ggml.scores 1"),
        (
            {**toy.bpe(), "tokenizer.chat_template": 5},
            "chat_template must be text, got 5",
        ),
    ],
)
def test_tokenizers_that_are_not_complete_are_refused(tmp_path, values, words):
    """Oracle: the messages."""
    path, _ = toy.toy(tmp_path / "a.gguf", tokenizer=values)
    vocab = len(values.get("tokenizer.ggml.tokens", toy.TOKENS))
    with pytest.raises(InputError, match=words) as error:
        tokenizer_files(read_gguf(path), vocab, 128)
    assert "\n" not in str(error.value)


def test_a_split_may_be_given_for_a_file_that_does_not_say(tmp_path):
    """Oracle: the files of one that says; the message without it names the option."""
    silent, known = toy.bpe(pre=None), toy.bpe(pre="llama-bpe")
    given = files_of(tmp_path, silent, "llama-bpe")
    assert given == files_of(tmp_path, known)
    assert given == files_of(tmp_path, toy.bpe(pre="other"), "llama-bpe")
    with pytest.raises(
        InputError, match=r"give it by --split: one of gpt-2, .*Llama 3"
    ):
        files_of(tmp_path, silent)
    assert {"gpt-2", "smollm", "llama-bpe", "qwen2"} <= set(SPLITS)
