import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxcl.transforms import random_sam, reverse_sam, sam
from tests.test_transforms.wavy import (
    START,
    descend,
    flat,
    grad_fn,
    loss,
    run,
    slope,
    tree,
    unit,
)

close = dict(rtol=2e-5, atol=2e-6)  # float32 against float64, sums of a dozen terms
whereabouts = lambda params: (
    params
)  # as grad_fn: tells where the gradient was asked for


def update_at(transformation, grads, params, grad_fn=whereabouts):
    state = transformation.init(params)
    return transformation.update(grads, state, params, grad_fn=grad_fn)


def test_sam_is_the_gradient_at_the_perturbed_point():
    """Oracle: the formula in NumPy, float64, five steps of descent."""
    found, state = run(sam(0.3), 5)
    want = descend(lambda _, w, g: slope(w + 0.3 * unit(g)), 5)
    np.testing.assert_allclose(found, want, **close)
    assert int(state.count) == 5


def test_sam_matches_its_closed_form_on_a_quadratic():
    """Oracle: on |x|^2 / 2 the gradient uphill is x + rho x / |x|."""
    x = jnp.array([3.0, 4.0])
    found, _ = update_at(sam(0.1), x, x, grad_fn=jax.grad(lambda x: 0.5 * x @ x))
    np.testing.assert_allclose(found, x + 0.1 * x / 5.0, rtol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.01, 1.0])
def test_adaptive_sam_stretches_each_entry_by_its_weight(eta):
    """Oracle: eps = rho T^2 g / |T g|, T = |w| + eta, in NumPy."""

    def rule(_, w, g):
        stretch = np.abs(w) + eta
        return slope(w + 0.5 * stretch**2 * g / np.linalg.norm(stretch * g))

    found, _ = run(sam(0.5, adaptive=True, eta=eta), 3)
    np.testing.assert_allclose(found, descend(rule, 3), **close)


def test_adaptive_sam_does_not_see_how_layers_are_scaled():
    """Law (eta = 0): rescaling weights and loss together rescales the perturbed point."""
    factor = {"bias": 10.0, "kernel": 0.1}
    params, grads = tree(START), grad_fn(tree(START))
    scaled = jax.tree.map(jnp.multiply, params, factor)
    steeper = jax.tree.map(jnp.divide, grads, factor)
    for adaptive in (True, False):
        perturb = sam(0.5, adaptive=adaptive, eta=0.0)
        point, _ = update_at(perturb, grads, params)
        other, _ = update_at(perturb, steeper, scaled)
        gap = flat(jax.tree.map(jnp.multiply, point, factor)) - flat(other)
        assert (np.max(np.abs(gap)) < 1e-5) == adaptive


def test_sam_of_zero_is_the_plain_gradient_and_asks_for_no_other():
    """Law, with the negative control that a positive radius does change it."""
    asked = []
    ask = lambda params: asked.append(1) or grad_fn(params)
    grads = grad_fn(tree(START))
    still = sam(0.0, measure=True)
    plain, state = update_at(still, grads, tree(START), grad_fn=ask)
    np.testing.assert_array_equal(flat(plain), flat(grads))
    assert not asked
    assert float(state.perturbed_norm) == float(state.grad_norm) > 0
    changed, _ = update_at(sam(0.1), grads, tree(START), grad_fn=ask)
    assert asked == [1]
    assert np.max(np.abs(flat(changed) - flat(grads))) > 1e-2


def test_the_logs_are_the_norms_and_the_product_of_both_gradients():
    """Oracle: NumPy; unasked, only what costs nothing is there."""
    _, state = run(sam(0.3, measure=True))
    below, above = slope(START), slope(START + 0.3 * unit(slope(START)))
    want = [0.3, np.linalg.norm(below), np.linalg.norm(above), below @ above]
    np.testing.assert_allclose(jnp.stack(state[1:]), want, rtol=1e-5)
    _, state = run(sam(0.3))
    np.testing.assert_allclose(jnp.stack(state[1:3]), want[:2], rtol=1e-5)
    assert state.perturbed_norm is state.alignment is None


# ------------------------------------------------------- where optax's own falls short


