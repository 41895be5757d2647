"""What optax offers as an optimizer does in a method what it does alone, or is refused."""

import functools

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.losses import cross_entropy, mean_loss, single_head
from jaxcl.memory import reservoir
from jaxcl.method import default_learner, make_method
from jaxcl.regularizers import box, l2_init, sum_of
from jaxcl.transforms import across_devices, sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import Regularizer

D, C = 4, 3
LOSS = cross_entropy(single_head(lambda p, x, keys=None: x @ p["w"] + p["b"]))
PARAMS = {"w": jax.random.normal(jax.random.key(0), (D, C)), "b": jnp.ones(C)}
X = jax.random.normal(jax.random.key(1), (8, D))
BATCH = as_batch(X, jnp.arange(8) % C)
NORMALIZED = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
GRAD = jax.grad(lambda p: mean_loss(LOSS, p, BATCH, jax.random.key(0)))


def walked(optimizer, num_steps=4, params=PARAMS, **parts):
    method = make_method(LOSS, optimizer, **parts)
    state = method.init(params, at(slice(1), BATCH))
    step = jax.jit(method.step)
    for i in range(num_steps):
        state, info = step(jax.random.key(i), state, BATCH)
        assert bool(info.finite)
    return method, state


def alone(optimizer, num_steps=4, params=PARAMS, **extra):
    """The optimizer in a loop of its own, without a method."""
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(GRAD(params), state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_same(left, right, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), left, right)


def assert_different(left, right, gap=1e-4):
    assert np.abs(left["w"] - right["w"]).max() > gap


PENALISED = {"regularizer": l2_init(0.3), "memory": reservoir(8, 4)}


@pytest.mark.parametrize("parts", [{}, PENALISED], ids=["alone", "with all"])
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(sam(0.05), optax.sgd(0.1)),
        optax.contrib.sam(optax.sgd(0.1), NORMALIZED, opaque_mode=True),
    ],
    ids=["chain", "optax.contrib.sam"],
)
def test_sam_inside_the_optimizer_is_sam_as_the_gradient(optimizer, parts):
    """Oracle: the same method with ``gradient=sam(0.05)``, also of loss and penalty on
    new and replayed rows. Negative control: plain descent."""
    _, found = walked(optimizer, **parts)
    _, wanted = walked(optax.sgd(0.1), gradient=sam(0.05), **parts)
    assert_same(found.params, wanted.params)
    assert_different(found.params, walked(optax.sgd(0.1), **parts)[1].params)


def test_a_sum_of_penalties_fits_a_schedule_free_optimizer():
    """Oracle: the penalty alone. With a box it is refused."""
    optimizer, penalty = optax.contrib.schedule_free_sgd(0.5), l2_init(0.3)
    _, found = walked(optimizer, regularizer=sum_of(penalty, sum_of()))
    assert_same(found.params, walked(optimizer, regularizer=penalty)[1].params)
    with pytest.raises(ValueError, match="takes no average= and no box"):
        walked(optimizer, regularizer=sum_of(penalty, box(0.1)))


def test_parts_see_the_average_of_a_schedule_free_optimizer_at_the_end_of_a_task():
    """Oracle: the learner that is evaluated; training goes on from it, or not."""
    keep = Regularizer(
        lambda params, example: params, end_task=lambda key, old, params, data: params
    )
    for reset in (True, False):
        method, state = walked(
            optax.contrib.schedule_free_sgd(0.5),
            reset_optimizer=reset,
            regularizer=keep,
        )
        want = method.learners(state)["average"]
        ended = method.end_task(jax.random.key(9), state, BATCH)
        assert_same(ended.regularizer, want)
        assert_same(ended.params, want if reset else state.params)
        assert_different(want, state.params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.contrib.schedule_free_sgd(0.5),
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.contrib.schedule_free_adamw(0.1)
        ),
    ],
    ids=["sgd", "adamw in a chain"],
)
def test_the_average_of_a_schedule_free_optimizer_is_evaluated_and_goes_on(optimizer):
    """Oracle: optax in a loop, with its own formula for the average.

    Negative control: the parameters that it trains at are others.
    """
    method, state = walked(optimizer)
    params, inner = alone(optimizer)
    last = inner[-1] if isinstance(inner, tuple) and type(inner) is tuple else inner
    averaged = optax.contrib.schedule_free_eval_params(last, params)
    assert_same(state.params, params)
    found = method.learners(state)
    assert list(found) == ["average", "params"]
    assert_same(default_learner(method, state), averaged)
    assert_same(found["params"], params)
    assert_different(averaged, params)
    # After the task: the second one is a run that begins at the average.
    state = method.end_task(jax.random.key(9), state, BATCH)
    assert_same(state.params, averaged)
    for i in range(4):
        state, _ = method.step(jax.random.key(i), state, BATCH)
    assert_same(state.params, alone(optimizer, params=averaged)[0])
    assert_different(state.params, alone(optimizer, params=params)[0])


