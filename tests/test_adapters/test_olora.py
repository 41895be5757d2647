"""O-LoRA, and slots that belong to one task each."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.adapters import (
    add_lora,
    combine,
    in_current_slot,
    keep_slots,
    lora_rule,
    lora_slots,
    merge_lora,
    olora,
    partition,
    with_frozen,
)
from jaxcl.losses import single_head, squared_error
from jaxcl.method import make_method
from jaxcl.models.layers import dense
from jaxcl.transforms import sam
from jaxcl.tree import as_batch, at
from tests.steps import context, seen

T, RANK = 3, 2
KEY = jax.random.key(0)
KERNELS = {
    "first": {"kernel": jax.random.normal(KEY, (2, 8, 7))},  # of two stacked layers
    "last": {"kernel": jax.random.normal(jax.random.key(1), (7, 6))},
}
PARAMS = add_lora(
    KEY, KERNELS, rank=T * RANK, alpha=T * 4, targets="all-linear", extra="last"
)
TRAINABLE, FROZEN = partition(PARAMS, [lora_rule, "last/kernel"])
ROWS = as_batch(
    jax.random.normal(jax.random.key(2), (5, 8)),
    jax.random.normal(jax.random.key(3), (5, 6)),
)


def random_like(tree, seed=4):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    keys = jax.tree.unflatten(structure, list(keys))
    return jax.tree.map(lambda key, x: jax.random.normal(key, x.shape), keys, tree)


def slots(params, task):
    """The factors of one task, cut out by hand."""
    cut = slice(task * RANK, (task + 1) * RANK)
    return {
        name: {
            "lora_a": part["lora_a"][..., cut],
            "lora_b": part["lora_b"][..., cut, :],
        }
        for name, part in params.items()
    }


def after(regularizer, params, tasks):
    """Its state after some tasks that end with these parameters."""
    state = regularizer.init(params, ROWS)
    for _ in range(tasks):
        state = regularizer.end_task(KEY, state, params, ROWS)
    return state


@pytest.mark.parametrize("task", [0, 1, 2, 5])
def test_the_penalty_is_the_overlap_with_past_tasks(task):
    """Oracle: loops over layers, past tasks and pairs of columns; 5 is the last slot."""
    params, regularizer = random_like(TRAINABLE), olora(0.5, num_tasks=T)
    state, now = after(regularizer, params, task), min(task, T - 1)
    total = 0.0
    for name in ("first", "last"):
        a = np.asarray(params[name]["lora_a"], np.float64)
        for layer in a if a.ndim == 3 else a[None]:
            for past in range(now):
                for j in range(RANK):
                    for k in range(RANK):
                        old, new = layer[:, past * RANK + j], layer[:, now * RANK + k]
                        total += (old @ new) ** 2
    value, grads = jax.value_and_grad(regularizer.penalty, argnums=1)(
        state, params, context()
    )
    np.testing.assert_allclose(value, 0.5 * total, rtol=1e-5)
    for name in ("first", "last"):  # of the current task's columns alone
        grad = grads[name]["lora_a"]
        others = [k for k in range(T * RANK) if k // RANK != now]
        assert not grad[..., others].any()
        assert (now == 0) != grad[..., now * RANK : (now + 1) * RANK].any()
        assert not grads[name]["lora_b"].any()


def test_only_the_current_slot_and_common_leaves_move():
    """Oracle: slots cut out by hand, before and after a large change of everything."""
    regularizer = keep_slots(lora_slots, T)
    state = after(regularizer, TRAINABLE, 1)
    changed = jax.tree.map(lambda leaf: leaf + 1, TRAINABLE)
    kept = regularizer.project(state, changed)
    for task in range(T):
        wanted = changed if task == 1 else TRAINABLE
        chex.assert_trees_all_equal(slots(kept, task), slots(wanted, task))
    chex.assert_trees_all_equal(kept["last"]["kernel"], changed["last"]["kernel"])


def apply(params, x, keys=None):
    del keys
    for layer in range(2):
        x = jnp.pad(dense(at(layer, params["first"]), x), ((0, 0), (0, 1)))
    return dense(params["last"], x[:, :7])


def build(frozen, **options):
    """A method over the factors and one kernel."""
    loss = squared_error(single_head(with_frozen(apply, frozen)))
    options = {"regularizer": olora(0.1, num_tasks=T), **options}
    optimizer = options.pop("optimizer", optax.adamw(0.05, weight_decay=0.1))
    return make_method(loss, optimizer, **options)


def learned(tasks, **options):
    """The parameters at the end of each task."""
    found = []

    @jax.jit
    def task(state, frozen, batch):
        method = build(frozen, **options)
        walk = lambda state, key: method.step(key, state, batch)
        state, _ = jax.lax.scan(walk, state, jax.random.split(KEY, 5))
        return method.end_task(KEY, state, batch)

    state = build(FROZEN, **options).init(TRAINABLE, at(slice(1), ROWS))
    for batch in tasks:
        state = task(state, FROZEN, batch)
        found.append(state.params)
    return found


TASKS = [ROWS, ROWS._replace(y=-ROWS.y), ROWS._replace(x=2 * ROWS.x)]


def test_each_task_trains_its_own_slot():
    """Oracle: the parameters before each task, to the last bit.

    Control: without the regularizer, weight decay moves the slots of all tasks.
    """
    gradient = in_current_slot(lora_slots, T, sam(0.05))
    options = {"gradient": gradient, "reset_optimizer": False}
    before = TRAINABLE
    for task, now in enumerate(learned(TASKS, **options)):
        for other in range(T):
            pair = slots(now, other), slots(before, other)
            if other == task:
                moved = jax.tree.map(lambda a, b: jnp.any(a != b), *pair)
                assert all(jax.tree.leaves(moved))
            else:
                chex.assert_trees_all_equal(*pair)
        assert np.any(now["last"]["kernel"] != before["last"]["kernel"])
        before = now
    loose = learned(TASKS[:1], gradient=gradient, regularizer=None)[0]
    pair = slots(loose, 2), slots(TRAINABLE, 2)
    assert np.any(pair[0]["last"]["lora_a"] != pair[1]["last"]["lora_a"])


def test_the_penalty_turns_tasks_apart():
    """A law: with a large strength columns of the second task turn from the first's."""

    def overlap(strength):
        regularizer = olora(strength, num_tasks=T)
        last = learned(2 * TASKS[:1], regularizer=regularizer)[1]
        old, new = (slots(last, task)["last"]["lora_a"] for task in (0, 1))
        return np.abs(old.T @ new).max()

    assert 0 < overlap(100.0) < 0.5 * overlap(0.0)


