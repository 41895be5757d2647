"""Wrong files of choices, and wrong calls of what is made of them."""

import functools

import numpy as np
import pytest

from jaxcl.data import read_choices
from jaxcl.metrics import choice_results
from tests.test_misuse.table import assert_refused, refused
from tests.tiny_tokenizers import byte_level

pytest.importorskip("transformers")

ROW = {"question": "How many?", "choices": ["three", "twice"], "answer": 0}

tokenizer = functools.cache(byte_level)


def read(given=None, **options):
    return read_choices([{**ROW, **(given or {})}], tokenizer(), **options)


def without(field):
    return read_choices([{k: v for k, v in ROW.items() if k != field}], tokenizer())


def bare():
    made = byte_level()
    made.chat_template = None
    return made


ANSWER = "'answer' must be a number from 0 to 1, or the text of a choice, got"
REFUSED = [
    *[
        (call, f"read_choices: records, row 0: {words}")
        for call, words in (
            (
                lambda: without("question"),
                "field 'question' is missing, there are .*; name another by question=",
            ),
            (lambda: without("choices"), "field 'choices' is missing, .* by choices="),
            (lambda: without("answer"), "field 'answer' is missing, .* by answer="),
            (lambda: read({"question": 5}), "expected text in 'question', got 5; fix"),
            (lambda: read({"question": " "}), "'question' is empty; write one"),
            (lambda: read({"context": 5}), "expected text in 'context', got 5; fix it"),
            (
                lambda: read({"choices": []}),
                r"'choices' must be a list of two choices or more, got \[\]; fix it, or",
            ),
            (
                lambda: read({"choices": ["a"]}),
                r"'choices' must be a list of two .*, got \['a'\]",
            ),
            (
                lambda: read({"choices": "ab"}),
                "'choices' must be a list of two .*, got 'ab'; fix",
            ),
            (
                lambda: read({"choices": None}),
                "'choices' must be a list of two .*, got None; fix",
            ),
            (
                lambda: read({"choices": ["a", 5]}),
                "choice 1 in 'choices' must be text, got 5; fix it",
            ),
            (
                lambda: read({"choices": [" ", "a"]}),
                "choice 0 in 'choices' must be text",
            ),
            (
                lambda: read({"choices": ["\ud800", "a"]}),
                "'choices' holds half a character",
            ),
            (lambda: read({"answer": 2}), f"{ANSWER} 2; fix it, or name another field"),
            (lambda: read({"answer": -1}), f"{ANSWER} -1; fix it"),
            (lambda: read({"answer": True}), f"{ANSWER} True; fix it"),
            (lambda: read({"answer": 0.0}), f"{ANSWER} 0.0; fix it"),
            (lambda: read({"answer": "four"}), f"{ANSWER} 'four'; fix it"),
            (lambda: read({"answer": None}), f"{ANSWER} None; fix it"),
            (lambda: read({"answer": ["three"]}), rf"{ANSWER} \['three'\]; fix it"),
            (
                lambda: read(template="{question} {hint}"),
                "field 'hint' is missing, there are",
            ),
            (
                lambda: read(max_length=2),
                r"a choice of \d tokens leaves no room for its prompt within max_length=2",
            ),
        )
    ],
    *[
        (call, f"read_choices: {words}")
        for call, words in (
            (
                lambda: read(template="Answer {choices}"),
                "template 'Answer {choices}' must name {question}, such as 'Question: {q",
            ),
            (lambda: read(template="{question"), "template '{question' is not usable"),
            (
                lambda: read(template=5),
                "template must be of type str, got 5; give text",
            ),
            (lambda: read(join=5), "join must be of type str, got 5; give text"),
            (
                lambda: read(question=5),
                "question must be of type str, got 5; name a fie",
            ),
            (lambda: read(choices=None), "choices must be of type str, got None; name"),
            (
                lambda: read(chat="yes"),
                "chat must be of type bool, got 'yes'; say True",
            ),
            (lambda: read(chat=True, join=" "), "join is for prompts without a chat"),
            (
                lambda: read_choices([ROW], bare(), chat=True),
                "the tokenizer has no chat template; set tokenizer.chat_template, or",
            ),
            (
                lambda: read_choices("no/such.jsonl", tokenizer()),
                "no file no/such.jsonl; give a file of JSON lines",
            ),
            (lambda: read(max_length=0), "max_length must be an int of at least 1"),
        )
    ],
    *[
        (lambda given=given: choice_results(*given), f"choice_results: {words}")
        for given, words in (
            (
                ([[1.0, 2.0]], [["a", "b"]], []),
                "scores, choices and right must be of the same questions, got 1, 1, 0",
            ),
            (
                ([[1.0]], [["a", "b"]], [0]),
                r"question 0 must have one score for each .*, got scores \[1\] and 2 cho",
            ),
            (([[]], [[]], [0]), r"question 0 must have one score .*, got scores \[0\]"),
            (
                ([["a", "b"]], [["a", "b"]], [0]),
                "scores of question 0 must be an array",
            ),
            (
                ([[1.0, 2.0]], ["ab"], [0]),
                "choices of question 0 must be texts, got 'ab'",
            ),
            (
                ([[1.0, 2.0]], [["a", 5]], [0]),
                "choices of question 0 must be texts, got",
            ),
            (
                ([[1.0, 2.0]], [["a", "b"]], [2]),
                "right of question 0 must be from 0 to 1, got 2; give its number",
            ),
            (
                ([[1.0, 2.0]], [["a", "b"]], ["a"]),
                "right of question 0 must be from .*a",
            ),
        )
    ],
]


@refused(REFUSED)
def test_a_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the words, which say what was expected, what came, and what to do."""
    assert_refused(call, words)


def test_numbers_of_numpy_are_taken():
    """A control: an answer of NumPy, and choices as an array."""
    found = read({"answer": np.int64(1), "choices": np.array(["a", "b"], object)})
    assert found.right == [1]
    assert found.choices == [["a", "b"]]