def test_a_schedule_free_optimizer_that_is_not_reset_goes_on_undisturbed():
    """Oracle: eight steps of optax in a loop."""
    optimizer = optax.contrib.schedule_free_sgd(0.5)
    method, state = walked(optimizer, reset_optimizer=False)
    state = method.end_task(jax.random.key(9), state, BATCH)
    for i in range(4):
        state, _ = method.step(jax.random.key(i), state, BATCH)
    assert_same(state.params, alone(optimizer, 8)[0])


@pytest.mark.parametrize("kind", ["partition", "masked"])
def test_a_schedule_free_optimizer_of_some_parameters_averages_only_these(kind):
    """Oracle: optax's formula on the one leaf; the other leaf is itself."""
    free = optax.contrib.schedule_free_sgd(0.5)
    if kind == "partition":
        labels = {"w": "free", "b": "plain"}
        optimizer = optax.partition({"free": free, "plain": optax.sgd(0.1)}, labels)
        part = lambda state: state.optimizer.inner_states["free"].inner_state
    else:
        optimizer = optax.masked(free, {"w": True, "b": False})
        part = lambda state: state.optimizer.inner_state
    method, state = walked(optimizer)
    b1, z, y = part(state).b1, part(state).z["w"], state.params["w"]
    averaged = {"w": (y - (1 - b1) * z) / b1, "b": state.params["b"]}
    assert_same(default_learner(method, state), averaged)
    assert_different(averaged, state.params)
    ended = method.end_task(jax.random.key(9), state, BATCH)
    assert_same(ended.params, averaged)


def test_an_average_of_wider_numbers_has_the_dtype_of_the_parameters():
    """Oracle: the first state, also at the end of a task."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    optimizer = optax.contrib.schedule_free_sgd(0.5, state_dtype=jnp.float32)
    method, state = walked(optimizer, params=half)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    ended = method.end_task(jax.random.key(9), state, BATCH)
    start = method.init(half, at(slice(1), BATCH))
    assert kinds(ended) == kinds(start)
    assert kinds(default_learner(method, state)) == kinds(half)


def test_quasi_newton_steps_work_with_a_rate_and_a_line_search_asks_for_the_loss():
    """Oracle: finite steps; the message of optax names what it lacks."""
    walked(optax.lbfgs(0.1, linesearch=None))
    with pytest.raises(TypeError, match="value_fn"):
        walked(optax.lbfgs())


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (jnp.arange(3), r"int32 at \['odd'\]\['n'\]"),
        (jnp.ones(3, bool), r"bool at \['odd'\]\['n'\]"),
        (jnp.ones(3, complex), r"complex64 at \['odd'\]\['n'\]"),
        (jnp.tanh, r"\w+ at \['odd'\]\['n'\]"),
        ("relu", r"'relu' at \['odd'\]\['n'\]"),
    ],
    ids=["integer", "truth", "complex", "function", "text"],
)
def test_leaves_that_cannot_be_trained_are_refused_by_their_path(leaf, words):
    """Oracle: the message, of one line; real leaves of two dtypes are fine."""
    for good in (jnp.ones(3), np.ones(3, np.float16)):
        walked(optax.sgd(0.1), params={**PARAMS, "odd": {"n": good}})
    with pytest.raises(ValueError, match=rf"init: params .* {words}; keep out") as e:
        walked(optax.sgd(0.1), params={**PARAMS, "odd": {"n": leaf}})
    assert "\n" not in str(e.value)


MASKED = functools.partial(optax.masked, optax.set_to_zero())
LABELLED = functools.partial(
    optax.partition, {True: optax.set_to_zero(), False: optax.sgd(0.1)}
)


@pytest.mark.parametrize("build", [MASKED, LABELLED], ids=["mask", "labels"])
def test_a_mask_of_another_structure_is_refused_and_others_freeze_the_bias(build):
    """Oracle: JAX names both types; a function of params and plain dicts fit."""
    frozen = flax.core.freeze(PARAMS)
    optimizer = build({"w": False, "b": True})
    with pytest.raises(ValueError, match="FrozenDict"):
        walked(optimizer, params=frozen)
    of_params = lambda params: jax.tree.map(lambda leaf: leaf.ndim == 1, params)
    for remedy, params in (
        (build(of_params), frozen),
        (optimizer, flax.core.unfreeze(frozen)),
    ):
        chained = optax.chain(remedy, optax.sgd(0.1)) if build is MASKED else remedy
        _, state = walked(chained, params=params)
        np.testing.assert_array_equal(state.params["b"], PARAMS["b"])
        assert_different(state.params, PARAMS)


def test_an_optimizer_may_be_shared_by_devices():
    """Oracle: the optimizer itself, on one device of a named axis."""
    optimizer = across_devices(optax.sgd(0.1), "data")
    method = make_method(LOSS, optimizer)
    state = method.init(PARAMS, at(slice(1), BATCH))
    step = jax.vmap(
        lambda key: method.step(key, state, BATCH)[0].params, axis_name="data"
    )
    _, want = walked(optax.sgd(0.1), 1)
    assert_same(at(0, step(jax.random.split(jax.random.key(0), 1))), want.params)


def of_matrices(params):
    """A mask by shape: that of the small tree of a trial is another."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


