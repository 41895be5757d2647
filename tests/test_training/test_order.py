"""The order of rows: passes differ, padding never comes and changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.data import Dataset
from jaxcl.training import batch_order
from jaxcl.training.batches import training_order


def test_every_pass_is_a_fresh_order_of_the_real_rows():
    """Oracle: sets and their orders; nine tenths of the rows are padding."""
    weight = jnp.zeros(100).at[jnp.arange(0, 100, 10)].set(1.0)
    rows = jax.jit(
        lambda w: batch_order(jax.random.key(0), w, num_steps=10, batch_size=10)
    )
    passes = [tuple(part) for part in np.asarray(rows(weight))]
    assert all(sorted(part) == list(range(0, 100, 10)) for part in passes)
    assert len(set(passes)) == 10


def test_padding_at_the_end_changes_no_order():
    """Oracle: the task without padding; several passes, cut in the middle."""
    key, options = jax.random.key(1), {"num_steps": 7, "batch_size": 4}
    padded = jnp.concatenate([jnp.ones(9), jnp.zeros(6)])
    np.testing.assert_array_equal(
        batch_order(key, padded, **options), batch_order(key, jnp.ones(9), **options)
    )


def test_a_task_smaller_than_a_batch_has_each_row_once_in_every_batch():
    """Oracle: the same rows in batches of their number; the rest is padding."""
    key, weight = jax.random.key(1), jnp.array([1.0, 0, 1, 1, 0, 0, 0])
    found = batch_order(key, weight, num_steps=4, batch_size=5)
    want = batch_order(key, weight, num_steps=4, batch_size=3)
    np.testing.assert_array_equal(found[:, :3], want)
    assert np.all(weight[found[:, 3:]] == 0)
    assert all(len({*row}) == 3 for row in want.tolist())


def test_runs_with_different_padding_side_by_side_are_runs_alone():
    """Oracle: one at a time; the number of passes differs between them."""
    weights = jnp.array([[1.0] * 6, [1.0, 1, 0, 0, 0, 0]])
    order = lambda w: batch_order(jax.random.key(2), w, num_steps=4, batch_size=3)
    together = jax.jit(jax.vmap(order))(weights)
    for i in range(2):
        np.testing.assert_array_equal(together[i], order(weights[i]))


def test_the_host_draws_the_same_order_and_compiles_it_once(caplog):
    """Oracles: the bare function, and JAX's own log: tasks of other lengths compile
    nothing. Negative control: another size of batches does."""
    rows = Dataset(37, lambda numbers: numbers)
    draw = lambda seed, rows=rows, **options: training_order(
        jax.random.key(seed), rows, most=40, **options
    )
    draw(0, num_steps=9, batch_size=5)
    jax.random.key(1)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        draw(2, Dataset(40, rows.read), num_steps=9, batch_size=5)
        found = draw(1, num_steps=9, batch_size=5)
        compiled = lambda: [m for m in caplog.messages if m.startswith("Compiling")]
        assert not compiled()
        draw(1, num_steps=9, batch_size=4)
        assert compiled()
    np.testing.assert_array_equal(
        found, batch_order(jax.random.key(1), jnp.ones(37), num_steps=9, batch_size=5)
    )
