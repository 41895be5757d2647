"""What all memories share: nothing kept, draws, and the order of reading and writing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcl.memory import after, no_memory
from jaxcl.memory.base import check_size, draw_ranks
from jaxcl.tree import as_batch, weighted_mean


def test_no_memory_gives_zero_rows_whose_mean_is_zero(key):
    """Oracle: the empty sum."""
    batch = as_batch(np.ones((3, 2), np.float32), np.arange(3))
    memory = no_memory()
    state = memory.consolidate(
        key, memory.observe(key, memory.init(batch), batch), (), batch
    )
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


@pytest.mark.parametrize("count", [0, 1, 3, 4])
@pytest.mark.parametrize("replace", [True, False])
def test_draws_are_real_only_as_far_as_there_are_rows(key, count, replace):
    """Oracle: counting by hand."""
    draw = jax.jit(draw_ranks, static_argnums=(2, 3))
    ranks, real = draw(key, jnp.int32(count), 4, replace)
    expected = 4 * (count > 0) if replace else count
    assert int(jnp.sum(real)) == expected
    assert set(ranks[real].tolist()) <= set(range(count))
    if not replace:
        assert sorted(ranks[real].tolist()) == list(range(count))
    assert bool(jnp.all(ranks >= 0))  # also those that are not real may be gathered


@pytest.mark.parametrize("value", [0, -3, 2.0, True, None, "ten"])
def test_a_size_that_is_no_positive_int_is_named(value):
    with pytest.raises(
        ValueError, match=r"store: capacity must be a positive int .* got"
    ):
        check_size("store", "capacity", value)


def test_a_traced_size_is_refused():
    def trace(size):
        check_size("store", "capacity", size)

    with pytest.raises(ValueError, match="known before tracing, got"):
        jax.jit(trace)(3)


@pytest.mark.parametrize("token", [0.0, -1.5, 3e38, np.inf, np.nan, 1e-45])
def test_waiting_for_results_changes_no_bit(token):
    """Oracle: the batch itself; whatever the results are, also under jit."""
    batch = as_batch(np.ones((3, 2), np.float32), np.arange(3), weight=np.eye(3)[0])
    results = {
        "loss": jnp.float32(token),
        "params": jnp.full((2, 2), token, jnp.bfloat16),
    }
    for waited in (after(results, batch), jax.jit(after)(results, batch)):
        jax.tree.map(np.testing.assert_array_equal, waited, batch)
        assert waited.weight.dtype == batch.weight.dtype
