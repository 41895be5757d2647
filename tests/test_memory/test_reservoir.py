"""The reservoir keeps every example of the past with the same probability."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxcl.memory import after, reservoir
from jaxcl.tree import as_batch
from jaxcl.typing import Batch
from tests.steps import seen


def rows(first, weight):
    """A batch whose rows are numbered from `first`, in every leaf."""
    number = first + np.arange(len(weight))
    x = {"a": number.astype(np.float32)[:, None], "b": number.astype(np.int32)}
    return as_batch(x, number, weight=np.asarray(weight, np.float32))


def offered(memory, key, batches):
    """The state after all batches, leaves [steps, b, ...]."""
    observe = lambda state, item: (
        memory.observe(item[0], state, seen(item[1]), ()),
        None,
    )
    state = memory.init((), jax.tree.map(lambda leaf: leaf[0, :1], batches))
    keys = jax.random.split(key, batches.weight.shape[0])
    return jax.lax.scan(observe, state, (keys, batches))[0]


def stack(batches):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)


def observing(memory):
    """``(key, state, batch) -> state``."""
    return lambda key, state, batch: memory.observe(key, state, seen(batch), ())


def test_inclusion_is_uniform_over_positions_across_batches(key):
    """Oracle: each of 31 real rows is kept with probability 10 / 31 (chi-square).

    Batches of 8 with padding in the middle; the variance is that of sampling without
    replacement, whence the factor (n - 1) / n / (1 - p).
    """
    weight = np.ones((4, 8))
    weight[1, 3] = 0
    batches = stack([rows(8 * i, w) for i, w in enumerate(weight)])
    run = lambda key: offered(reservoir(10, 1), key, batches).kept.y
    kept = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(key, 6000)))

    counts = np.bincount(kept.ravel(), minlength=32)
    assert counts[11] == 0  # the padding row
    counts = np.delete(counts, 11)
    expected = 6000 * 10 / 31
    statistic = np.sum((counts - expected) ** 2 / expected) * (30 / 31) / (1 - 10 / 31)
    assert stats.chi2.sf(statistic, 30) > 1e-3


def test_every_pair_of_rows_is_equally_likely_to_be_kept(key):
    """Oracle: the 10 pairs out of 5 rows have one probability (chi-square)."""
    batches = stack([rows(0, np.ones(3)), rows(3, [1, 1, 0])])
    run = lambda key: offered(reservoir(2, 1), key, batches).kept.y
    kept = np.sort(jax.jit(jax.vmap(run))(jax.random.split(key, 5000)))
    pairs = [tuple(pair) for pair in kept.tolist()]
    counts = [pairs.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == 5000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_inserting_a_batch_equals_inserting_its_rows_one_by_one(key):
    """Oracle: algorithm R as a Python loop, fed the same lottery numbers."""
    capacity, memory = 3, reservoir(3, 1)
    store, seen = [0] * capacity, 0
    state, observe = (
        memory.init((), rows(0, np.ones(1))),
        jax.jit(observing(memory)),
    )
    randint = jax.jit(lambda key, top: jax.random.randint(key, (6,), 0, top))
    generator = np.random.default_rng(0)
    for step in range(6):
        weight = generator.integers(0, 2, 6)
        batch, key_step = rows(10 * step, weight), jax.random.fold_in(key, step)
        arrival = np.cumsum(weight) - weight + seen
        lottery = randint(key_step, arrival.astype(np.int32) + 1)
        for i in range(6):
            if weight[i]:
                slot = seen if seen < capacity else int(lottery[i])
                if slot < capacity:
                    store[slot] = 10 * step + i
                seen += 1
        state = observe(key_step, state, batch)
        assert state.kept.y.tolist() == store
        assert int(state.seen) == seen
    for leaf in (state.kept.x["a"][:, 0], state.kept.x["b"]):
        assert leaf.tolist() == store


def test_samples_hold_stored_rows_only_and_weigh_nothing_while_empty(key):
    """Oracle: membership, and counting by hand."""
    for replace, expected in ((True, 6), (False, 3)):
        memory = reservoir(8, 6, replace=replace)
        sample_fn, observe = (
            jax.jit(memory.sample),
            jax.jit(observing(memory)),
        )
        state = memory.init((), rows(0, np.ones(1)))
        assert sample_fn(key, state).weight.tolist() == [0] * 6
        state = observe(key, state, rows(5, [0, 0, 0, 0]))
        assert sample_fn(key, state).weight.tolist() == [0] * 6
        state = observe(key, state, rows(5, [1, 0, 1, 1]))
        sample = sample_fn(key, state)
        assert int(jnp.sum(sample.weight)) == expected
        drawn = sample.y[sample.weight > 0].tolist()
        assert set(drawn) <= {5, 7, 8}
        if not replace:
            assert sorted(drawn) == [5, 7, 8]


def test_samples_are_uniform_over_stored_rows(key):
    """Oracle: five stored rows have one probability (chi-square)."""
    memory = reservoir(8, 4)

    def run(key):
        state = offered(memory, key, stack([rows(0, np.ones(5))]))
        sample = lambda key: memory.sample(key, state).y
        return jax.vmap(sample)(jax.random.split(key, 1000))

    drawn = jax.jit(run)(key)
    assert stats.chisquare(np.bincount(np.ravel(drawn), minlength=5)).pvalue > 1e-3


def walk(key, state, batches, memory, order):
    """Sample, use, observe at every step; returns the state and what was used."""

    def body(carry, item):
        state, total = carry
        key, batch = item
        replay = memory.sample(key, state)
        total = total + jnp.sum(replay.weight[:, None] * replay.x)
        batch = after(total, batch) if order else batch
        return (memory.observe(key, state, seen(batch), ()), total), None

    keys = jax.random.split(key, batches.weight.shape[0])
    return jax.lax.scan(body, (state, jnp.zeros(())), (keys, batches))[0]


def store_copies(capacity, order):
    """Copies of the store in the compiled loop."""
    memory = reservoir(capacity, 4)
    batches = Batch(
        jnp.ones((5, 4, 7)),
        jnp.zeros((5, 4), jnp.int32),
        jnp.ones((5, 4)),
        jnp.zeros((5, 4), jnp.int32),
    )
    state = memory.init((), jax.tree.map(lambda leaf: leaf[0, :1], batches))
    program = jax.jit(
        lambda key, state: walk(key, state, batches, memory, order), donate_argnums=1
    )
    text = program.lower(jax.random.key(0), state).compile().as_text()
    copies = [line for line in text.splitlines() if " copy(" in line]
    return sum(f"f32[{capacity},7]" in line for line in copies)


def test_a_loop_writes_to_the_store_in_place():
    """Oracle: the compiled program; control: out of order, XLA copies the
    store (on a CPU; for a GPU it finds the order itself)."""
    assert store_copies(977, order=True) == 0
    if jax.default_backend() == "cpu":
        assert store_copies(977, order=False) > 0


def test_order_changes_nothing_but_speed_and_runs_vmap_like_single_ones(key):
    """Laws: `after` is the identity; a vmap over keys is a loop over keys."""
    memory = reservoir(6, 4)
    number = jnp.arange(20, dtype=jnp.float32).reshape(5, 4)
    batches = Batch(number[..., None], number.astype(int), jnp.ones((5, 4)), number * 0)
    batches = batches._replace(task=batches.y * 0)

    def run(key, order):
        state = memory.init((), jax.tree.map(lambda leaf: leaf[0, :1], batches))
        return walk(key, state, batches, memory, order)

    def compare(key):
        keys = jax.random.split(key, 2)
        many = jax.vmap(lambda key: run(key, False))(keys)
        return jax.tree.map(lambda leaf: leaf[1], many), run(keys[1], True)

    jax.tree.map(np.testing.assert_array_equal, *jax.jit(compare)(key))