def test_a_zero_gradient_is_not_perturbed_and_its_derivative_is_finite():
    """Oracle: the point itself; optax.contrib.sam gives NaN here (negative control)."""
    zero = {"w": jnp.zeros(3), "b": jnp.zeros(2)}
    square = lambda params: 0.5 * sum(jnp.vdot(p, p) for p in jax.tree.leaves(params))

    def total(params, perturb):
        grads = jax.grad(square)(params)
        state = perturb.init(params)
        changed, _ = perturb.update(grads, state, params, grad_fn=jax.grad(square))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(changed)), changed

    for perturb in (
        sam(0.1),
        sam(0.1, adaptive=True),
        sam(0.1, adaptive=True, eta=0.0),
    ):
        slopes, changed = jax.grad(lambda p, c=perturb: total(p, c), has_aux=True)(zero)
        np.testing.assert_array_equal(flat(changed), 0.0)
        assert np.all(np.isfinite(flat(slopes)))

    theirs = optax.contrib.sam(
        optax.sgd(0.1),
        optax.chain(optax.contrib.normalize(), optax.sgd(0.1)),
        opaque_mode=True,
    )
    elsewhere = lambda params, _: jax.grad(square)(params)
    updates, _ = theirs.update(zero, theirs.init(zero), zero, grad_fn=elsewhere)
    assert np.any(np.isnan(flat(updates)))


def test_a_chain_may_want_the_value_as_well():
    """Oracle: the same chain without the part that reads the value and does nothing."""
    patient = optax.contrib.reduce_on_plateau(patience=1000)
    chain = optax.chain(sam(0.3), optax.sgd(0.1), patient)
    params = tree(START)

    @jax.jit
    def first(params):
        extra = dict(value=loss(params), grad_fn=grad_fn)
        return chain.update(grad_fn(params), chain.init(params), params, **extra)

    updates, _ = first(params)
    want = slope(START + 0.3 * unit(slope(START)))
    np.testing.assert_allclose(flat(updates), -0.1 * want, **close)


@pytest.mark.parametrize(("measure", "num_scalars"), [(False, 3), (True, 5)])
def test_the_state_holds_a_few_scalars_and_no_parameters(measure, num_scalars):
    """Oracle: counting leaves."""
    state = sam(0.1, measure=measure).init({"w": jnp.ones((100, 100))})
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()] * num_scalars


def test_a_step_is_one_call_one_count_and_one_move():
    """Oracle: the NumPy loop. Adam's count is the number of calls; the parameters that the

    caller holds are never the perturbed ones, and no step undoes the one before.
    """
    chain = optax.chain(sam(0.3), optax.scale_by_adam(), optax.scale(-0.1))

    @jax.jit
    def step(params, state):
        updates, state = chain.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    params = tree(START)
    state = chain.init(params)
    w, first, second = START.copy(), 0.0, 0.0
    for t in range(1, 5):
        params, state = step(params, state)
        g = slope(w + 0.3 * unit(slope(w)))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        rate = np.sqrt(second / (1 - 0.999**t)) + 1e-8
        w = w - 0.1 * first / (1 - 0.9**t) / rate
        np.testing.assert_allclose(flat(params), w, rtol=1e-4, atol=1e-4)
        assert int(state[0].count) == int(state[1].count) == t


def test_sam_agrees_with_an_independent_implementation():
    """Oracle: optax.contrib.sam in its opaque mode, SGD with momentum, four steps."""
    base = lambda: optax.sgd(0.05, momentum=0.9)
    normalised = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    theirs = optax.contrib.sam(base(), normalised, sync_period=2, opaque_mode=True)
    ours = optax.chain(sam(0.3), base())

    def go(optimizer, gradient_elsewhere):
        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(
                grad_fn(params), state, params, grad_fn=gradient_elsewhere
            )
            return optax.apply_updates(params, updates), state

        params = tree(START)
        state = optimizer.init(params)
        for _ in range(4):
            params, state = step(params, state)
        return flat(params)

    got, want = go(ours, grad_fn), go(theirs, lambda params, _: grad_fn(params))
    np.testing.assert_allclose(got, want, **close)


# --------------------------------------------------------------------- hyperparameters


def test_the_radius_may_be_a_schedule_of_the_count():
    """Oracle: NumPy with the schedule evaluated by hand; a new state starts it again."""
    warm = optax.linear_schedule(0.0, 0.4, 4)
    found, state = run(sam(warm), 3)
    want = descend(lambda t, w, g: slope(w + 0.1 * t * unit(g)), 3)
    np.testing.assert_allclose(found, want, **close)
    np.testing.assert_allclose(state.rho, 0.2, rtol=1e-6)


def test_the_radius_can_be_reached_and_changed_by_inject_hyperparams():
    """Oracle: NumPy, with the radius that was written into the state."""
    perturb = optax.inject_hyperparams(sam)(rho=0.1, adaptive=False)
    params = tree(START)
    state = perturb.init(params)
    state.hyperparams["rho"] = jnp.asarray(0.4)
    changed, state = jax.jit(
        lambda s: perturb.update(grad_fn(params), s, params, grad_fn=grad_fn)
    )(state)
    want = slope(START + 0.4 * unit(slope(START)))
    np.testing.assert_allclose(flat(changed), want, **close)
    warm = optax.inject_hyperparams(sam)(rho=optax.linear_schedule(0.2, 0.4, 1))
    found, _ = run(warm, 2)
    rule = lambda t, w, g: slope(w + (0.2 + 0.2 * t) * unit(g))
    np.testing.assert_allclose(found, descend(rule, 2), **close)


