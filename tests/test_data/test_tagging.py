"""Words and their tags: schemes, alignment to pieces, views of some types."""

import gzip
import tarfile
from functools import partial

import numpy as np
import pytest

from jaxcl.data import (
    Sentence,
    entity_types,
    padding_fraction,
    read_conll,
    tag_names,
    tagging_dataset,
)
from jaxcl.errors import InputError
from tests.tiny_tokenizers import byte_level, real_tokenizer, word_pieces

TEXT = """-DOCSTART- -X- O

Stocks NN O
rose VB O
in IN O
London NNP B-LOC
. . O

The DT O
Madrid NNP B-ORG
striker NN I-ORG
Tokyo NNP B-LOC
"""
TYPES = ["LOC", "ORG"]


@pytest.fixture
def file(tmp_path):
    """Two sentences of three columns, after a line that begins a document."""
    path = tmp_path / "a.conll"
    path.write_text(TEXT)
    return path


def written(tmp_path, tags, name="a.txt"):
    """A file of one sentence with these tags, of which ``""`` ends a sentence."""
    path = tmp_path / name
    lines = [f"w{i}\t{tag}" if tag else "" for i, tag in enumerate(tags)]
    path.write_text("\n".join(lines))
    return path


def test_sentences_are_the_columns_between_empty_lines(file, tmp_path):
    """Oracle: by hand; lines end in two ways, and the file may be compressed."""
    first, second = read_conll(file)
    assert first.words == ("Stocks", "rose", "in", "London", ".")
    assert first.tags == ("O", "O", "O", "B-LOC", "O")
    assert second.tags == ("O", "B-ORG", "I-ORG", "B-LOC")
    assert (first.line, second.line) == (3, 9)
    assert second.place(2) == f"{file}, line 11"
    tabs = tmp_path / "b.txt.gz"
    raw = TEXT.replace(" ", "\t").replace("\n", "\r\n").encode()
    tabs.write_bytes(gzip.compress(raw))
    assert [s[:2] for s in read_conll(tabs)] == [first[:2], second[:2]]
    by_part = [s.words for s in read_conll(file, word=1)]
    assert by_part[0] == ("NN", "VB", "IN", "NNP", ".")


@pytest.mark.parametrize(
    ("scheme", "tags", "want"),
    [
        ("bio", "B-X I-X O B-X B-X", "B-X I-X O B-X B-X"),
        ("iob1", "I-X I-X O I-X B-X I-X I-Y", "B-X I-X O B-X B-X I-X B-Y"),
        ("iob1", "B-X I-X", "B-X I-X"),
        ("bioes", "S-X B-X I-X E-X S-X O B-Y E-Y", "B-X B-X I-X I-X B-X O B-Y I-Y"),
        ("types", "X X O X Y-a Y-a", "B-X I-X O B-X B-Y-a I-Y-a"),
    ],
)
def test_every_scheme_is_read_as_b_and_i(tmp_path, scheme, tags, want):
    """Oracle: by hand."""
    [sentence] = read_conll(written(tmp_path, tags.split()), scheme=scheme)
    assert " ".join(sentence.tags) == want


@pytest.mark.parametrize(
    ("scheme", "tags", "line", "words"),
    [
        (
            "bio",
            "O I-X",
            2,
            "I-X after O continues no entity; write B-X, or give repair",
        ),
        ("bio", "I-X", 1, "I-X at the beginning continues no entity"),
        ("bio", "B-X I-Y", 2, "I-Y after B-X continues no entity"),
        (
            "bio",
            "O X",
            2,
            "expected a tag of scheme 'bio', got 'X'; write B-X, I-X or O",
        ),
        ("bio", "O E-X", 2, "expected a tag of scheme 'bio', got 'E-X'"),
        ("bio", "B-", 1, "expected a tag of scheme 'bio', got 'B-'"),
        ("bio", "o", 1, "expected a tag of scheme 'bio', got 'o'"),
        (
            "iob1",
            "O art-film",
            2,
            "expected .*, got 'art-film'; .* or give scheme='types'",
        ),
        ("bioes", "O E-X", 2, "E-X after O continues no entity"),
        ("bioes", "B-X E-X I-X", 3, "I-X after E-X continues no entity"),
    ],
)
def test_a_tag_that_the_scheme_does_not_have_is_refused(
    tmp_path, scheme, tags, line, words
):
    """Oracle: the line with the tag."""
    path = written(tmp_path, tags.split())
    with pytest.raises(InputError, match=f"{path}, line {line}: {words}"):
        read_conll(path, scheme=scheme)


