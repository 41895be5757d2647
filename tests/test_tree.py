"""Tree algebra against the same on flat vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxcl import tree

A = {"a": jnp.arange(3.0), "b": (jnp.ones((2, 2)), jnp.array(4.0))}
B = jax.tree.map(lambda leaf: leaf * 2 - 1, A)
FLAT_A, FLAT_B = (np.asarray(ravel_pytree(t)[0], np.float64) for t in (A, B))


def test_products_norms_and_sums_are_those_of_flat_vectors():
    """Oracle: numpy in float64."""
    np.testing.assert_allclose(tree.dot(A, B), FLAT_A @ FLAT_B, rtol=1e-6)
    np.testing.assert_allclose(tree.norm(A), np.linalg.norm(FLAT_A), rtol=1e-6)
    for found, expected in (
        (tree.axpy(0.5, A, B), 0.5 * FLAT_A + FLAT_B),
        (tree.subtract(A, B), FLAT_A - FLAT_B),
    ):
        np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-6)
    assert tree.dot((), ()) == 0


SCALES = np.float32([0, 1e-37, 1e-30, 1e-19, 1e-10, 1, 1e10, 1e20, 1e30, 1e36])


@pytest.mark.parametrize("function", [tree.norm, tree._scaled_norm])
def test_norms_are_right_where_squares_over_or_underflow(function):
    """Oracle: NumPy in float64. The second form is that of accelerators.

    Side by side, so that rows which need scaling stand beside rows which do not; a NaN
    and an infinity stay what they are.
    """
    scales = np.append(SCALES, np.float32([np.nan, np.inf]))
    rows = jax.tree.map(lambda leaf: jnp.multiply.outer(scales, leaf + 2), B)
    flat = np.asarray(jax.vmap(lambda t: ravel_pytree(t)[0])(rows), np.float64)
    want = np.linalg.norm(flat, axis=1)
    assert np.isnan(want[-2])
    assert np.isinf(want[-1])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(rows), want, rtol=1e-6)
    alone = [function(tree.at(i, rows)) for i in (2, 5, 8)]
    np.testing.assert_allclose(alone, want[[2, 5, 8]], rtol=1e-6)


def test_the_derivatives_of_a_norm_are_right_at_every_size():
    """Oracle: u = x / |x| and (I - u u^T) / |x|, in float64; zero at zero."""
    x = np.array([3.0, -1.0, 2.0])
    unit = x / np.linalg.norm(x)
    for scale in SCALES[SCALES > 0]:
        slope = jax.grad(tree.norm)(jnp.float32(scale) * jnp.float32(x))
        np.testing.assert_allclose(slope, unit, rtol=1e-6)
    curvature = jax.hessian(tree.norm)(jnp.float32(x))
    want = (np.eye(3) - np.outer(unit, unit)) / np.linalg.norm(x)
    np.testing.assert_allclose(curvature, want, atol=1e-6)
    np.testing.assert_array_equal(jax.grad(tree.norm)(jnp.zeros(3)), 0)
    np.testing.assert_array_equal(tree.normalized({"w": jnp.zeros(3)})["w"], 0)


def test_bfloat16_is_summed_in_float32_and_rounded_once():
    """Oracle: 4096 ones; in bfloat16 a running sum would stop at 256."""
    ones = {"w": jnp.ones(4096, jnp.bfloat16)}
    assert tree.dot(ones, ones) == 4096
    assert tree.dot(ones, ones).dtype == jnp.float32
    moved = tree.axpy(2.0**-9, ones, ones)["w"]
    assert moved.dtype == jnp.bfloat16


def test_random_leaves_are_standard_normal_and_all_different():
    """Oracle: moments of 20,000 draws; no two leaves share numbers."""
    like = {"a": jnp.zeros((100, 100)), "b": jnp.zeros(10_000, jnp.bfloat16)}
    drawn = tree.random_normal_like(jax.random.key(0), like)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), drawn) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), like
    )
    flat = ravel_pytree(drawn)[0].astype(jnp.float32)
    np.testing.assert_allclose([jnp.mean(flat), jnp.std(flat)], [0, 1], atol=0.02)
    assert abs(np.corrcoef(drawn["a"].ravel(), drawn["b"].astype(float))[0, 1]) < 0.05


def test_dividing_by_zero_gives_zero_with_a_zero_derivative():
    """Oracle: the definition; a plain where would give NaN."""
    np.testing.assert_array_equal(
        tree.safe_divide(jnp.array([1.0, 6.0]), jnp.array([0.0, 2.0])), [0, 3]
    )
    assert jax.grad(lambda b: tree.safe_divide(1.0, b))(0.0) == 0
    assert tree.weighted_mean(jnp.ones(3), jnp.zeros(3)) == 0


def test_a_batch_is_narrow_complete_and_of_one_length():
    """Oracle: the record's contract."""
    batch = tree.as_batch(np.ones((3, 2)), np.array([1, 2, 0]), task=7)
    assert batch.y.dtype == jnp.int32
    told = tree.as_batch(np.ones((3, 2)), np.array([True, False, True]))
    assert told.y.dtype == jnp.int32
    np.testing.assert_array_equal(batch.weight, np.ones(3))
    np.testing.assert_array_equal(batch.task, [7, 7, 7])
    assert tree.num_rows(batch) == 3
    assert tree.num_tasks(batch) == 3
    with pytest.raises(ValueError, match=r"shapes \[\(3, 2\), \(2,\)"):
        tree.as_batch(np.ones((3, 2)), np.zeros(2, int))


