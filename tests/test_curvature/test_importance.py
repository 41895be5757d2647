import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.curvature import (
    largest_entry,
    mean_entry,
    normalised,
    shuffled,
    trace,
    uniform_importance,
)

ENTRIES = {"a": jnp.array([[1.0, 2.0], [3.0, 6.0]]), "b": jnp.array([8.0])}


def fixed(factor):
    return lambda *_: jax.tree.map(lambda leaf: factor * leaf, ENTRIES)


@pytest.mark.parametrize(
    ("size", "expected"), [(trace, 20.0), (mean_entry, 4.0), (largest_entry, 8.0)]
)
def test_a_normalised_fisher_forgets_its_size_and_keeps_its_pattern(
    key, size, expected
):
    """Oracle: five numbers counted by hand; law: any factor drops out."""
    np.testing.assert_allclose(size(ENTRIES), expected)
    for factor in (1.0, 0.01):
        found = normalised(fixed(factor), size)(key, ENTRIES, None)
        np.testing.assert_allclose(found["a"], ENTRIES["a"] / expected, rtol=1e-6)
        np.testing.assert_allclose(size(found), 1.0, rtol=1e-6)


def test_normalising_nothing_gives_nothing(key):
    """Oracle: zero, not NaN."""
    found = normalised(fixed(0.0))(key, ENTRIES, None)
    np.testing.assert_array_equal(found["a"], 0.0)
    for size in (trace, mean_entry, largest_entry):
        np.testing.assert_array_equal(size({}), 0.0)


def test_shuffling_keeps_the_entries_of_a_leaf_and_not_their_places(key):
    """Oracle: sorted entries; two keys give two orders."""
    long = {"a": jnp.arange(40.0).reshape(5, 8), "b": jnp.arange(40.0)}
    fisher = shuffled(lambda *_: long)
    one, other = (fisher(k, long, None) for k in jax.random.split(key))
    for leaf in (one["a"], one["b"], other["a"]):
        np.testing.assert_array_equal(np.sort(np.ravel(leaf)), np.arange(40.0))
    assert one["a"].shape == (5, 8)
    assert not np.array_equal(one["a"], other["a"])
    assert not np.array_equal(one["a"].ravel(), one["b"])


def test_uniform_importance_is_one_everywhere(key):
    """Oracle: ones in float32, whatever the parameters."""
    params = {"a": jnp.zeros((2, 3), jnp.bfloat16)}
    found = uniform_importance()(key, params, None)["a"]
    np.testing.assert_array_equal(found, np.ones((2, 3), np.float32))
    assert found.dtype == jnp.float32
