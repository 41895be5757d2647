"""The encoder's laws: rows, padding, dropout, dtypes, and the ways it is computed.

What it computes is compared with Transformers in tests/test_interop/test_encoders.py.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcl.losses import check_rows_independent, example_losses
from jaxcl.models import EncoderConfig, cast_compute, encoder, mean_pooled, pooled
from jaxcl.models.encoder import ACTIVATIONS
from jaxcl.models.layers import attend, attend_with_dropout
from jaxcl.tree import as_batch

SMALL = EncoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=12,
    initializer_range=0.3,  # large, so that every part matters
)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, 11)
MASK = jnp.array([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]])
TYPES = jnp.array([[0, 0, 0, 1, 1, 1, 1]] * 3)
X = {"tokens": TOKENS, "mask": MASK, "types": TYPES}
KEYS = jax.random.split(jax.random.key(2), 3)
WITH_AND_WITHOUT = pytest.mark.parametrize("keys", [None, KEYS], ids=["eval", "train"])


@functools.cache
def made(config=SMALL, **options):
    """A compiled model, and parameters of which none has its first value."""
    model = encoder(config, **options)
    params = model.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(params)
    draw = np.random.default_rng(0)
    more = [leaf + 0.1 * draw.normal(size=leaf.shape).astype("f") for leaf in leaves]
    compiled = model._replace(apply=jax.jit(model.apply))
    return compiled, jax.tree.unflatten(structure, more)


def real(states, mask=MASK):
    """States of real tokens; zero at padding."""
    return np.asarray(states) * np.asarray(mask)[..., None]


# rows and padding


@WITH_AND_WITHOUT
def test_a_row_does_not_see_its_neighbours(keys):
    """The row law: batches of one, and rows in another order. Control: another key."""
    model, params = made()
    together = model.apply(params, X, keys)
    one = lambda i, tree: jax.tree.map(lambda leaf: leaf[i : i + 1], tree)
    alone = [model.apply(params, one(i, X), one(i, keys)) for i in range(3)]
    np.testing.assert_allclose(together, jnp.concatenate(alone), atol=1e-5)
    turned = jax.tree.map(lambda leaf: leaf[::-1], (X, keys))
    found = model.apply(params, *turned)[::-1]
    np.testing.assert_allclose(found, together, atol=1e-5)
    if keys is not None:
        others = model.apply(params, X, KEYS[::-1])
        assert np.abs(real(others - together)).max(axis=(1, 2))[0] > 0.1


@WITH_AND_WITHOUT
@pytest.mark.parametrize("scan", [True, False])
def test_padding_changes_nothing(keys, scan):
    """A law: more padding on the right, of any tokens; in training as well.

    The control has no mask.
    """
    model, params = made(scan=scan)
    longer = {
        name: jnp.pad(part, ((0, 0), (0, 4)), constant_values=fill)
        for (name, part), fill in zip(X.items(), (3, 0, 1), strict=True)
    }
    before = model.apply(params, X, keys)
    after = model.apply(params, longer, keys)[:, :7]
    np.testing.assert_allclose(real(after), real(before), atol=1e-5)
    unmasked = model.apply(params, longer | {"mask": longer["mask"] | 1}, keys)
    assert np.abs(real(unmasked[:, :7] - before)).max() > 0.1


def test_what_is_absent_is_one_type_without_padding():
    """Oracle: the same inputs, written out; other types are the control."""
    model, params = made()
    plain = model.apply(params, TOKENS)
    ones, zeros = jnp.ones_like(TOKENS), jnp.zeros_like(TOKENS)
    full = {"tokens": TOKENS, "mask": ones, "types": zeros}
    np.testing.assert_allclose(plain, model.apply(params, full), atol=1e-6)
    other = model.apply(params, full | {"types": ones})
    assert np.abs(other - plain).max() > 0.01
    first = jnp.tanh(
        plain[:, 0] @ params["pooler"]["dense"]["kernel"]
        + params["pooler"]["dense"]["bias"]
    )
    np.testing.assert_allclose(pooled(params, plain), first, atol=1e-6)


def test_the_mean_is_over_real_tokens():
    """Oracle: numpy, one row at a time; a row without tokens has zeros."""
    states = jax.random.normal(jax.random.key(3), (3, 7, 16))
    mask = MASK.at[1].set(0)
    wanted = [states[0].mean(0), np.zeros(16), states[2, :5].mean(0)]
    np.testing.assert_allclose(mean_pooled(states, mask), wanted, atol=1e-6)
    np.testing.assert_allclose(mean_pooled(states), states.mean(1), atol=1e-6)


# the ways it is computed


@WITH_AND_WITHOUT
@pytest.mark.parametrize("options", [{"scan": False}, {"checkpoint": True}])
def test_how_it_is_walked_changes_neither_states_nor_gradients(options, keys):
    """Oracle: the scanned one that keeps everything; parameters are the same tree."""
    (usual, params), (other, _) = made(), made(**options)

    @jax.jit
    def compare(params):
        def of(model):
            loss = lambda p: jnp.sum(
                jnp.square(model.apply(p, X, keys)) * X["tokens"][..., None]
            )
            return model.hidden(params, X, keys), jax.grad(loss)(params)

        return of(usual), of(other)

    theirs, ours = compare(params)
    assert len(ours[0]) == SMALL.num_hidden_layers + 1
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    last = usual.apply(params, X, keys)
    np.testing.assert_allclose(ours[0][-1], last, atol=1e-5)


def test_seeds_are_a_vmap():
    """Oracle: one seed at a time, under jit."""
    model, params = made()
    other = model.init(jax.random.key(9))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    found = jax.vmap(model.apply, (0, None, None))(both, X, KEYS)
    alone = [jax.jit(model.apply)(each, X, KEYS) for each in (params, other)]
    np.testing.assert_allclose(found, jnp.stack(alone), atol=1e-5)


def test_an_adapter_is_a_change_of_the_kernel():
    """Oracle: the kernel with the product of the factors added; its dropout is noise."""
    model, params = made(SMALL._replace(**NO_DROPOUT))
    a = jax.random.normal(jax.random.key(3), (2, 16, 2))
    b = jax.random.normal(jax.random.key(4), (2, 2, 16))
    query = params["layers"]["attention"]["query"]
    factors = {"lora_a": a, "lora_b": b, "lora_scale": jnp.full(2, 0.5)}
    merged = {"kernel": query["kernel"] + 0.5 * a @ b}

    def states(changes, keys=None):
        attention = params["layers"]["attention"] | {"query": query | changes}
        layers = params["layers"] | {"attention": attention}
        return model.apply(params | {"layers": layers}, X, keys)

    np.testing.assert_allclose(states(factors), states(merged), atol=1e-4)
    np.testing.assert_array_equal(states(factors, KEYS), states(factors))
    noisy = states(factors | {"lora_dropout": jnp.full(2, 0.5)}, KEYS)
    assert np.abs(noisy - states(factors)).max() > 0.01


def test_gelu_in_bfloat16_has_the_digits_of_bfloat16():
    """Oracle: the distribution function of scipy in float64."""
    x = np.linspace(-4, 4, 161).astype(jnp.bfloat16)
    wanted = x.astype(np.float64) * stats.norm.cdf(x.astype(np.float64))
    found = ACTIVATIONS["gelu"](jnp.asarray(x))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8)
    exact = ACTIVATIONS["gelu"](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(exact, wanted, atol=1e-6)


# dropout


def test_a_rate_of_zero_costs_nothing():
    """Oracle: the program without keys; at other rates there are random bits."""

    def program(keys, **rates):
        model = encoder(SMALL._replace(**NO_DROPOUT | rates))
        params = jax.eval_shape(model.init, jax.random.key(0))
        return str(jax.make_jaxpr(lambda p: model.apply(p, X, keys))(params))

    assert program(KEYS) == program(None)
    for name in NO_DROPOUT:
        assert "random_bits" in program(KEYS, **{name: 0.1})
        assert "random_bits" not in program(None, **{name: 0.1})


def test_dropout_is_of_embeddings_and_of_what_layers_add(monkeypatch):
    """Oracle: the norms alone, where dropout drops everything."""
    nothing = lambda keys, x, rate: jnp.zeros_like(x)
    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["jaxcl.models.encoder"], "dropout", nothing)
    model, params = made(SMALL._replace(attention_probs_dropout_prob=0.0), scan=False)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["layers"])

    def norm(layer, x):
        unit = (x - x.mean()) / np.sqrt(x.var() + 1e-12)
        return layer["scale"] * unit + layer["bias"]

    h = np.zeros(16)
    embedded, *found = model.hidden(params, X, KEYS)
    assert not embedded.any()
    for number, states in enumerate(found):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], wide)
        h = layer["attention"]["output"]["norm"]["bias"] if number == 0 else h
        if number:
            h = norm(layer["attention"]["output"]["norm"], h)
        h = norm(layer["output"]["norm"], h)
        np.testing.assert_allclose(states, np.broadcast_to(h, states.shape), atol=1e-4)


def test_dropout_of_attention_is_of_its_weights():
    """Oracle: the weights without dropout, seen through values that are unit vectors."""
    q, k = 0.5 * jax.random.normal(jax.random.key(3), (2, 3, 6, 2, 6))
    unit = jnp.broadcast_to(jnp.eye(6)[:, None], (3, 6, 2, 6))
    mask = jnp.arange(6) < jnp.array([6, 4, 5])[:, None]
    mask = mask[:, None, None]
    keys = jax.random.split(jax.random.key(4), (400, 3))
    weights = jnp.moveaxis(attend(q, k, unit, mask=mask), 1, 2)  # [b, h, n, m]
    drawn = jax.vmap(
        lambda keys: attend_with_dropout(q, k, unit, keys, 0.25, mask=mask)
    )
    found = np.moveaxis(np.asarray(drawn(keys)), 2, 3)
    kept = found > 0
    wanted = np.broadcast_to(weights / 0.75, found.shape)
    np.testing.assert_allclose(found[kept], wanted[kept], rtol=1e-5)
    seen = np.broadcast_to(mask, weights.shape)
    share = kept.mean(axis=0)[seen]
    assert np.abs(share - 0.75).max() < 5 * np.sqrt(0.25 * 0.75 / 400)
    assert not kept[:, ~seen].any()
    # Masks of two entries are independent: their joint share is the product.
    flat = kept[:, 0].reshape(400, -1)
    joint = (flat.T @ flat.astype(float)) / 400
    away = np.abs(joint - 0.75**2)[~np.eye(len(joint), dtype=bool)]
    assert away.max() < 6 * np.sqrt(0.5625 * 0.4375 / 400)


def test_a_loss_with_dropout_does_not_depend_on_batch_or_chunks():
    """The row law: copies of a row, and chunks of any size."""
    model, params = made()

    def loss(params, batch, keys):
        states = model.apply(params, batch.x, keys)
        return jnp.sum(jnp.square(states[:, 0] - 1), axis=-1) * (1 + batch.y)

    batch = as_batch(X, jnp.arange(3))
    check_rows_independent(loss, params, batch, jax.random.key(6))
    losses = example_losses(loss, params, batch, KEYS)
    for size in (1, 2):
        chunks = example_losses(loss, params, batch, KEYS, chunk_size=size)
        np.testing.assert_allclose(chunks, losses, rtol=1e-5)
    still = example_losses(loss, params, batch, KEYS[::-1])
    assert np.abs(still - losses).max() > 0.1  # control: other keys


# numbers of other widths


def test_bfloat16_keeps_norms_and_softmax_in_float32():
    """Oracle: float32, to bfloat16's precision, and the program; control: inequality."""
    model, params = made(scan=False)
    narrow = cast_compute(jnp.bfloat16, model.apply)
    for keys in (None, KEYS):
        exact, found = model.apply(params, X, keys), jax.jit(narrow)(params, X, keys)
        assert found.dtype == jnp.float32
        assert not np.array_equal(found, exact)
        atol = 0.04 * float(jnp.abs(exact).max())
        np.testing.assert_allclose(real(found), real(exact), atol=atol)
        lines = str(jax.make_jaxpr(narrow)(params, X, keys)).splitlines()
        for name in (" exp ", " rsqrt "):
            used = [line.split("=")[0] for line in lines if name in line]
            assert used
            assert all(":f32" in result for result in used)
        assert any("dot_general" in line and ":bf16" in line for line in lines)


def test_float64_agrees_with_float32(x64):
    """Oracle: float32, to its precision; the states are float64."""
    del x64
    model, params = made()
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    for keys in (None, KEYS):
        exact, found = model.apply(wide, X, keys), model.apply(params, X, keys)
        assert exact.dtype == jnp.float64
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, atol=2e-5)


def test_parameters_begin_as_the_config_says():
    """Oracle: moments of normal numbers; scales 1, biases 0, a pooler if it has one."""
    config = SMALL._replace(hidden_size=64, initializer_range=0.02)
    params = encoder(config).init(jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(params):
        name = path[-1].key
        if name in ("scale", "bias"):
            np.testing.assert_array_equal(leaf, float(name == "scale"))
        elif leaf.size > 1000:
            assert abs(float(jnp.std(leaf)) - 0.02) < 0.002, path
    kernel = params["layers"]["output"]["dense"]["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])
    without = encoder(config._replace(pooler=False)).init(jax.random.key(0))
    assert set(params) - set(without) == {"pooler"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
