"""Choices, generated text and entities against loops, hand counts and the packages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxcl.data.dataset import Dataset, array_dataset
from jaxcl.metrics import (
    TextRow,
    choices,
    entity_f1,
    evaluate,
    exact_match,
    generation,
    scores,
    text_rows,
)
from jaxcl.metrics.evaluation import values_of_task
from jaxcl.metrics.text import answer_log_likelihoods
from jaxcl.tree import as_batch
from jaxcl.typing import Batch

RANDOM = np.random.default_rng(0)
KEY = jax.random.key(0)
READ = lambda params, batch: batch.x["logits"]  # the rows are the outputs
QUESTIONS, ANSWERS, LENGTH, WORDS = 60, 4, 6, 5


def questions(seed=0):
    """Random logits and labels; some questions have three answers only."""
    rng = np.random.default_rng(seed)
    shape = (QUESTIONS, ANSWERS, LENGTH)
    labels = rng.integers(0, WORDS, shape).astype(np.int32)
    numbers = rng.integers(1, LENGTH, shape[:2])  # of labels, at the end
    labels[np.arange(LENGTH) < LENGTH - numbers[..., None]] = -100
    labels[::3, -1] = -100
    y = {
        "labels": labels,
        "answer": rng.integers(0, ANSWERS - 1, QUESTIONS).astype(np.int32),
        "characters": (numbers * 3 + rng.integers(0, 5, shape[:2])).astype(np.int32),
        "bytes": (numbers * 4 + rng.integers(0, 9, shape[:2])).astype(np.int32),
    }
    logits = rng.standard_normal((*shape, WORDS)).astype(np.float32)
    weight = rng.integers(1, 3, QUESTIONS).astype(np.float32)
    batch = Batch({"logits": logits}, y, weight, np.zeros(QUESTIONS, np.int32))
    return jax.tree.map(jnp.asarray, batch)


def chosen(batch, length):
    """The most likely answers by a loop over questions, answers and tokens."""
    found = []
    for q in range(QUESTIONS):
        scores = []
        for a in range(ANSWERS):
            labels = np.asarray(batch.y["labels"][q, a])
            logs = log_softmax(np.asarray(batch.x["logits"][q, a], np.float64), axis=-1)
            own = [logs[i, t] for i, t in enumerate(labels) if t >= 0]
            scores.append(sum(own) / length(q, a, len(own)) if own else -np.inf)
        found.append(np.argmax(scores))
    return np.array(found)


def test_choices_are_those_of_a_loop_over_answers():
    """Oracle: float64 sums of log-softmax over an answer's tokens, divided as lm-eval's
    acc, acc_norm (characters) and acc_bytes do. Negative control: they differ."""
    batch = questions()
    given = {name: np.asarray(batch.y[name]) for name in ("characters", "bytes")}
    wanted = {
        "choice_accuracy": lambda q, a, number: 1,
        "choice_accuracy_per_token": lambda q, a, number: number,
        "choice_accuracy_per_character": lambda q, a, number: given["characters"][q, a],
        "choice_accuracy_per_byte": lambda q, a, number: given["bytes"][q, a],
    }
    found = evaluate(choices(READ), (), batch)
    assert set(found) == set(wanted)
    right = {}
    for name, length in wanted.items():
        right[name] = chosen(batch, length) == np.asarray(batch.y["answer"])
        mean = np.average(right[name], weights=batch.weight)
        np.testing.assert_allclose(found[name], mean, rtol=1e-6, err_msg=name)
    assert len({tuple(hits) for hits in right.values()}) == 4


def test_choices_without_lengths_have_two_accuracies():
    """Oracle: the names, and the same values as with lengths."""
    batch = questions()
    short = {name: batch.y[name] for name in ("labels", "answer")}
    found = evaluate(choices(READ), (), batch._replace(y=short))
    assert set(found) == {"choice_accuracy", "choice_accuracy_per_token"}
    for name, value in found.items():
        assert value == evaluate(choices(READ), (), batch)[name]


def test_answers_that_are_not_there_are_never_chosen():
    """Oracle: minus infinity, where the sum over no token would be zero, the largest."""
    batch = questions()
    likely, numbers = answer_log_likelihoods(READ, (), batch)
    missing = np.asarray(numbers) == 0
    np.testing.assert_array_equal(missing[:, -1], np.arange(QUESTIONS) % 3 == 0)
    assert np.isneginf(likely[missing]).all()
    assert np.isfinite(likely[~missing]).all()
    # A right answer that is not there, or a number of none, is NaN.
    for question, number in [(0, ANSWERS - 1), (1, ANSWERS), (1, -1)]:
        answer = batch.y["answer"].at[question].set(number)
        bad = batch._replace(y={**batch.y, "answer": answer})
        assert np.isnan([*evaluate(choices(READ), (), bad).values()]).all()
    lost = {"logits": batch.x["logits"].at[1, 0, -1, 0].set(jnp.nan)}
    lost = evaluate(choices(READ), (), batch._replace(x=lost))
    assert np.isnan([*lost.values()]).all()


def test_choices_in_chunks_and_with_padding_are_those_of_all_rows():
    """Law: rows of weight 0 are not there, and chunks change nothing."""
    batch = questions()
    alone = evaluate(choices(READ), (), batch)
    more = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, questions(1))
    padded = more._replace(weight=more.weight.at[QUESTIONS:].set(0.0))
    for name, value in alone.items():
        for size in (7, None):
            found = evaluate(choices(READ), (), padded, chunk_size=size)[name]
            np.testing.assert_allclose(found, value, rtol=1e-6)


def test_the_outputs_of_a_network_get_one_sequence_per_row():
    """Oracle: the shapes that the outputs see, and the task of each row."""
    seen = []

    def outputs(_, batch):
        seen.append(jax.tree.map(jnp.shape, batch))
        return batch.x["logits"] + batch.task[:, None, None]

    batch = questions()
    evaluate(choices(outputs), (), batch)
    rows = QUESTIONS * ANSWERS
    assert seen[0].x == {"logits": (rows, LENGTH, WORDS)}
    assert (seen[0].y, seen[0].task) == ((rows, LENGTH), (rows,))
    flat = batch._replace(y={**batch.y, "labels": batch.y["labels"][:, 0]})
    with pytest.raises(
        ValueError, match=r"labels must be integers \[questions, answers"
    ):
        evaluate(choices(READ), (), flat)


# ------------------------------------------------------------------- generated text

ROWS = [
    TextRow("2 + 2 =", ("4", "four")),
    TextRow("capital of France:", ("Paris",)),
    TextRow("naïve \udcff", ("x",), source="y"),
]
DATA = Dataset(3, lambda numbers: None)  # pyright: ignore


def answer(params, prompts):
    assert prompts == [row.prompt for row in ROWS]
    return [params, "Paris ", "X"]


def test_generated_text_is_scored_row_by_row_and_kept(tmp_path):
    """Oracle: by hand: of three rows two are exact, three after normalising; the lines of
    the files. A second evaluation has the next number."""
    given = {"exact": exact_match(), "loose": exact_match(normalise=True)}
    metric = generation(answer, lambda data: ROWS, given, answers=tmp_path / "kept")
    assert metric.names == ("exact", "loose")
    found = values_of_task(metric, KEY, "four", (), DATA)
    np.testing.assert_allclose([found["exact"], found["loose"]], [2 / 3, 1])
    values_of_task(metric, KEY, "five", (), DATA)
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["1.jsonl", "2.jsonl"]
    text = (tmp_path / "kept" / "1.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0] == {
        "prompt": "2 + 2 =",
        "output": "four",
        "references": ["4", "four"],
        "exact": 1.0,
        "loose": 1.0,
    }
    assert (lines[2]["prompt"], lines[2]["source"]) == ("naïve \udcff", "y")
    assert [line["exact"] for line in lines] == [1, 1, 0]
    generation(answer, lambda data: ROWS, given).of_data(KEY, "four", (), DATA)
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.mark.parametrize(
    ("generate", "rows", "words"),
    [
        (lambda params, prompts: ["a"], ROWS, "3 texts, one for each prompt, got 1"),
        (lambda params, prompts: ["a", 1, "b"], ROWS, "must return texts, got 1"),
        (answer, [], "expected rows, got none"),
        (
            answer,
            [*ROWS, TextRow("2 + 3 =", "5")],
            r"row 3 must have a list of right answers, got '5'; give TextRow\(prompt, \[",
        ),
        (answer, [TextRow("2 + 3 =", ())], r"row 0 must have a list .*, got \(\)"),
        (answer, [TextRow("2 + 3 =", (5,))], r"row 0 must have a list .*, got \(5,\)"),
    ],
)
def test_wrong_generations_are_refused(generate, rows, words):
    """Oracle: the messages."""
    metric = generation(generate, lambda data: rows, {"exact": exact_match()})
    with pytest.raises(ValueError, match=words):
        metric.of_data(KEY, (), (), DATA)


def test_scores_and_answers_are_checked_when_the_metric_is_made(tmp_path):
    """Oracle: the messages."""
    with pytest.raises(ValueError, match="generation: scores must be some"):
        generation(answer, lambda data: ROWS, {})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="generation: answers must be a folder"):
        generation(
            answer, lambda data: ROWS, {"e": exact_match()}, answers=tmp_path / "file"
        )


def test_rows_of_tokens_are_decoded_to_prompt_and_answer():
    """Oracle: letters by hand; 0 is a special token. Padding on either side."""

    def decode(numbers, *, skip_special_tokens):
        kept = [n for n in numbers if n or not skip_special_tokens]
        return "".join("^abcdefg"[n] for n in kept)

    tokens = np.array([[0, 1, 2, 3, 4, 0], [5, 5, 0, 1, 6, 0], [0, 7, 7, 0, 5, 5]])
    mask = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    y = np.full((3, 6), -100)
    y[0, 2:5], y[1, 3:5], y[2, 1:3] = [3, 4, 0], [6, 0], [7, 0]
    x = {"tokens": tokens.astype(np.int32), "mask": mask.astype(np.int32)}
    data = array_dataset(as_batch(x, y.astype(np.int32)))
    wanted = [("^ab", ("cd",)), ("^a", ("f",)), ("^g", ("g",))]
    for size in (1, 2, 256):
        found = text_rows(decode, batch_size=size)(data)
        assert [row[:2] for row in found] == wanted
    plain = array_dataset(as_batch(x["tokens"][:1], y[:1].astype(np.int32)))
    assert text_rows(decode)(plain)[0][:2] == wanted[0]
    turns = np.array([[-100, 2, -100, 4, 0, -100]], np.int32)  # the last is asked for
    [talk] = text_rows(decode)(array_dataset(as_batch(x["tokens"][:1], turns)))
    assert talk[:2] == ("^abc", ("d",))
    packed = {"tokens": x["tokens"], "segments": np.ones_like(x["tokens"])}
    with pytest.raises(
        ValueError, match=r"text_rows: rows must not be packed .*; leave"
    ):
        text_rows(decode)(array_dataset(as_batch(packed, y.astype(np.int32))))
    blank = array_dataset(as_batch(x["tokens"][:1], np.full((1, 6), -100, np.int32)))
    with pytest.raises(ValueError, match="text_rows: expected a label in every row"):
        text_rows(decode)(blank)


# ------------------------------------------------------------------------- entities

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def tagged(true, said):
    """A data set of sentences of tags whose logits say other tags; None is left out."""
    number = lambda tag: -100 if tag is None else TAGS.index(tag)
    y = np.array([[number(tag) for tag in row] for row in true], np.int32)
    logits = np.array([[np.eye(5)[number(t)] for t in row] for row in said], np.float32)
    return array_dataset(as_batch({"logits": logits}, y))


def scored(data, **options):
    metric = entity_f1(READ, TAGS, **options)
    return values_of_task(metric, KEY, (), (), data)


def chunks(tags, *, strict):
    """Entities ``(first, after, kind)`` of a sentence by a loop.

    conlleval's rule begins one at a B, and at an I after O or another kind; the strict one
    at a B only.
    """
    found, first, kind = [], None, None
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        ends = kind is not None and (prefix != "I" or name != kind)
        if ends:
            found.append((first, place, kind))
            kind = None
        if prefix == "B" or (prefix == "I" and kind is None and not strict):
            first, kind = place, name
    return found


def by_chunks(true, said, *, strict):
    """Precision, recall and F1 by sets of entities."""
    sets = [
        {
            (number, *chunk)
            for number, row in enumerate(rows)
            for chunk in chunks(row, strict=strict)
        }
        for rows in (true, said)
    ]
    both = len(sets[0] & sets[1])
    precision = both / len(sets[1]) if sets[1] else 0
    recall = both / len(sets[0]) if sets[0] else 0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0


def test_entities_are_counted_by_hand():
    """Oracle: by hand: of three true and three named entities one is right; a wrong end, a
    wrong kind. Positions that are left out break no entity."""
    pytest.importorskip("seqeval")
    true = [
        [None, "B-PER", None, "I-PER", "O", "B-LOC", None],
        [None, "O", "B-LOC", "O", "O", "O", None],
    ]
    said = [
        ["O", "B-PER", "B-LOC", "I-PER", "O", "B-PER", "O"],
        ["B-PER", "O", "B-LOC", "I-LOC", "O", "O", "O"],
    ]
    found = scored(tagged(true, said))
    np.testing.assert_allclose([*found.values()], [1 / 3] * 3)
    assert list(found) == ["entity_precision", "entity_recall", "entity_f1"]
    none = [["O"] * 7] * 2
    assert [*scored(tagged(none, none)).values()] == [0, 0, 0]


def test_random_tags_are_scored_by_the_strict_rule():
    """Oracle: entities by a loop, and seqeval called directly. On tags that follow IOB2
    conlleval's rule gives the same; negative control: on others it does not."""
    package = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme").IOB2
    apart = 0
    for _ in range(20):
        true, said = ([list(RANDOM.choice(TAGS, 7)) for _ in range(9)] for _ in "ab")
        found = [*scored(tagged(true, said), batch_size=4).values()]
        np.testing.assert_allclose(found, by_chunks(true, said, strict=True))
        direct = package.f1_score(true, said, mode="strict", scheme=scheme)
        np.testing.assert_allclose(found[2], direct)
        apart += not np.allclose(found, by_chunks(true, said, strict=False))
        proper = [mended(true), mended(said)]
        found = [*scored(tagged(*proper)).values()]
        np.testing.assert_allclose(found, by_chunks(*proper, strict=False))
    assert apart > 10