def test_a_grid_of_radii_is_one_vmap():
    """Oracle: NumPy, one radius after the other."""
    radii = jnp.array([0.0, 0.1, 0.5])
    point = jax.vmap(lambda rho: update_at(sam(rho), params, params)[0])
    params = tree(START)
    found = point(radii)
    for i, rho in enumerate(radii):
        want = START + float(rho) * unit(START)
        got = flat(jax.tree.map(lambda leaf, i=i: leaf[i], found))
        np.testing.assert_allclose(got, want, **close)


# ------------------------------------------------------------------------------ chains


def test_clipping_acts_before_or_after_the_perturbation():
    """Oracle: NumPy. Before, it cannot change the direction; after, it shortens."""
    clip = optax.clip_by_global_norm(0.01)
    raised = slope(START + 0.3 * unit(slope(START)))
    before, _ = run(optax.chain(clip, sam(0.3)))
    np.testing.assert_allclose(before[0], raised, **close)
    after, _ = run(optax.chain(sam(0.3), clip))
    np.testing.assert_allclose(after[0], 0.01 * unit(raised), **close)


def test_with_multi_steps_every_part_of_the_batch_is_perturbed_alone():
    """Oracle: the mean over parts of grad L_k(w + rho g_k / |g_k|), in NumPy."""
    scales = [1.0, -0.5, 2.0]
    inner = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    chain = optax.chain(sam(0.3), inner)

    @jax.jit
    def step(params, state, curvature):
        part = jax.grad(lambda p: loss(p) + 0.5 * curvature * jnp.sum(p["bias"] ** 2))
        updates, state = chain.update(part(params), state, params, grad_fn=part)
        return optax.apply_updates(params, updates), state

    params = tree(START)
    state = chain.init(params)
    on_bias = np.array([1.0] * 3 + [0.0] * 4)
    parts = []
    for scale in scales:
        np.testing.assert_allclose(flat(params), START, rtol=1e-6)
        params, state = step(params, state, scale)
        gradient = lambda w, scale=scale: slope(w) + scale * on_bias * w
        parts.append(gradient(START + 0.3 * unit(gradient(START))))
    np.testing.assert_allclose(flat(params), START - 0.1 * np.mean(parts, 0), **close)


# ---------------------------------------------------------------- masks, leaves, dtypes


@pytest.mark.parametrize(
    "mask",
    [
        {"bias": False, "kernel": True},
        lambda params: jax.tree.map(lambda leaf: leaf.ndim == 2, params),
        {"bias": np.zeros(3, bool), "kernel": np.ones((2, 2), bool)},
    ],
    ids=["tree", "function", "entries"],
)
def test_masked_leaves_stay_where_they_are_and_out_of_the_norm(mask):
    """Oracle: NumPy with the first three numbers taken out of the direction."""
    perturbs = np.array([0.0] * 3 + [1.0] * 4)
    direction = slope(START) * perturbs
    params, grads = tree(START), grad_fn(tree(START))
    point, state = update_at(sam(0.3, mask=mask), grads, params)
    want = START + 0.3 * unit(direction)
    np.testing.assert_allclose(flat(point), want, **close)
    np.testing.assert_array_equal(point["bias"], params["bias"])
    np.testing.assert_allclose(state.grad_norm, np.linalg.norm(direction), rtol=1e-5)
    point, _ = update_at(sam(0.3, adaptive=True, eta=0.1, mask=mask), grads, params)
    stretch = np.abs(START) + 0.1
    want = START + 0.3 * stretch**2 * direction / np.linalg.norm(stretch * direction)
    np.testing.assert_allclose(flat(point), want, **close)


def test_a_mask_may_be_a_prefix_of_the_parameters():
    """Oracle: the same mask written out in full."""
    params = {"base": tree(START), "adapter": tree(START[::-1])}
    grads = jax.tree.map(jnp.cos, params)
    ones = {"base": tree(0 * START), "adapter": tree(0 * START + 1)}
    full = jax.tree.map(lambda leaf: bool(leaf.ravel()[0]), ones)
    found, _ = update_at(sam(0.3, mask={"base": False, "adapter": True}), grads, params)
    want, _ = update_at(sam(0.3, mask=full), grads, params)
    np.testing.assert_array_equal(flat(found), flat(want))
    assert np.any(flat(found["adapter"]) != flat(params["adapter"]))


