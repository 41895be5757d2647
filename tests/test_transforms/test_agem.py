import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.transforms import agem, gem


def project(grads, past):
    """What A-GEM makes of a gradient, and its state."""
    state = agem().init(grads)
    return agem().update(grads, state, grads, replay_grad_fn=lambda _: past)


def test_agem_never_raises_the_replay_loss_to_first_order():
    """Oracle: the projection in NumPy, 200 draws; half of them conflict."""
    draws = np.random.default_rng(0).normal(size=(2, 200, 8)).astype(np.float32)
    found, state = jax.vmap(project)(*jnp.asarray(draws))
    for grads, past, got in zip(*draws.astype(np.float64), found, strict=True):
        want = grads - min(0.0, grads @ past) / (past @ past) * past
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        # Nothing but the rounding of eight products is left of a conflict.
        assert np.asarray(got, np.float64) @ past > -1e-5
    conflicts = np.sum(draws[0] * draws[1], axis=1) < 0
    assert 50 < conflicts.sum() < 150
    np.testing.assert_array_equal(state.violated, conflicts)


def test_agem_leaves_an_agreeing_gradient_as_it_is_bit_for_bit():
    """Oracle: the gradient that went in."""
    grads, past = jnp.array([1.0, 2.0]), jnp.array([0.3, 0.1])
    found, state = project(grads, past)
    np.testing.assert_array_equal(found, grads)
    assert (int(state.violated), float(state.moved)) == (0, 0.0)


def test_agem_without_a_memory_is_plain():
    """Law: an empty memory has a gradient of zero."""
    grads = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}
    found, _ = project(grads, jax.tree.map(jnp.zeros_like, grads))
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), found, grads))


def test_agem_is_gem_with_one_row():
    """Law, on a conflict; the share that was taken away is the cosine."""
    grads, past = jnp.array([1.0, 2.0, 0.0]), jnp.array([-1.0, 0.5, 0.5])
    past = past - 0.5 * grads
    found, state = project(grads, past)
    cone = gem()
    rows = lambda _: past[None]
    one = lambda g: cone.update(g, cone.init(g), g, task_grad_fn=rows)
    want, same = jax.jit(one)(grads)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    cosine = grads @ past / jnp.linalg.norm(grads) / jnp.linalg.norm(past)
    np.testing.assert_allclose(state.moved, -cosine, rtol=1e-5)
    np.testing.assert_allclose(same.moved, state.moved, rtol=1e-5)