def mended(rows):
    """The same tags with B where an entity begins, as IOB2 has it."""
    fixed = []
    for row in rows:
        own = list(row)
        for first, _, kind in chunks(row, strict=False):
            own[first] = f"B-{kind}"
        fixed.append(own)
    return fixed


def test_entities_of_nan_are_nan_and_wrong_tags_are_refused(monkeypatch):
    """Oracle: NaN, unless it is where no label counts; the messages."""
    pytest.importorskip("seqeval")
    data = tagged([["B-PER", None]], [["B-PER", "O"]])

    def spoiled(place):
        def read(numbers):
            batch = data.read(numbers)
            logits = batch.x["logits"].copy()
            logits[:, place, 2] = np.nan
            return batch._replace(x={"logits": logits})

        return Dataset(data.count, read)

    assert np.isnan([*scored(spoiled(0)).values()]).all()
    assert [*scored(spoiled(1)).values()] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"outputs must be \[rows, tokens, 3\]"):
        entity_f1(READ, TAGS[:3]).of_data(KEY, (), (), data)
    high = data.read(np.arange(1))._replace(y=np.full((1, 2), 5, np.int32))
    with pytest.raises(ValueError, match="labels must be below the number of tags, 5"):
        scored(Dataset(1, lambda numbers: jax.tree.map(lambda a: a[numbers], high)))
    with pytest.raises(ValueError, match="tags must be O, B-KIND or I-KIND, got 'PER'"):
        entity_f1(READ, ("O", "PER"))
    monkeypatch.setattr(scores, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs seqeval; .*pip install '.\[text\]'"):
        entity_f1(READ, TAGS)
