"""The laws of the method algebra, each with a negative control beside it.

Oracle of every law: two different compositions that must learn the same parameters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxcl.averages import ema
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import (
    by_rows,
    by_tasks,
    cross_entropy,
    mean_loss,
    per_example,
    single_head,
)
from jaxcl.memory import episodic, reservoir
from jaxcl.method import default_learner, make_method
from jaxcl.regularizers import boxed, distill, ewc, l2_init, sum_of
from jaxcl.training.device import first_example, run_stream
from jaxcl.transforms import agem, gem, gnp, sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import Regularizer, Reset, Stream

D, H, C, T = 6, 5, 3, 2


def apply(params, x, keys=None):
    del keys
    return jnp.tanh(x @ params["w"]) @ params["v"]


LOGITS = single_head(apply)
LOSS = cross_entropy(LOGITS)
FISHER = empirical_fisher(LOSS)
SGD = optax.sgd(0.2)
MAKE = functools.partial(make_method, LOSS, SGD)


def task(seed, rows=16):
    key_x, key_map = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(key_x, (rows, D))
    return as_batch(x, jnp.argmax(x @ jax.random.normal(key_map, (D, C)), axis=1))


@functools.cache
def setting():
    plan = jax.tree.map(lambda *leaves: jnp.stack(leaves), task(1), task(2))
    view = lambda pool, plan: plan
    key_w, key_v = jax.random.split(jax.random.key(0))
    params = {
        "w": jax.random.normal(key_w, (D, H)),
        "v": jax.random.normal(key_v, (H, C)),
    }
    return Stream((), plan, view, view, C, "two tasks"), params


def learned(method):
    """The evaluated parameters after two tasks, as one vector."""
    stream, params = setting()

    @jax.jit
    def walk(key):
        state = method.init(params, first_example(stream))
        state, _ = run_stream(key, method, stream, state, num_steps=12, batch_size=8)
        return ravel_pytree(default_learner(method, state))[0]

    return np.asarray(walk(jax.random.key(3)))


@functools.cache
def plain():
    return learned(MAKE())


def assert_law(left, right, atol=1e-6):
    np.testing.assert_allclose(left, right, atol=atol, rtol=0)


def assert_different(left, right, gap=1e-4):
    assert np.max(np.abs(left - right)) > gap


@pytest.mark.parametrize(
    "method",
    [
        lambda: MAKE(gradient=gnp(0.05, alpha=0.0)),
        lambda: MAKE(gradient=sam(0.0)),
        lambda: MAKE(regularizer=ewc(FISHER, 0.0)),
        lambda: MAKE(regularizer=boxed(ewc(FISHER, 0.0), jnp.inf)),
        lambda: MAKE(regularizer=sum_of()),
        lambda: MAKE(average=ema(0.0)),
        lambda: MAKE(memory=reservoir(8, 4), replay_weight=0),
        lambda: MAKE(perturb_penalty=False),
    ],
    ids=[
        "gnp(alpha=0)",
        "sam(0)",
        "ewc(0)",
        "infinite box",
        "sum_of()",
        "ema(0)",
        "memory that is only looked at",
        "placement of no penalty",
    ],
)
def test_neutral_elements_leave_plain_descent_alone(method):
    """Law: the neutral element of each part changes nothing."""
    assert_law(learned(method()), plain())


@pytest.mark.parametrize(
    "method",
    [
        lambda: MAKE(gradient=gnp(0.5, alpha=0.7)),
        lambda: MAKE(gradient=sam(0.5)),
        lambda: MAKE(regularizer=ewc(FISHER, 3.0)),
        lambda: MAKE(regularizer=boxed(ewc(FISHER, 0.0), 0.01)),
        lambda: MAKE(regularizer=l2_init(0.1)),
        lambda: MAKE(average=ema(0.9)),
        lambda: MAKE(gradient=agem(), memory=reservoir(8, 4), replay_weight=0),
        lambda: MAKE(memory=reservoir(8, 4)),
    ],
    ids=["gnp", "sam", "ewc", "box", "l2 init", "ema", "a-gem", "replay"],
)
def test_every_part_changes_what_is_learned(method):
    """Negative control of the neutral elements."""
    assert_different(learned(method()), plain())


def test_gnp_with_alpha_one_is_sam():
    """Law, over whole runs."""
    assert_law(
        learned(MAKE(gradient=gnp(0.3, alpha=1.0))), learned(MAKE(gradient=sam(0.3)))
    )


def test_sum_of_is_associative():
    """Law: regularizers are a monoid."""
    a, b, c = ewc(FISHER, 3.0), l2_init(0.01), l2_init(0.03)
    left = learned(MAKE(regularizer=sum_of(sum_of(a, b), c)))
    assert_law(left, learned(MAKE(regularizer=sum_of(a, sum_of(b, c)))))


def test_where_a_penalty_acts_matters_with_sam_and_not_without():
    """Law and its negative control."""
    penalty = l2_init(0.3)
    late = learned(MAKE(regularizer=penalty, perturb_penalty=False))
    assert_law(late, learned(MAKE(regularizer=penalty)))
    with_sam = functools.partial(MAKE, gradient=sam(0.5), regularizer=penalty)
    assert_different(learned(with_sam(perturb_penalty=False)), learned(with_sam()))


def test_replay_from_an_empty_memory_is_plain_descent_bit_for_bit():
    """Law: an episodic memory is empty for the whole first task."""
    batch = at(slice(8), task(1))
    params = setting()[1]
    memory = episodic(num_tasks=2, capacity_per_task=4, sample_size=8)
    results = []
    for method in (MAKE(), MAKE(memory=memory)):
        state = method.init(params, at(slice(1), batch))
        for i in range(3):
            state, _ = jax.jit(method.step)(jax.random.key(i), state, batch)
        results.append(ravel_pytree(state.params)[0])
    np.testing.assert_array_equal(*results)


def test_replay_is_the_weighted_sum_of_both_losses():
    """Oracle: (loss(batch) + w loss(replay)) / (1 + w), differentiated apart."""
    params, batch, weight = setting()[1], at(slice(8), task(1)), 0.6
    method = MAKE(memory=reservoir(8, 4), replay_weight=weight)
    state = method.init(params, at(slice(1), batch))
    state, _ = method.step(jax.random.key(0), state, batch)
    key = jax.random.key(1)
    key_sample = jax.random.split(key, 4)[1]
    replay = reservoir(8, 4).sample(key_sample, state.memory)
    both = lambda p: (
        (mean_loss(LOSS, p, batch, key) + weight * mean_loss(LOSS, p, replay, key))
        / (1 + weight)
    )
    expected = jax.tree.map(
        lambda p, g: p - 0.2 * g, state.params, jax.grad(both)(state.params)
    )
    moved, info = method.step(key, state, batch)
    assert_law(ravel_pytree(moved.params)[0], ravel_pytree(expected)[0])
    np.testing.assert_allclose(info.loss, both(state.params), rtol=1e-6)


@pytest.mark.parametrize("weigh", [by_rows, by_tasks])
def test_the_weight_of_the_replay_may_depend_on_the_step(weigh):
    """Oracle: one joined batch of all rows, or a mean over three tasks by hand, of which
    the replay stands for two."""
    params, batch = setting()[1], at(slice(8), task(1))
    method = MAKE(memory=reservoir(8, 4), replay_weight=weigh)
    state = method.init(params, at(slice(1), batch))
    for _ in range(2):
        state, _ = method.step(jax.random.key(0), state, batch)
        state = method.end_task(jax.random.key(0), state, batch)
    key = jax.random.key(1)
    replay = reservoir(8, 4).sample(jax.random.split(key, 4)[1], state.memory)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, replay)
    mean = lambda rows: mean_loss(LOSS, state.params, rows, key)
    want = mean(both) if weigh is by_rows else (mean(batch) + 2 * mean(replay)) / 3
    info = method.step(key, state, batch)[1]
    np.testing.assert_allclose(info.loss, want, rtol=1e-6)


def test_no_network_is_asked_about_no_rows():
    """Oracle: plain descent, for a network that cannot reshape an empty array."""

    def flattening(params, x, keys=None):
        return apply(params, x.reshape(x.shape[0], -1), keys)

    outputs = single_head(flattening)
    loss, batch, params = cross_entropy(outputs), at(slice(8), task(1)), setting()[1]
    with pytest.raises((ZeroDivisionError, TypeError)):
        flattening(params, jnp.zeros((0, D)))
    found = []
    for parts in (
        {},
        {"regularizer": distill(outputs, 1.0, rows=lambda context: context.replay)},
    ):
        method = make_method(loss, SGD, **parts)
        state = method.init(params, at(slice(1), batch))
        state = method.end_task(jax.random.key(0), state, batch)
        state, _ = method.step(jax.random.key(1), state, batch)
        found.append(ravel_pytree(state.params)[0])
    assert_law(found[1], found[0])


def test_gem_needs_replay_grouped_by_task():
    """A flat memory is refused with advice; a grouped one learns and satisfies GEM."""
    batch = at(slice(8), task(1))
    flat = MAKE(gradient=gem(), memory=reservoir(8, 4), replay_weight=0)
    state = flat.init(setting()[1], at(slice(1), batch))
    with pytest.raises(ValueError, match="grouped=True"):
        flat.step(jax.random.key(0), state, batch)

    memory = episodic(num_tasks=T, capacity_per_task=4, sample_size=None, grouped=True)
    grouped = MAKE(gradient=gem(), memory=memory, replay_weight=0)
    assert_different(learned(grouped), plain())
    assert np.isfinite(learned(grouped)).all()


def test_renewed_parameters_lose_their_optimizer_statistics():
    """Oracle: Adam's moments are zero exactly where the mask says so."""
    mask = {
        "w": jnp.zeros((D, H), bool).at[:, 1].set(True),
        "v": jnp.zeros((H, C), bool),
    }
    reset = Reset(Reset().init, lambda k, s, p, b: (s, p, mask))
    batch = at(slice(8), task(1))
    states = []
    for part in (reset, None):
        method = make_method(LOSS, optax.adam(0.1), reset=part)
        state = method.init(setting()[1], at(slice(1), batch))
        states.append(method.step(jax.random.key(0), state, batch)[0].optimizer[0])
    cleared, kept = states
    for moment in ("mu", "nu"):
        expected = jax.tree.map(
            lambda m, fresh: np.where(fresh, 0, m), getattr(kept, moment), mask
        )
        assert_law(ravel_pytree(getattr(cleared, moment))[0], ravel_pytree(expected)[0])
        assert float(jnp.abs(getattr(kept, moment)["w"][:, 1]).max()) > 0
    assert int(cleared.count) == 1


