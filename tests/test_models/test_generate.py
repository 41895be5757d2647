"""Generation against plain loops over complete forward passes, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.models import DecoderConfig, Sampling, decoder, generate

SMALL = DecoderConfig(
    vocab_size=23,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,  # large, so that every part matters
)
WINDOW = SMALL._replace(sliding_window=5)
PROMPTS = [
    [3, 1, 4],
    [1],
    [5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2],
    [7, 7],
]
KEY = jax.random.key(1)


def params_of(config):
    return decoder(config, scan=False).init(jax.random.key(0))


def by_hand(config, params, prompt, count, *, penalty=1.0):
    """Greedy tokens by a complete forward pass for each."""
    apply, line = jax.jit(decoder(config).apply), list(prompt)
    for _ in range(count):
        padded = jnp.array([line + [0] * (40 - len(line))])
        scores = np.array(apply(params, padded)[0, len(line) - 1])
        for token in set(line):
            scores[token] *= penalty if scores[token] < 0 else 1 / penalty
        line.append(int(scores.argmax()))
    return line[len(prompt) :]


def generated(config=SMALL, prompts=PROMPTS, count=18, params=None, **options):
    params = params_of(config) if params is None else params
    found = generate(
        KEY, config, params, prompts, max_new_tokens=count, quiet=True, **options
    )
    return [line.tolist() for line in found]


@pytest.mark.parametrize("config", [SMALL, WINDOW], ids=["full", "window"])
def test_greedy_tokens_are_those_of_complete_passes(config):
    """Oracle: a loop without a cache, one prompt at a time; two chunks of tokens."""
    params = params_of(config)
    wanted = [by_hand(config, params, prompt, 18) for prompt in PROMPTS]
    assert generated(config) == wanted
    assert generated(config, batch_size=3) == wanted


def test_a_penalty_of_repetitions_is_that_of_its_definition():
    """Oracle: a loop; control: without it the tokens differ."""
    params = params_of(SMALL)
    found = generated(sampling=Sampling(repetition_penalty=1.5))
    wanted = [by_hand(SMALL, params, prompt, 18, penalty=1.5) for prompt in PROMPTS]
    assert found == wanted
    assert found != generated()


def test_a_row_ends_before_its_stop_token():
    """Oracle: the tokens without stop, cut by hand."""
    free = generated()
    stop = {free[0][4], free[2][9]}
    cut = lambda line: next((line[:k] for k, t in enumerate(line) if t in stop), line)
    found = generated(stop=stop)
    assert found == [cut(line) for line in free]
    assert len(found[0]) <= 4


def test_samples_do_not_depend_on_the_batch():
    """A law: other neighbours and sizes of the batch; control: another place or key."""
    hot = Sampling(temperature=1.0, top_k=9, top_p=0.9)
    together = generated(sampling=hot)
    assert generated(sampling=hot, batch_size=1) == together
    assert generated(sampling=hot, prompts=PROMPTS[:2]) == together[:2]
    assert generated(sampling=hot, prompts=PROMPTS[1:])[0] != together[1]


def test_the_likeliest_token_alone_is_greedy():
    """Laws of top-k, top-p and a low temperature."""
    greedy = generated()
    for only in (
        Sampling(temperature=1.0, top_k=1),
        Sampling(temperature=1.0, top_p=1e-6),
        Sampling(temperature=1e-6),
        Sampling(temperature=1e-38),
    ):
        assert generated(sampling=only) == greedy


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(1.0), 23),
        (Sampling(2.0, top_k=4), 4),
        (Sampling(1.0, top_p=0.7), None),
    ],
)
def test_samples_have_the_probabilities_of_the_logits(sampling, kept):
    """Oracle: the softmax in NumPy; 4,000 draws of one token, within four deviations."""
    params, prompt, count = params_of(SMALL), [3, 1, 4], 4000
    scores = np.asarray(decoder(SMALL).apply(params, jnp.array([prompt]))[0, -1])
    weights = np.exp(scores.astype(np.float64) / sampling.temperature)
    order = np.argsort(-weights)
    if kept is None:
        before = np.cumsum(weights[order]) / weights.sum()
        kept = int(np.searchsorted(before, sampling.top_p)) + 1
    weights[order[kept:]] = 0
    wanted = weights / weights.sum()
    found = generated(
        prompts=[prompt] * count, count=1, sampling=sampling, batch_size=count
    )
    share = np.bincount(np.ravel(found), minlength=23) / count
    assert np.all(share[wanted == 0] == 0)
    spread = np.sqrt(wanted * (1 - wanted) / count)
    assert np.all(np.abs(share - wanted) <= 4 * spread + 1e-9)


def test_of_equal_tokens_only_the_fewest_are_drawn():
    """Oracle: 6 of 23 equal tokens have a quarter of the probability; 5 have less."""
    flat = jax.tree.map(jnp.zeros_like, params_of(SMALL))
    found = generated(
        prompts=[[1]] * 400,
        count=1,
        params=flat,
        sampling=Sampling(1.0, top_p=0.25),
        batch_size=400,
    )
    assert len(np.unique(found)) == 6


def test_programs_are_shared_by_prompts_of_similar_length(compilations):
    """Oracle: JAX's names of what it compiled; a second call compiles no program."""
    config = SMALL._replace(vocab_size=24)  # of no other test
    programs = {"jit(_apart)", "jit(_begin)", "jit(_go_on)"}
    params = params_of(config)
    generated(config, params=params)
    assert programs <= {*compilations}
    compilations.clear()
    generated(config, prompts=[[1, 2, 3, 4], [2], [3], [11] * 17], params=params)
    assert not programs & {*compilations}


def test_numbers_of_sampling_may_be_arrays():
    """Oracle: the same numbers of Python."""
    wanted = generated(sampling=Sampling(0.5, top_p=0.75), count=3)
    arrays = Sampling(jnp.float32(0.5), top_p=np.float64(0.75))
    assert generated(sampling=arrays, count=3) == wanted


def test_texts_beyond_the_context_are_warned_of():
    """Oracle: the sum by hand; control: one token less."""
    config = SMALL._replace(max_position_embeddings=20)
    assert generated(config, count=2) == generated(count=2)
    with pytest.warns(UserWarning, match=r"of up to 21 tokens, .* trained for 20;"):
        generated(config, count=3)
