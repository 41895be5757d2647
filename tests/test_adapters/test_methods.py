"""Methods, Fishers and loops on the trainable part alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.adapters import add_lora, combine, lora_rule, partition, with_frozen
from jaxcl.averages import ema
from jaxcl.curvature import empirical_fisher
from jaxcl.curvature.fisher import example_gradients
from jaxcl.data import Task, array_dataset
from jaxcl.losses import mean_loss, single_head, token_cross_entropy
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import tokens
from jaxcl.regularizers import ewc
from jaxcl.training import Options, learn
from jaxcl.transforms import sam
from jaxcl.tree import at
from tests.test_adapters.small import BASE, BATCH, MODEL, adapted

KEY = jax.random.key(3)
RULE = [lora_rule, "out"]  # a head beside the factors
loss_over = lambda frozen: token_cross_entropy(
    single_head(with_frozen(MODEL.apply, frozen))
)


def adapted_with_head(**options):
    return adapted(rule=RULE, extra="out", **options)


def test_gradients_and_fishers_of_examples_are_those_of_a_loop():
    """Oracle: a Python loop of plain gradients, one sequence at a time."""
    trainable, frozen = adapted_with_head()
    loss = loss_over(frozen)
    one = jax.jit(jax.grad(lambda part, row: loss(part, row, None)[0]))
    looped = [one(trainable, at(slice(i, i + 1), BATCH)) for i in range(4)]
    found = example_gradients(KEY, loss, trainable, BATCH)
    fisher = jax.jit(empirical_fisher(loss))(KEY, trainable, BATCH)
    stacked = jax.tree.map(lambda *grads: jnp.stack(grads), *looped)
    chex.assert_trees_all_close(found, stacked, rtol=1e-4, atol=1e-6)
    wanted = jax.tree.map(lambda grads: jnp.mean(grads**2, axis=0), stacked)
    chex.assert_trees_all_close(fisher, wanted, rtol=1e-3, atol=1e-7)
    # Negative control: the square of the mean gradient is another one.
    wrong = jax.tree.map(lambda grads: jnp.mean(grads, axis=0) ** 2, stacked)
    pairs = zip(*map(jax.tree.leaves, (fisher, wrong)), strict=True)
    assert not any(np.allclose(a, b, rtol=0.1) for a, b in pairs)


def test_sam_perturbs_the_adapter_alone():
    """Oracle: g(p + rho g / |g|) of the adapter, by hand. Control: the norm of all."""
    trainable, frozen = adapted()
    loss = loss_over(frozen)
    method = make_method(loss, optax.sgd(1.0), gradient=sam(0.5))
    state = method.init(trainable, at(slice(1), BATCH))
    state, _ = jax.jit(method.step)(KEY, state, BATCH)

    def descended(grad, length):
        point = jax.tree.map(lambda p, g: p + 0.5 * g / length, trainable, grad)
        step = jax.grad(mean_loss, argnums=1)(loss, point, BATCH, KEY)
        return jax.tree.map(lambda p, g: p - g, trainable, step)

    grad = jax.grad(mean_loss, argnums=1)(loss, trainable, BATCH, KEY)
    chex.assert_trees_all_close(
        state.params, descended(grad, optax.tree.norm(grad)), atol=1e-4
    )
    every = jax.grad(mean_loss, argnums=1)(
        token_cross_entropy(single_head(MODEL.apply)),
        combine(trainable, frozen),
        BATCH,
        KEY,
    )
    wrong = descended(grad, optax.tree.norm(every))
    far = optax.tree.norm(jax.tree.map(jnp.subtract, wrong, state.params))
    assert far > 1e-2


def full_method(frozen):
    """SAM, EWC, a reservoir and an average, over frozen weights."""
    loss = loss_over(frozen)
    return make_method(
        loss,
        optax.adam(1e-2),
        gradient=sam(0.05),
        regularizer=ewc(empirical_fisher(loss), 1.0),
        memory=reservoir(6, 3),
        average=ema(0.9),
    )


def first_task(key, trainable, frozen):
    """Four steps and the end of a task: the last state, and the losses."""
    method = full_method(frozen)
    state = method.init(trainable, at(slice(1), BATCH))
    step = lambda state, key: method.step(key, state, BATCH)
    state, infos = jax.lax.scan(step, state, jax.random.split(key, 4))
    return method.end_task(key, state, BATCH), infos.loss


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_method_of_many_parts_learns_an_adapter(dtype):
    """Oracles: the loss before, the shapes before, and the base's own buffers.

    The state is donated at each call, as in the loops.
    """
    base = jax.tree.map(lambda leaf: leaf.astype(dtype), BASE)
    trainable, frozen = adapted_with_head(base=base, dropout=0.1)
    held = jax.tree.map(np.array, frozen)
    step = jax.jit(
        lambda frozen, key, state: full_method(frozen).step(key, state, BATCH),
        donate_argnums=2,
    )
    end = jax.jit(
        lambda frozen, state: full_method(frozen).end_task(KEY, state, BATCH),
        donate_argnums=1,
    )
    copy = jax.tree.map(jnp.copy, trainable)
    state = full_method(frozen).init(copy, at(slice(1), BATCH))
    before, losses = kinds(state), []
    for number in range(6):
        state, info = step(frozen, jax.random.fold_in(KEY, number), state)
        losses.append(float(info.loss))
    state = end(frozen, state)
    for number in range(2):  # the first one begins at the anchor
        state, info = step(frozen, jax.random.fold_in(KEY, number), state)
    assert kinds(state) == before
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert info.metrics["penalty"] > 0
    assert losses[-1] < 0.8 * losses[0]
    chex.assert_trees_all_equal(frozen, held)
    assert len(jax.tree.leaves(state.regularizer.fisher)) == len(
        jax.tree.leaves(trainable)
    )
    chex.assert_trees_all_equal_shapes(state.average.average, trainable)


def test_seeds_train_side_by_side_over_one_base():
    """Oracle: a seed by itself. Control: another seed."""
    keys = jax.random.split(KEY, 2)

    def start(key):
        return partition(add_lora(key, BASE, rank=2, extra="out"), RULE)

    many, frozen = jax.vmap(start, out_axes=(0, None))(keys)
    run = lambda key, trainable: first_task(key, trainable, frozen)
    states, losses = jax.jit(jax.vmap(run))(keys, many)
    _, alone = jax.jit(run)(keys[1], at(1, many))
    np.testing.assert_allclose(losses[1], alone, rtol=1e-3)
    assert np.abs(np.asarray(losses[0] - losses[1])).max() > 1e-3
    assert states.params["out"]["kernel"].shape == (2, 16, 11)


def test_64_bits_leave_the_factors_and_states_in_their_dtypes(x64):
    """Oracle: the kinds of a state before; traced, nothing is computed."""
    del x64
    trainable, frozen = adapted_with_head(dropout=0.1)
    state, _ = jax.eval_shape(first_task, KEY, trainable, frozen)
    start = full_method(frozen).init(trainable, at(slice(1), BATCH))
    assert kinds(state) == kinds(start)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}


def test_learn_takes_the_frozen_base_and_measures_both_learners():
    """Oracle: the metric of the combined parameters at the end, computed by itself."""
    trainable, frozen = adapted_with_head()
    rows = array_dataset(BATCH)
    tasks = [Task("first", rows, rows), Task("second", rows, rows)]
    outputs = single_head(MODEL.apply)

    def measured(params, frozen, batch):
        return tokens(outputs).rows(combine(params, frozen), (), batch)

    metric = tokens(outputs)._replace(rows=measured)
    found = learn(
        KEY,
        full_method,
        trainable,
        tasks,
        Options(num_steps=3, batch_size=2),
        folder=None,
        frozen=frozen,
        metrics=metric,
        quiet=True,
    )
    assert found.status == "done"
    for name, params in found.learners.items():
        both = combine(params, frozen)
        loss = token_cross_entropy(outputs)(both, BATCH, None)
        wanted = np.mean(loss)  # as many labels in each row
        np.testing.assert_allclose(
            found.results["loss"][name][-1, 0], wanted, rtol=1e-4
        )
