"""Tokenizers, tokenised rows at their widths, and rows in files."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from jaxcl.data import load_tokenizer, text_dataset
from jaxcl.data import text as text_module
from jaxcl.data.tokens import TokenRows, label_weights, token_dataset, tokenizer_digest
from jaxcl.errors import InputError
from tests.tiny_tokenizers import byte_level, word_pieces


def test_importing_data_loads_none_of_the_packages_of_text():
    """Oracle: the modules of a new Python."""
    heavy = "transformers", "tokenizers", "pyarrow", "pandas", "torch"
    code = f"import sys, jaxcl.data; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize("make", [byte_level, word_pieces])
def test_a_tokenizer_in_a_folder_is_that_which_was_saved(tmp_path, make):
    """Oracle: the tokens that the saved one gives; its content has the same hash."""
    saved = make()
    saved.save_pretrained(tmp_path)
    texts = ["Stocks rose in Tokyo.", "naïve ☕"]
    for source in (tmp_path, str(tmp_path), saved):
        loaded = load_tokenizer(source, vocab_size=400)
        assert loaded(texts).input_ids == saved(texts).input_ids
        assert tokenizer_digest(loaded) == tokenizer_digest(saved)


def test_a_hash_of_a_tokenizer_is_of_what_it_does():
    """Law: the same after use with truncation; another with another template or end."""
    first = tokenizer_digest(byte_level())
    used = byte_level()
    used(["a b c d e"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer_digest(used) == first
    other = byte_level()
    other.chat_template = "{{ messages }}"
    found = [
        tokenizer_digest(other),
        tokenizer_digest(byte_level(eos_token="<|im_end|>")),
        tokenizer_digest(byte_level(begin=True)),
        tokenizer_digest(word_pieces()),
    ]
    assert len({first, *found}) == 5


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """Oracle: the largest number of its vocabulary."""
    tokenizer = byte_level()
    largest = max(tokenizer.get_vocab().values())
    load_tokenizer(tokenizer, vocab_size=largest + 1)
    words = (
        f"largest token is {largest}, the model has {largest} rows; give the model's"
    )
    with pytest.raises(InputError, match=words):
        load_tokenizer(tokenizer, vocab_size=largest)
    with pytest.raises(FileNotFoundError, match=r"no folder .*; nothing is downloaded"):
        load_tokenizer("bert-base-uncased")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="holds no tokenizer") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="expected a folder, or a fast tokenizer"):
        load_tokenizer(5)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    """Oracle: the message."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    words = r"load_tokenizer: needs transformers; pip install '.\[text\]'"
    with pytest.raises(ModuleNotFoundError, match=words):
        load_tokenizer(tmp_path)


def rows_of(lengths, **changes):
    """Rows of tokens 1, 2, ... with a label for each token."""
    lengths = np.array(lengths)
    tokens = np.arange(1, lengths.sum() + 1, dtype=np.int32)
    ones = np.ones(len(lengths), np.float32)
    held = TokenRows(tokens, lengths, tokens * 10, ones, by_token=True)
    return held._replace(**changes)


