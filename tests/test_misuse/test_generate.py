"""Wrong calls of generation."""

import jax.numpy as jnp

from jaxcl.models import DecoderConfig, Sampling, decoder, generate
from tests.test_misuse.table import KEY, assert_refused, refused

SMALL = DecoderConfig(11, 8, 12, 2, 2, max_position_embeddings=9)
PARAMS = decoder(SMALL).init(KEY)


def generated(prompts, config=SMALL, params=PARAMS, **options):
    options = {"max_new_tokens": 2, "quiet": True, **options}
    return generate(KEY, config, params, prompts, **options)


REFUSED = [
    *[
        (lambda prompts=prompts: generated(prompts), f"generate: {words}")
        for prompts, words in (
            ([[1], []], "prompt 1 is empty; begin it with a token"),
            ([1, 2], "prompt 0 must be a list of numbers of tokens, got 1"),
            ([[[1, 2]]], r"prompt 0 must be a list of .*, got \[\[1, 2\]\]"),
            ([[1.5]], r"prompt 0 must be a list of .*, got \[1.5\]"),
            (["two"], "prompt 0 must be an array of numbers, .* got 'two'"),
            (
                [[1, 11]],
                "prompt 0 must have tokens .*, got 1 to 11; use the model's tokenizer",
            ),
            ([[-1]], "prompt 0 must have tokens from 0 to 10, got -1 to -1"),
            ([[1], [1] * 10], "prompt 1 must have at most 9 tokens .*, got 10; cut it"),
        )
    ],
    *[
        (lambda given=given: generated([[1]], **given), f"generate: {words}")
        for given, words in (
            ({"max_new_tokens": 0}, "max_new_tokens must be an int of at least 1"),
            ({"batch_size": 0}, "batch_size must be an int of at least 1"),
            ({"stop": 2}, "stop must be a list of tokens from 0 to 10, got 2; give"),
            ({"stop": None}, "stop must be an array of numbers, .*, got None"),
            ({"stop": "</s>"}, "stop must be an array of numbers, .*, got '</s>'"),
            ({"stop": [1.0]}, r"stop must be a list of tokens .*, got \[1.0\]"),
            ({"stop": [1, 11]}, r"stop must be a list of tokens .*, got \[1, 11\]"),
            ({"sampling": {"top_k": 2}}, "sampling must be of type Sampling, got"),
            ({"sampling": Sampling(-1.0)}, "temperature must be a finite number of at"),
            ({"sampling": Sampling(top_k=0)}, "top_k must be an int of at least 1"),
            ({"sampling": Sampling(top_p=0.0)}, r"top_p must be a number in \(0, 1\]"),
            ({"sampling": Sampling(repetition_penalty=0)}, "repetition_penalty must"),
            ({"config": {"vocab_size": 11}}, "config must be of type DecoderConfig"),
            (
                {"params": {"layers": {}}},
                r"params lack the embedding .* give combine\(trainable, frozen\)",
            ),
            (
                {"config": SMALL._replace(num_hidden_layers=3)},
                r"params must be those of config, got an embedding \[11, 8\] and 2 lay",
            ),
            (
                {"config": SMALL._replace(vocab_size=12)},
                r"params must be those of config, got an embedding \[11, 8\]",
            ),
        )
    ],
]


@refused(REFUSED)
def test_a_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the words, which say what was expected, what came, and what to do."""
    assert_refused(call, words)


def test_stop_tokens_may_be_arrays():
    """A control: other lists of tokens, and no prompt at all, are taken."""
    for stop in ((), jnp.arange(2), {3}, iter([1])):
        assert len(generated(jnp.ones((1, 3), int), stop=stop)) == 1
    assert generated([]) == []
