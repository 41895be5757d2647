"""Selection of the rows nearest to K-means centroids of their features."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxcl.errors import check_size
from jaxcl.memory.selection import Select
from jaxcl.tree import by_chunks, num_rows


def kmeans_examples(
    hidden: Callable, *, num_iterations: int = 10, chunk_size: int = 1024
) -> Select:
    """Store the row nearest to each of ``capacity`` K-means centroids of the features.

    A row that is nearest to two centroids is stored once; the remaining places are
    filled with other rows at random.

    Args:
      hidden: ``(params, x [b, ...]) -> [b, ...]``, flattened per row and read as float32;
        of a tuple, such as that of ``model.hidden``, the last is taken.
      num_iterations: of Lloyd's algorithm, after K-means++; see :func:`kmeans`.
      chunk_size: rows held at once: features and distances to the centroids take
        ``chunk_size`` rows of memory, besides the ``n`` feature vectors themselves.

    Reference: the replay of Create and Find Flatness (ECAI 2023), there with the
    encoder's [CLS] vector as feature.
    """
    sizes: Any = {"num_iterations": num_iterations, "chunk_size": chunk_size}
    check_size("kmeans_examples", **sizes)

    def select(key, params, task, capacity):
        key_means, key_rest = jax.random.split(key)
        rows = num_rows(task)

        def flat(x):
            found = hidden(params, x)
            found = found[-1] if isinstance(found, tuple) else found
            return found.reshape(len(found), -1).astype(jnp.float32)

        points = by_chunks(flat, (task.x,), chunk_size)
        clusters = min(capacity, rows)
        centroids = kmeans(key_means, points, task.weight, clusters, **sizes)
        priority = jax.random.uniform(key_rest, (rows,), jnp.float32)
        best = nearest_examples(points, task.weight, centroids, chunk_size)
        return priority.at[best].set(2.0)

    return select


def kmeans(
    key: PRNGKeyArray,
    points: Float[Array, "n d"],
    weight: Float[Array, " n"],
    num_clusters: int,
    *,
    num_iterations: int = 10,
    chunk_size: int = 1024,
) -> Float[Array, "k d"]:
    """Centroids of K-means: K-means++ draws a start, Lloyd's algorithm improves it.

    Lloyd: every point is assigned to its nearest centroid, and every centroid becomes the
    weighted mean of its points; one without points is unchanged. Sums are matrix products,
    hence deterministic. Costs ``O(n d k)`` per iteration and as much for the start. Where
    there are fewer distinct points than clusters, some coincide.

    Args:
      key: draws the start.
      points: finite where their weight is not zero.
      weight: 0 for padding.
      num_clusters: ``k``.
      num_iterations: fixed; no test of convergence.
      chunk_size: points whose ``k`` distances are held at once.

    Reference: Lloyd 1982, IEEE Trans. Inf. Theory 28(2); Arthur and Vassilvitskii 2007,
    "k-means++: the advantages of careful seeding", SODA.
    """
    sizes: Any = {"num_iterations": num_iterations, "chunk_size": chunk_size}
    check_size("kmeans", num_clusters=num_clusters, **sizes)
    points = jnp.where(weight[:, None] > 0, points, 0.0)
    total = jnp.maximum(jnp.sum(weight), 1e-30)
    centre = weight @ points / total  # distances near the origin have smaller errors
    start = spread_points(key, points - centre, weight, num_clusters)
    return lloyd(points - centre, weight, start, num_iterations, chunk_size) + centre


def spread_points(key, points, weight, num_clusters: int) -> Float[Array, "k d"]:
    """K-means++: each next centroid is a point, drawn by its squared distance so far."""
    draws = jax.random.uniform(key, (num_clusters,), jnp.float32)
    last = jnp.max(jnp.where(weight > 0, jnp.arange(points.shape[0]), 0))

    def body(i, carry):
        centroids, distance = carry
        mass = jnp.cumsum(weight * distance)
        drawn = jnp.searchsorted(mass, draws[i] * mass[-1], side="right")
        point = points[jnp.minimum(drawn, last)]
        to_it = jnp.sum(jnp.square(points - point), axis=1)
        distance = jnp.where(i == 0, to_it, jnp.minimum(distance, to_it))
        return centroids.at[i].set(point), distance

    start = jnp.zeros((num_clusters, points.shape[1]), points.dtype)
    carry = (start, jnp.ones_like(weight))
    return jax.lax.fori_loop(0, num_clusters, body, carry)[0]


def lloyd(points, weight, centroids, num_iterations: int, chunk_size: int):
    """Lloyd's iterations from given centroids [k, d]."""
    chunks = _in_chunks((points, weight), chunk_size)

    def improve(centroids, _):
        def add(totals, chunk):
            x, w = chunk
            label = jnp.argmin(_squared_distances(x, centroids), axis=1)
            member = jax.nn.one_hot(label, len(centroids), dtype=x.dtype) * w[:, None]
            sums = jnp.matmul(member.T, x, precision="highest")
            return (totals[0] + sums, totals[1] + jnp.sum(member, axis=0)), None

        zeros = jnp.zeros_like(centroids), jnp.zeros_like(centroids[:, 0])
        (sums, counts), _ = jax.lax.scan(add, zeros, chunks)
        counts = counts[:, None]
        means = sums / jnp.where(counts > 0, counts, 1.0)
        return jnp.where(counts > 0, means, centroids), None

    return jax.lax.scan(improve, centroids, length=num_iterations)[0]


def nearest_examples(points, weight, centroids, chunk_size: int) -> Int[Array, " k"]:
    """The real point nearest to each centroid; the first of equals."""
    position = jnp.arange(points.shape[0])
    chunks = _in_chunks((points, weight, position), chunk_size)

    def closer(best, chunk):
        x, w, position = chunk
        distance = jnp.where(w[:, None] > 0, _squared_distances(x, centroids), jnp.inf)
        found = jnp.min(distance, axis=0), position[jnp.argmin(distance, axis=0)]
        nearer = found[0] < best[0]
        best_of = lambda new, old: jnp.where(nearer, new, old)
        return jax.tree.map(best_of, found, best), None

    clusters = len(centroids)
    start = jnp.full(clusters, jnp.inf, points.dtype), jnp.zeros(clusters, int)
    return jax.lax.scan(closer, start, chunks)[0][1]


def _squared_distances(points, centroids) -> Float[Array, "n k"]:
    """All ``|x - c|^2``, through one matrix product."""
    products = jnp.matmul(points, centroids.T, precision="highest")
    lengths = jnp.sum(jnp.square(points), axis=1)[:, None]
    return lengths - 2 * products + jnp.sum(jnp.square(centroids), axis=1)


def _in_chunks(tree, chunk_size: int):
    """Rows as ``[chunks, chunk, ...]``, the last chunk filled up with zeros."""
    rows = jax.tree.leaves(tree)[0].shape[0]
    chunk_size = min(chunk_size, rows)
    missing = -rows % chunk_size

    def cut(leaf):
        padded = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, chunk_size, *leaf.shape[1:])

    return jax.tree.map(cut, tree)
