"""L2P and progressive prompts over a frozen decoder."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.adapters import (
    add_progressive_prompts,
    add_prompt_pool,
    combine,
    fixed_prompts,
    keep_slots,
    l2p_loss,
    l2p_outputs,
    mean_query,
    partition,
    progressive_outputs,
    prompt_slots,
    with_frozen,
)
from jaxcl.losses import check_rows_independent, token_cross_entropy
from jaxcl.method import make_method
from jaxcl.transforms import sam
from jaxcl.tree import at
from tests.test_adapters.small import BASE, BATCH, MODEL, TOKENS, moved

KEY = jax.random.key(6)
QUERY = mean_query(MODEL.hidden)
POOL = add_prompt_pool(KEY, BASE, num_prompts=5, length=3)
MASK = jnp.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0], [1] * 6])
PADDED = BATCH._replace(x={"tokens": TOKENS, "mask": MASK})


def test_a_pool_begins_at_embeddings_of_tokens():
    """Oracle: each prompt position is a row of the embedding; keys lie in (-1, 1)."""
    pool = POOL["pool"]
    assert pool["prompts"].shape == (5, 3, 16)
    assert pool["keys"].shape == (5, 16)
    rows = pool["prompts"].reshape(15, 16)
    same = (rows[:, None] == BASE["embedding"]).all(axis=2)
    assert (same.sum(axis=1) == 1).all()
    assert 0.9 < np.abs(pool["keys"]).max() < 1
    half = {"embedding": BASE["embedding"].astype(jnp.bfloat16)}
    prompts = add_prompt_pool(KEY, half)["pool"]["prompts"]
    assert (prompts.shape, prompts.dtype) == ((10, 5, 16), jnp.float32)


def test_a_query_is_the_mean_of_a_row_s_real_states():
    """Oracle: a loop over rows, of the states of each row alone."""
    for batch in (BATCH, PADDED):
        found = QUERY(BASE, batch.x)
        for row in range(4):
            length = 6 if batch is BATCH else int(MASK[row].sum())
            states = MODEL.hidden(BASE, TOKENS[row : row + 1, :length])[-1]
            np.testing.assert_allclose(found[row], states[0].mean(axis=0), atol=1e-5)
    grads = jax.grad(lambda params: jnp.sum(QUERY(params, TOKENS)))(BASE)
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


def selected_by_hand(pool, query, number):
    """The nearest prompts of one row, nearest first, and the sum of their distances."""
    keys, prompts = np.asarray(pool["keys"]), np.asarray(pool["prompts"])
    cosines = [k @ query / np.linalg.norm(k) / np.linalg.norm(query) for k in keys]
    order = sorted(range(len(keys)), key=lambda k: -cosines[k])[:number]
    return np.concatenate(prompts[order]), sum(1 - cosines[k] for k in order)


@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["full", "padded"])
def test_l2p_is_the_decoder_after_the_nearest_prompts(batch):
    """Oracle: cosines by numpy, row by row. Control: others than the nearest."""
    queries = np.asarray(QUERY(POOL, batch.x))
    apply = functools.partial(l2p_outputs, MODEL.apply, QUERY)
    found = apply(num_selected=2)(POOL, batch)
    loss = l2p_loss(
        token_cross_entropy, MODEL.apply, QUERY, num_selected=2, strength=0.3
    )
    losses = loss(POOL, batch, None)
    for row in range(4):
        prompt, distance = selected_by_hand(POOL["pool"], queries[row], 2)
        one = at(slice(row, row + 1), batch)
        alone = MODEL.apply(POOL, one.x, prompt=jnp.asarray(prompt))
        np.testing.assert_allclose(found[row], alone[0], atol=2e-5)
        outputs = lambda params, batch, keys=None, alone=alone: alone
        plain = token_cross_entropy(outputs)(POOL, one, None)[0]
        np.testing.assert_allclose(losses[row], plain + 0.3 * distance, rtol=1e-4)
    chosen = {tuple(selected_by_hand(POOL["pool"], q, 2)[0][0]) for q in queries}
    assert len(chosen) > 1  # rows differ in what they select
    assert np.abs(np.asarray(found - apply(num_selected=1)(POOL, batch))).max() > 0.1


def test_only_selected_prompts_and_keys_get_a_gradient():
    """Oracle: the selection by numpy; without strength keys get none."""
    starts = np.asarray(POOL["pool"]["prompts"][:, 0])
    used = np.zeros(5, bool)
    for query in np.asarray(QUERY(POOL, TOKENS)):
        prompt, _ = selected_by_hand(POOL["pool"], query, 1)
        used |= (starts == prompt[0]).all(axis=1)
    assert 1 < used.sum() < 5

    def gradient(strength):
        trainable, frozen = partition(POOL, "pool")
        loss = l2p_loss(
            token_cross_entropy, MODEL.apply, QUERY, num_selected=1, strength=strength
        )
        total = lambda part: jnp.sum(with_frozen(loss, frozen)(part, BATCH, None))
        return jax.grad(total)(trainable)["pool"]

    grads, loose = gradient(0.5), gradient(0.0)
    np.testing.assert_array_equal(grads["prompts"].any(axis=(1, 2)), used)
    np.testing.assert_array_equal(grads["keys"].any(axis=1), used)
    assert not loose["keys"].any()


def test_l2p_obeys_the_row_law_and_learns():
    """Oracles: copies of each row; the loss before; the frozen decoder's own buffers."""
    trainable, frozen = partition(POOL, "pool")
    held = jax.tree.map(np.array, frozen)
    loss = l2p_loss(token_cross_entropy, MODEL.apply, QUERY, num_selected=2)
    check_rows_independent(with_frozen(loss, frozen), trainable, PADDED, KEY)

    def build(frozen):
        return make_method(
            with_frozen(loss, frozen), optax.adam(0.05), gradient=sam(0.05)
        )

    state, losses = trained(build, trainable, frozen, [BATCH])
    assert losses[0][-1] < 0.9 * losses[0][0]
    chex.assert_trees_all_equal(frozen, held)
    assert jax.tree.structure(state.params) == jax.tree.structure(trainable)


