"""The device loop against Python loops, and what its compiled program may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxcl.averages import ema
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import accuracy, cross_entropy, single_head
from jaxcl.memory import reservoir
from jaxcl.method import default_learner, make_method
from jaxcl.metrics import classification
from jaxcl.regularizers import ewc
from jaxcl.training import (
    accuracies,
    accuracy_row,
    batch_order,
    current_accuracy,
    first_example,
    first_row,
    fit_task,
    metric_row,
    over_runs,
    run_stream,
    steps_for,
)
from jaxcl.transforms import sam
from jaxcl.tree import as_batch, at
from jaxcl.typing import Stream

T, N, D, C = 3, 24, 6, 3
FIT = {"num_steps": 7, "batch_size": 8}
KEY = jax.random.key(5)


def apply(params, x, keys=None):
    del keys
    return jnp.tanh(x @ params["w"]) @ params["v"]


def init(key):
    key_w, key_v = jax.random.split(key)
    w, v = jax.random.normal(key_w, (D, 5)), jax.random.normal(key_v, (5, C))
    return {"w": w, "v": v}


LOGITS = single_head(apply)
LOSS = cross_entropy(LOGITS)


def tasks(key, rows=N):
    """T linearly separable-ish tasks, stacked."""

    def one(key, index):
        key_x, key_map = jax.random.split(key)
        x = jax.random.normal(key_x, (rows, D))
        y = jnp.argmax(x @ jax.random.normal(key_map, (D, C)), axis=1)
        return as_batch(x, y)._replace(task=jnp.full(rows, index, jnp.int32))

    return jax.vmap(one)(jax.random.split(key, T), jnp.arange(T))


@pytest.fixture
def stream():
    key_train, key_test = jax.random.split(jax.random.key(1))
    plan = (tasks(key_train), tasks(key_test, 10))
    first, second = (lambda pool, plan: plan[0]), (lambda pool, plan: plan[1])
    return Stream((), plan, first, second, C, "linear")


def full_method(strength=3.0):
    """Every kind of state that a task boundary changes."""
    return make_method(
        LOSS,
        optax.adam(0.02),
        gradient=sam(0.05),
        regularizer=ewc(empirical_fisher(LOSS), strength),
        memory=reservoir(10, 4),
        average=ema(0.9),
    )


def start(method, stream, seed=2):
    return method.init(init(jax.random.key(seed)), first_example(stream))


def assert_same(a, b, atol=0.0):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=0)


@pytest.mark.parametrize(("rows", "batch", "steps"), [(10, 4, 5), (7, 3, 9), (5, 5, 2)])
def test_every_pass_visits_every_real_row_once(rows, batch, steps):
    """Oracle: counting. Padding never appears; any two counts differ by at most one."""
    weight = jnp.array([1.0] * rows + [0.0] * 3)
    order = batch_order(jax.random.key(0), weight, num_steps=steps, batch_size=batch)
    count = np.bincount(np.asarray(order).ravel(), minlength=rows + 3)
    assert order.shape == (steps, batch)
    assert count[rows:].sum() == 0
    assert count[:rows].max() - count[:rows].min() <= 1
    first_pass = np.asarray(order).ravel()[: min(rows, steps * batch)]
    assert len(set(first_pass)) == len(first_pass)


def test_two_passes_have_different_orders():
    """Negative control of the law above: the order is drawn again."""
    order = batch_order(jax.random.key(0), jnp.ones(50), num_steps=10, batch_size=10)
    first, second = np.asarray(order).reshape(2, 50)
    assert not np.array_equal(first, second)


def test_fitting_a_task_equals_a_python_loop_over_its_steps(stream):
    """Oracle: the same steps, one jitted call each."""
    method = full_method()
    task = at(0, stream.plan[0])
    state = start(method, stream)
    key = jax.random.key(4)
    fitted, loss, finite = jax.jit(lambda s: fit_task(key, method, s, task, **FIT))(
        state
    )

    key_order, key_steps, key_end = jax.random.split(key, 3)
    order = batch_order(key_order, task.weight, **FIT)
    step, losses = jax.jit(method.step), []
    for i, rows in enumerate(order):
        state, info = step(jax.random.fold_in(key_steps, i), state, at(rows, task))
        losses.append(float(info.loss))
    state = jax.jit(method.end_task)(key_end, state, task)

    assert_same(state.params, fitted.params, atol=1e-5)
    assert_same(state.memory, fitted.memory, atol=1e-5)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    assert bool(finite)


def test_a_scanned_stream_equals_a_python_loop_over_tasks(stream):
    """Oracle: fit_task called once per task, accuracies by hand."""
    method = full_method()
    key = jax.random.key(5)
    walk = jax.jit(
        lambda s: run_stream(
            key, method, stream, s, after=accuracy_row(LOGITS, stream), **FIT
        )
    )
    state, record = walk(start(method, stream))

    by_hand, rows = start(method, stream), []
    fit = jax.jit(lambda key, state, task: fit_task(key, method, state, task, **FIT))
    for t in range(T):
        key_fit = jax.random.split(jax.random.fold_in(key, t), 3)[0]
        by_hand, _, _ = fit(key_fit, by_hand, at(t, stream.plan[0]))
        params = default_learner(method, by_hand)
        tests = [at(j, stream.plan[1]) for j in range(T)]
        rows.append([float(accuracy(LOGITS, params, test)) for test in tests])
    assert_same(state.params, by_hand.params, atol=1e-5)
    np.testing.assert_allclose(record.after, rows, atol=1e-6)


def test_segments_give_the_same_bits_as_the_whole_stream(stream):
    """Oracle: the uncut run, compared bit for bit."""
    method = full_method()
    walk = jax.jit(
        lambda s, tasks: run_stream(
            jax.random.key(5), method, stream, s, tasks=tasks, **FIT
        )
    )
    whole, record = walk(start(method, stream), jnp.arange(T))
    state, losses = start(method, stream), []
    for t in range(T):
        state, part = walk(state, jnp.array([t]))
        losses.append(part.loss)
    assert_same(whole.params, state.params)
    np.testing.assert_array_equal(record.loss, jnp.concatenate(losses))


def test_a_vmapped_run_equals_the_run_alone_and_compiles_once(stream):
    """Oracle: three runs one by one. Strength and seed are both traced."""
    traces = []

    def run(key, strength):
        traces.append(1)
        method = full_method(strength)
        state = method.init(init(key), first_example(stream))
        state, record = run_stream(key, method, stream, state, **FIT)
        return default_learner(method, state), record.loss

    keys, strengths = jax.random.split(jax.random.key(6), 3), jnp.array([0.0, 3.0, 9.0])
    together = jax.jit(over_runs(run))
    params, loss = together(keys, strengths)
    together(keys[::-1], strengths + 1)
    assert len(traces) == 1
    alone = jax.jit(run)
    for i in range(3):
        one_params, one_loss = alone(keys[i], strengths[i])
        assert_same(one_params, at(i, params), atol=1e-5)
        np.testing.assert_allclose(one_loss, loss[i], atol=1e-5)
    assert not np.allclose(*(ravel_pytree(at(i, params))[0] for i in (0, 1)))


@pytest.mark.parametrize("at_once", [1, 2])
def test_runs_that_take_turns_equal_runs_at_once(stream, at_once):
    """Oracle: the plain vmap, with a rest (five runs, two at once) and none."""
    method = full_method()

    def run(key, plan):
        state = method.init(init(key), first_example(stream))
        here = stream._replace(plan=plan)
        return run_stream(key, method, here, state, **FIT)

    keys = jax.random.split(jax.random.key(6), 5)
    want, loss = jax.jit(over_runs(run, (0, None)))(keys, stream.plan)
    got, turns = jax.jit(over_runs(run, (0, None), at_once=at_once))(keys, stream.plan)
    assert_same(want.params, got.params, atol=1e-5)
    np.testing.assert_allclose(loss.loss, turns.loss, atol=1e-5)
    with pytest.raises(ValueError, match="at_once must be an int of at least 1"):
        over_runs(run, (0, None), at_once=0)


def test_runs_spread_over_a_mesh_equal_runs_on_one_device(stream):
    """Oracle: the plain vmap. Eight pretend devices, two runs each."""
    method = full_method()

    def run(key, plan):
        state = method.init(init(key), first_example(stream))
        here = stream._replace(plan=plan)
        return run_stream(key, method, here, state, **FIT)[0].params

    mesh = jax.make_mesh((8,), ("runs",), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(6), 16)
    one = jax.jit(over_runs(run, (0, None)))(keys, stream.plan)
    for at_once in (None, 1):
        spread = over_runs(run, (0, None), mesh=mesh, at_once=at_once)
        many = jax.jit(spread)(keys, stream.plan)
        assert len(jax.tree.leaves(many)[0].sharding.device_set) == 8
        assert_same(one, many, atol=1e-6)
    with pytest.raises(ValueError, match="evenly divisible"):
        over_runs(run, (0, None), mesh=mesh)(keys[:12], stream.plan)


def test_skipped_rows_of_the_accuracy_matrix_are_nan(stream):
    """Oracle: the full matrix; every=2 of three tasks leaves row 0 out."""
    method = make_method(LOSS, optax.sgd(0.1))
    walk = lambda **options: jax.jit(
        lambda s: (
            run_stream(
                jax.random.key(5),
                method,
                stream,
                s,
                after=accuracy_row(LOGITS, stream, **options),
                **FIT,
            )[1].after
        )
    )(start(method, stream))
    full, sparse = walk(), walk(every=2)
    assert np.isnan(sparse[0]).all()
    np.testing.assert_array_equal(full[1:], sparse[1:])
    few = walk(num_examples=4)
    assert set(np.unique(np.asarray(few) * 4)) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_the_current_accuracy_is_the_diagonal_of_the_matrix(stream):
    """Oracle: the accuracy matrix of the same run; chunks change nothing."""
    method = make_method(LOSS, optax.sgd(0.1))
    both = lambda m: (
        current_accuracy(LOGITS, stream, chunk_size=5)(m),
        accuracy_row(LOGITS, stream)(m),
    )
    _, record = run_stream(
        jax.random.key(5), method, stream, start(method, stream), after=both, **FIT
    )
    diagonal, matrix = record.after
    np.testing.assert_allclose(diagonal, jnp.diagonal(matrix))
    params = init(jax.random.key(2))
    by_hand = [accuracy(LOGITS, params, at(j, stream.plan[1])) for j in range(T)]
    np.testing.assert_allclose(accuracies(LOGITS, params, stream), by_hand)


def test_a_diverged_run_is_flagged_from_its_first_bad_task(stream):
    """Oracle: an absurd learning rate overflows; a sane one never raises the flag."""
    for rate, fine in ((3e38, False), (0.1, True)):
        method = make_method(LOSS, optax.sgd(rate))
        _, record = run_stream(
            jax.random.key(5), method, stream, start(method, stream), **FIT
        )
        assert bool(jnp.all(record.finite)) is fine


def test_steps_are_the_ceiling_and_bad_sizes_say_so():
    """Oracle: arithmetic."""
    assert steps_for(10, batch_size=4) == 3
    assert steps_for(10, batch_size=4, num_epochs=2) == 5
    assert steps_for(3, batch_size=4, num_epochs=2) == 2  # each batch visits all
    with pytest.raises(ValueError, match="at least 1"):
        steps_for(3, batch_size=0)


def test_a_batch_larger_than_a_task_holds_all_of_its_rows_once(stream):
    """Oracle: gradient descent on whole tasks."""
    method = make_method(LOSS, optax.sgd(0.1))
    params = init(jax.random.key(0))
    state = method.init(params, first_example(stream))
    large = FIT | {"batch_size": N + 5}
    found = run_stream(jax.random.key(5), method, stream, state, **large)[0].params
    for t in range(T):
        task = at(t, stream.plan[0])
        for _ in range(FIT["num_steps"]):
            grads = jax.grad(
                lambda p, task=task: jnp.mean(LOSS(p, task, jax.random.split(KEY, N)))
            )(params)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    for name in ("w", "v"):
        np.testing.assert_allclose(found[name], params[name], atol=1e-5)


def test_tasks_of_their_own_lengths_are_learned_by_one_program(stream):
    """Oracle: each task alone with its own number of steps; a counter in the traced code.
    Negative control: the longest length for all is another end."""
    traces = []

    def walk(num_steps):
        method = full_method()
        counted = method._replace(
            step=lambda *given: (traces.append(1), method.step(*given))[1]
        )
        state = method.init(init(jax.random.key(0)), first_example(stream))
        fit = jax.jit(
            lambda key, state: run_stream(
                key, counted, stream, state, num_steps=num_steps, batch_size=8
            )
        )
        return fit(KEY, state)

    state, record = walk([7, 2, 5])
    assert (
        len(traces) <= 3
    )  # a scan and a branch trace its body a few times, once for all
    by_hand = full_method().init(init(jax.random.key(0)), first_example(stream))
    losses = []
    for t, steps in enumerate((7, 2, 5)):
        by_hand, found = run_stream(
            KEY,
            full_method(),
            stream,
            by_hand,
            num_steps=steps,
            batch_size=8,
            tasks=jnp.array([t]),
        )
        losses.append(found.loss[0])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    close(ravel_pytree(state.params)[0], ravel_pytree(by_hand.params)[0])
    close(record.loss, jnp.stack(losses))
    assert int(state.progress.num_steps) == 5
    same = walk(7)[0].params["w"]
    assert not np.allclose(state.params["w"], same, atol=1e-3)
    with pytest.raises(ValueError, match="one for each of the 3 tasks, got 2"):
        walk([7, 2])


def test_results_of_metrics_and_learners_are_those_of_single_evaluations(stream):
    """Oracle: the accuracy of each learner on each task, one by one; NaN where no row was
    due or the task was not seen."""
    metric, method = classification(LOGITS), full_method()
    state = method.init(init(jax.random.key(0)), first_example(stream))
    before = first_row(metric, stream, method, state)

    def walk(**options):
        look = metric_row(metric, stream, **options)
        return run_stream(KEY, method, stream, state, after=look, **FIT)

    state_end, record = walk()
    found = record.after
    assert set(found) == {"accuracy", "loss"}
    assert set(found["accuracy"]) == {"average", "params"} == set(before["loss"])
    assert found["accuracy"]["params"].shape == (T, T)
    for name, params in method.learners(state_end).items():
        for t in range(T):
            test = at(t, stream.plan[1])
            want = accuracy(LOGITS, params, test)
            np.testing.assert_allclose(found["accuracy"][name][-1, t], want, atol=1e-6)
    first = accuracy(LOGITS, state.params, at(1, stream.plan[1]))
    np.testing.assert_allclose(before["accuracy"]["params"][1], first, atol=1e-6)
    rare = walk(every=2)[1].after["loss"]["average"]
    np.testing.assert_array_equal(np.isnan(rare).all(axis=1), [True, False, False])


def test_a_task_counted_from_the_end_is_the_one_counted_from_the_start(stream):
    """Oracle: the same task by its number; bits are equal, keys too."""
    method = make_method(LOSS, optax.sgd(0.1))
    state = method.init(init(jax.random.key(0)), first_example(stream))
    walk = lambda tasks: run_stream(
        jax.random.key(5), method, stream, state, tasks=tasks, **FIT
    )
    same, other = (walk(jnp.array([t]))[0].params["w"] for t in (T - 1, 0))
    np.testing.assert_array_equal(walk(jnp.array([-1]))[0].params["w"], same)
    assert not np.array_equal(other, same)


def test_a_last_update_that_overflows_is_not_finite(stream):
    """Oracle: a learning rate that is infinite at the last step, after a finite loss."""
    rate = lambda count: jnp.where(count == 6, jnp.inf, 0.1)
    found = []
    for schedule in (rate, 0.1):
        method = make_method(LOSS, optax.sgd(schedule))
        state = method.init(init(KEY), first_example(stream))
        _, loss, finite = fit_task(KEY, method, state, at(0, stream.plan[0]), **FIT)
        found.append((bool(jnp.isfinite(loss)), bool(finite)))
    assert found == [(True, False), (True, True)]


def test_what_is_observed_before_and_after_a_task_draws_from_keys_of_its_own(stream):
    """Oracle: the keys themselves, of all tasks."""
    look = lambda snapshot: jax.random.key_data(snapshot.key)
    method = make_method(LOSS, optax.sgd(0.1))
    state = method.init(init(KEY), first_example(stream))
    _, record = run_stream(KEY, method, stream, state, before=look, after=look, **FIT)
    keys = np.concatenate([record.before, record.after])
    assert len(np.unique(keys, axis=0)) == 2 * T
