"""Scores of answers against full passes of one text each, and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxcl.losses import single_head
from jaxcl.metrics.text import answer_log_likelihoods
from jaxcl.models import DecoderConfig, answer_scores, decoder, score
from jaxcl.tree import as_batch
from tests.test_adapters.small import CONFIG, moved, trained

SMALL = DecoderConfig(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,  # large, so that every part matters
)
FAMILIES = {
    "llama": SMALL,
    "mistral": SMALL._replace(sliding_window=5),
    "qwen2": SMALL._replace(qkv_bias=True, tie_word_embeddings=True),
    "qwen3": SMALL._replace(qk_norm=True, head_dim=6),
}
NEAR = {"rtol": 1e-5, "atol": 5e-5}


def texts(vocab_size=23, seed=0):
    """Prompts of 1 to 17 tokens, with 1 to 5 answers of 1 to 9 tokens."""
    rng = np.random.default_rng(seed)
    draw = lambda count: rng.integers(0, vocab_size, count).tolist()
    prompts = [draw(count) for count in (4, 1, 17, 9, 5)]
    lengths = [[1, 3, 9], [2], [3, 1, 1, 6, 2], [1, 1], [7, 8]]
    return prompts, [[draw(count) for count in counts] for counts in lengths]


PROMPTS, ANSWERS = texts()


def params_of(config):
    """With noise, so that biases and scales are not all 0 or 1."""
    return moved(decoder(config, scan=False).init(jax.random.key(0)))


def by_hand(config, params, prompts, answers):
    """A full pass for each text, whose log-softmax is summed in float64."""
    apply, found = jax.jit(decoder(config).apply), []
    for prompt, given in zip(prompts, answers, strict=True):
        found.append([])
        for answer in given:
            text = [*prompt, *answer]
            padded = jnp.array([text + [0] * (40 - len(text))])
            logs = log_softmax(
                np.asarray(apply(params, padded)[0], np.float64), axis=-1
            )
            place = len(prompt) - 1
            found[-1].append(sum(logs[place + i, t] for i, t in enumerate(answer)))
    return found


def scored(config=SMALL, prompts=PROMPTS, answers=ANSWERS, params=None, **options):
    params = params_of(config) if params is None else params
    return answer_scores(config, params, prompts, answers, quiet=True, **options)


def assert_near(found, wanted):
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert row.dtype == np.float64
        np.testing.assert_allclose(row, other, **NEAR)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_scores_are_those_of_full_passes(config):
    """Oracle: a full pass of one text at a time; also with two prompts in a batch."""
    params = params_of(config)
    wanted = by_hand(config, params, PROMPTS, ANSWERS)
    assert_near(scored(config, params=params), wanted)
    assert_near(scored(config, params=params, batch_size=2), wanted)
    assert not np.allclose(wanted[0], wanted[0][::-1], **NEAR)  # places matter


def test_an_adapter_counts():
    """Oracle: full passes with it. Negative control: without it they differ."""
    prompts, answers = texts(CONFIG.vocab_size)
    params = trained()
    found = scored(CONFIG, prompts, answers, params)
    assert_near(found, by_hand(CONFIG, params, prompts, answers))
    plain = decoder(CONFIG).init(jax.random.key(0))
    other = scored(CONFIG, prompts, answers, plain)
    assert not np.allclose(found[2], other[2], atol=0.01)


@pytest.mark.parametrize("line", [1, 7])
def test_answers_may_need_several_lines(monkeypatch, line):
    """Oracle: full passes; a line has room for 16 tokens here, and prompts for 49."""
    monkeypatch.setattr(score, "_LINE", line)
    rng = np.random.default_rng(1)
    answers = [*ANSWERS[:-1], rng.integers(0, 23, (7, 8)).tolist()]
    width = score._line_width([[np.array(a) for a in own] for own in answers])
    assert width == 16 < 7 * 7
    found = scored(answers=answers)
    assert_near(found, by_hand(SMALL, params_of(SMALL), PROMPTS, answers))


def test_scores_are_those_of_the_metric_of_choices():
    """Oracle: the log-likelihoods of the RowMetric, of batches padded on the right."""
    prompts, answers = PROMPTS[:3], [own[:1] * 2 for own in ANSWERS[:3]]
    answers = [[first, [*second, 3]] for first, second in answers]
    tokens, labels = np.zeros((3, 2, 30), int), np.full((3, 2, 30), -100)
    for row, prompt in enumerate(prompts):
        for place, answer in enumerate(answers[row]):
            text = [*prompt, *answer]
            tokens[row, place, : len(text)] = text
            labels[row, place, len(prompt) - 1 : len(text) - 1] = answer
    y = {"labels": labels, "answer": np.zeros(3, int)}
    outputs, params = single_head(decoder(SMALL).apply), params_of(SMALL)
    wanted, _ = answer_log_likelihoods(outputs, params, as_batch(tokens, y))
    assert_near(scored(prompts=prompts, answers=answers), np.asarray(wanted))


def test_a_score_depends_on_its_prompt_and_answer_only():
    """A law: alone, among equal answers, in another batch; control: another prompt."""
    together = scored()
    alone = scored(prompts=PROMPTS[2:3], answers=[ANSWERS[2][3:4]])
    np.testing.assert_allclose(alone[0], together[2][3:4], **NEAR)
    twice = scored(prompts=PROMPTS[2:3], answers=[ANSWERS[2] * 2])[0]
    np.testing.assert_allclose(twice, np.tile(together[2], 2), **NEAR)
    other = scored(prompts=PROMPTS[3:4], answers=[ANSWERS[2][3:4]])
    assert not np.allclose(alone[0], other[0], atol=0.01)


def test_programs_are_shared_by_texts_of_similar_length(compilations):
    """Oracle: JAX's names of what it compiled; a second call compiles no program."""
    config = SMALL._replace(vocab_size=24)  # of no other test
    programs, params = ["jit(_go_on)", "jit(_read)"], params_of(config)
    scored(config, PROMPTS[:2], ANSWERS[:2], params)
    assert [name for name in sorted(compilations) if name in programs] == programs
    compilations.clear()
    scored(config, [[1, 2, 3], [2] * 16], [[[3, 4]], [[5], [6, 7, 8]]], params)
    assert not {*programs} & {*compilations}


def test_memory_does_not_grow_with_all_logits():
    """Oracle: XLA's own count, against the size of the logits of a line."""
    config = SMALL._replace(vocab_size=5000)
    params, (b, t) = params_of(config), (4, 256)
    tokens, real = np.ones((2, b, 16), np.int32)
    _, cache = score._read(config, params, tokens, real)
    line = [np.ones((b, t), np.int32)] * 4
    lowered = score._go_on.lower(config, params, cache, real, *line)
    needed = lowered.compile().memory_analysis().temp_size_in_bytes
    assert needed < b * t * 5000 * 4


def test_texts_beyond_the_context_are_warned_of():
    """Oracle: the sum by hand; control: one token less."""
    config = SMALL._replace(max_position_embeddings=23)
    assert len(scored(config)) == 5
    with pytest.warns(UserWarning, match=r"of up to 23 tokens, .* trained for 22;"):
        scored(config._replace(max_position_embeddings=22))
