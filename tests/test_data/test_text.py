"""Texts and their classes: tokens, labels, and what is refused."""

import gzip
import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import losses
from jaxcl.data import (
    Task,
    label_names,
    padding_fraction,
    row_lengths,
    share_widths,
    text_dataset,
)
from jaxcl.errors import InputError
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.training import Options, learn
from tests.tiny_tokenizers import byte_level, real_tokenizer, word_pieces

SAVED = Path(__file__).parent / "golden_saved"
ROWS = [
    {"text": "Stocks rose in London.", "label": "money"},
    {"text": "Madrid won", "label": "sport"},
    {"text": "A new telescope has found water on a planet.", "label": "science"},
    {"text": "Tokyo fell.", "label": "money"},
]


@pytest.fixture
def file(tmp_path):
    """The rows in a file of JSON lines."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def read_all(dataset):
    return dataset.read(np.arange(dataset.count))


def real_part(batch, row, name="tokens"):
    """The values of one row where it is not padding."""
    return batch.x[name][row][batch.x["mask"][row] > 0].tolist()


@pytest.mark.parametrize("make", [word_pieces, byte_level])
def test_rows_are_the_tokens_of_the_texts_and_the_numbers_of_the_labels(file, make):
    """Oracle: the tokenizer called on each text, and the sorted labels."""
    tokenizer = make()
    classes = label_names(file)
    assert classes == ["money", "science", "sport"]
    dataset = text_dataset(file, tokenizer, classes=classes, task=2)
    batch = read_all(dataset)
    assert set(batch.x) == {"tokens", "mask"}
    for number, row in enumerate(ROWS):
        assert real_part(batch, number) == tokenizer(row["text"]).input_ids
        assert classes[batch.y[number]] == row["label"]
        alone = dataset.read(np.array([number]))
        assert real_part(alone, 0) == real_part(batch, number)
        assert alone.x["tokens"].shape[1] <= batch.x["tokens"].shape[1]
    padding = batch.x["tokens"][batch.x["mask"] == 0]
    assert set(padding) == {tokenizer.pad_token_id}
    assert batch.y.dtype == np.int32
    assert batch.task.tolist() == [2] * 4
    assert batch.weight.tolist() == [1] * 4


def test_classes_may_be_given_in_any_order(file):
    """Oracle: by hand; more classes than the file has are the classes of other tasks."""
    classes = ["sport", "other", "money", "science"]
    dataset = text_dataset(file, word_pieces(), classes=classes)
    assert read_all(dataset).y.tolist() == [2, 0, 3, 2]


@pytest.mark.parametrize(
    ("labels", "classes", "want"),
    [
        ([0, 2, 5], None, [0, 2, 5]),
        ([7, 30, 7], [30, 7], [1, 0, 1]),
        ([True, False, True], [False, True], [1, 0, 1]),
        (["1", "10", "1"], ["1", "10"], [0, 1, 0]),
        ([1, True, 1], [True, 1], [1, 0, 1]),  # True is not 1
    ],
)
def test_labels_are_integers_text_or_booleans(labels, classes, want):
    """Oracle: by hand."""
    rows = [{"text": "a", "label": label} for label in labels]
    dataset = text_dataset(rows, word_pieces(), classes=classes)
    assert read_all(dataset).y.tolist() == want


def test_labels_of_csv_are_integers_where_all_are(tmp_path):
    """Oracle: the same rows as JSON; with classes of text they stay text."""
    path = tmp_path / "rows.csv"
    path.write_text("label,text\n1,Madrid won\n0,Tokyo fell\n")
    load = partial(text_dataset, path, word_pieces())
    assert read_all(load()).y.tolist() == [1, 0]
    assert read_all(load(classes=[1, 0])).y.tolist() == [0, 1]
    assert read_all(load(classes=["1", "0"])).y.tolist() == [0, 1]
    path.write_text("label,text\n1,Madrid won\nx,Tokyo fell\n")
    with pytest.raises(InputError, match="line 2: label '1' is not the number"):
        load()


def test_a_folder_of_hugging_face_datasets_is_read_without_the_package():
    """Oracle: the rows that third_party/oracles/saved_dataset.py saved by the package.

    Numbers of its classes are kept, or numbered by names in another order.
    """
    pytest.importorskip("pyarrow")
    tokenizer = word_pieces()
    assert label_names(SAVED) == ["sport", "money", "science"]
    assert label_names(SAVED, label="topic") == ["money", "science", "sport"]
    batch = read_all(text_dataset(SAVED, tokenizer))
    texts = ["Stocks rose.", "Madrid won.", 'Water, "found"\non a planet ☕', "NA"]
    for number, text in enumerate(texts):
        assert real_part(batch, number) == tokenizer(text).input_ids
    assert batch.y.tolist() == [1, 0, 2, 1]
    named = text_dataset(SAVED, tokenizer, classes=["money", "science", "sport"])
    topics = text_dataset(
        SAVED, tokenizer, label="topic", classes=["money", "science", "sport"]
    )
    assert read_all(named).y.tolist() == read_all(topics).y.tolist() == [0, 2, 1, 0]


def test_two_fields_are_a_pair():
    """Oracle: the tokenizer called on the pair, whose second text has type 1."""
    rows = [
        {"premise": "Stocks rose.", "claim": "Stocks fell in Tokyo.", "label": 0},
        {"premise": "Madrid won", "claim": "A match", "label": 1},
    ]
    tokenizer = word_pieces(model_input_names=["input_ids", "token_type_ids"])
    dataset = text_dataset(rows, tokenizer, text=("premise", "claim"))
    batch = read_all(dataset)
    for number, row in enumerate(rows):
        want = tokenizer(row["premise"], row["claim"])
        assert real_part(batch, number) == want.input_ids
        assert real_part(batch, number, "types") == want.token_type_ids
        assert max(want.token_type_ids) == 1
    assert not batch.x["types"][batch.x["mask"] == 0].any()


@pytest.mark.parametrize("pair", [False, True])
def test_a_text_that_is_too_long_loses_its_end_or_is_refused(tmp_path, pair):
    """Oracle: transformers' own truncation; the longest length before it."""
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a, " * n, "more": "a. " * (9 - n), "label": 0} for n in (2, 8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = word_pieces()
    fields = ("text", "more") if pair else "text"
    load = partial(text_dataset, path, tokenizer, text=fields, max_length=9)
    texts = [[row[field] for field in ("text", "more")[: 1 + pair]] for row in rows]
    full = [len(tokenizer(*text).input_ids) for text in texts]
    over = sum(length > 9 for length in full)
    assert over == (2 if pair else 1)
    words = (
        f"{over} of 2 texts lost their end: up to {max(full)} tokens with max_length=9"
    )
    with pytest.warns(UserWarning, match=words):
        batch = read_all(load())
    for number, text in enumerate(texts):
        want = tokenizer(*text, truncation=True, max_length=9).input_ids
        assert real_part(batch, number) == want
    line = next(i for i, length in enumerate(full, 1) if length > 9)
    refused = (
        f"line {line}: {full[line - 1]} tokens, over max_length=9; raise it, or cut"
    )
    with pytest.raises(InputError, match=refused):
        load(truncate=False)


