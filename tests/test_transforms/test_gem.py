import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxcl.transforms import gem


def bend(grads, rows, margin=0.0):
    """What GEM makes of a gradient, and its state."""
    cone = gem(margin)
    state = cone.init(grads)
    return cone.update(grads, state, grads, task_grad_fn=lambda _: rows)


one_program = jax.jit(jax.vmap(bend, in_axes=(0, 0, None)))


def bend_all(grads, rows, margin=0.0):
    """All draws at once; filled up with zeros, so that one program serves every test."""
    draws, num_tasks, size = rows.shape
    more = (20 - draws, 10 - num_tasks, 40 - size)
    wide = jnp.pad(rows, [(0, n) for n in more])
    found, state = one_program(
        jnp.pad(grads, [(0, more[0]), (0, more[2])]), wide, margin
    )
    return found[:draws, :size], state


def cone_by_nnls(grads, rows):
    """The nearest point of the cone by scipy's active-set solver, in float64."""
    grads, rows = np.asarray(grads, np.float64), np.asarray(rows, np.float64)
    weights, _ = scipy.optimize.nnls(rows.T, -grads, maxiter=10_000)
    return grads + rows.T @ weights


def cone_by_trying(grads, rows):
    """The nearest point of the cone: the best feasible one over all active sets."""
    grads, rows = np.asarray(grads, np.float64), np.asarray(rows, np.float64)
    best = 0 * grads
    for size in range(len(rows) + 1):
        for active in itertools.combinations(range(len(rows)), size):
            held = rows[list(active)]
            point = grads - np.linalg.pinv(held) @ (held @ grads)
            feasible = np.all(rows @ point >= -1e-9)
            if feasible and np.sum((point - grads) ** 2) < np.sum((best - grads) ** 2):
                best = point
    return best