@pytest.mark.parametrize(
    "optimizer", [optax.adagrad(0.1), optax.contrib.schedule_free_sgd(0.1)]
)
def test_statistics_restart_from_where_the_optimizer_begins(optimizer):
    """Oracle: `optimizer.init` at the parameters, which is not zero for these two."""
    everywhere = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), setting()[1])
    reset = Reset(Reset().init, lambda k, s, p, b: (s, p, everywhere))
    method = make_method(LOSS, optimizer, reset=reset)
    batch = at(slice(8), task(1))
    state = method.init(setting()[1], at(slice(1), batch))
    state, _ = method.step(jax.random.key(0), state, batch)
    fresh = optimizer.init(state.params)
    marked = optax.tree.map_params(optimizer, lambda leaf: leaf, state.optimizer)
    wanted = optax.tree.map_params(optimizer, lambda leaf: leaf, fresh)
    for found, want in zip(
        jax.tree.leaves(marked), jax.tree.leaves(wanted), strict=True
    ):
        if found.ndim:  # parameter-like; counters go on
            np.testing.assert_allclose(found, want, atol=1e-7)


PARTS = {"w": "a", "v": "b"}


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.masked(optax.adam(0.1), {"w": True, "v": False}),
        optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, PARTS),
    ],
    ids=["masked", "partition"],
)
def test_statistics_of_some_leaves_restart_like_those_of_all(optimizer):
    """Oracle: Adam over both leaves, whose moments of the first leaf are the same."""
    mask = {
        "w": jnp.zeros((D, H), bool).at[:, 1].set(True),
        "v": jnp.ones((H, C), bool),
    }
    reset = Reset(Reset().init, lambda k, s, p, b: (s, p, mask))
    batch = at(slice(8), task(1))

    def moments(optimizer):
        method = make_method(LOSS, optimizer, reset=reset)
        state = method.init(setting()[1], at(slice(1), batch))
        state, _ = method.step(jax.random.key(0), state, batch)
        leaves = jax.tree.leaves(state.optimizer)
        return [np.asarray(leaf) for leaf in leaves if leaf.shape == (D, H)]

    found, wanted = moments(optimizer), moments(optax.adam(0.1))
    assert len(found) == len(wanted) == 2
    np.testing.assert_array_equal(found, wanted)
    assert not np.any(found[0][:, 1])
    assert np.any(found[0][:, 0])