def test_missing_leaves_are_left_alone():
    """Oracle: the same parameters without them."""
    params = {"w": jnp.ones(3), "none": None}
    found, _ = update_at(sam(0.3), {"w": jnp.arange(3.0), "none": None}, params)
    want, _ = update_at(sam(0.3), {"w": jnp.arange(3.0)}, {"w": jnp.ones(3)})
    np.testing.assert_array_equal(found["w"], want["w"])
    assert found["none"] is None


def test_bfloat16_parameters_are_measured_and_moved_in_float32():
    """Oracle: NumPy in float64, rounded once; a sum in bfloat16 stops at 256."""
    grads = {"w": jnp.ones(4096, jnp.bfloat16)}
    params = {"w": jnp.linspace(0.5, 2.0, 4096).astype(jnp.bfloat16)}
    point, state = update_at(sam(3.0), grads, params)
    want = np.asarray(params["w"], np.float64) + 3.0 / 64
    assert point["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(point["w"], want.astype(jnp.bfloat16))
    assert state.grad_norm.dtype == jnp.float32
    assert float(state.grad_norm) == 64.0


def test_gradients_keep_the_dtype_they_came_in():
    """Oracle: the dtype that went in."""
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    changed, _ = update_at(sam(0.1), {"w": jnp.ones(3, jnp.float32)}, params)
    assert changed["w"].dtype == jnp.float32


# ---------------------------------------------------------------------------- controls


def test_reverse_sam_looks_downhill():
    """Oracle: the formula in NumPy."""
    found, _ = run(reverse_sam(0.3), 3)
    want = descend(lambda _, w, g: slope(w - 0.3 * unit(g)), 3)
    np.testing.assert_allclose(found, want, **close)


def test_random_sam_looks_at_an_equal_distance_anywhere():
    """Law: the distance is rho in every step, the directions differ and are not uphill."""
    points, state = run(random_sam(jax.random.key(3), 0.3), 40, 0.0, whereabouts)
    steps = points - START
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.3, rtol=1e-5)
    cosines = steps @ unit(START) / 0.3  # here the gradient is the point itself
    # 40 draws in 7 dimensions: the mean cosine has standard deviation 0.06.
    assert abs(cosines.mean()) < 0.25
    assert cosines.std() > 0.2
    assert np.linalg.norm(steps.mean(0)) < 0.3 / 2
    assert int(state.perturbation.count) == 40


def test_random_sam_moves_only_what_its_mask_lets_it():
    """Oracle: the point before."""
    params = tree(START)
    perturb = random_sam(jax.random.key(3), 0.3, mask={"bias": False, "kernel": True})
    point, _ = update_at(perturb, params, params)
    np.testing.assert_array_equal(point["bias"], params["bias"])
    moved = np.linalg.norm(np.asarray(point["kernel"] - params["kernel"]))
    np.testing.assert_allclose(moved, 0.3, rtol=1e-5)


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_the_key_survives_chains_schedules_and_injection(make_key):
    """Oracle: the bare transformation, whose run the same key repeats."""
    accumulate = optax.MultiSteps(optax.identity(), 1).gradient_transformation()

    def run_all(key):
        perturbs = [
            random_sam(key, 0.3),
            optax.inject_hyperparams(random_sam)(key, rho=0.3),
            optax.chain(random_sam(key, lambda _: 0.3), accumulate),
        ]
        runs = [run(perturb, 2, 0.1, whereabouts) for perturb in perturbs]
        return runs[0][1].key, np.stack([rows for rows, _ in runs])

    key, found = run_all(make_key(3))
    assert key.dtype == make_key(3).dtype
    np.testing.assert_allclose(found, np.stack([found[0]] * 3), rtol=1e-6)
    np.testing.assert_array_equal(run_all(make_key(3))[1], found)
    assert np.max(np.abs(run_all(make_key(4))[1] - found)) > 1e-3
    assert np.max(np.abs(found[0][1] - 0.9 * found[0][0])) > 1e-3  # a new direction


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_a_donated_state_does_not_take_the_callers_key_along(make_key):
    """Oracle: the key itself, still there. Control: a key that is donated is deleted."""
    key = make_key(3)
    perturb = random_sam(key, 0.3)
    step = lambda key: jax.random.fold_in(key, 1)  # what only passes through stays
    consume = jax.jit(
        lambda state: state._replace(key=step(state.key)), donate_argnums=0
    )
    consume(perturb.init(jnp.ones(2)))
    np.testing.assert_array_equal(
        jax.random.key_data(perturb.init(jnp.ones(2)).key),
        jax.random.key_data(make_key(3)),
    )
    other = make_key(3)
    jax.jit(step, donate_argnums=0)(other)
    assert other.is_deleted()
