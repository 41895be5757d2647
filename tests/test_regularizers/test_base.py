import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.curvature import uniform_importance
from jaxcl.regularizers import (
    box,
    distill,
    ewc,
    feature_distillation,
    l2,
    l2_init,
    scaled,
    sum_of,
)
from jaxcl.tree import as_batch, axpy
from jaxcl.typing import Regularizer
from tests.steps import context


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


START, SOLUTION, POINT = ({"w": draw(seed, 3, 2)} for seed in range(3))
BATCH, REPLAY = (as_batch(draw(s, 4, 3), np.arange(4) % 2) for s in (3, 4))
CONTEXT = context(BATCH, REPLAY, {"w": draw(5, 3, 2)})
NOISE = lambda key, *_: {"w": jax.random.uniform(key, (3, 2))}


def hidden(params, x):
    return x @ params["w"]


def outputs(params, batch):
    return hidden(params, batch.x)


PARTS = {
    "l2": lambda strength: l2(strength),
    "l2_init": lambda strength: l2_init(strength),
    "ewc": lambda strength: ewc(NOISE, strength),
    "online": lambda strength: ewc(uniform_importance(), strength, decay=0.9),
    "distill": lambda strength: distill(outputs, strength),
    "feature_distillation": lambda strength: feature_distillation(hidden, strength),
}


def effect(regularizer):
    """All a method can see of it after one task: value, gradient and projection."""
    state = regularizer.init(START, ())
    state = regularizer.end_task(jax.random.key(1), state, SOLUTION, BATCH)
    penalty = lambda params: regularizer.penalty(state, params, CONTEXT)
    value, grad = jax.value_and_grad(penalty)(POINT)
    return value, grad["w"], regularizer.project(state, POINT)["w"]


NOTHING = (0.0, jnp.zeros((3, 2)), POINT["w"])


def assert_same(one, other, rtol=0.0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol)


def test_the_neutral_regularizer_does_nothing_and_holds_nothing():
    """Oracle: zero value, zero gradient, unchanged parameters, no state."""
    assert_same(effect(Regularizer()), NOTHING)
    assert_same(effect(sum_of()), NOTHING)
    assert jax.tree.leaves(sum_of(Regularizer()).init(START, ())) == []


@pytest.mark.parametrize("name", PARTS)
def test_strength_zero_is_nothing_and_strength_one_is_not(name):
    """Law: part(0) = none; negative control: part(1) has a value and a gradient."""
    assert_same(jax.jit(lambda: effect(PARTS[name](0.0)))(), NOTHING)
    value, grad, projected = jax.jit(lambda: effect(PARTS[name](1.0)))()
    assert value > 1e-3
    assert np.abs(grad).max() > 1e-3
    np.testing.assert_array_equal(projected, POINT["w"])


def test_sums_form_a_monoid_and_projections_follow_one_another():
    """Laws: neutral on both sides; brackets do not matter, even to random parts."""
    a, b, c = ewc(NOISE, 2.0), sum_of(l2_init(0.3), box(0.1)), box(0.2)
    terms = {
        "a": a,
        "none + a": sum_of(Regularizer(), a),
        "a + ()": sum_of(a, sum_of()),
        "(a + b) + c": sum_of(sum_of(a, b), c),
        "a + (b + c)": sum_of(a, sum_of(b, c)),
        "a + b + c": sum_of(a, b, c),
        "b": b,
        "c": c,
    }
    seen = jax.jit(lambda: {name: effect(term) for name, term in terms.items()})()
    assert_same(seen["none + a"], seen["a"])
    assert_same(seen["a + ()"], seen["a"])
    assert_same(seen["(a + b) + c"], seen["a + b + c"], rtol=1e-6)
    assert_same(seen["a + (b + c)"], seen["a + b + c"], rtol=1e-6)
    for i in range(2):  # values and gradients add
        total = seen["a"][i] + seen["b"][i] + seen["c"][i]
        np.testing.assert_allclose(seen["a + b + c"][i], total, rtol=1e-5)
    for one, other in itertools.combinations(("a", "b", "a + b + c"), 2):
        assert not np.allclose(seen[one][0], seen[other][0])


def test_projections_of_a_sum_act_in_order():
    """Oracle: two toy projections that do not commute."""
    add = Regularizer(project=lambda _, params: params + 1)
    double = Regularizer(project=lambda _, params: params * 2)
    both = lambda *parts: sum_of(*parts).project(sum_of(*parts).init(0, ()), 3)
    assert both(add, double) == 8
    assert both(double, add) == 7


@pytest.mark.parametrize("name", ["l2", "ewc"])
def test_a_scaled_penalty_is_that_many_times_as_strong(name):
    """Law: scaled(f, part(s)) = part(f s); the projection is left alone."""
    boxes = lambda part: sum_of(part, box(0.1))
    scale = lambda: effect(scaled(3.0, boxes(PARTS[name](0.5))))
    one, other = jax.jit(lambda: (scale(), effect(boxes(PARTS[name](1.5)))))()
    assert_same(one, other, rtol=1e-6)
    assert not np.allclose(one[2], POINT["w"])


@pytest.mark.parametrize("name", PARTS)
def test_the_gradient_is_that_of_the_value(name):
    """Law: first-order consistency; central differences in 64 bits."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(
            lambda leaf: (
                leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf
            ),
            tree,
        )
        context = CONTEXT._replace(
            batch=wide(BATCH), replay=wide(REPLAY), average=wide(CONTEXT.average)
        )
        along = wide({"w": draw(6, 3, 2)})

        def gap():
            part = PARTS[name](0.7)
            state = part.init(wide(START), ())
            state = part.end_task(jax.random.key(1), state, wide(SOLUTION), BATCH)
            penalty = lambda params: part.penalty(state, params, context)
            slope = jnp.vdot(jax.grad(penalty)(wide(POINT))["w"], along["w"])
            ends = (penalty(axpy(s * 1e-5, along, wide(POINT))) for s in (1, -1))
            rise = next(ends) - next(ends)
            return slope, rise / 2e-5

        slope, rise = map(float, jax.jit(gap)())
    np.testing.assert_allclose(slope, rise, rtol=1e-6)
    assert abs(slope) > 1e-3