def test_statistics_of_other_shapes_cannot_restart_and_it_is_said():
    """Oracle: the message; without a reset the same optimizer learns."""
    everywhere = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), setting()[1])
    reset = Reset(Reset().init, lambda k, s, p, b: (s, p, everywhere))
    batch = at(slice(8), task(1))
    for part in (None, reset):
        method = make_method(LOSS, optax.adafactor(0.1), reset=part)
        state = method.init(setting()[1], at(slice(1), batch))
        step = functools.partial(method.step, jax.random.key(0), state, batch)
        if part is None:
            assert bool(step()[1].finite)
        else:
            with pytest.raises(ValueError, match="statistics with a reset cannot be"):
                step()


def direction(params, x, keys=None):
    """A network that no row of zeros may reach: it divides by the length of its input."""
    return apply(params, x / jnp.linalg.norm(x, axis=-1, keepdims=True), keys)


@pytest.mark.parametrize(
    "parts",
    [
        {"memory": reservoir(8, 4)},
        {"memory": episodic(T, 4, 4), "gradient": agem(), "replay_weight": 0},
        {
            "memory": episodic(T, 4, grouped=True),
            "gradient": gem(),
            "replay_weight": 0,
        },
    ],
    ids=["er", "a-gem", "gem"],
)
def test_empty_slots_of_a_memory_are_never_shown_to_the_network(parts):
    """Oracle: plain descent; on the zeros themselves the network is NaN."""
    params, batch = setting()[1], at(slice(8), task(1))
    assert np.isnan(direction(params, jnp.zeros(D))).all()
    loss = cross_entropy(single_head(direction))

    def first_step(**parts):
        method = make_method(loss, SGD, **parts)
        state = method.init(params, at(slice(1), batch))
        state, info = method.step(jax.random.key(0), state, batch)
        return ravel_pytree(state.params)[0], info

    found, info = first_step(**parts)
    assert_law(found, first_step()[0])
    assert bool(info.finite)


