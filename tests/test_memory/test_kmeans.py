"""K-means, and the rows nearest to its centroids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.memory import episodic, kmeans, kmeans_examples
from jaxcl.memory.kmeans import lloyd, nearest_examples, spread_points
from jaxcl.tree import as_batch


def loop_lloyd(points, weight, centroids, num_iterations):
    """Lloyd's algorithm by loops over points and clusters."""
    centroids = [np.array(c) for c in centroids]
    for _ in range(num_iterations):
        nearest = [np.argmin([np.sum((x - c) ** 2) for c in centroids]) for x in points]
        for k in range(len(centroids)):
            mine = [
                i for i, label in enumerate(nearest) if label == k and weight[i] > 0
            ]
            if mine:
                centroids[k] = np.average(points[mine], axis=0, weights=weight[mine])
    return np.array(centroids)


@pytest.mark.parametrize("chunk_size", [4, 7, 100])
def test_lloyd_equals_loops_over_points(chunk_size):
    """Oracle: numpy loops; padding, an empty cluster, chunks that do not divide."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(23, 3)).astype(np.float32)
    weight = generator.integers(0, 2, 23).astype(np.float32)
    start = np.concatenate([points[:4], np.full((1, 3), 50.0, np.float32)])
    arrays = map(jnp.asarray, (points, weight, start))
    found = jax.jit(lloyd, static_argnums=(3, 4))(*arrays, 4, chunk_size)
    np.testing.assert_allclose(found, loop_lloyd(points, weight, start, 4), atol=1e-5)
    np.testing.assert_array_equal(found[4], start[4])  # no point is near


@pytest.mark.parametrize("chunk_size", [4, 100])
def test_nearest_rows_equal_a_search_over_all_real_rows(chunk_size):
    """Oracle: argmin over the real rows, one centroid at a time."""
    generator = np.random.default_rng(1)
    points = generator.normal(size=(23, 3)).astype(np.float32)
    weight = generator.integers(0, 2, 23).astype(np.float32)
    centroids = generator.normal(size=(6, 3)).astype(np.float32)
    real = np.flatnonzero(weight)
    expected = [real[np.argmin(np.sum((points[real] - c) ** 2, 1))] for c in centroids]
    arrays = map(jnp.asarray, (points, weight, centroids))
    found = jax.jit(nearest_examples, static_argnums=3)(*arrays, chunk_size)
    assert found.tolist() == expected


def test_the_start_draws_real_points_by_squared_distance(key):
    """Oracle: points 0, 1, 3 on a line: after 0 comes 1 or 3 with odds 1 : 9.

    2000 draws started at 0 about 667 times; five standard deviations are 0.06.
    """
    points = jnp.array([[0.0], [1.0], [9.0], [3.0]])
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])
    start = jax.jit(jax.vmap(lambda key: spread_points(key, points, weight, 2)))
    first, second = np.asarray(start(jax.random.split(key, 2000)))[..., 0].T
    assert set(first) == set(second) == {0.0, 1.0, 3.0}
    assert np.all(first != second)
    np.testing.assert_allclose(np.mean(first == 0), 1 / 3, atol=0.06)
    np.testing.assert_allclose(np.mean(second[first == 0] == 3), 0.9, atol=0.06)


def blobs(num_blobs=5, per_blob=12, offset=100.0):
    """Blobs far apart; the first row of each lies exactly in its middle."""
    generator = np.random.default_rng(2)
    noise = generator.normal(size=(per_blob // 2, 2))
    around = np.concatenate([np.zeros((1, 2)), noise, -noise])  # mean zero
    middle = offset + 40.0 * np.arange(num_blobs)[:, None] * np.array([1.0, -1.0])
    points = (middle[:, None] + around).reshape(-1, 2).astype(np.float32)
    return points, np.repeat(np.arange(num_blobs), len(around))


def test_kmeans_finds_the_means_of_blobs(key):
    """Oracle: the blobs' own means, far from the origin; K-means++ meets each blob."""
    points, blob = blobs()
    weight = jnp.ones(len(points))
    found = jax.jit(lambda key: kmeans(key, jnp.asarray(points), weight, 5))(key)
    means = np.array([points[blob == b].mean(0) for b in range(5)])
    found = np.asarray(found)[np.argsort(found[:, 0])]
    np.testing.assert_allclose(found, means, atol=1e-3)


def test_kmeans_rows_keep_the_middle_of_every_blob(key):
    """Oracle: the row that was put into the middle; features scale with the parameters."""
    points, blob = blobs()
    order = np.random.default_rng(3).permutation(len(points))
    task = as_batch(points[order], blob[order])
    select = kmeans_examples(
        lambda params, x: params * x, num_iterations=5, chunk_size=16
    )
    memory = episodic(1, 5, select=select)
    params = jnp.float32(2.0)
    state = jax.jit(memory.end_task)(key, memory.init((), task), params, task)
    chosen = np.asarray(state.kept.x[0])[np.argsort(state.kept.y[0])]
    np.testing.assert_array_equal(chosen, points[np.searchsorted(blob, np.arange(5))])


def test_rows_nearest_to_two_centroids_are_kept_once(key):
    """Law: four places, two distinct points, no padding: four different rows."""
    x = np.array([0.0, 0, 0, 1, 1, 7], np.float32)[:, None]
    task = as_batch(x, np.arange(6), weight=np.array([1.0, 1, 1, 1, 1, 0]))
    memory = episodic(1, 4, select=kmeans_examples(lambda _, x: x))
    end_task = jax.vmap(
        lambda key: memory.end_task(key, memory.init((), task), (), task)
    )
    state = jax.jit(end_task)(jax.random.split(key, 20))
    assert bool(jnp.all(state.kept.weight == 1))
    for chosen in state.kept.y[:, 0].tolist():
        assert len(set(chosen)) == 4
        assert 5 not in chosen
        assert set(chosen) & {0, 1, 2}
        assert set(chosen) & {3, 4}


def test_a_share_larger_than_the_task_and_bfloat16_features_work(key):
    """Law: all rows are kept."""
    task = as_batch(np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3))
    select = kmeans_examples(lambda _, x: x.astype(jnp.bfloat16).reshape(len(x), 2, 1))
    memory = episodic(1, 5, select=select)
    state = jax.jit(memory.end_task)(key, memory.init((), task), (), task)
    assert sorted(state.kept.y[0].tolist()) == [0, 0, 0, 1, 2]
    assert state.filled.tolist() == [3]


def test_a_centroid_without_mass_is_a_real_point():
    """Oracle: the real points; two distinct ones, three clusters, padding at the end."""
    points = jnp.array([[5.0, 5], [5, 5], [7, 7], [0, 0], [0, 0]])
    weight = jnp.array([1.0, 1, 1, 0, 0])
    for seed in range(5):
        centroids = np.asarray(kmeans(jax.random.key(seed), points, weight, 3))
        assert {tuple(row) for row in centroids.round(4)} == {(5.0, 5.0), (7.0, 7.0)}
