import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxcl.transforms import gem


def transform(grads, rows, margin=0.0):
    """What GEM makes of a gradient, and its state."""
    cone = gem(margin)
    state = cone.init(grads)
    return cone.update(grads, state, grads, task_grad_fn=lambda _: rows)


one_program = jax.jit(jax.vmap(transform, in_axes=(0, 0, None)))


def transform_all(grads, rows, margin=0.0):
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
    found, state = transform_all(grads, rows)
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
    found, _ = transform_all(grads, rows)
    for g, r, got in zip(grads, rows, found, strict=True):
        want = cone_by_trying(g, r)
        np.testing.assert_allclose(got, want, atol=1e-4 * np.linalg.norm(g), rtol=0)


def test_dependent_rows_may_leave_nothing_of_the_gradient_in_their_span():
    """Oracle: by hand; rows enclose zero in the span of the first three axes. Tolerance:
    1e-5 of the gradient's length, 4, as for rows that do not depend on each other."""
    rows = jnp.array([[2.0, 2, -2, 0], [1, 2, 0, 0], [-2, -1, -1, 0], [1, 0, 1, 0]])
    found, state = jax.jit(transform)(jnp.array([-2.0, 2, 2, -2]), rows)
    np.testing.assert_allclose(found, [0, 0, 0, -2], atol=4e-5)
    np.testing.assert_allclose(state.moved, np.sqrt(12 / 16), rtol=1e-5)


def draw_dependent(kind, num_draws=80):
    """Gradients [draws, p] and rows [draws, T, p], most of them of a rank below T."""
    random = np.random.default_rng(len(kind))
    normal = lambda *shape: random.normal(size=(num_draws, *shape))
    num_tasks, size, rank = SHAPES.get(kind, (10, 20, 5))
    rows, grads = normal(num_tasks, rank) @ normal(rank, size), normal(size)
    if kind == "unequal":
        rows = rows * 10.0 ** random.uniform(-6, 6, size=(num_draws, num_tasks, 1))
    if kind == "unseen":
        rows[:, ::2] = 0.0
    if kind == "repeated":
        rows[:, 5:] = rows[:, :5]
        grads = grads - rows.sum(1)
    if kind == "nearly repeated":
        rows[:, 5:] = rows[:, :5] + 1e-3 * normal(5, size)
        grads = grads - rows.sum(1)
    if kind == "nearly opposite":
        rows[:, 5:] = -rows[:, :5] + 0.02 * normal(5, size)
    if kind == "enclosing":  # only zero fits in the span
        rows[:, -1] = -np.sum(random.uniform(0.5, 2, (9, 1)) * rows[:, :-1], axis=1)
    if kind == "whole numbers":  # exact in bfloat16
        whole = lambda *shape: random.integers(-2, 3, size=(num_draws, *shape))
        rows, grads = 1.0 * whole(8, 3) @ whole(3, 6), 1.0 * whole(6)
    return grads, rows


SHAPES = {  # T, p, rank
    "one": (1, 3, 1),
    "pair on a line": (2, 5, 1),
    "plane": (3, 3, 2),
    "space": (5, 3, 3),
    "more tasks than parameters": (20, 4, 4),
    "twenty of rank ten": (20, 10, 10),
    "twenty of rank seven": (20, 40, 7),
    "independent": (20, 40, 20),
}
DEPENDENT = [
    *SHAPES,
    *("unequal", "unseen", "repeated", "nearly repeated", "nearly opposite"),
    *("enclosing", "whole numbers"),
]
transform_dependent = jax.jit(jax.vmap(transform, in_axes=(0, 0, None)))


def check_dependent(grads, rows, *, broken, far, margin=0.0):
    """Violations and distances, as shares of what was projected.

    Rows that are close to dependent make the optimum itself a matter of rounding, so it
    is not compared: what breaks no constraint and is as near is as good.
    """
    draws, num_tasks, size = rows.shape
    more = (20 - num_tasks, 40 - size)  # of zeros, so that one program serves all
    padded = (
        jnp.pad(grads, [(0, 0), (0, more[1])]),
        jnp.pad(rows, ((0, 0), *((0, n) for n in more))),
    )
    found = np.asarray(transform_dependent(*padded, margin)[0], np.float64)[:, :size]
    grads, rows = np.asarray(grads, np.float64), np.asarray(rows, np.float64)
    conflicts = 0
    for g, r, got in zip(grads, rows, found, strict=True):
        lengths = np.linalg.norm(r, axis=1)
        r, lengths = r[lengths > 0], lengths[lengths > 0]
        unit = r / lengths[:, None]
        conflict = np.min(unit @ g) < -1e-6 * np.linalg.norm(g)
        aim = g + conflict * margin * np.sum(r, axis=0)
        scale = np.linalg.norm(g) + conflict * margin * np.sum(lengths)
        assert np.min(unit @ got) >= -broken * scale
        least = np.linalg.norm(cone_by_nnls(aim, unit) - aim)
        assert np.linalg.norm(got - aim) <= least + far * scale
        conflicts += conflict
    assert conflicts > draws / 4


