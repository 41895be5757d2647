"""The loss of answers against that of all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.cli.finetune import parse
from jaxcl.finetune.answer_loss import answer_loss, hidden_states, places
from jaxcl.finetune.run import load
from jaxcl.finetune.tasks import most_labels
from jaxcl.losses import single_head, token_cross_entropy
from jaxcl.models import DecoderConfig, decoder
from jaxcl.tree import as_batch
from tests.test_finetune.conftest import words_of

LENGTH, MOST, SIZE, VOCABULARY = 24, 4, 16, 96


def rows():
    """A model with parameters, and rows with up to four labels, one without any."""
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        hidden_size=SIZE,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model, draw = decoder(config), np.random.default_rng(0)
    tokens = draw.integers(VOCABULARY, size=(5, LENGTH))
    labels = np.full((5, LENGTH), -100)
    for row, count in enumerate((4, 1, 0, 3, 4)):
        at = draw.choice(LENGTH, count, replace=False)
        labels[row, at] = draw.integers(VOCABULARY, size=count)
    batch = as_batch({"tokens": tokens, "mask": np.ones_like(tokens)}, labels)
    return model, model.init(jax.random.key(0)), batch


def losses_of(model, most):
    """The two functions that compute it, as functions of parameters and rows."""
    with_states = hidden_states(model, {}, most, last=True)[1]
    alone = answer_loss(model, {}, most)
    return alone, lambda params, batch, keys: with_states(params, batch, keys)[0]


@pytest.mark.parametrize("most", [MOST, LENGTH // 2 + 1, None])
def test_losses_and_gradients_are_those_of_all_logits(most):
    """Oracle: the loss of the library. Control: with room for fewer labels it differs."""
    model, params, batch = rows()
    mean = lambda loss: jax.value_and_grad(lambda p: jnp.sum(loss(p, batch, None)))
    wanted = mean(token_cross_entropy(single_head(model.apply)))(params)
    for loss in losses_of(model, most):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, mean(loss)(params), wanted)
    for loss in losses_of(model, MOST - 1):
        assert abs(mean(loss)(params)[0] - wanted[0]) > 1e-3


def test_only_labelled_tokens_have_logits():
    """Oracle: operations of the output layer in closed form, forward and back."""
    model, params, batch = rows()

    def operations(most):
        loss = lambda p: jnp.sum(answer_loss(model, {}, most)(p, batch, None))
        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]

    saved = 6 * len(batch.weight) * (LENGTH - MOST) * SIZE * VOCABULARY
    assert operations(None) - operations(MOST) > 0.95 * saved
    assert places(batch.y, LENGTH // 2 + 1) is None  # sorting would not pay


def test_labels_are_counted_in_the_rows_that_are_learned(home, tmp_path):
    """Oracle: the tokens that the chat template writes behind the question."""
    job = load(parse(words_of(home, tmp_path / "run")[1:]))
    written = job.tokenizer.apply_chat_template

    def count(answer):
        chat = [{"role": "user", "content": "1?"}]
        asked = written(chat, add_generation_prompt=True, return_dict=False)
        chat += [{"role": "assistant", "content": answer}]
        return len(written(chat, return_dict=False)) - len(asked)

    answers = "cat", "dog", "cow", "red", "green", "blue"
    assert most_labels(job.files) == max(map(count, answers))
