"""Wrong calls of encoders, their heads, and other classifiers of texts."""

import jax
import jax.numpy as jnp
import pytest

from jaxcl.adapters import add_lora
from jaxcl.errors import InputError
from jaxcl.models import (
    DecoderConfig,
    EncoderConfig,
    decoder,
    encoder,
    lstm,
    pooled,
    sentence_encoder,
    sequence_classifier,
    text_cnn,
    token_classifier,
)
from tests.test_misuse.table import KEY, assert_refused, refused

SMALL = EncoderConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=9,
)
TOKENS = jnp.zeros((2, 7), jnp.int32)
TEXTS = {
    "encoder": encoder(SMALL),
    "text_cnn": text_cnn(11, 2, embedding_size=4, filters=3),
    "lstm": lstm(11, 2, embedding_size=4, hidden_size=3),
}


def adapted(name):
    """Call a model whose adapter it would not apply."""
    model = TEXTS[name]
    params = add_lora(KEY, model.init(KEY), rank=1, targets="all-linear")
    return model.apply(params, TOKENS)


def traced(model, x, name="apply"):
    """Call a function of a model on inputs, without computing anything."""
    params = jax.eval_shape(model.init, KEY)
    return jax.eval_shape(getattr(model, name), params, x)


LLAMA = DecoderConfig(11, 8, 12, 1, 2)
PROMPTS = [
    (
        {"prompt": jnp.zeros((3, 7))},
        r"prompt must be \[p, 8\] or \[2, p, 8\], got \[3, 7\]",
    ),
    ({"prompt": jnp.zeros((3, 3, 8))}, r"prompt must be .*, got \[3, 3, 8\]; see"),
    ({"prompt": jnp.zeros(8)}, r"prompt must be .*, got \[8\]; see"),
    (
        {"prompt": jnp.zeros((3, 8)), "prompt_mask": jnp.ones((2, 4))},
        r"prompt_mask must be \[2, p\] .* got \[2, 4\] beside \[3, 8\]",
    ),
    (
        {"prompt_mask": jnp.ones((2, 3))},
        r"prompt_mask must .* got \[2, 3\] beside \[\]",
    ),
]


@pytest.mark.parametrize(("given", "words"), PROMPTS)
def test_a_prompt_that_does_not_fit_is_refused(given, words):
    """Oracle: one line; a prompt of one row, and of every row, are accepted."""
    model = decoder(LLAMA)
    params = jax.eval_shape(model.init, KEY)
    call = lambda **given: jax.eval_shape(
        lambda params: model.apply(params, TOKENS, **given), params
    )
    with pytest.raises(InputError, match=words) as error:
        call(**given)
    assert "\n" not in str(error.value)
    mask = jnp.ones((2, 3))
    for shape in ((3, 8), (1, 3, 8), (2, 3, 8)):
        call(prompt=jnp.zeros(shape))
        call(prompt=jnp.zeros(shape), prompt_mask=mask)


DEEPER = [
    (decoder, LLAMA, True),
    (decoder, LLAMA, False),
    (encoder, SMALL, True),
]


@pytest.mark.parametrize(("model", "config", "scan"), DEEPER)
def test_parameters_of_another_depth_are_refused(model, config, scan):
    """Oracle: one line; a scan alone would take as many layers as there are."""
    params = jax.eval_shape(model(config).init, KEY)
    other = model(config._replace(num_hidden_layers=2), scan=scan)
    words = r"params must have the 2 layers of config, got \[1\]; give both of one"
    with pytest.raises(InputError, match=words):
        jax.eval_shape(other.apply, params, TOKENS)


