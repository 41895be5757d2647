"""What all memories share: nothing kept, draws, and the order of reading and writing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcl.memory import after, no_memory
from jaxcl.memory.base import draw_ranks
from jaxcl.tree import as_batch, weighted_mean
from tests.steps import seen


def test_no_memory_gives_zero_rows_whose_mean_is_zero(key):
    """Oracle: the empty sum."""
    batch = as_batch(np.ones((3, 2), np.float32), np.arange(3))
    memory = no_memory()
    state = memory.observe(key, memory.init((), batch), seen(batch), ())
    state = memory.end_task(key, state, (), batch)
    sample = memory.sample(key, state)
    assert sample.x.shape == (0, 2)
    assert sample.y.dtype == jnp.int32
    assert weighted_mean(sample.weight, sample.weight) == 0


def test_draws_without_replacement_make_every_set_equally_likely(key):
    """Oracle: all sets of 3 out of 5 have one probability (chi-square)."""
    draw = lambda key: draw_ranks(key, jnp.int32(5), 3, False)
    ranks, real = jax.jit(jax.vmap(draw))(jax.random.split(key, 5000))
    assert bool(jnp.all(real))
    sets = [tuple(sorted(row)) for row in ranks.tolist()]
    counts = [sets.count(group) for group in itertools.combinations(range(5), 3)]
    assert sum(counts) == 5000  # hence never a number twice
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("replace", [True, False])
def test_draws_are_real_only_as_far_as_there_are_rows(key, replace):
    """Oracle: counting by hand, with none to six rows and four draws."""
    draw = jax.vmap(lambda count: draw_ranks(key, count, 4, replace))
    all_ranks, all_real = jax.jit(draw)(jnp.arange(7))
    assert bool(jnp.all(all_ranks >= 0))  # also those that are not real may be gathered
    for count, (ranks, real) in enumerate(zip(all_ranks, all_real, strict=True)):
        drawn = ranks[real].tolist()
        assert len(drawn) == (4 * (count > 0) if replace else min(count, 4))
        assert set(drawn) <= set(range(count))
        assert replace or len(set(drawn)) == len(drawn)


def test_waiting_for_results_changes_no_bit(key):
    """Oracle: the batch itself, whatever the results are."""
    weight = jnp.array([1.0, 0.0, 0.5])
    batch = as_batch(np.ones((3, 2), np.float32), np.arange(3), weight=weight)
    tokens = jnp.array([0.0, -1.5, 3e38, jnp.inf, jnp.nan, 1e-45])
    tokens = jnp.concatenate([tokens, jax.random.normal(key, (200,))])

    def wait(token):
        results = {"loss": token, "params": jnp.zeros((2, 2), jnp.bfloat16), "none": ()}
        return after(results, batch)

    waited = jax.jit(jax.vmap(wait))(tokens)
    assert waited.weight.dtype == batch.weight.dtype
    np.testing.assert_array_equal(waited.weight, jnp.tile(weight, (206, 1)))
    np.testing.assert_array_equal(after((), batch).weight, weight)


@pytest.mark.devices
def test_waiting_for_a_leaf_that_is_split_gathers_nothing():
    """Oracle: the collectives of the compiled program. Negative control: a ravel needs all
    of a leaf that is split on its last axis."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
    split = jax.NamedSharding(mesh, jax.P(None, "fsdp"))
    leaf = jax.device_put(jnp.ones((64, 8 * jax.device_count())), split)
    batch = as_batch(np.ones((3, 2), np.float32), np.arange(3))
    text = lambda f: jax.jit(f).lower(leaf).compile().as_text()
    assert "all-gather" not in text(lambda leaf: after(leaf, batch).weight)
    assert "all-gather" in text(lambda leaf: jnp.ravel(leaf)[:9] + 1)