def test_a_tag_that_continues_nothing_may_begin_an_entity(tmp_path):
    """Oracle: by hand."""
    path = written(tmp_path, ["O", "I-X", "I-X", "I-Y", "", "I-Y"])
    first, second = read_conll(path, repair=True)
    assert first.tags == ("O", "B-X", "I-X", "B-Y")
    assert second.tags == ("B-Y",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a O\nb\n", "line 2: expected 2 columns, as in line 1, got 1; fix it"),
        ("a O\n\nb x O\n", "line 3: expected 2 columns, as in line 1, got 3"),
        (
            "\na\n",
            "line 2: expected at least 2 columns, got 1; write a word and its tag",
        ),
        ("a\tO\n\tO\n", "line 2: expected 2 columns, .* got 2, some of them empty"),
        ("\n \n\t\n", "a.txt is empty"),
        ("-DOCSTART- O\n\n", "a.txt has no sentences; give a file with some"),
        ("a O\nb \x00\n", "line 2: holds binary data"),
    ],
)
def test_lines_without_the_columns_are_refused(tmp_path, text, words):
    """Oracle: the line that was put there."""
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_conll(path)


def test_tags_of_types_are_numbered_in_pairs(file):
    """Oracle: by hand: a new type adds two at the end."""
    assert entity_types(read_conll(file)) == TYPES
    assert tag_names(TYPES) == ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    assert tag_names([*TYPES, "PER"])[:5] == tag_names(TYPES)


def aligned(tokenizer, sentence, names):
    """Labels by a loop: each word tokenised by itself, its tag at the first piece."""
    labels, tokens = [], []
    for number, (word, tag) in enumerate(
        zip(sentence.words, sentence.tags, strict=True)
    ):
        before = " " if tokenizer.unk_token is None and number else ""
        pieces = tokenizer(before + word, add_special_tokens=False).input_ids
        tokens += pieces
        labels += [names.index(tag)] + [-100] * (len(pieces) - 1)
    return tokens, labels


@pytest.mark.parametrize("make", [word_pieces, byte_level])
def test_a_tag_stands_at_the_first_piece_of_its_word(file, make):
    """Oracle: words tokenised one by one; some of them have several pieces."""
    tokenizer = make()
    dataset = tagging_dataset(file, tokenizer, types=TYPES, task=3)
    batch = dataset.read(np.arange(2))
    assert set(batch.x) == {"tokens", "mask"}
    several = 0
    for number, sentence in enumerate(read_conll(file)):
        tokens, labels = aligned(tokenizer, sentence, tag_names(TYPES))
        real = batch.x["mask"][number] > 0
        special = [-100] if make is word_pieces else []
        found = batch.x["tokens"][number][real]
        assert found.tolist()[len(special) : len(special) + len(tokens)] == tokens
        assert batch.y[number][real].tolist() == special + labels + special
        assert (batch.y[number][~real] == -100).all()
        several += len(tokens) > len(labels) - labels.count(-100)
        assert batch.weight[number] == len(sentence.words)
    assert several == 2
    assert batch.y.dtype == np.int32
    assert batch.task.tolist() == [3, 3]


def test_a_byte_level_tokenizer_sees_the_spaces_between_words(file):
    """Oracle: the tokens of the joined sentence; without spaces they differ (control)."""
    tokenizer = byte_level()
    batch = tagging_dataset(file, tokenizer, types=TYPES).read(np.array([0]))
    text = "Stocks rose in London ."
    found = batch.x["tokens"][0][batch.x["mask"][0] > 0].tolist()
    assert found == tokenizer(text).input_ids
    assert found != tokenizer(text.split(), is_split_into_words=True).input_ids


def test_a_task_sees_only_its_types(file):
    """Oracle: by hand; words of other types are O and still count."""
    load = partial(tagging_dataset, file, word_pieces(), types=TYPES)
    tags = lambda dataset: [
        [int(label) for label in row if label >= 0]
        for row in dataset.read(np.arange(2)).y
    ]
    assert tags(load()) == [[0, 0, 0, 1, 0], [0, 3, 4, 1]]
    assert tags(load(only=["LOC"])) == [[0, 0, 0, 1, 0], [0, 0, 0, 1]]
    assert tags(load(only=["ORG"])) == [[0, 0, 0, 0, 0], [0, 3, 4, 0]]
    assert tags(load(only=["ORG", "LOC"])) == tags(load())
    assert tags(load(types=["ORG", "LOC"])) == [[0, 0, 0, 3, 0], [0, 1, 2, 3]]
    with pytest.raises(
        InputError, match=r"line 10: tag 'B-ORG' of 'Madrid' is none of 3"
    ):
        load(types=["LOC"])
    with pytest.raises(InputError, match=r"only must be some of types, got \['PER'\]"):
        load(only=["PER"])


def test_a_word_that_the_tokenizer_drops_keeps_its_tag():
    """Oracle: the unknown token in its place; without one the word is refused."""
    sentence = Sentence(("Stocks", "\u200b", "rose"), ("O", "B-X", "O"), "a.txt", 7)
    load = partial(tagging_dataset, [sentence], types=["X"])
    tokenizer = word_pieces()
    assert tokenizer("\u200b", add_special_tokens=False).input_ids == []
    batch = load(tokenizer).read(np.array([0]))
    place = batch.y[0].tolist().index(1)
    assert batch.x["tokens"][0, place] == tokenizer.unk_token_id
    assert batch.weight.tolist() == [3]
    tokenizer.unk_token = None
    words = (
        r"a.txt, line 8: the tokenizer drops .* and has no unk_token; replace the word"
    )
    with pytest.raises(InputError, match=words):
        load(tokenizer)