DOWNHILL = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "from zero": lambda: optax.sgd(optax.linear_schedule(0.0, 0.1, 10)),
    "large decay": lambda: optax.adamw(0.1, weight_decay=50.0),
    "large noise": lambda: optax.chain(
        optax.add_noise(1e4, 0.55, key=jax.random.key(0)), optax.sgd(0.1)
    ),
    "noise after": lambda: optax.chain(
        optax.sgd(0.1), optax.add_noise(1e4, 0.55, key=jax.random.key(0))
    ),
    "masked": lambda: optax.masked(optax.sgd(0.1), of_matrices),
    "partition": lambda: optax.partition(
        {True: optax.sgd(0.1), False: optax.set_to_zero()}, of_matrices
    ),
    "steps": lambda: optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation(),
    "frozen": optax.set_to_zero,
    "second order": lambda: optax.lbfgs(0.1, linesearch=None),
    "of the loss": lambda: optax.polyak_sgd(1.0),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.rmsprop)(0.1),
    "layer-wise": lambda: optax.lamb(0.1),
    "of matrices": lambda: optax.contrib.muon(0.1),
    "with SAM": lambda: optax.chain(sam(0.05), optax.clip(1.0), optax.sgd(0.1)),
    "over devices": lambda: across_devices(optax.sgd(0.1), "device"),
}


@pytest.mark.parametrize("name", DOWNHILL)
def test_an_optimizer_is_not_mistaken_for_a_gradient_transformation(name):
    """Oracle: optax's list of optimizers; scaled by -1, those that show at once are not."""
    make_method(LOSS, DOWNHILL[name]())
    hidden = {"from zero", "large decay", "large noise", "noise after", "masked"}
    hidden |= {"partition", "of matrices", "steps", "frozen", "over devices"}
    if name not in hidden:
        with pytest.raises(ValueError, match="uphill"):
            make_method(LOSS, optax.chain(DOWNHILL[name](), optax.scale(-1.0)))


def test_a_rate_that_is_traced_is_not_tried():
    """Oracle: tracing; the program of a grid of rates is built."""

    def params_of(rate):
        method = make_method(LOSS, optax.sgd(rate))
        state = method.init(PARAMS, at(slice(1), BATCH))
        return method.step(jax.random.key(0), state, BATCH)[0].params

    found = jax.vmap(params_of)(jnp.array([0.1, 0.2]))
    assert_same(at(0, found), walked(optax.sgd(0.1), 1)[1].params)
