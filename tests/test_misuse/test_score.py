"""Wrong calls of the scores of answers."""

import jax.numpy as jnp
import numpy as np

from jaxcl.models import DecoderConfig, answer_scores, decoder
from tests.test_misuse.table import KEY, assert_refused, refused

SMALL = DecoderConfig(11, 8, 12, 2, 2, max_position_embeddings=9)
PARAMS = decoder(SMALL).init(KEY)


def scored(answers, prompts=([1],), config=SMALL, params=PARAMS, **options):
    return answer_scores(config, params, prompts, answers, quiet=True, **options)


def asked(prompts):
    return scored([[[1]]] * len(prompts), prompts)


REFUSED = [
    *[
        (lambda prompts=prompts: asked(prompts), f"answer_scores: {words}")
        for prompts, words in (
            ([[1], []], "prompt 1 is empty; begin it with a token"),
            ([1, 2], "prompt 0 must be a list of numbers of tokens, got 1"),
            ([[1, 11]], "prompt 0 must have tokens from 0 to 10, got 1 to 11; use the"),
            ([[1] * 10], "prompt 0 must have at most 9 tokens .*, got 10; cut it"),
        )
    ],
    *[
        (lambda answers=answers: scored(answers), f"answer_scores: {words}")
        for answers, words in (
            ([], "answers must be 1 lists, one for each prompt, got 0"),
            ([[[1]], [[1]]], "answers must be 1 lists, one for each prompt, got 2"),
            ([[]], r"answers to prompt 0 must be some .*, got \[\]; give at least one"),
            ([5], "answers to prompt 0 must be some lists of tokens, got 5; give"),
            ([[[1], []]], "answer 1 of prompt 0 is empty; begin it with a token"),
            ([[1, 2]], "answer 0 of prompt 0 must be a list of numbers of .*, got 1"),
            ([["a"]], "answer 0 of prompt 0 must be an array of numbers, .* got 'a'"),
            ([[[1.5]]], r"answer 0 of prompt 0 must be a list of .*, got \[1.5\]"),
            ([[[11]]], "answer 0 of prompt 0 must have tokens .*, got 11 to 11; use"),
            ([[[1], [-1]]], "answer 1 of prompt 0 must have tokens .*, got -1 to -1"),
        )
    ],
    *[
        (lambda given=given: scored([[[1]]], **given), f"answer_scores: {words}")
        for given, words in (
            ({"batch_size": 0}, "batch_size must be an int of at least 1"),
            ({"config": {"vocab_size": 11}}, "config must be of type DecoderConfig"),
            (
                {"params": {"layers": {}}},
                r"params lack the embedding .* give combine\(trainable, frozen\)",
            ),
            (
                {"config": SMALL._replace(num_hidden_layers=3)},
                r"params must be those of config, got an embedding \[11, 8\] and 2 lay",
            ),
        )
    ],
]


@refused(REFUSED)
def test_a_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the words, which say what was expected, what came, and what to do."""
    assert_refused(call, words)


def test_answers_may_be_arrays():
    """A control: other lists of tokens, and no prompt at all, are taken."""
    for answers in ([np.ones((2, 3), int)], jnp.ones((1, 2, 3), int), [([1], (2,))]):
        assert scored(answers)[0].shape == (2,)
    assert scored([], []) == []
