"""The decoder against plain loops, its options against each other, and its laws."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.losses import (
    example_losses,
    mean_loss,
    of_one,
    per_example,
    single_head,
    token_accuracy,
    token_cross_entropy,
)
from jaxcl.models import DecoderConfig, Rope, cast_compute, decoder
from jaxcl.models.layers import attend, rotate
from jaxcl.tree import as_batch

SMALL = DecoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,  # large, so that every part matters
)
TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, 11)


def made(config=SMALL, **options):
    model = decoder(config, **options)
    return model, model.init(jax.random.key(0))


def by_hand(config, params, tokens):
    """Scores [n, v] of one sequence in float64, head by head and position by position."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // queries

    def norm(x, scale):
        return scale * x / np.sqrt(np.mean(x**2) + config.rms_norm_eps)

    def turn(vector, position):
        """Each pair (k, k + half) as a complex number, times a phase."""
        half = size // 2
        pairs = vector[:half] + 1j * vector[half:]
        phases = [position * config.rope.theta ** (-2 * k / size) for k in range(half)]
        pairs = pairs * np.exp(1j * np.array(phases))
        return np.concatenate([pairs.real, pairs.imag])

    h = [wide["embedding"][token] for token in tokens]
    for index in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, index=index: leaf[index], wide["layers"])
        part = layer["attention"]
        normed = [norm(x, layer["norm_0"]["scale"]) for x in h]
        cut = lambda x, head: x[head * size : (head + 1) * size]
        for now in reversed(range(len(h))):  # later ones need the earlier normed ones
            mixed = []
            for head in range(queries):
                shared = head // (queries // keys)
                query = turn(cut(normed[now] @ part["q_proj"]["kernel"], head), now)
                past = range(now + 1)
                scores = [
                    query @ turn(cut(normed[t] @ part["k_proj"]["kernel"], shared), t)
                    for t in past
                ]
                weights = np.exp(np.array(scores) / np.sqrt(size))
                weights /= weights.sum()
                values = [
                    cut(normed[t] @ part["v_proj"]["kernel"], shared) for t in past
                ]
                mixed.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            h[now] = h[now] + np.concatenate(mixed) @ part["o_proj"]["kernel"]
        for now, x in enumerate(h):
            z = norm(x, layer["norm_1"]["scale"])
            gate = z @ layer["gate_proj"]["kernel"]
            inner = gate / (1 + np.exp(-gate)) * (z @ layer["up_proj"]["kernel"])
            h[now] = x + inner @ layer["down_proj"]["kernel"]
    h = np.array([norm(x, wide["norm"]["scale"]) for x in h])
    tied = config.tie_word_embeddings
    return h @ (wide["embedding"].T if tied else wide["out"]["kernel"])


@pytest.mark.parametrize("tied", [False, True])
def test_scores_are_those_of_plain_loops(tied):
    """Oracle: loops over heads and positions in float64, rotation as complex phase."""
    config = SMALL._replace(tie_word_embeddings=tied)
    model, params = made(config)
    assert ("out" in params) is not tied
    found = model.apply(params, TOKENS)
    for tokens, scores in zip(TOKENS, found, strict=True):
        np.testing.assert_allclose(scores, by_hand(config, params, tokens), atol=2e-5)
    states = model.hidden(params, TOKENS)[-1]
    kernel = params["embedding"].T if tied else params["out"]["kernel"]
    np.testing.assert_allclose(states @ kernel, found, atol=1e-5)


