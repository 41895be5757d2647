"""Sequences of a memory are computed at the width that they need.

Oracle of every method: the same step with the replay at the full width of the memory.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import method as method_module
from jaxcl import methods, transforms
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import (
    by_rows,
    dark_experience_loss,
    single_head,
    token_cross_entropy,
)
from jaxcl.memory import episodic, reservoir
from jaxcl.method import make_method
from jaxcl.models import DecoderConfig, decoder
from jaxcl.regularizers import distill, ewc
from jaxcl.sequences import IGNORED, at_needed_width
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh, place_rows, shardings
from jaxcl.tree import as_batch

WIDTH, NARROW = 24, 4  # of the memory and of batches: 4, 8, 16 or 24 are computed
SGD = optax.sgd(0.5)


def hidden(params, x, keys=None):
    """Causal means over the tokens so far, small and quickly compiled."""
    del keys
    real = x["mask"][..., None]
    counts = jnp.maximum(jnp.cumsum(real, axis=1), 1)
    sums = jnp.cumsum(real * params["in"][x["tokens"]], axis=1)
    return jnp.tanh(sums / counts).astype(params["in"].dtype)


def apply(params, x, keys=None):
    return hidden(params, x, keys) @ params["out"]


KEYS = jax.random.split(jax.random.key(1))
PARAMS = {
    "in": jax.random.normal(KEYS[0], (11, 8)),
    "out": jax.random.normal(KEYS[1], (8, 11)),
}
LOGITS = single_head(apply)
LOSS = token_cross_entropy(LOGITS)
DECODER = decoder(DecoderConfig(11, 8, 12, 1, 2, initializer_range=0.3))
OF_DECODER = token_cross_entropy(single_head(DECODER.apply))


def sequences(lengths, width=WIDTH, seed=0, weight=None):
    """Rows of these lengths; the label of a row's last token counts, and no other
    beyond it."""
    random = np.random.default_rng(seed)
    mask = np.arange(width) < np.asarray(lengths)[:, None]
    tokens = random.integers(1, 11, mask.shape) * mask
    y = np.where(mask, np.roll(tokens, -1, axis=1), IGNORED)
    return as_batch({"tokens": tokens, "mask": mask.astype(np.int32)}, y, weight=weight)


BATCH = sequences([3, 4], NARROW, seed=7)
AGEM = {"memory": episodic(2, 3, 2), "replay_weight": 0}
METHODS = {
    "er of a decoder": lambda: methods.experience_replay(
        OF_DECODER, SGD, capacity=6, sample_size=2
    ),
    "er": lambda: methods.experience_replay(LOSS, SGD, capacity=6, sample_size=2),
    "sam": lambda: make_method(
        LOSS, SGD, gradient=transforms.sam(0.3), memory=reservoir(6, 2), chunk_size=3
    ),
    "a-gem": lambda: make_method(LOSS, SGD, gradient=transforms.agem(), **AGEM),
    "gem": lambda: make_method(
        LOSS,
        SGD,
        gradient=transforms.gem(),
        memory=episodic(2, 3, 2, grouped=True),
        regularizer=ewc(empirical_fisher(LOSS), 2.0),
        replay_weight=by_rows,
    ),
    "der": lambda: make_method(
        LOSS,
        SGD,
        memory=reservoir(6, 2, store=LOGITS),
        replay_loss=dark_experience_loss(LOGITS, 0.5, 0.5),
    ),
    "i-lora": lambda: methods.slow_learner(
        LOSS, SGD, hidden, decay=0.5, strength=3.0, capacity=6, sample_size=2
    ),
    "distillation": lambda: make_method(
        LOSS,
        SGD,
        gradient=transforms.gnp(0.3, alpha=0.5),
        memory=reservoir(6, 2),
        regularizer=distill(LOGITS, 3.0, rows=lambda context: context.replay),
        perturb_penalty=False,
    ),
}


def filled(method, params=PARAMS):
    """The state after two tasks, whose samples need every width."""
    state = method.init(params, sequences([WIDTH]))
    step, end = jax.jit(method.step), jax.jit(method.end_task)
    for number, lengths in enumerate([[2, 3], [7, 4], [13, 24]]):
        state, _ = step(jax.random.key(number), state, sequences(lengths, seed=number))
    for number in range(2):
        task = sequences([2, 3, 7, 13, 4, 24], seed=number)
        state = end(jax.random.key(number), state, task)
    return state


def at_full_width(function, rows, like):
    """What takes the place of the library's function in the oracle."""
    del like
    return function(rows)


