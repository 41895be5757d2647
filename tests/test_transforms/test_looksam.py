import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.transforms import looksam, sam
from tests.test_transforms import wavy
from tests.test_transforms.wavy import START, descend, grad_fn, slope, tree, unit

run = functools.partial(wavy.run, compiled=True)


def looking(rho, k, alpha):
    """LookSAM in NumPy, with the direction kept in a list."""
    kept = []

    def rule(t, w, g):
        if t % k:
            return g + alpha * np.linalg.norm(g) * unit(kept[-1])
        above = slope(w + rho * unit(g))
        kept.append(above - (above @ unit(g)) * unit(g))
        return above

    return rule


@pytest.mark.parametrize("k", [2, 3])
def test_looksam_reuses_the_direction_of_every_kth_step(k):
    """Oracle: NumPy, seven steps."""
    found, state = run(looksam(0.3, k=k, alpha=0.7), 7)
    # Seven steps apart, with gradients of a direction that is a small difference.
    np.testing.assert_allclose(
        found, descend(looking(0.3, k, 0.7), 7), rtol=1e-3, atol=1e-3
    )
    assert int(state.perturbation.count) == 7


def test_two_hundred_steps_on_noisy_gradients_are_those_of_the_paper(x64):
    """Oracle: algorithm 1 of arXiv:2203.02714 in NumPy, all in float64.

    Every step has another linear term, as another batch would, so that gradients do not
    vanish. Negative control: other strengths end elsewhere.
    """
    del x64
    tilts = np.random.default_rng(1).normal(size=(200, 7))

    def paper(rho, k, alpha):
        w, rows, g_v = START.copy(), [], None
        for t, tilt in enumerate(tilts):
            g = slope(w) + tilt
            if t % k == 0:
                g_s = slope(w + rho * g / np.linalg.norm(g)) + tilt
                cosine = g @ g_s / (np.linalg.norm(g) * np.linalg.norm(g_s))
                g_v = g_s - np.linalg.norm(g_s) * cosine * g / np.linalg.norm(g)
            else:
                g_s = g + alpha * np.linalg.norm(g) / np.linalg.norm(g_v) * g_v
            w = w - 0.05 * g_s
            rows.append(w)
        return np.stack(rows)

    perturb = looksam(0.3, k=5, alpha=0.7)

    def body(carry, tilt):
        state, w = carry
        gradient = lambda w: jax.grad(lambda w: wavy.loss([w]))(w) + tilt
        grads, state = perturb.update(gradient(w), state, w, grad_fn=gradient)
        w = w - 0.05 * grads
        return (state, w), w

    start = jnp.asarray(START)
    _, found = jax.lax.scan(body, (perturb.init(start), start), jnp.asarray(tilts))
    np.testing.assert_allclose(found, paper(0.3, 5, 0.7), rtol=1e-8, atol=1e-8)
    for other in ((0.3, 5, 0.6), (0.3, 4, 0.7), (0.2, 5, 0.7)):
        assert np.max(np.abs(found[-1] - paper(*other)[-1])) > 1e-3


def test_after_a_change_of_task_the_old_direction_is_as_long_as_the_new_gradient():
    """Oracle: closed form, on two tasks that depend on different parameters.

    The old task has the gradient `slopes * w` in the first two parameters, the new one
    a constant in the last. Negative control: a state that starts again moves nothing of
    the old task.
    """
    rho, alpha, slopes = 0.1, 0.7, np.array([2.0, 0.5, 0.0])
    w = np.array([0.01, 0.01, 1.0])
    old = lambda w: jnp.asarray(slopes, jnp.float32) * w
    new = lambda w: jnp.array([0.0, 0.0, 50.0])
    point, perturb = jnp.asarray(w, jnp.float32), looksam(rho, k=5, alpha=alpha)
    fresh = perturb.init(point)
    _, stale = perturb.update(old(point), fresh, point, grad_fn=old)

    g = slopes * w
    g_p = slopes * (w + rho * unit(g))
    moved = alpha * 50.0 * unit(g_p - (g_p @ unit(g)) * unit(g))
    found, _ = perturb.update(new(point), stale, point, grad_fn=new)
    np.testing.assert_allclose(found, moved + np.array([0, 0, 50.0]), rtol=1e-4)
    assert np.linalg.norm(found[:2]) > 1e3 * np.linalg.norm(g)
    again, _ = perturb.update(new(point), fresh, point, grad_fn=new)
    np.testing.assert_array_equal(again, [0, 0, 50.0])