@pytest.mark.parametrize("kind", DEPENDENT)
def test_dependent_rows_are_never_made_worse(kind):
    """Oracles: the constraints, and the distance of scipy's optimum in float64."""
    grads, rows = draw_dependent(kind)
    grads, rows = jnp.asarray(grads, jnp.float32), jnp.asarray(rows, jnp.float32)
    check_dependent(grads, rows, broken=1e-4, far=1e-3)


@pytest.mark.parametrize(
    "kind", ["space", "unequal", "enclosing", "twenty of rank ten"]
)
def test_a_margin_keeps_the_constraints_of_dependent_rows(kind):
    """Oracles: as above, for g + margin * sum of rows."""
    grads, rows = draw_dependent(kind)
    grads, rows = jnp.asarray(grads, jnp.float32), jnp.asarray(rows, jnp.float32)
    check_dependent(grads, rows, broken=1e-4, far=1e-3, margin=0.5)


def test_dependent_rows_in_float64(x64):
    """Oracles: as above, to the digits of float64."""
    del x64
    for kind in DEPENDENT:
        grads, rows = draw_dependent(kind)
        check_dependent(jnp.asarray(grads), jnp.asarray(rows), broken=1e-11, far=1e-11)


def test_dependent_rows_in_bfloat16():
    """Oracles: as above, but for rounding every entry of the result once."""
    grads, rows = draw_dependent("whole numbers")
    grads, rows = jnp.asarray(grads, jnp.bfloat16), jnp.asarray(rows, jnp.bfloat16)
    check_dependent(grads, rows, broken=2**-8, far=2**-8)


def test_only_rows_close_to_dependent_cost_more_products(monkeypatch):
    """Oracle: a host callback at each product with all rows."""
    calls = []
    module = importlib.import_module("jaxcl.transforms.gem")
    product = module._over_rows

    def counted(rows, tree):
        jax.debug.callback(lambda: calls.append(1))
        return product(rows, tree)

    monkeypatch.setattr(module, "_over_rows", counted)
    program = jax.jit(lambda grads, rows: transform(grads, rows))
    for kind in ("independent", "nearly opposite"):
        grads, rows = draw_dependent(kind)
        program(jnp.asarray(grads[0]), jnp.asarray(rows[0]))
        jax.effects_barrier()
        assert len(calls) == 1 if kind == "independent" else len(calls) > 2


def test_a_gradient_that_no_task_objects_to_is_left_alone_bit_for_bit():
    """Oracle: the gradient that went in. A margin is for conflicts only."""
    grads, _ = draw("random", 3, 40)
    rows = jnp.stack([grads, 2 * grads, 0 * grads], axis=1)
    for margin in (0.0, 0.5):
        found, state = transform_all(grads, rows, margin)
        np.testing.assert_array_equal(found, grads)
        assert not np.any(state.violated)


def test_tasks_that_were_not_seen_yet_change_nothing():
    """Law: rows of zeros are inert, whatever the margin."""
    grads, rows = draw("random", 4, 6, num_draws=5)
    padded = jnp.concatenate([0 * rows, rows], axis=1)
    for margin in (0.0, 0.3):
        want, _ = transform_all(grads, rows, margin)
        found, _ = transform_all(grads, padded, margin)
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_a_margin_bends_towards_all_tasks_and_still_keeps_every_constraint():
    """Oracle: the projection of g + margin * sum of rows, where a constraint was broken."""
    grads, rows = draw("random", 10, 40)
    found, _ = transform_all(grads, rows, 0.5)
    plain, _ = transform_all(grads, rows)
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
    found, _ = jax.jit(transform)(split(grads[0]), split(rows[0]))
    want, _ = transform_all(grads, rows)
    got = jnp.concatenate([found["w"].ravel(), found["b"]])
    np.testing.assert_allclose(got, want[0], rtol=1e-4, atol=1e-5)


def test_gem_keeps_bfloat16_and_computes_in_float32():
    """Oracle: the float32 result on the rounded numbers, rounded once."""
    grads, rows = draw("conflicting", 3, 6, num_draws=1)
    grads, rows = grads.astype(jnp.bfloat16), rows.astype(jnp.bfloat16)
    found, _ = jax.jit(transform)(grads[0], rows[0])
    want, _ = transform_all(grads.astype(jnp.float32), rows.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    got = np.asarray(found, np.float32)
    np.testing.assert_allclose(got, want[0], rtol=2**-8, atol=1e-6)


def test_the_derivative_is_that_of_the_binding_constraints():
    """Oracle: central differences of scipy's optimum in float64."""
    grads, rows = draw("conflicting", 4, 6, num_draws=1)
    g, r = np.asarray(grads[0], np.float64), np.asarray(rows[0], np.float64)
    aim = np.arange(6.0)
    aimed = lambda g: transform(g, rows[0])[0] @ jnp.asarray(aim, jnp.float32)
    found = jax.jit(jax.grad(aimed))(grads[0])
    nudge = lambda i, h: aim @ cone_by_nnls(g + h * np.eye(6)[i], r)
    want = [(nudge(i, 1e-4) - nudge(i, -1e-4)) / 2e-4 for i in range(6)]
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)