def test_the_norm_has_a_derivative_of_zero_at_zero():
    """Oracle: the subgradient of least norm; elsewhere x / |x|."""
    gradient = jax.grad(lambda x: tree.norm({"x": x}))
    np.testing.assert_array_equal(gradient(jnp.zeros(2)), [0.0, 0.0])
    np.testing.assert_allclose(gradient(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)


@pytest.mark.devices
def test_an_inner_product_of_leaves_over_devices_gathers_nothing():
    """Oracle: the collectives in the compiled program; raveling is the control."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("part",), axis_types=auto)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "part"))
    leaf = jax.device_put(jax.random.normal(jax.random.key(0), (16, 32)), split)
    program = lambda f: jax.jit(f).lower(leaf, leaf).compile().as_text()
    ours = program(lambda x, y: tree.dot({"w": x}, {"w": y}))
    assert "all-gather" not in ours
    assert "all-reduce" in ours
    assert "all-gather" in program(jnp.vdot)
    whole = np.asarray(leaf, np.float64)
    np.testing.assert_allclose(tree.norm({"w": leaf}), np.linalg.norm(whole), rtol=1e-6)


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7, 50])
def test_chunks_give_what_all_rows_give(size):
    """Oracle: the function on all rows, values and gradients; sizes that divide or not."""
    x, y = jnp.arange(14.0).reshape(7, 2), jnp.arange(7)
    keys = jax.random.split(jax.random.key(0), 7)

    def function(x, pair):
        y, keys = pair
        noise = jax.vmap(jax.random.uniform)(keys)
        return {"a": jnp.sin(x) * noise[:, None], "b": (y, x[:, 0] + y)}

    wanted = function(x, (y, keys))
    for recompute in (False, True):
        run = lambda x, recompute=recompute: tree.by_chunks(
            function, (x, (y, keys)), size, recompute=recompute
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(x), wanted
        )
        slope = jax.grad(lambda x, run=run: jnp.sum(run(x)["a"] ** 2))(x)
        plain = jax.grad(lambda x: jnp.sum(function(x, (y, keys))["a"] ** 2))(x)
        np.testing.assert_allclose(slope, plain, rtol=1e-5, atol=1e-6)


def test_a_chunk_sees_no_more_rows_than_its_size():
    """Oracle: the shapes that the function was traced with; no rows are no chunks."""
    for rows, size, shapes in ((6, 3, {3}), (7, 3, {3, 1}), (2, 3, {2}), (0, 3, {0})):
        seen = set()
        function = lambda x, seen=seen: seen.add(len(x)) or 2 * x
        found = tree.by_chunks(function, (jnp.arange(rows),), size)
        np.testing.assert_array_equal(found, 2 * np.arange(rows))
        assert seen == shapes
