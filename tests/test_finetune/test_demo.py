"""The demonstration: a model and tasks made from Python's own library."""

import ast
import collections
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.data import instruct_dataset, load_tokenizer
from jaxcl.errors import InputError
from jaxcl.finetune import demo
from jaxcl.finetune.demo import make_demo
from jaxcl.finetune.demo_model import Pretraining
from jaxcl.finetune.demo_tasks import split_for_questions, training_text
from jaxcl.finetune.demo_text import Library, read_library
from jaxcl.interop import load_pretrained
from jaxcl.models import decoder

for package in ("tokenizers", "transformers"):
    pytest.importorskip(package)

TINY = Pretraining(
    vocab_size=300, hidden_size=16, num_layers=1, num_steps=40, batch_size=8, width=16
)
SIZES: dict[str, Any] = {
    "pretraining": TINY,
    "num_train": 30,
    "num_test": 12,
    "num_questions": 5,
}


@pytest.fixture(scope="module")
def library():
    """The packages that a task asks for, and one more."""
    full = read_library(modules=("_pydecimal", "asyncio", "email", "json"))
    return Library(full.sources, full.docstrings[::3])


@pytest.fixture(scope="module")
def made(library, tmp_path_factory):
    """A tiny demonstration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "read_library", lambda: library)
        yield make_demo(tmp_path_factory.mktemp("demo") / "one", **SIZES)


@pytest.fixture
def small(library, monkeypatch):
    """Make demonstrations of the small library."""
    monkeypatch.setattr(demo, "read_library", lambda: library)


def sizes(**changes: Any) -> dict[str, Any]:
    return {**SIZES, **changes}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    held = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    held.pop(".lock", None)
    return {name: hashlib.sha256(text).hexdigest() for name, text in held.items()}


def test_tokenizer_gives_back_any_text(made):
    """Oracle: the text itself, of any letters; the model's vocabulary and end token."""
    config, _ = load_pretrained(made.model)
    tokenizer = load_tokenizer(made.model, vocab_size=config.vocab_size)
    for text in ("def f(x):\n    return x", " Grüße, 世界 🙂", "\t\0 a  b"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == config.vocab_size == TINY.vocab_size
    written = json.loads((made.model / "config.json").read_text())
    assert written["eos_token_id"] == tokenizer.eos_token_id == tokenizer.pad_token_id


def test_model_has_learned(made, library):
    """Oracle: the log of the vocabulary size, the loss of a model that knows nothing."""
    config, params = load_pretrained(made.model)
    tokenizer = load_tokenizer(made.model)
    text = "\n".join(training_text(doc) for doc in library.docstrings[:20])
    ids = jnp.array(tokenizer(text).input_ids[:320]).reshape(20, 16)

    def loss(params):
        scores, labels = decoder(config).apply(params, ids)[:, :-1], ids[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return float(losses.mean())

    assert loss(params) < np.log(config.vocab_size) - 0.5
    start = decoder(config).init(jax.random.key(1))
    assert loss(start) > np.log(config.vocab_size) - 0.1  # what it began with


def test_tasks_are_well_formed(made):
    """Oracle: counts over the files; no test prompt is learned, no answer is the most."""
    assert [path.name for path in made.tasks] == [
        *("packages", "statements", "types", "names")
    ]
    for folder in made.tasks:
        train, test = lines(folder / "train.jsonl"), lines(folder / "test.jsonl")
        assert (len(train), len(test)) == (30, 12)
        prompts = [row["prompt"] for row in train + test]
        assert len({*prompts}) == len(prompts)
        for rows in (train, test):
            counts = collections.Counter(row["answer"] for row in rows)
            assert max(counts.values()) < 0.6 * len(rows)
            assert all(answer == f" {answer.strip()}" for answer in counts)
        assert {row["answer"] for row in test} <= {row["answer"] for row in train}


def test_answers_are_true(made):
    """Oracle: Python itself evaluates literals, and parses statements, of the prompts."""
    folder = dict(zip((path.name for path in made.tasks), made.tasks, strict=True))
    for row in lines(folder["types"] / "train.jsonl"):
        text = row["prompt"].removeprefix("The type of ").removesuffix(" is")
        tree = ast.parse(text, mode="eval").body
        kinds = {ast.List: "list", ast.Tuple: "tuple"}
        known = kinds.get(type(tree)) or type(ast.literal_eval(tree)).__name__
        assert row["answer"] == f" {known}"
    words = {"for": "loop", "while": "loop", "if": "condition", "from": "import"}
    words |= {"raise": "error", "def": "function"}
    words |= {word: word for word in ("class", "import", "return")}
    for row in lines(folder["statements"] / "train.jsonl"):
        line = row["prompt"].split("`")[1]
        word = line.replace("(", " ").replace(":", " ").split()[0]
        assert row["answer"] == f" {words.get(word, 'assignment')}"


def test_rows_can_be_learned_by_the_model(made):
    """Oracle: the answer decoded from the labels; no token crosses into an answer."""
    tokenizer = load_tokenizer(made.model)
    for folder in made.tasks:  # a warning about tokens that cross would be an error
        rows = instruct_dataset(folder / "test.jsonl", tokenizer)
        batch = rows.read(np.arange(rows.count))
        for labels, row in zip(batch.y, lines(folder / "test.jsonl"), strict=True):
            text = tokenizer.decode(labels[labels >= 0])
            assert text == row["answer"] + tokenizer.eos_token


def test_questions_are_about_other_docstrings(made, library):
    """Oracle: the right choice is a paragraph; others have its words in another order."""
    trained, _ = split_for_questions(library.docstrings, 5)
    known = {line for doc in library.docstrings for line in doc.paragraphs}
    rows = lines(made.general[0])
    assert len(rows) == 5
    for row in rows:
        right = row["choices"][row["answer"]]
        assert right in known
        assert not any(right in doc.paragraphs for doc in trained)
        assert len({*row["choices"]}) == 4
        words = {tuple(sorted(text.split())) for text in row["choices"]}
        assert len(words) == 1


@pytest.mark.usefixtures("small")
def test_same_sizes_make_the_same_files(made, tmp_path):
    """Oracle: the bytes of another call; negative control: one more row to learn."""
    tasks = lambda folder: {
        name: held
        for name, held in digests(folder).items()
        if not name.startswith(("model", "tokenizer"))
    }
    make_demo(tmp_path / "two", **SIZES, with_model=False)
    assert tasks(tmp_path / "two") == tasks(made.model.parent)
    make_demo(tmp_path / "more", **sizes(num_train=31), with_model=False)
    mine, others = tasks(tmp_path / "more"), tasks(made.model.parent)
    assert mine["tasks/types/train.jsonl"] != others["tasks/types/train.jsonl"]


@pytest.mark.usefixtures("small")
def test_goes_on_after_a_kill(made, tmp_path, monkeypatch):
    """Oracle: the files of a call that was not interrupted; finished parts stay."""
    write = demo.write_model

    def killed(_key, folder, *_rest):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "write_model", killed)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path, **SIZES)
    assert not (tmp_path / "model").exists()
    tasks = (tmp_path / "tasks").stat().st_ino
    monkeypatch.setattr(demo, "write_model", write)
    seen = []
    make_demo(tmp_path, **SIZES, on_progress=lambda *said: seen.append(said))
    assert {part for part, *_ in seen} == {"model"}
    assert (tmp_path / "tasks").stat().st_ino == tasks
    assert digests(tmp_path) == digests(made.model.parent)