def test_long_sentences_lose_their_end_or_are_refused(file):
    """Oracle: the labels without a limit, cut by hand."""
    tokenizer = word_pieces()
    load = partial(tagging_dataset, file, tokenizer, types=TYPES)
    full = load().read(np.arange(2))
    lengths = full.x["mask"].sum(axis=1)
    most = lengths.min() - 2
    words = f"2 of 2 sentences lost their end: up to {lengths.max()} tokens with max_le"
    with pytest.warns(UserWarning, match=words):
        short = load(max_length=int(most)).read(np.arange(2))
    assert short.y.shape == (2, most)
    kept = most - 1  # and the token that ends a text
    np.testing.assert_array_equal(short.y[:, :kept], full.y[:, :kept])
    assert (short.y[:, kept] == -100).all()
    for row, was in zip(short.x["tokens"], full.x["tokens"], strict=True):
        assert row.tolist() == [*was[:kept].tolist(), tokenizer.sep_token_id]
    counted = (short.y >= 0).sum(axis=1)
    np.testing.assert_array_equal(short.weight, counted)
    examples = load(max_length=99, mean="examples").read(np.arange(2))
    assert examples.weight.tolist() == [1, 1]
    with pytest.raises(
        InputError, match=f"line 3: {lengths[0]} tokens, over max_length"
    ):
        load(max_length=6, truncate=False)


def test_rows_in_files_are_those_of_the_sentences(file, tmp_path):
    """Law: the same rows from a file of rows; another file for other types."""
    folder = tmp_path / "cache"
    tokenizer = word_pieces()
    load = partial(tagging_dataset, tokenizer=tokenizer, cache_folder=folder)
    want = tagging_dataset(file, tokenizer, types=TYPES).read(np.arange(2))
    for source in (file, file, read_conll(file), read_conll(file)):
        found = load(source, types=TYPES).read(np.arange(2))
        np.testing.assert_array_equal(found.y, want.y)
        np.testing.assert_array_equal(found.x["tokens"], want.x["tokens"])
    assert len(list(folder.iterdir())) == 2  # of the file, and of the sentences
    load(file, types=TYPES, only=["LOC"])
    load(file, types=["ORG", "LOC"])
    assert len(list(folder.iterdir())) == 4


@pytest.mark.realdata
def test_wikigold_is_read_whole(realdata):
    """Oracle: counts by a plain loop over the lines of the file (1,696 sentences)."""
    path = realdata / "ner" / "wikigold" / "wikigold.conll.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    fields = [line.split() for line in lines if line.split()]
    words = [f for f in fields if f[0] != "-DOCSTART-"]
    sentences = read_conll(path, scheme="iob1")
    assert len(sentences) == 1696
    types = entity_types(sentences)
    assert types == ["LOC", "MISC", "ORG", "PER"]
    with pytest.raises(InputError, match="line 1: I-MISC at the beginning continues"):
        read_conll(path)
    tokenizer = real_tokenizer("minilm")
    dataset = tagging_dataset(path, tokenizer, types=types, scheme="iob1")
    labels = np.concatenate(
        [dataset.read(np.array([i])).y.ravel() for i in range(dataset.count)]
    )
    assert (labels >= 0).sum() == len(words)
    inside = [word for word in words if word[1] != "O"]
    assert (labels > 0).sum() == len(inside)
    for number, kind in enumerate(types):
        count = sum(word[1][2:] == kind for word in inside)
        assert ((labels - 1) // 2 == number)[labels > 0].sum() == count
    assert padding_fraction(dataset) < 0.2


@pytest.mark.realdata
def test_few_nerd_tags_are_types(realdata, tmp_path):
    """Oracle: counts by a plain loop over the lines; 9,448 sentences and six types."""
    archive = realdata / "ner" / "few-nerd-cil" / "few-nerd-cil-6of11.tar.xz"
    with tarfile.open(archive) as held:
        raw = held.extractfile("./task_3/train.txt").read()
    path = tmp_path / "train.txt"
    path.write_bytes(raw)
    rows = [line.split("\t") for line in raw.decode().splitlines() if line]
    with pytest.raises(
        InputError, match="give scheme='types' for types without a prefix"
    ):
        read_conll(path)
    sentences = read_conll(path, scheme="types")
    assert len(sentences) == 9448
    types = entity_types(sentences)
    assert types == sorted({tag for _, tag in rows} - {"O"})
    assert len(types) == 6
    dataset = tagging_dataset(
        path, real_tokenizer("minilm"), types=types, scheme="types", only=types[:1]
    )
    labels = np.concatenate(
        [
            dataset.read(part).y[dataset.read(part).y >= 0]
            for part in np.array_split(np.arange(dataset.count), 20)
        ]
    )
    assert len(labels) == len(rows)
    assert (labels > 0).sum() == sum(tag == types[0] for _, tag in rows)
    assert padding_fraction(dataset) < 0.2