def test_a_sequence_does_not_see_its_neighbours():
    """The row law: a batch of one, and other neighbours. Control: another sequence."""
    model, params = made()
    together = model.apply(params, TOKENS)
    alone = jnp.concatenate([model.apply(params, row[None]) for row in TOKENS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    others = model.apply(params, TOKENS.at[1:].set(0))
    np.testing.assert_allclose(others[0], together[0], atol=1e-5)
    assert np.abs(others[1] - together[1]).max() > 1e-2


def test_a_position_sees_what_came_before_it_only():
    """A law: another last token changes the last scores only. The first is the control."""
    model, params = made()
    changed = lambda place: TOKENS.at[:, place].set((TOKENS[:, place] + 1) % 11)
    before = model.apply(params, TOKENS)
    last = model.apply(params, changed(-1))
    np.testing.assert_array_equal(before[:, :-1], last[:, :-1])
    assert jnp.all(jnp.any(before != model.apply(params, changed(0)), axis=2))


@pytest.mark.parametrize("options", [{"scan": False}, {"checkpoint": True}])
def test_how_it_is_walked_changes_neither_scores_nor_gradients(options):
    """Oracle: the scanned one that keeps everything; parameters are the same tree."""
    (usual, params), (other, same) = made(), made(**options)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)

    def loss(model):
        return lambda p: jnp.sum(jnp.square(model.apply(p, TOKENS)))

    ours, theirs = (jax.grad(loss(model))(params) for model in (other, usual))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3)


def test_less_is_stored_for_the_gradient_than_everything(monkeypatch):
    """Oracle: what XLA says of the compiled gradient; products are computed once."""
    tokens = jnp.zeros((8, 64), jnp.int32)

    sizes = SMALL._replace(num_hidden_layers=6, hidden_size=64, intermediate_size=96)

    def compiled(checkpoint=False):
        model, params = made(sizes, checkpoint=checkpoint)
        loss = lambda p: jnp.sum(model.apply(p, tokens))
        return jax.jit(jax.grad(loss)).lower(params).compile()

    usual, inputs_only = compiled(), compiled(checkpoint=True)
    module = sys.modules[decoder.__module__]  # its name in the package is the function
    monkeypatch.setattr(module, "recomputing", lambda step, **_: step)
    everything = compiled()
    memory = lambda program: program.memory_analysis().temp_size_in_bytes
    work = lambda program: program.cost_analysis()["flops"]  # of one layer
    assert memory(usual) < 0.6 * memory(everything)
    assert memory(inputs_only) < 0.7 * memory(usual)
    assert work(usual) < 1.1 * work(everything)
    assert 1.1 < work(inputs_only) / work(usual) < 1.4


def test_grouped_queries_are_repeated_keys():
    """Oracle: as many keys as queries, each copied to the queries of its group."""
    grouped, params = made()
    full, _ = made(SMALL._replace(num_key_value_heads=4))

    def repeated(kernel):
        heads = kernel.reshape(*kernel.shape[:-1], 2, 4)
        return jnp.repeat(heads, 2, axis=-2).reshape(*kernel.shape[:-1], 16)

    attention = params["layers"]["attention"]
    more = {
        name: {"kernel": repeated(attention[name]["kernel"])}
        for name in ("k_proj", "v_proj")
    }
    layers = params["layers"] | {"attention": attention | more}
    np.testing.assert_allclose(
        full.apply(params | {"layers": layers}, TOKENS),
        grouped.apply(params, TOKENS),
        atol=1e-5,
    )


def test_a_prompt_comes_before_the_tokens_and_may_be_hidden():
    """Oracles: the embeddings of tokens as a prompt, and shorter prompts.

    Padding and packed sequences have masks of their own besides.
    """
    model, params = made()
    prompt = params["embedding"][TOKENS[:, :3]]
    full = model.apply(params, TOKENS)[:, 3:]
    rest = TOKENS[:, 3:]
    given = {
        "tokens": (rest, rest),
        "mask": ({"tokens": rest, "mask": jnp.ones_like(rest)},) * 2,
        "segments": ({"tokens": rest, "segments": jnp.zeros_like(rest)},) * 2,
    }
    for x, same in given.values():
        found = model.apply(params, x, prompt=prompt)
        np.testing.assert_allclose(found, full, atol=2e-5)
        # The first embeddings of a row are hidden, as padding on the left is.
        seen = jnp.array([[1, 1, 1], [0, 1, 1], [0, 0, 0]])
        found = model.apply(params, x, prompt=prompt, prompt_mask=seen)
        for row, hidden in enumerate((0, 1, 3)):
            one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], same)
            short = prompt[row : row + 1, hidden:]
            alone = model.apply(params, one, prompt=short)
            np.testing.assert_allclose(found[row], alone[0], atol=3e-5)
    gradient = jax.grad(
        lambda prompt: jnp.sum(
            model.apply(params, rest, prompt=prompt, prompt_mask=seen) ** 2
        )
    )(prompt)
    np.testing.assert_array_equal(jnp.any(gradient != 0, axis=2), seen)