def test_second_call_does_nothing(made, monkeypatch):
    """Oracle: a library that cannot be read, which is not asked for."""
    monkeypatch.setattr(demo, "read_library", lambda: 1 / 0)
    before = digests(made.model.parent)
    assert make_demo(made.model.parent, **SIZES) == made
    assert digests(made.model.parent) == before


def test_refuses_other_sizes(made):
    """Oracle: the message, which names what differs."""
    with pytest.raises(InputError, match="num_test 12, not 13; give another folder"):
        make_demo(made.model.parent, **sizes(num_test=13))


def test_refuses_a_python_without_sources(tmp_path):
    """Oracle: the message for an empty folder."""
    with pytest.raises(InputError, match="expected the sources of Python's"):
        read_library(tmp_path)


def test_reads_sources_without_importing(tmp_path):
    """Oracle: a docstring by hand; a file that would fail when run, and a broken one."""
    text = '"""Says  much.\n\n    >>> 1\n\nAnd\nmore, too.\n"""\nraise SystemExit\n'
    (tmp_path / "json.py").write_text(text)
    (tmp_path / "email.py").write_text("def broken(:")
    (tmp_path / "mine.py").write_text('"""Not of the library."""')
    library = read_library(tmp_path)
    assert [file.module for file in library.sources] == ["json"]
    assert library.docstrings == [("json", ("Says much.", "And more, too."))]