def stepped(method, state, batch=BATCH):
    """States and infos after one step with each of some keys."""
    step = lambda key: method.step(key, state, batch)
    keys = jax.random.split(jax.random.key(5), 8)
    return jax.jit(lambda keys: jax.lax.map(step, keys))(keys)


def close(ours, theirs):
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_at_the_full_width(name, monkeypatch):
    """Oracle: the same steps without cutting, in float32; all parts of the state."""
    method = METHODS[name]()
    state = filled(method, DECODER.init(KEYS[0]) if "decoder" in name else PARAMS)
    found = stepped(method, state)
    monkeypatch.setattr(method_module, "at_needed_width", at_full_width)
    close(found, stepped(METHODS[name](), state))
    # The control: the replay moves parameters by more than that.
    alone = make_method(OF_DECODER if "decoder" in name else LOSS, SGD)
    plain, _ = stepped(alone, alone.init(state.params, BATCH))
    with pytest.raises(AssertionError, match="Not equal"):
        close(found[0].params, plain.params)


def width_used(rows, like=BATCH):
    """The width at which a function that reads its rows is computed."""

    def function(rows):
        tokens = rows.x["tokens"]
        return tokens.shape[-1] + 0 * jnp.sum(tokens)

    return at_needed_width(function, rows, like)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_the_smallest_width_that_holds_all_rows_is_computed(lead):
    """Oracle: by hand, from lengths of rows with a weight; also of rows by task."""
    group = lambda rows: jax.tree.map(
        lambda leaf: leaf.reshape(*lead, -1, *leaf.shape[1:]), rows
    )
    used = jax.jit(width_used)
    of_lengths = lambda lengths, weight=None: int(
        used(group(sequences(lengths, weight=weight)))
    )
    for longest, wanted in (
        (1, 4),
        (4, 4),
        (5, 8),
        (8, 8),
        (9, 16),
        (17, 24),
        (24, 24),
    ):
        assert of_lengths([longest, 2, 1, 1]) == wanted
        assert of_lengths([1, 2, 1, longest]) == wanted
    assert of_lengths([2, 24, 5, 1], weight=[1, 0, 1, 1]) == 8
    assert of_lengths([24, 24], weight=[0, 0]) == 4
    # A label that counts is kept, also where it is hidden.
    rows = sequences([2, 3])
    late = rows._replace(y=rows.y.at[1, 9].set(0))
    assert int(used(group(rows))) == 4
    assert int(used(group(late))) == 16


@pytest.mark.parametrize(
    ("narrow", "wide", "wanted"),
    [
        (32, 256, {32, 64, 128, 256}),
        (32, 2048, {32, 128, 512, 2048}),
        (64, 256, {64, 128, 256}),
        (100, 256, {100, 256}),
        (128, 256, {128, 256}),
        (250, 256, {250, 256}),
    ],
)
def test_there_are_few_widths(narrow, wide, wanted):
    """Oracle: by hand; they are compiled, each of them."""
    like = sequences([3], narrow)
    used = jax.jit(lambda rows: width_used(rows, like))
    lengths = sorted({1, *(w + d for w in wanted for d in (0, 1) if w + d <= wide)})
    assert {int(used(sequences([length], wide))) for length in lengths} == wanted