def test_a_replayed_row_has_one_key_in_every_gradient():
    """Oracle: the joint gradient less that of the batch, for a loss that draws noise.

    Negative control: the noise of another step is another gradient.
    """
    noisy = per_example(
        lambda params, example, key: jnp.vdot(
            params["w"], jax.random.normal(key, (D, H))
        )
    )
    seen = []

    def spy(grads, state, params, *, replay_grad_fn, task_grad_fn, **_):
        seen.append((grads, replay_grad_fn(params), task_grad_fn(params)))
        return grads, state

    look = optax.GradientTransformationExtraArgs(lambda params: (), spy)
    params, batch, key = setting()[1], at(slice(8), task(1)), jax.random.key(0)
    memory = episodic(T, 4, grouped=True)
    for weight, step_key in ((1.0, key), (0, key), (0, jax.random.key(1))):
        method = make_method(
            noisy, SGD, gradient=look, memory=memory, replay_weight=weight
        )
        state = method.init(params, at(slice(1), batch))
        state = method.end_task(key, state, task(1))
        method.step(step_key, state, batch)
    (joint, past, by_task), (alone, again, _), (_, other, _) = seen
    assert_law(2 * joint["w"] - alone["w"], past["w"])
    assert_law(past["w"], again["w"])
    assert_law(past["w"], by_task["w"][0])
    assert_different(past["w"], other["w"])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_no_replayed_row_has_the_key_of_a_row_of_the_batch(grouped, weight):
    """Oracle: the draws themselves. A row writes what its key draws into the gradient, at
    the place that its input names: all places must differ, in one step and over two."""
    loss = per_example(
        lambda params, example, key: (
            params["table"][example.x] * jax.random.uniform(key, minval=1.0, maxval=2.0)
        )
    )
    memory = episodic(T, 4, grouped=grouped)
    method = make_method(loss, optax.sgd(1.0), memory=memory, replay_weight=weight)
    rows = lambda start, stop: as_batch(
        np.arange(start, stop, dtype=np.int32), np.zeros(stop - start, int)
    )
    params = {"table": jnp.zeros(16)}
    state = method.init(params, rows(0, 1))
    for first in (0, 4):  # two past tasks, kept whole
        state = method.end_task(jax.random.key(first), state, rows(first, first + 4))
    steps = []
    for seed in (1, 2):
        moved, _ = method.step(jax.random.key(seed), state, rows(8, 16))
        drawn = -np.asarray(moved.params["table"]) * (1 + weight) * 8
        drawn[:8] /= weight  # the replay counts so much next to the batch
        assert np.all((drawn > 1) & (drawn < 2))
        steps.append(drawn)
    gaps = np.abs(np.subtract.outer(*[np.concatenate(steps)] * 2))
    assert gaps[~np.eye(32, dtype=bool)].min() > 1e-5