def test_only_distances_between_positions_matter():
    """A law of rotations: with constant values a shift of all positions changes nothing."""
    cos, sin = Rope(100.0).turns(9, 8)
    q, k = jax.random.normal(jax.random.key(2), (2, 1, 1, 8))
    at_place = lambda x, i: rotate(x[None], (cos[i : i + 1], sin[i : i + 1])).ravel()
    score = lambda i, j: at_place(q, i) @ at_place(k, j)
    np.testing.assert_allclose(score(2, 0), score(8, 6), rtol=1e-5)
    assert abs(score(2, 0) - score(3, 0)) > 1e-3


@pytest.mark.parametrize("masked", [False, True])
def test_masks_are_not_for_the_fused_kernel_of_gpus(monkeypatch, masked):
    """Oracle: the name that JAX is asked for; its kernel refuses masks of keys alone."""
    asked = []

    def record(*qkv, **options):
        asked.append(options["implementation"])
        return qkv[0]

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    q = jnp.zeros((3, 7, 2, 8), jnp.bfloat16)
    attend(q, q, q, mask=jnp.ones((3, 1, 1, 7), bool) if masked else None)
    attend(*[q.astype(jnp.float32)] * 3)
    assert asked == ["xla" if masked else "cudnn", "xla"]


# losses over tokens

LABELS = jnp.array([[1, 2, 3, 4, 5, 6, -1], [-1] * 7, [0] * 7])
BATCH = as_batch(TOKENS, LABELS)


def test_the_loss_of_tokens_is_the_mean_over_labels_that_count():
    """Oracle: numpy; a sequence without labels has loss and accuracy zero."""
    model, params = made()
    loss = token_cross_entropy(single_head(model.apply))
    key = jax.random.key(0)
    scores = np.asarray(model.apply(params, TOKENS), np.float64)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    wanted = [
        -logs[0, range(6), LABELS[0, :6]].mean(),
        0.0,
        -logs[2, :, 0].mean(),
    ]
    found = example_losses(loss, params, BATCH, key)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    best = scores.argmax(-1)
    wanted = [(best[0, :6] == LABELS[0, :6]).mean(), 0.0, (best[2] == 0).mean()]
    found = token_accuracy(single_head(model.apply))(params, BATCH)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3])
def test_rows_together_are_rows_one_by_one(chunk_size):
    """Oracle: a vmap of batches of one; values and gradients, whatever the chunks."""
    model, params = made()
    loss = token_cross_entropy(single_head(model.apply))
    key = jax.random.key(0)

    single = per_example(of_one(loss))

    @jax.jit
    def compare(params):
        def of(loss, **options):
            mean = lambda p: mean_loss(loss, p, BATCH, key, **options)
            rows = example_losses(loss, params, BATCH, key, **options)
            return rows, jax.grad(mean)(params)

        return of(loss, chunk_size=chunk_size), of(single)

    together, alone = compare(params)
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_kernels_meet_all_tokens_as_rows_of_one_matrix():
    """Oracle: the shapes in the program; a vmap of one sequence is the control."""
    model, params = made(scan=False)
    loss = token_cross_entropy(single_head(model.apply))

    def gradient(loss):
        grad = jax.grad(lambda p: mean_loss(loss, p, BATCH, jax.random.key(0)))
        return str(jax.make_jaxpr(grad)(params))

    flat = "f32[21,24]"  # 3 x 7 tokens, 24 gated units
    assert flat in gradient(loss)
    assert flat not in gradient(per_example(of_one(loss)))