def trained(build, trainable, frozen, tasks, steps=6):
    """The state after some tasks, which is donated, and the losses of each."""

    def run(frozen, state, batch):
        method = build(frozen)
        keys = jax.random.split(KEY, steps)
        step = lambda state, key: method.step(key, state, batch)
        state, infos = jax.lax.scan(step, state, keys)
        return method.end_task(KEY, state, batch), infos.loss

    run = jax.jit(run, donate_argnums=1)
    given = jax.tree.map(jnp.copy, trainable)
    state, losses = build(frozen).init(given, at(slice(1), tasks[0])), []
    for batch in tasks:
        state, found = run(frozen, state, batch)
        losses.append(np.asarray(found))
    return state, losses


# ------------------------------------------------------------------- progressive prompts

T, LENGTH = 3, 2
OF_TASK = lambda task, batch=BATCH: batch._replace(task=jnp.full(4, task, jnp.int32))


def progressive(bottleneck=None):
    options = {"num_tasks": T, "length": LENGTH, "bottleneck": bottleneck}
    params = add_progressive_prompts(KEY, BASE, **options)
    return params | {"prompts": moved(params["prompts"])}


@pytest.mark.parametrize("batch", [BATCH, PADDED], ids=["full", "padded"])
def test_a_row_has_the_prompts_of_its_task_and_those_before(batch):
    """Oracle: the decoder after the prompts put together by hand, latest first.

    The compiled program has room for all tasks; of these rows each has another task, and
    the last one has no prompt.
    """
    params = progressive()
    prompts = params["prompts"]["embedding"]
    batch = batch._replace(task=jnp.array([0, 1, 2, 3]))
    found = progressive_outputs(MODEL.apply)(params, batch)
    for task in range(T):
        prompt = jnp.concatenate(prompts[: task + 1][::-1])
        one = at(slice(task, task + 1), batch)
        alone = MODEL.apply(params, one.x, prompt=prompt)
        np.testing.assert_allclose(found[task], alone[0], atol=3e-5)
    assert jnp.isnan(found[3]).all()
    later = params | {"prompts": {"embedding": prompts.at[2].set(0.0)}}
    again = progressive_outputs(MODEL.apply)(later, batch)
    np.testing.assert_array_equal(again[:2], found[:2])
    assert np.abs(np.asarray(again[2] - found[2])).max() > 0.1