def test_sam_perturbs_the_current_slot_only():
    """Oracle: SAM's step by hand on the first slot, at zero of all later B."""
    options = {"regularizer": None, "optimizer": optax.sgd(1.0)}
    method = build(FROZEN, gradient=in_current_slot(lora_slots, T, sam(0.3)), **options)
    start = random_like(TRAINABLE)
    state, _ = method.step(KEY, method.init(start, at(slice(1), ROWS)), ROWS)
    plain = build(FROZEN, **options)

    def gradient(params):
        moved, _ = plain.step(KEY, plain.init(params, at(slice(1), ROWS)), ROWS)
        full = jax.tree.map(jnp.subtract, params, moved.params)
        only = keep_slots(lora_slots, T)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return only.project(only.init(zeros, ROWS), full)

    first = gradient(start)
    length = optax.tree.norm(first)
    point = jax.tree.map(lambda p, g: p + 0.3 * g / length, start, first)
    wanted = jax.tree.map(jnp.subtract, start, gradient(point))
    chex.assert_trees_all_close(state.params, wanted, rtol=1e-3, atol=1e-3)


def test_past_tasks_add_to_the_output_and_merge():
    """Oracle: kernels plus the sum of each task's scaled product, by numpy."""
    trained = random_like(TRAINABLE)
    params = combine(trained, FROZEN)
    wanted = {name: np.asarray(params[name]["kernel"]) for name in KERNELS}
    for task in range(T):
        for name, own in slots(trained, task).items():
            wanted[name] = wanted[name] + 4 / RANK * own["lora_a"] @ own["lora_b"]
    merged = merge_lora(params)
    for name in KERNELS:
        np.testing.assert_allclose(merged[name]["kernel"], wanted[name], rtol=1e-4)
    merged = jax.tree.map(jnp.asarray, merged)
    np.testing.assert_allclose(
        apply(merged, ROWS.x), apply(params, ROWS.x), rtol=1e-3, atol=1e-2
    )


def test_its_state_keeps_its_form_under_jit_vmap_and_donation():
    """Oracles: the state before; each of two keys by itself; JAX, for buffers."""
    regularizer = olora(0.5, num_tasks=T)
    step = seen(ROWS, TRAINABLE, grads=TRAINABLE, updates=TRAINABLE)

    def cycle(params):
        state = regularizer.init(params, ROWS)
        states, found = [state], []
        for _ in range(2):
            found.append(regularizer.penalty(state, params, context()))
            params = regularizer.project(state, jax.tree.map(lambda x: 1.1 * x, params))
            state = regularizer.observe(KEY, state, step, params)
            state = regularizer.end_task(KEY, state, params, ROWS)
            states.append(state)
        return states, found

    many = jax.tree.map(
        lambda leaf: jnp.stack([leaf, 2 * leaf]), random_like(TRAINABLE)
    )
    (first, *later), found = jax.jit(jax.vmap(cycle))(many)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert all(kinds(state) == kinds(first) for state in later)
    alone = cycle(at(1, many))
    np.testing.assert_allclose([f[1] for f in found], alone[1], rtol=1e-5)
    give = jax.jit(lambda tree: tree, donate_argnums=0)
    params = jax.tree.map(jnp.copy, TRAINABLE)
    state, params = give((regularizer.init(params, ROWS), params))
    give((regularizer.end_task(KEY, state, params, ROWS), params))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), TRAINABLE)
    state = regularizer.init(half, ROWS)
    assert kinds(regularizer.project(state, half)) == kinds(half)
    assert regularizer.penalty(state, half, context()).dtype == jnp.float32