# numbers in a narrow type


def test_computing_in_bfloat16_keeps_masters_and_losses_in_float32():
    """Oracle: float32, to bfloat16's precision; exact equality is the control."""
    model, params = made()
    narrow = cast_compute(jnp.bfloat16, model.apply)
    exact = model.apply(params, TOKENS)
    found = jax.jit(narrow)(params, TOKENS)
    assert found.dtype == jnp.float32
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, atol=0.03 * float(jnp.abs(exact).max()))
    loss = lambda p: jnp.sum(narrow(p, TOKENS))
    grads = jax.eval_shape(jax.grad(loss), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    inside = str(jax.make_jaxpr(narrow)(params, TOKENS))
    assert "bf16[3,11,16]" not in inside  # no tokens were cast
    assert "bf16[21,24]" in inside
    with pytest.raises(ValueError, match="cast_compute: dtype must be floating, got"):
        cast_compute(jnp.int32, model.apply)


# inputs besides tokens


def padded(side, count=3):
    """Tokens with padding on one side, and their mask."""
    where = [(0, 0), (0, count) if side == "right" else (count, 0)]
    mask = np.pad(np.ones(TOKENS.shape, np.int32), where)
    return {"tokens": np.pad(TOKENS, where, constant_values=9), "mask": mask}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 4])
def test_padding_changes_no_position_that_is_real(side, window):
    """Oracle: the sequences without padding; control: on the left, without a mask."""
    model, params = made(SMALL._replace(sliding_window=window))
    x = padded(side)
    place = slice(3, None) if side == "left" else slice(None, -3)
    wanted = model.apply(params, TOKENS)
    found = model.apply(params, x)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, place], wanted, atol=3e-5)
    for ours, theirs in zip(
        model.hidden(params, x), model.hidden(params, TOKENS), strict=True
    ):
        np.testing.assert_allclose(ours[:, place], theirs, atol=3e-5)
    blind = model.apply(params, x["tokens"])[:, place]
    assert bool(np.abs(blind - wanted).max() > 1e-2) is (side == "left")


def test_packed_sequences_do_not_see_each_other():
    """Oracle: each sequence alone. Control: without segments the second one differs."""
    model, params = made()
    packed = TOKENS.reshape(1, -1)
    segments = np.repeat(np.arange(3), 7)[None]
    wanted = model.apply(params, TOKENS)
    found = model.apply(params, {"tokens": packed, "segments": segments})
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=3e-5)
    free = model.apply(params, packed).reshape(wanted.shape)
    np.testing.assert_allclose(free[0], wanted[0], atol=3e-5)
    assert np.abs(free[1] - wanted[1]).max() > 1e-2


@pytest.mark.parametrize("extra", [(), ("mask",), ("segments",), ("mask", "segments")])
def test_a_prompt_is_like_tokens_before_the_others(extra):
    """Oracle: tokens whose embeddings are the prompt; for one prompt, and one per row."""
    model, params = made()
    ones = {name: np.ones(TOKENS.shape, np.int32) for name in extra}
    wanted = model.apply(params, TOKENS)[:, 3:]
    x = {"tokens": TOKENS, **ones}
    x = {name: leaf[:, 3:] for name, leaf in x.items()}
    each = params["embedding"][TOKENS[:, :3]]
    found = model.apply(params, x, prompt=each)
    np.testing.assert_allclose(found, wanted, atol=3e-5)
    one = model.apply(params, x, prompt=each[1])
    np.testing.assert_allclose(one[1], wanted[1], atol=3e-5)
    assert np.abs(one[0] - wanted[0]).max() > 1e-2