def test_prompts_are_reparametrised_by_a_network_for_each_task():
    """Oracle: the residual network by numpy, task by task."""
    prompts = progressive(bottleneck=4)["prompts"]
    shapes = jax.tree.map(jnp.shape, prompts["mlp"])
    assert shapes["down"] == {"kernel": (T, 16, 4), "bias": (T, 4)}
    assert shapes["up"] == {"kernel": (T, 4, 16), "bias": (T, 16)}
    found = fixed_prompts(prompts)
    part = jax.tree.map(np.asarray, prompts)
    down, up = part["mlp"]["down"], part["mlp"]["up"]
    for task in range(T):
        given = part["embedding"][task]
        inner = np.maximum(given @ down["kernel"][task] + down["bias"][task], 0)
        wanted = given + inner @ up["kernel"][task] + up["bias"][task]
        np.testing.assert_allclose(found[task], wanted, atol=1e-5)
    plain = progressive()["prompts"]
    assert fixed_prompts(plain) is plain["embedding"]


@pytest.mark.parametrize("bottleneck", [None, 4])
def test_tasks_train_their_own_prompt_and_forget_nothing(bottleneck):
    """Oracles: the prompts before, and the outputs of the first task, to the last bit.

    Control: without slots, weight decay changes them.
    """
    trainable, frozen = partition(progressive(bottleneck), "prompts")
    outputs = progressive_outputs(MODEL.apply)
    loss = token_cross_entropy(outputs)
    tasks = [OF_TASK(0), OF_TASK(1), OF_TASK(2, BATCH._replace(x=TOKENS[::-1]))]

    def build(frozen, regularizer=None):
        return make_method(
            with_frozen(loss, frozen),
            optax.adamw(0.03, weight_decay=0.1),
            gradient=sam(0.01),
            regularizer=regularizer or keep_slots(prompt_slots, T),
            reset_optimizer=False,
        )

    before, first = trainable, None
    for number in range(1, 4):
        state, losses = trained(build, trainable, frozen, tasks[:number], steps=4)
        for task in range(T):
            pair = (at(task, state.params["prompts"]), at(task, before["prompts"]))
            if task == number - 1:
                moved_leaves = jax.tree.map(lambda a, b: jnp.any(a != b), *pair)
                assert all(jax.tree.leaves(moved_leaves))
                assert losses[task][-1] < losses[task][0]
            else:
                chex.assert_trees_all_equal(*pair)
        now = outputs(combine(state.params, frozen), tasks[0])
        first = now if first is None else first
        np.testing.assert_array_equal(now, first)
        before = state.params
    loose = functools.partial(build, regularizer=keep_slots(lambda path: 0, 1))
    state, _ = trained(loose, trainable, frozen, tasks[:2], steps=4)
    changed = np.asarray(outputs(combine(state.params, frozen), tasks[0]) - first)
    assert np.abs(changed).max() > 1e-3


def test_progressive_prompts_obey_the_row_law():
    """Oracle: copies of each row, of rows of several tasks and lengths."""
    trainable, frozen = partition(progressive(4), "prompts")
    loss = with_frozen(token_cross_entropy(progressive_outputs(MODEL.apply)), frozen)
    batch = PADDED._replace(task=jnp.array([0, 2, 1, 0]))
    check_rows_independent(loss, trainable, batch, KEY)
    grads = jax.grad(lambda part: jnp.sum(loss(part, OF_TASK(1), None)))(trainable)
    grads = grads["prompts"]["embedding"]
    assert not grads[jnp.array([0, 2])].any()
    assert grads[1].any()
