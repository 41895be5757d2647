import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.regularizers import box, boxed, ewc, l2, sum_of
from jaxcl.typing import Regularizer

ANCHOR = {"w": jnp.array([2.0, -2.0, 0.0, 1.0]), "b": jnp.array([4.0])}
AWAY = {"w": jnp.array([9.0, 9.0, 9.0, 1.05]), "b": jnp.array([-9.0])}


def after_one_task(regularizer, anchor=ANCHOR):
    state = regularizer.init(jax.tree.map(jnp.zeros_like, anchor), ())
    return regularizer.end_task(jax.random.key(0), state, anchor, None)


def test_the_box_is_relative_and_open_before_the_first_task():
    """Oracle: clipped by hand; a parameter of zero stays zero."""
    regularizer = box(0.1)
    first = regularizer.init(ANCHOR, ())
    np.testing.assert_array_equal(regularizer.project(first, AWAY)["w"], AWAY["w"])
    kept = regularizer.project(after_one_task(regularizer), AWAY)
    np.testing.assert_allclose(kept["w"], [2.2, -1.8, 0.0, 1.05], rtol=1e-6)
    np.testing.assert_allclose(kept["b"], [3.6], rtol=1e-6)


def test_the_box_moves_with_the_last_solution():
    """Oracle: after two tasks at full stretch a parameter has grown by 1.1^2."""
    regularizer = box(0.1)
    state = after_one_task(regularizer)
    kept = regularizer.project(state, AWAY)
    state = regularizer.end_task(jax.random.key(0), state, kept, None)
    np.testing.assert_allclose(regularizer.project(state, AWAY)["w"][0], 2 * 1.21)


def test_an_infinite_box_is_none_and_a_box_of_zero_is_a_wall():
    """Laws; negative control: a finite box clips. Traced radii, NaN nowhere."""
    project = lambda radius: box(radius).project(after_one_task(box(radius)), AWAY)
    radii = jnp.array([jnp.inf, 0.0, 0.5])
    kept = jax.jit(jax.vmap(project))(radii)
    np.testing.assert_array_equal(kept["w"][0], AWAY["w"])
    np.testing.assert_array_equal(kept["w"][1], ANCHOR["w"])
    np.testing.assert_allclose(kept["w"][2], [3.0, -1.0, 0.0, 1.05], rtol=1e-6)
    np.testing.assert_array_equal(project(jnp.inf)["w"], AWAY["w"])


def test_projecting_twice_is_projecting_once():
    """Law: a projection is idempotent, and leaves the anchor where it is."""
    for anchor in (ANCHOR, jax.tree.map(lambda a: a.astype(jnp.bfloat16), ANCHOR)):
        state = after_one_task(box(0.3), anchor)
        away = jax.tree.map(lambda p, a: p.astype(a.dtype), AWAY, anchor)
        once = box(0.3).project(state, away)
        twice = box(0.3).project(state, once)
        still = box(0.3).project(state, anchor)
        for name in ("w", "b"):
            np.testing.assert_array_equal(once[name], twice[name])
            np.testing.assert_array_equal(still[name], anchor[name])
            assert once[name].dtype == anchor[name].dtype


def test_any_regularizer_can_be_boxed_and_keeps_its_own_penalty():
    """Oracles: the penalty of the part alone, and the box alone, after two tasks.

    The anchor of separate EWC is a mean over tasks; the box stands at the last one.
    """
    importance = lambda _, params, __: jax.tree.map(jnp.ones_like, params)
    second = jax.tree.map(lambda leaf: leaf + 1.0, ANCHOR)
    for part in (ewc(importance, 2.0), l2(2.0), Regularizer()):
        both, alone = boxed(part, 0.1), sum_of(part)

        def two_tasks(regularizer):
            state = after_one_task(regularizer)
            return regularizer.end_task(jax.random.key(0), state, second, None)

        state = two_tasks(both)
        assert both.penalty(state, AWAY, None) == alone.penalty(
            two_tasks(alone), AWAY, None
        )
        kept = both.project(state, AWAY)["w"]
        np.testing.assert_allclose(kept, [3.3, -0.9, 1.1, 1.8], rtol=1e-6)


def test_bfloat16_leaves_the_box_by_its_rounding_and_no_more():
    """Oracle: the bound in float32; half a unit in the last place is 2^-8 or less."""
    anchor = {"w": jnp.array([1.0, 3.0, -2.7], jnp.bfloat16)}
    regularizer = box(0.01)
    away = jax.tree.map(lambda leaf: 2 * leaf, anchor)
    kept = regularizer.project(after_one_task(regularizer, anchor), away)["w"]
    start = np.asarray(anchor["w"], np.float32)
    moved = np.abs(np.asarray(kept, np.float32) / start - 1)
    assert np.all(moved <= 0.01 + 1.01 * 2.0**-8)
    assert np.any(moved > 0.01)  # control: it does leave