def with_adapters(params, rate):
    """Adapters with dropout on all projections, from NumPy."""
    random = np.random.default_rng(0)

    def add(tree):
        if "kernel" not in tree:
            return {n: add(t) if isinstance(t, dict) else t for n, t in tree.items()}
        depth, num_in, num_out = tree["kernel"].shape
        draw = lambda *shape: random.normal(0, 0.3, shape).astype(np.float32)
        full = lambda value: np.full(depth, value, np.float32)
        factors = {"lora_a": draw(depth, num_in, 2), "lora_b": draw(depth, 2, num_out)}
        return {**tree, **factors, "lora_scale": full(0.5), "lora_dropout": full(rate)}

    return {**params, "layers": add(params["layers"])}


@pytest.mark.parametrize("scan", [True, False])
def test_dropout_of_adapters_obeys_the_row_law(scan):
    """Laws: a row's outputs depend on its own key; all rates 0 is evaluation."""
    model, params = made(scan=scan)
    keys = jax.random.split(jax.random.key(3), 3)
    noisy = with_adapters(params, 0.5)
    together = model.apply(noisy, TOKENS, keys)
    alone = [
        model.apply(noisy, row[None], key[None])
        for row, key in zip(TOKENS, keys, strict=True)
    ]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=3e-5)
    others = model.apply(noisy, TOKENS, keys[::-1])
    assert np.abs(others[0] - together[0]).max() > 1e-2
    np.testing.assert_allclose(others[1], together[1], atol=3e-5)
    quiet = with_adapters(params, 0.0)
    plain = model.apply(quiet, TOKENS)
    np.testing.assert_allclose(model.apply(quiet, TOKENS, keys), plain, atol=3e-5)
    assert np.abs(plain - model.apply(params, TOKENS)).max() > 1e-2


def test_dropout_keeps_the_mean():
    """A law: the mean over many masks is the input; control: entries are 0 or doubled."""
    from jaxcl.models.layers import dropout

    keys, x = jax.random.split(jax.random.key(0), 4000), jnp.ones((8000, 6))
    found = dropout(keys, x, 0.5)
    assert set(np.unique(found)) == {0.0, 2.0}
    np.testing.assert_allclose(found.mean(0), 1.0, atol=4 / 8000**0.5)


def test_a_base_in_bfloat16_gives_logits_in_float32():
    """Oracle: the same weights in float32, to the rounding of bfloat16; adapters stay."""
    model, params = made()
    params = with_adapters(params, 0.0)
    factor = lambda path: path[-1].key.startswith("lora")
    narrow = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if factor(path) else leaf.astype(jnp.bfloat16), params
    )
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), narrow)
    found, wanted = model.apply(narrow, TOKENS), model.apply(wide, TOKENS)
    assert found.dtype == jnp.float32
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()
    assert model.hidden(narrow, TOKENS)[-1].dtype == jnp.bfloat16
    gradient = jax.grad(lambda p: model.apply(p, TOKENS).sum())(narrow)
    assert jax.tree.map(lambda leaf: leaf.dtype, gradient) == jax.tree.map(
        lambda leaf: jnp.asarray(leaf).dtype, narrow
    )


def test_a_base_in_float16_is_computed_on_a_cpu():
    """Oracle: the same weights in float32, to the rounding of float16."""
    model, params = made()
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    found, wanted = model.apply(narrow, TOKENS), model.apply(params, TOKENS)
    assert model.hidden(narrow, TOKENS)[-1].dtype == jnp.float16
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


def test_frequencies_of_llama_3_are_those_of_its_rule():
    """Oracle: the rule's three cases, one frequency at a time; linear divides all."""
    rope = Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    for k, found in enumerate(rope.frequencies(128)):
        plain = 500_000.0 ** (-2 * k / 128)
        length = 2 * np.pi / plain
        if length < 8192 / 4:
            wanted = plain
        elif length > 8192 / 1:
            wanted = plain / 8
        else:
            mix = (8192 / length - 1) / (4 - 1)
            wanted = (1 - mix) * plain / 8 + mix * plain
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    plain = Rope(100.0).frequencies(8)
    linear = Rope(100.0, "linear", 4.0).frequencies(8)
    np.testing.assert_allclose(linear, plain / 4, rtol=1e-12)