def test_absent_parts_leave_nothing_in_the_state():
    """Oracle: counting leaves. Plain descent carries its parameters and its progress."""
    batch = at(slice(8), task(1))
    params = setting()[1]
    state = MAKE().init(params, at(slice(1), batch))
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
    assert len(kept) == len(jax.tree.leaves(params)) + 3


def test_the_optimizer_and_the_gradient_restart_where_asked():
    """Oracle: Adam's count and the transformation's count after the end of a task."""
    batch = at(slice(8), task(1))
    for reset in (True, False):
        method = make_method(
            LOSS,
            optax.adam(0.1),
            gradient=optax.scale_by_schedule(lambda count: 1.0 + count),
            reset_optimizer=reset,
            reset_gradient=reset,
        )
        state = method.init(setting()[1], at(slice(1), batch))
        state, _ = method.step(jax.random.key(0), state, batch)
        state = method.end_task(jax.random.key(1), state, batch)
        assert int(state.optimizer[0].count) == (0 if reset else 1)
        assert int(state.gradient.count) == (0 if reset else 1)


def test_loss_and_penalty_are_reported_apart():
    """Oracle: data loss and penalty by hand, wherever the penalty acts."""
    params, batch, key = setting()[1], at(slice(8), task(1)), jax.random.key(0)
    constant = Regularizer(penalty=lambda s, p, c: jnp.asarray(7.0))
    data = mean_loss(LOSS, params, batch, key)
    for perturb in (True, False):
        method = MAKE(regularizer=constant, perturb_penalty=perturb)
        state = method.init(params, at(slice(1), batch))
        info = method.step(key, state, batch)[1]
        np.testing.assert_allclose(info.loss, data, rtol=1e-6)
        assert float(info.metrics["penalty"]) == 7.0
    assert set(MAKE().step(key, MAKE().init(params, batch), batch)[1].metrics) == {
        "grad_norm"
    }


def test_accumulated_gradients_learn_what_whole_batches_learn():
    """Oracle: no chunks. Three of eleven rows at once leaves a rest; SAM perturbs once."""
    parts = {
        "gradient": sam(0.05),
        "memory": reservoir(12, sample_size=3),
        "regularizer": ewc(FISHER, 3.0),
    }
    assert_law(learned(MAKE(chunk_size=3, **parts)), learned(MAKE(**parts)), atol=1e-5)


def test_a_key_in_the_old_form_does_what_the_typed_one_does():
    """Oracle: the typed key of the same seed, in a method whose memory draws."""
    method = MAKE(memory=reservoir(8, 4))
    _, params = setting()
    batch = task(1)

    def walked(key):
        state = method.init(params, at(slice(1), batch))
        for _ in range(3):
            state, _ = method.step(key, state, batch)
        return method.end_task(key, state, batch)

    ours, theirs = walked(jax.random.PRNGKey(5)), walked(jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