def test_the_limit_of_the_tokenizer_is_the_default():
    """Oracle: model_max_length, which is only kept where it is known."""
    rows = [{"text": "Madrid " * 9, "label": 0}]
    with pytest.warns(UserWarning, match="max_length=5"):
        short = text_dataset(rows, word_pieces(model_max_length=5))
    assert row_lengths(short).tolist() == [5]
    assert row_lengths(text_dataset(rows, word_pieces())).tolist() > [9]


def test_a_linear_model_learns_two_tasks_of_texts(key):
    """Law: both tasks are learned from files of JSON lines to accuracies of 1."""
    tokenizer = word_pieces()
    classes = label_names(ROWS)
    load = partial(text_dataset, tokenizer=tokenizer, classes=classes, widths=(40,))
    tasks = []
    for number in range(2):
        rows = [{**row, "text": row["text"] + " today" * number} for row in ROWS]
        train, test = load(rows, task=number), load(rows, task=number)
        tasks.append(Task(f"task {number}", train, test))

    def apply(params, x, keys=None):
        del keys
        seen = params["embedding"][x["tokens"]] * x["mask"][..., None]
        return jnp.sum(seen, axis=1)

    params = {"embedding": jnp.zeros((tokenizer.vocab_size, 3))}
    outputs = losses.single_head(apply)
    method = make_method(losses.cross_entropy(outputs), optax.adam(0.1))
    result = learn(
        key,
        lambda frozen: method,
        params,
        tasks,
        Options(num_steps=30, batch_size=4),
        folder=None,
        metrics=classification(outputs),
    )
    assert result.matrix("accuracy")[-1].tolist() == [1, 1]


REAL = ["agnews", "amazon", "dbpedia"]


@pytest.mark.realdata
@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_less_than_a_fifth_of_real_texts_is_padding(realdata, model):
    """Law: alone and, on average, with shared widths; one width is the control."""
    tokenizer = real_tokenizer(model)
    tasks = []
    for number, name in enumerate(REAL):
        folder = realdata / "text-cls" / name
        load = partial(text_dataset, tokenizer=tokenizer, task=number, max_length=256)
        with pytest.warns(UserWarning, match="texts lost their end"):
            train = load(folder / "train.jsonl.gz")
        tasks.append(Task(name, train, train))
        assert len(np.unique(train.groups)) <= 8
        assert padding_fraction(train) < 0.2
    assert [task.train.count for task in tasks] == [7860, 5000, 11036]
    shared = share_widths(tasks)
    held = [padding_fraction(task.train) for task in shared]
    counts = [task.train.count for task in shared]
    assert np.average(held, weights=counts) < 0.2
    assert max(held) < 0.25
    one = share_widths(tasks, widths=[256])
    assert min(padding_fraction(task.train) for task in one) > 0.5


@pytest.mark.realdata
def test_real_intents_are_numbered_by_name(realdata):
    """Oracle: the file, read here; 150 intents of 100 rows each."""
    path = realdata / "text-cls" / "clinc150" / "data_full.json.gz"
    held = json.loads(gzip.decompress(path.read_bytes()))["train"]
    rows = [{"text": text, "label": label} for text, label in held]
    classes = label_names(rows)
    dataset = text_dataset(rows, real_tokenizer("minilm"), classes=classes)
    y = read_all(dataset).y
    assert np.bincount(y).tolist() == [100] * 150
    assert [classes[number] for number in y[:50]] == [r["label"] for r in rows[:50]]
    assert padding_fraction(dataset) < 0.2