REFUSED = [
    *[
        (
            lambda call=call: call(LLAMA),
            f"{name}: config must be of type EncoderC.*BERT",
        )
        for name, call in {
            "encoder": encoder,
            "sentence_encoder": sentence_encoder,
            "sequence_classifier": lambda config: sequence_classifier(config, 2),
            "token_classifier": token_classifier,
        }.items()
    ],
    (lambda: decoder(SMALL), "decoder: config must be of type DecoderConfig.* Llama's"),
    *[
        (lambda change=change: encoder(SMALL._replace(**change)), f"encoder: .*{words}")
        for change, words in (
            ({"vocab_size": 0}, "vocab_size must be an int of at least 1"),
            (
                {"hidden_size": 9},
                "attention_heads must divide hidden_size, got 2 and 9",
            ),
            ({"num_hidden_layers": 2.0}, "num_hidden_layers must be an int"),
            ({"max_position_embeddings": None}, "max_position_embeddings must be an"),
            ({"type_vocab_size": 0}, "type_vocab_size must be an int of at least 1"),
            ({"layer_norm_eps": -1.0}, "layer_norm_eps must be a finite number"),
            (
                {"hidden_dropout_prob": 1.0},
                r"must be a number in \[0, 0.999\], got 1.0",
            ),
            (
                {"attention_probs_dropout_prob": -0.1},
                "attention_probs_dropout_prob must",
            ),
            ({"classifier_dropout": "0.1"}, "classifier_dropout must be a number"),
            ({"hidden_act": "silu"}, "one of gelu, gelu_new, relu, got 'silu'"),
            ({"classifier": "words"}, "None, texts or tokens, got 'words'"),
        )
    ],
    *[
        (lambda x=x, name=name: traced(TEXTS[name], x), f"^{name}: x must {words}")
        for x, words in (
            (TOKENS[0], r"hold integers \[b, n\] .*, got tokens int32\[7\]"),
            (TOKENS * 1.0, r"hold integers .* got tokens float32\[2, 7\]"),
            ({"tokens": TOKENS, "mask": TOKENS[:, :1]}, r".* got mask int32\[2, 1\]"),
            ({"tokens": TOKENS, "mask": TOKENS * 0.5}, r".* got mask float32\[2, 7\]"),
            (
                {"input_ids": TOKENS, "attention_mask": TOKENS},
                "be tokens or a dict of tokens, mask.*'attention_mask', 'input_ids'",
            ),
            ({"mask": TOKENS}, r"be tokens or a dict .* got \['mask'\]; rename its"),
            ({"tokens": TOKENS, "segments": TOKENS}, "be .*'segments', 'tokens'"),
        )
        for name in TEXTS
    ],
    *[
        (
            lambda name=name: adapted(name),
            f"{name}: params have an adapter on a layer that does .*; call it with mer",
        )
        for name in ("text_cnn", "lstm")
    ],
    (
        lambda: traced(TEXTS["lstm"], {"tokens": TOKENS, "types": TOKENS}),
        "lstm: x must be .* got .*'types'",
    ),
    *[
        (
            lambda name=name: traced(encoder(SMALL), jnp.zeros((2, 10), int), name),
            "encoder: x must have at most 9 tokens a row .*, got 10; cut the rows",
        )
        for name in ("apply", "hidden")
    ],
    (
        lambda: pooled(
            encoder(SMALL._replace(pooler=False)).init(KEY), jnp.ones((2, 7, 8))
        ),
        "pooled: params must have a pooler, got none; set it in the EncoderConfig",
    ),
    *[
        (
            lambda build=build, sizes=sizes: build(SMALL, sizes),
            f"{build.__name__}: {words}",
        )
        for build in (sequence_classifier, token_classifier)
        for sizes, words in (
            (0, r"sizes\[0\] must be an int of at least 1, .* got 0"),
            ([2, 0], r"sizes\[1\] must be an int of at least 1, .* got 0"),
            ((2, 1.5), r"sizes\[1\] must be an int of at least 1, .* got 1.5"),
            ([], "len_sizes must be an int of at least 1, .* got 0"),
            (None, r"sizes\[0\] must be an int of at least 1, .* got 0"),
        )
    ],
    (
        lambda: sequence_classifier(SMALL, 2, pooling="cls"),
        "pooling must be one of pooler, heads, first, mean, got 'cls'",
    ),
    (lambda: sentence_encoder(SMALL).init(0), "encoder: key must be one JAX key, got"),
    *[
        (lambda build=build: build().init(0), "key must be one JAX key, got")
        for build in (
            lambda: sequence_classifier(SMALL, 2),
            lambda: token_classifier(SMALL, 2),
            lambda: text_cnn(11, 2),
            lambda: lstm(11, 2),
        )
    ],
    *[
        (lambda options=options: text_cnn(11, 2, **options), f"text_cnn: {words}")
        for options, words in (
            ({"widths": ()}, "len_widths must be an int of at least 1, .* got 0"),
            ({"widths": (3, 0)}, r"widths\[1\] must be an int of at least 1"),
            ({"filters": 0}, "filters must be an int of at least 1"),
            ({"dropout_rate": 1.0}, r"dropout_rate must be a number in \[0, 0.999\]"),
        )
    ],
    *[
        (lambda options=options: lstm(11, **options), f"lstm: {words}")
        for options, words in (
            ({"num_classes": 0}, "num_classes must be an int of at least 1"),
            ({"num_classes": 2, "hidden_size": "3"}, "hidden_size must be .* got '3'"),
            ({"num_classes": 2, "dropout_rate": -1}, "dropout_rate must be .* got -1"),
        )
    ],
]


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