def test_the_logs_are_those_of_the_last_perturbation():
    """Oracle: NumPy at step 0, the last perturbed step, and its radius."""
    warm = lambda t: 0.3 + t
    _, state = run(looksam(warm, k=3, measure=True), 2)
    below, above = slope(START), slope(START + 0.3 * unit(slope(START)))
    want = [0.3, np.linalg.norm(below), np.linalg.norm(above), below @ above]
    np.testing.assert_allclose(jnp.stack(state.perturbation[1:]), want, rtol=1e-5)


def test_looksam_at_every_step_is_sam():
    """Law, with the negative control that k = 2 is not."""
    want = run(sam(0.3), 4)[0]
    np.testing.assert_allclose(run(looksam(0.3, k=1), 4)[0], want, rtol=1e-6)
    assert np.max(np.abs(run(looksam(0.3, k=2), 4)[0] - want)) > 1e-2


def test_looksam_of_zero_radius_is_plain():
    """Law: what is left of rounding is not blown up to a direction, traced or not."""
    want = descend(lambda _, __, g: g, 6)
    for rho in (0.0, lambda _: 0.0):
        found = run(looksam(rho, k=3), 6)[0]
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6)


def test_a_direction_that_is_only_rounding_counts_as_none():
    """Oracle: on |w|^2 / 2 both gradients are parallel, so the other steps are plain."""
    isotropic = lambda params: params
    found, state = run(looksam(0.3, k=2, alpha=0.7), 2, 0.1, isotropic)
    second = START - 0.1 * (START + 0.3 * unit(START))
    np.testing.assert_allclose(found[1], second, rtol=1e-5)
    assert float(state.height) == 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_what_a_narrow_dtype_rounds_is_no_direction(dtype):
    """Oracle: on |w|^2 / 2 both gradients are parallel, whatever they are rounded to.

    Negative control: where they are not, the same dtype keeps the direction.
    """
    w = jnp.asarray(np.random.default_rng(2).normal(size=1000), dtype)
    perturb = looksam(0.3, k=2)
    _, state = perturb.update(w, perturb.init(w), w, grad_fn=lambda w: w)
    assert float(state.height) == 0.0
    steep = lambda w: w * jnp.linspace(0.0, 3.0, 1000).astype(w.dtype)
    _, state = perturb.update(w, perturb.init(w), w, grad_fn=steep)
    assert float(state.height) > 0.1


def counted(calls):
    """A gradient that notes every time it is really computed."""

    def count(params):
        jax.debug.callback(lambda: calls.append(1))
        return grad_fn(params)

    return count


def test_the_second_gradient_is_really_skipped():
    """Oracle: a host callback in the gradient; with k = 3, 7 steps perturb at 0, 3, 6."""
    calls = []
    perturb, second = looksam(0.3, k=3), counted(calls)

    @jax.jit
    def seven(params):
        def body(state, _):
            grads, state = perturb.update(
                grad_fn(params), state, params, grad_fn=second
            )
            return state, grads

        return jax.lax.scan(body, perturb.init(params), length=7)

    jax.block_until_ready(seven(tree(START)))
    jax.effects_barrier()
    assert len(calls) == 3


def test_skipping_survives_a_vmap_around_the_loop_and_around_stacked_states():
    """Oracle: the program itself; runs side by side perturb together or not at all."""
    perturb = looksam(0.3, k=3)
    step = lambda state, w: perturb.update(w, state, w, grad_fn=jnp.sin)[1]

    def loop(w):
        body = lambda state, _: (step(state, w), None)
        return jax.lax.scan(body, perturb.init(w), length=7)

    inside = str(jax.make_jaxpr(jax.vmap(loop))(jnp.ones((2, 3))))
    states = jax.vmap(perturb.init)(jnp.ones((2, 3)))
    outside = str(jax.make_jaxpr(jax.vmap(step))(states, jnp.ones((2, 3))))
    assert "cond[" in inside
    assert "cond[" in outside


def test_the_state_keeps_one_tree_of_directions_in_float32_or_better():
    """Oracle: shapes and dtypes, by hand."""
    params = {"w": jnp.ones((3, 2), jnp.bfloat16), "b": jnp.ones(2)}
    state = looksam(0.3).init(params)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    wide = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
    assert shapes(state.direction) == shapes(wide)