def test_stored_outputs_are_cut_like_their_rows():
    """Oracle: NumPy slices."""
    z = np.random.default_rng(0).normal(size=(2, WIDTH, 3)).astype(np.float32)
    rows = sequences([3, 7])._replace(stored=z)
    widen = lambda leaf: jnp.pad(leaf, ((0, 0), (0, WIDTH - leaf.shape[1]), (0, 0)))
    found = at_needed_width(
        lambda rows: widen(rows.stored) + 0 * rows.x["mask"].sum(), rows, BATCH
    )
    np.testing.assert_array_equal(found[:, :8], z[:, :8])
    assert not np.any(found[:, 8:])


def test_runs_side_by_side_share_the_width_of_the_widest():
    """Oracle: by hand; one branch is run for all, as a count of its calls shows."""
    calls = []

    def function(scale, rows):
        tokens = rows.x["tokens"]
        jax.debug.callback(lambda: calls.append(tokens.shape[-1]))
        return scale * jnp.sum(tokens, axis=-1)

    runs = [sequences([2, 7], seed=1), sequences([3, 1], seed=2)]
    rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs)
    of_run = lambda scale, rows: at_needed_width(
        functools.partial(function, scale), rows, BATCH
    )
    found = jax.jit(jax.vmap(of_run))(jnp.array([1.0, 2.0]), rows)
    jax.effects_barrier()
    sums = rows.x["tokens"].sum(axis=-1)
    np.testing.assert_array_equal(found, sums * np.array([[1], [2]]))
    assert set(calls) == {8}


def test_derivatives_of_any_order_pass_through():
    """Oracle: the same function of the rows as they are; both directions."""
    rows = sequences([3, 6])

    def function(scale, rows):
        kept = jnp.where(rows.y >= 0, rows.x["tokens"], 0)
        return jnp.sum(jnp.sin(scale * kept))

    ours = lambda scale: at_needed_width(
        functools.partial(function, scale), rows, BATCH
    )
    theirs = lambda scale: function(scale, rows)
    hessians = (jax.hessian, lambda f: jax.grad(jax.grad(f)), jax.grad)
    for derive in hessians:
        np.testing.assert_allclose(
            jax.jit(derive(ours))(0.3), derive(theirs)(0.3), rtol=1e-5
        )


def test_only_what_is_known_to_be_padding_is_left_out():
    """Oracle: the full width; a row like those of the batch is the control."""
    rows = sequences([3, 2])
    labels = jnp.arange(2)
    classes = [part._replace(y=labels) for part in (rows, BATCH)]
    floats = [
        part._replace(y=jnp.where(part.y < 0, 0, part.y) * 1.0)
        for part in (rows, BATCH)
    ]
    plain = [part._replace(x={"tokens": part.x["tokens"]}) for part in (rows, BATCH)]
    stored = lambda rows, *shape: rows._replace(stored=(jnp.zeros((2, *shape)),))
    cases = [
        (rows, BATCH, NARROW),
        (rows, sequences([3, 2]), WIDTH),  # as wide
        (rows, classes[1], WIDTH),  # labels of another kind
        (*floats, WIDTH),
        (*plain, 0),
        (*classes, NARROW),
        (stored(rows, 3), BATCH, NARROW),
        (stored(rows, WIDTH, 3), BATCH, NARROW),
        (stored(rows, WIDTH, WIDTH), BATCH, NARROW),
        (stored(rows, 3, WIDTH), BATCH, WIDTH),  # not the axis of positions
        (stored(classes[0], WIDTH), classes[1], WIDTH),  # may be as many classes
        (stored(classes[0], WIDTH, 3), classes[1], WIDTH),
    ]
    for own, like, wanted in cases:
        assert int(width_used(own, like)) == (wanted or WIDTH)
    length = lambda name: (
        lambda rows: rows.y[name].shape[1] + 0 * jnp.sum(rows.x["mask"])
    )
    # Targets as many as there are positions, but in both.
    targets = jnp.zeros((2, WIDTH))
    both = [part._replace(y={"a": part.y, "b": targets}) for part in (rows, BATCH)]
    assert int(at_needed_width(length("a"), *both)) == NARROW
    assert int(at_needed_width(length("b"), *both)) == WIDTH