def draw(kind, num_tasks, size, num_draws=20):
    """Gradients [draws, p] and rows [draws, T, p] that conflict in one way or another."""
    random = np.random.default_rng(num_tasks)
    rows = random.normal(size=(num_draws, num_tasks, size))
    grads = random.normal(size=(num_draws, size))
    if kind == "conflicting":
        grads = 0.1 * grads - rows.sum(1)
    if kind == "alike":
        rows = 0.1 * rows + random.normal(size=(num_draws, 1, size))
        grads = 0.3 * grads - rows.mean(1)
    if kind == "repeated":
        rows[:, num_tasks // 2 :] = rows[:, : num_tasks - num_tasks // 2]
        grads = grads - rows.sum(1)
    if kind == "opposite":
        rows[:, 1::2] = -2 * rows[:, ::2]
    if kind == "unequal":
        rows = rows * 10.0 ** random.uniform(-4, 4, size=(num_draws, num_tasks, 1))
        grads = 0.1 * grads - 1e-3 * rows.sum(1)
    if kind == "unseen":
        rows[:, num_tasks // 2 :] = 0.0
        grads = grads - rows.sum(1)
    return jnp.asarray(grads, jnp.float32), jnp.asarray(rows, jnp.float32)


KINDS = ["random", "conflicting", "alike", "repeated", "opposite", "unequal", "unseen"]


@pytest.mark.parametrize("kind", KINDS)
def test_gem_finds_the_optimum_and_keeps_every_constraint(kind):
    """Oracle: scipy's non-negative least squares in float64, 20 draws, 10 tasks."""
    grads, rows = draw(kind, 10, 40)
    found, state = bend_all(grads, rows)
    for g, r, got, moved in zip(grads, rows, found, state.moved, strict=True):
        want, length = cone_by_nnls(g, r), np.linalg.norm(g)
        # Float32 products of unit vectors, divided by how thin the cone is.
        np.testing.assert_allclose(got, want, atol=1e-5 * length, rtol=0)
        inside = np.asarray(r, np.float64) @ np.asarray(got, np.float64)
        assert np.all(inside >= -1e-6 * length * np.linalg.norm(r, axis=1))
        np.testing.assert_allclose(
            moved, np.linalg.norm(want - g) / length, rtol=1e-3, atol=1e-6
        )
    assert np.any(np.asarray(state.violated) > 0)


@pytest.mark.parametrize(("num_tasks", "size"), [(1, 2), (3, 2), (4, 6), (5, 3)])
def test_gem_finds_the_optimum_of_small_problems(num_tasks, size):
    """Oracle: every active set tried; among them more tasks than parameters."""
    grads, rows = draw("random", num_tasks, size, num_draws=12)
    found, _ = bend_all(grads, rows)
    for g, r, got in zip(grads, rows, found, strict=True):
        want = cone_by_trying(g, r)
        np.testing.assert_allclose(got, want, atol=1e-4 * np.linalg.norm(g), rtol=0)


def test_a_gradient_that_no_task_objects_to_is_left_alone_bit_for_bit():
    """Oracle: the gradient that went in. A margin is for conflicts only."""
    grads, _ = draw("random", 3, 40)
    rows = jnp.stack([grads, 2 * grads, 0 * grads], axis=1)
    for margin in (0.0, 0.5):
        found, state = bend_all(grads, rows, margin)
        np.testing.assert_array_equal(found, grads)
        assert not np.any(state.violated)


def test_tasks_that_were_not_seen_yet_change_nothing():
    """Law: rows of zeros are inert, whatever the margin."""
    grads, rows = draw("random", 4, 6, num_draws=5)
    padded = jnp.concatenate([0 * rows, rows], axis=1)
    for margin in (0.0, 0.3):
        want, _ = bend_all(grads, rows, margin)
        found, _ = bend_all(grads, padded, margin)
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_a_margin_bends_towards_all_tasks_and_still_keeps_every_constraint():
    """Oracle: the projection of g + margin * sum of rows, where a constraint was broken."""
    grads, rows = draw("random", 10, 40)
    found, _ = bend_all(grads, rows, 0.5)
    plain, _ = bend_all(grads, rows)
    assert np.all(np.min(np.einsum("np,ntp->nt", grads, rows), axis=1) < 0)
    for g, r, got in zip(grads, rows, found, strict=True):
        want = cone_by_nnls(g + 0.5 * jnp.sum(r, axis=0), r)
        length = np.linalg.norm(g)
        np.testing.assert_allclose(got, want, atol=1e-5 * length, rtol=0)
        inside = np.asarray(r, np.float64) @ np.asarray(got, np.float64)
        assert np.all(inside >= -1e-6 * length * np.linalg.norm(r, axis=1))
    assert np.max(np.abs(found - plain)) > 0.1


def test_gem_works_on_trees_as_on_vectors():
    """Oracle: the same numbers in one vector."""
    grads, rows = draw("conflicting", 4, 9, num_draws=1)
    split = lambda v: {"w": v[..., :6].reshape(*v.shape[:-1], 2, 3), "b": v[..., 6:]}
    found, _ = jax.jit(bend)(split(grads[0]), split(rows[0]))
    want, _ = bend_all(grads, rows)
    got = jnp.concatenate([found["w"].ravel(), found["b"]])
    np.testing.assert_allclose(got, want[0], rtol=1e-4, atol=1e-5)


def test_gem_keeps_bfloat16_and_computes_in_float32():
    """Oracle: the float32 result on the rounded numbers, rounded once."""
    grads, rows = draw("conflicting", 3, 6, num_draws=1)
    grads, rows = grads.astype(jnp.bfloat16), rows.astype(jnp.bfloat16)
    found, _ = jax.jit(bend)(grads[0], rows[0])
    want, _ = bend_all(grads.astype(jnp.float32), rows.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    got = np.asarray(found, np.float32)
    np.testing.assert_allclose(got, want[0], rtol=2**-8, atol=1e-6)


def test_the_derivative_is_that_of_the_binding_constraints():
    """Oracle: central differences of scipy's optimum in float64."""
    grads, rows = draw("conflicting", 4, 6, num_draws=1)
    g, r = np.asarray(grads[0], np.float64), np.asarray(rows[0], np.float64)
    aim = np.arange(6.0)
    aimed = lambda g: bend(g, rows[0])[0] @ jnp.asarray(aim, jnp.float32)
    found = jax.jit(jax.grad(aimed))(grads[0])
    nudge = lambda i, h: aim @ cone_by_nnls(g + h * np.eye(6)[i], r)
    want = [(nudge(i, 1e-4) - nudge(i, -1e-4)) / 2e-4 for i in range(6)]
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)


def test_gem_refuses_what_it_cannot_use():
    """Oracle: the message."""
    ones = jnp.ones(3)
    state = gem().init(ones)
    with pytest.raises(
        ValueError, match="gem: task_grad_fn must return gradients with"
    ):
        gem().update(ones, state, ones, task_grad_fn=lambda p: p)
    with pytest.raises(
        ValueError, match="gem: task_grad_fn must return gradients with"
    ):
        gem().update(ones, state, ones, task_grad_fn=lambda p: p[None][:0])
    with pytest.raises(ValueError, match="gem: update needs task_grad_fn"):
        gem().update(ones, state, ones)
    with pytest.raises(ValueError, match="gem: margin must be"):
        gem(-0.5)
