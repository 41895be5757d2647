"""Every named method learns, keeps its state's shape, and is what its name says."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import methods
from jaxcl.losses import (
    cross_entropy,
    heads,
    mean_loss,
    past_heads,
    single_head,
)
from jaxcl.memory import episodic
from jaxcl.method import default_learner, make_method
from jaxcl.regularizers import l2
from jaxcl.transforms import agem, sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import MethodState
from tests.names import public

D, C = 4, 3


def apply(params, x, keys=None):
    del keys
    return x @ params["w"].T + params["b"]


LOGITS = single_head(apply)
LOSS = cross_entropy(LOGITS)
SGD = optax.sgd(0.3)
PARAMS = {"w": jnp.zeros((C, D)).at[0, 0].set(0.1), "b": jnp.zeros(C)}
X = jax.random.normal(jax.random.key(0), (24, D))
TASK = as_batch(X, jnp.argmax(X[:, :C], axis=1))
OTHER = TASK._replace(y=jnp.roll(TASK.y, 1), x=-TASK.x)  # has another gradient

NAMED = {
    "plain": lambda: methods.plain(LOSS, SGD),
    "sam": lambda: methods.sam(LOSS, SGD),
    "gnp": lambda: methods.gnp(LOSS, SGD),
    "l2_init": lambda: methods.l2_init(LOSS, SGD, strength=0.01),
    "ewc": lambda: methods.ewc(LOSS, SGD, strength=1.0),
    "online_ewc": lambda: methods.ewc(LOSS, SGD, strength=1.0, decay=0.9),
    "create_and_find": lambda: methods.create_and_find(
        LOSS, SGD, rho=1.2, strength=0.1, num_examples=8
    ),
    "experience_replay": lambda: methods.experience_replay(
        LOSS, SGD, capacity=8, sample_size=4
    ),
    "agem": lambda: methods.agem(
        LOSS, SGD, num_tasks=2, capacity_per_task=4, sample_size=4
    ),
    "gem": lambda: methods.gem(LOSS, SGD, num_tasks=2, capacity_per_task=4),
    "learning_without_forgetting": lambda: methods.learning_without_forgetting(
        LOGITS, SGD, kept=LOGITS
    ),
    "memory_aware_synapses": lambda: methods.memory_aware_synapses(
        LOGITS, SGD, strength=0.1, num_examples=8
    ),
    "synaptic_intelligence": lambda: methods.synaptic_intelligence(
        LOSS, SGD, strength=0.1
    ),
    "riemannian_walk": lambda: methods.riemannian_walk(
        LOSS, SGD, strength=0.1, interval=2
    ),
    "dark_experience_replay": lambda: methods.dark_experience_replay(
        LOGITS, SGD, capacity=8, sample_size=4, alpha=0.1, beta=0.5
    ),
    "der of largest logits": lambda: methods.dark_experience_replay(
        LOGITS, SGD, capacity=8, sample_size=4, alpha=0.1, beta=0.5, num_logits=2
    ),
    "gdumb": lambda: methods.gdumb(
        jax.random.key(5),
        lambda key: PARAMS,
        LOSS,
        SGD,
        capacity=48,
        num_classes=C,
        num_epochs=8,
        batch_size=3,
    ),
    "slow_learner": lambda: methods.slow_learner(
        LOSS, SGD, apply, decay=0.5, strength=0.1, capacity=8, sample_size=4
    ),
    "interpolation": lambda: methods.interpolation(LOSS, SGD, alpha=0.7),
}


@functools.cache
def two_tasks(name):
    method = NAMED[name]()

    @jax.jit
    def learn(key):
        state = method.init(PARAMS, at(slice(1), TASK))
        for task in (TASK, OTHER):
            for _ in range(6):
                state, info = method.step(key, state, at(slice(8), task))
            state = method.end_task(key, state, task)
        return state, info, default_learner(method, state)

    return method, *learn(jax.random.key(1))


def test_every_public_method_is_tested_here():
    """Oracle: the functions that the module defines."""
    assert set(public(methods)) <= set(NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_a_method_learns_and_its_state_keeps_structure_shape_and_dtype(name):
    """Oracle: the state before the first step, and the loss before it."""
    method, state, info, params = two_tasks(name)
    start = jax.eval_shape(lambda: method.init(PARAMS, at(slice(1), TASK)))
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(state) == shapes(start)
    assert isinstance(state, MethodState)
    assert bool(info.finite)
    # GDumb's memory is full of the first task, whose classes the second one shares.
    rows = at(slice(8), TASK if name == "gdumb" else OTHER)
    loss = mean_loss(LOSS, params, rows, jax.random.key(0))
    unlearned = mean_loss(LOSS, PARAMS, rows, jax.random.key(0))
    assert float(loss) < float(unlearned)
    assert shapes(params) == shapes(PARAMS)


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"plain"}))
def test_a_method_is_not_plain_descent(name):
    """Negative control: every method moves the evaluated parameters elsewhere."""
    plain, other = two_tasks("plain")[3], two_tasks(name)[3]
    assert not np.allclose(plain["w"], other["w"], atol=1e-5)


@pytest.mark.parametrize(("sample_size", "rows"), [(None, 5), (3, 3)])
def test_gem_computes_the_losses_of_a_sample_of_each_task(sample_size, rows):
    """Oracle: the rows of the losses that a step computes, by hand: those of the batch,
    and for each task all that are stored, or the sample."""
    seen = []

    def loss(params, batch, keys):
        seen.append(len(batch.x))
        return LOSS(params, batch, keys)

    sizes = {"num_tasks": 2, "capacity_per_task": 5, "sample_size": sample_size}
    method = methods.gem(loss, SGD, **sizes)
    state = method.init(PARAMS, at(slice(1), TASK))
    seen.clear()
    jax.eval_shape(method.step, jax.random.key(0), state, TASK)
    assert {*seen} == {len(X), rows}


def test_agem_projects_the_gradient_that_sam_bends():
    """Oracle: the chain by hand, in the place of the gradient; and without SAM."""
    options = {"num_tasks": 2, "capacity_per_task": 4, "sample_size": 3}
    by_hand = make_method(
        LOSS,
        SGD,
        gradient=optax.chain(sam(0.3), agem()),
        memory=episodic(2, 4, 3),
        replay_weight=0,
    )

    @functools.partial(jax.jit, static_argnums=0)
    def learned(which):
        method = (
            methods.agem(LOSS, SGD, gradient=sam(0.3), **options),
            by_hand,
            methods.agem(LOSS, SGD, **options),
        )[which]
        key = jax.random.key(1)
        state = method.init(PARAMS, at(slice(1), TASK))
        for task in (TASK, OTHER):
            state, _ = method.step(key, state, task)
            state = method.end_task(key, state, task)
        return method.step(key, state, TASK)[0].params["w"]

    found, want, plain = map(learned, range(3))
    np.testing.assert_array_equal(found, want)
    assert not np.allclose(found, plain, atol=1e-4)


def test_lwf_keeps_the_answers_of_past_heads_where_each_task_has_its_own():
    """Oracle: which outputs move in the second task: the old head is held by its answers.

    Negative control: distilling the head that is being learned leaves the old one alone.
    """
    apply = lambda params, x, keys=None: x @ params
    start = 0.1 * jax.random.normal(jax.random.key(3), (D, 2 * C))
    own = heads(apply, C)
    second = OTHER._replace(task=jnp.ones_like(OTHER.task))

    def penalty_gradient(kept):
        method = methods.learning_without_forgetting(own, SGD, kept=kept)
        state = method.init(start, at(slice(1), TASK))
        state = method.end_task(jax.random.key(0), state, TASK)
        far = start + 0.3 * jax.random.normal(jax.random.key(4), start.shape)
        moved = state._replace(params=far)
        without = methods.plain(cross_entropy(own), SGD)
        plain = without.init(far, at(slice(1), TASK))
        key = jax.random.key(1)
        after, _ = method.step(key, moved, second)
        unheld, _ = without.step(key, plain, second)
        gap = np.abs(np.asarray(after.params - unheld.params))
        return gap[:, :C].max(), gap[:, C:].max()

    old, new = penalty_gradient(past_heads(apply, C))
    assert old > 1e-5
    assert new < 1e-7
    old, new = penalty_gradient(own)
    assert old < 1e-7
    assert new > 1e-5


def test_create_and_find_is_its_parts_put_together():
    """Oracle: one step after a task in NumPy; the Fisher is that of some four rows.

    Adaptive SAM with eta 0 looks from ``p + rho p^2 g / |p g|``; the penalty acts at
    ``p`` itself; the box reaches ``rho |anchor|`` from the anchor, and clips here.
    """
    rho, strength, decay = 0.3, 0.8, 0.9
    method = methods.create_and_find(
        LOSS, SGD, rho=rho, strength=strength, decay=decay, num_examples=4
    )
    rows = at(slice(8), TASK)
    away = {"w": 0.1 + 0.1 * jnp.arange(C * D).reshape(C, D), "b": jnp.full(C, 0.5)}
    state = method.init(away, at(slice(1), TASK))
    state = method.end_task(jax.random.key(2), state, rows)
    once = state.regularizer[0].fisher["w"]
    again = method.end_task(jax.random.key(2), state, rows).regularizer[0].fisher["w"]
    np.testing.assert_allclose(again, (decay + 1) * once, rtol=1e-6)

    square = lambda row: jax.grad(loss_of)(away, one_row(row))["w"] ** 2
    squares = np.asarray(jax.vmap(square)(rows))
    fisher = state.regularizer[0].fisher
    choices = itertools.combinations(range(8), 4)
    gaps = [np.abs(squares[list(c)].mean(axis=0) - fisher["w"]).max() for c in choices]
    assert min(gaps) < 1e-6
    assert sorted(gaps)[1] > 1e-4

    g = jax.grad(loss_of)
    start = {name: np.asarray(leaf + 0.05) for name, leaf in away.items()}
    first = g(start, OTHER)
    size = np.sqrt(sum(np.sum((start[n] * first[n]) ** 2) for n in start))
    there = {n: start[n] + rho * start[n] ** 2 * first[n] / size for n in start}
    second, moved, clipped = g(there, OTHER), {}, 0
    for n in start:
        penalty = strength * fisher[n] * (start[n] - away[n])
        free = start[n] - 0.3 * (second[n] + penalty)
        reach = rho * np.abs(away[n])
        moved[n] = np.clip(free, away[n] - reach, away[n] + reach)
        clipped += np.sum(moved[n] != free)
    assert 0 < clipped < C * D
    after, _ = method.step(
        jax.random.key(3),
        state._replace(params=jax.tree.map(jnp.asarray, start)),
        OTHER,
    )
    for n in start:
        np.testing.assert_allclose(after.params[n], moved[n], atol=1e-5)


def loss_of(params, batch):
    return mean_loss(LOSS, params, batch, jax.random.key(0))


def one_row(row):
    return jax.tree.map(lambda leaf: leaf[None], row)


PENALISED = {
    "l2_init": lambda **more: methods.l2_init(LOSS, SGD, strength=0.1, **more),
    "ewc": lambda **more: methods.ewc(LOSS, SGD, strength=1.0, **more),
    "learning_without_forgetting": lambda **more: methods.learning_without_forgetting(
        LOGITS, SGD, kept=LOGITS, **more
    ),
    "memory_aware_synapses": lambda **more: methods.memory_aware_synapses(
        LOGITS, SGD, strength=1.0, **more
    ),
}


@pytest.mark.parametrize("name", PENALISED)
def test_a_second_penalty_does_not_silently_replace_the_first(name):
    """Oracle: the message; another argument is the negative control."""
    PENALISED[name](replay_weight=0.5)
    with pytest.raises(ValueError, match=r"regularizer is set by .* with sum_of\("):
        PENALISED[name](regularizer=l2(1.0))