def choices(batch, **parts):
    """How many choices of a width the program of a step has."""
    method = make_method(LOSS, SGD, **parts)
    state = method.init(PARAMS, sequences([WIDTH]))
    text = jax.jit(method.step).lower(jax.random.key(0), state, batch).as_text()
    return text.count("stablehlo.case")


def test_programs_have_a_choice_only_where_widths_differ():
    """Oracle: counting; whatever reads no replay has none, either."""
    penalty, memory = ewc(empirical_fisher(LOSS), 1.0), reservoir(6, 2)
    look = lambda context: context.replay
    of_replay = distill(LOGITS, 1.0, rows=look)
    cases = [
        (0, {}),
        (0, {"regularizer": penalty}),
        (
            0,
            {"regularizer": distill(LOGITS, 1.0), "memory": memory, "replay_weight": 0},
        ),
        (1, {"memory": memory}),
        (1, {"memory": memory, "regularizer": penalty}),
        (1, {"memory": memory, "regularizer": of_replay, "replay_weight": 0}),
        (2, {"memory": memory, "regularizer": of_replay}),
        (2, {"memory": memory, "gradient": transforms.sam(0.1)}),
        (1, {"gradient": transforms.agem(), **AGEM}),
    ]
    for wanted, parts in cases:
        same = choices(sequences([3], WIDTH), **parts)  # of norms
        assert choices(BATCH, **parts) - same == wanted


def test_rows_without_a_weight_that_are_padded_on_the_left_stay_finite():
    """Oracle: finiteness, for a loss that divides by the number of a row's tokens."""

    def function(scale, rows):
        mask = rows.x["mask"]
        return jnp.sum(rows.weight * scale / jnp.sum(mask, axis=-1))

    rows = sequences([2, 3], weight=[1, 0])
    left = np.arange(WIDTH) >= WIDTH - 3
    x = {**rows.x, "mask": np.where([[False], [True]], left, rows.x["mask"])}
    given = functools.partial(at_needed_width, rows=rows._replace(x=x), like=BATCH)
    slope = jax.grad(lambda scale: given(functools.partial(function, scale)))(1.0)
    np.testing.assert_allclose(slope, 0.5)


def test_bfloat16_is_as_close_as_at_the_full_width(monkeypatch):
    """Oracle: both forms in bfloat16, up to its precision, and dtypes of the state."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    state = filled(METHODS["er"](), half)
    found, _ = stepped(METHODS["er"](), state)
    monkeypatch.setattr(method_module, "at_needed_width", at_full_width)
    wanted, _ = stepped(METHODS["er"](), state)
    dtypes = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
    assert dtypes(found) == dtypes(wanted)
    for name, leaf in wanted.params.items():
        np.testing.assert_allclose(
            *(np.asarray(p, np.float32) for p in (found.params[name], leaf)), atol=0.02
        )


@pytest.mark.devices
def test_rows_split_over_devices_are_those_of_one_device():
    """Oracle: the same steps on one device; every width is needed by some key."""
    mesh = make_mesh(data=2, devices=jax.devices()[:4], fsdp=2)
    plan = ShardingPlan(mesh, fsdp(at_least=16))
    method = methods.experience_replay(LOSS, SGD, capacity=6, sample_size=4)
    batch = sequences([3, 4, 2, 1], NARROW, seed=7)
    state = filled(method)
    wanted, _ = stepped(method, state, batch)
    placed = jax.device_put(state, shardings(plan, state))
    with jax.set_mesh(mesh):
        found, _ = stepped(method, placed, place_rows(plan, batch))
    close(found.params, wanted.params)