def test_rows_are_read_at_the_smallest_width_that_holds_them():
    """Oracle: by hand."""
    rows = rows_of([3, 1, 5], types=np.arange(9, dtype=np.int32))
    made = token_dataset("t", rows, task=2, pad=7, widths=(6, 3), limit=None)
    assert made.groups.tolist() == [0, 0, 1]
    batch = made.read(np.array([1, 0]))
    np.testing.assert_array_equal(batch.x["tokens"], [[4, 7, 7], [1, 2, 3]])
    np.testing.assert_array_equal(batch.x["mask"], [[1, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(batch.x["types"], [[3, 0, 0], [0, 1, 2]])
    np.testing.assert_array_equal(batch.y, [[40, -100, -100], [10, 20, 30]])
    np.testing.assert_array_equal(batch.task, [2, 2])
    dtypes = [batch.x[name].dtype for name in batch.x] + [
        batch.y.dtype,
        batch.task.dtype,
    ]
    assert set(dtypes) == {np.dtype(np.int32)}
    assert batch.weight.dtype == np.float32
    assert made.read(np.array([1, 2])).x["tokens"].shape == (2, 6)
    assert made.read(np.array([2])).x["tokens"].tolist() == [[5, 6, 7, 8, 9, 7]]
    assert made.example.x["tokens"].tolist() == [[5, 6, 7, 8, 9, 7]]
    wide = token_dataset("t", rows, task=0, pad=7, widths=[8, 64], limit=None)
    assert wide.example.x["tokens"].shape == (1, 64)  # for tasks of longer rows
    assert wide.read(np.arange(3)).x["tokens"].shape == (3, 8)
    classes = token_dataset(
        "t",
        rows._replace(y=np.array([4, 5, 6], np.int32), by_token=False),
        task=0,
        pad=0,
        widths=None,
        limit=5,
    )
    assert classes.read(np.array([2, 0])).y.tolist() == [6, 4]
    assert classes.read(np.array([2])).x["tokens"].shape == (1, 5)


def test_weights_count_labels_or_examples():
    """Oracle: by hand."""
    labels = np.array([1, -100, 2, -100, -100, 0, 3, 4, -100], np.int32)
    rows = rows_of([3, 2, 4], y=labels)
    assert label_weights(rows, "tokens").weight.tolist() == [2, 0, 3]
    assert label_weights(rows, "examples").weight.tolist() == [1, 1, 1]


# -------------------------------------------------------------------------------- files


RECORDS = [{"text": f"Stocks rose {i} times.", "label": i % 2} for i in range(6)]


@pytest.fixture
def counted(monkeypatch):
    """How often rows were tokenised: a list that grows."""
    calls = []
    original = text_module.encode_within

    def watched(*args, **given):
        calls.append(1)
        return original(*args, **given)

    monkeypatch.setattr(text_module, "encode_within", watched)
    return calls


def read_all(dataset):
    return dataset.read(np.arange(dataset.count))


def assert_equal(a, b):
    for name in a.x:
        np.testing.assert_array_equal(a.x[name], b.x[name])
    np.testing.assert_array_equal(a.y, b.y)
    np.testing.assert_array_equal(a.weight, b.weight)


def test_rows_are_tokenised_once_for_one_content(tmp_path, counted):
    """Law: one tokenisation and equal rows; another after any change that matters."""
    folder, source = tmp_path / "cache", tmp_path / "rows.jsonl"
    write = lambda rows: source.write_text("\n".join(map(json.dumps, rows)))
    write(RECORDS)
    tokenizer = word_pieces()
    load = lambda **given: text_dataset(
        source, **{"tokenizer": tokenizer, "cache_folder": folder, **given}
    )
    first = read_all(load())
    assert_equal(read_all(load()), first)
    assert_equal(read_all(load(cache_folder=None)), first)
    assert len(counted) == 2  # one of them without a folder
    load(task=3)
    load(widths=(64,))  # what is decided later
    assert len(counted) == 2
    load(max_length=99)
    load(tokenizer=word_pieces(unk_token="[CLS]"))
    load(classes=[1, 0])
    write(RECORDS[:-1])
    load()
    assert len(counted) == 6
    assert len(list(folder.iterdir())) == 5
    assert all(path.suffix == ".npz" for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore:.*lost their end")
@pytest.mark.parametrize(
    "change", [{"truncation_side": "left"}, {"split_special_tokens": True}]
)
def test_rows_are_those_of_the_tokenizers_settings(tmp_path, change):
    """Oracle: the rows without a folder. These are not among the tokenizer's rules."""
    rows = [{"text": "[SEP] times rose seven times", "label": 0}]
    load = lambda tokenizer, **given: read_all(
        text_dataset(rows, tokenizer, max_length=6, **given)
    )
    changed = word_pieces()
    for name, value in change.items():
        setattr(changed, name, value)
    first = load(word_pieces(), cache_folder=tmp_path)
    ours, wanted = load(changed, cache_folder=tmp_path), load(changed)
    assert_equal(ours, wanted)
    assert not np.array_equal(first.x["tokens"], wanted.x["tokens"])


def test_fields_named_by_numbers_are_passed_over(tmp_path):
    """Oracle: the rows without a folder, and without such a field."""
    odd = [record | {7: None, "of": []} for record in RECORDS]
    wanted = read_all(text_dataset(RECORDS, word_pieces()))
    ours = text_dataset(odd, word_pieces(), cache_folder=tmp_path)
    assert_equal(read_all(ours), wanted)


def test_a_warning_about_cut_rows_is_given_again(tmp_path):
    """Oracle: the message, of the first and the second load."""
    for _ in range(2):
        with pytest.warns(UserWarning, match="6 of 6 texts lost their end: up to"):
            text_dataset(RECORDS, word_pieces(), max_length=4, cache_folder=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "pickle"])
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path, counted, damage):
    """Oracle: the rows without a folder, and the warning; the file is then good again."""
    load = lambda: read_all(text_dataset(RECORDS, word_pieces(), cache_folder=tmp_path))
    want = load()
    [path] = tmp_path.iterdir()
    raw = path.read_bytes()
    spoiled = {
        "cut": raw[: len(raw) // 2],
        "flip": raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
        "empty": b"",
    }
    if damage in spoiled:
        path.write_bytes(spoiled[damage])
    elif damage == "other":  # good arrays that do not fit together
        held = dict(np.load(path))
        np.savez(path, **{**held, "y": held["y"][1:]})
    else:
        np.savez(path, tokens=np.array([object()]))
    with pytest.warns(UserWarning, match=r"npz is damaged \(.*\) and is made again"):
        assert_equal(load(), want)
    assert len(counted) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(load(), want)
    assert len(counted) == 2
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    """Oracle: a file where the folder should be; nothing else is left."""
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"cannot be written .*; give another cache_fold"
    ):
        text_dataset(RECORDS, word_pieces(), cache_folder=tmp_path / "file" / "deep")
    with pytest.raises(InputError, match="cache_folder must be a path"):
        text_dataset(RECORDS, word_pieces(), cache_folder=5)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
