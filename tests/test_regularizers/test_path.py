"""Importance along the path: SI and RWalk against their papers, step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.losses import cross_entropy, mean_loss, per_example, single_head
from jaxcl.method import make_method
from jaxcl.regularizers import box, riemannian_walk, sum_of, synaptic_intelligence
from jaxcl.training.device import with_num_steps
from jaxcl.tree import as_batch, at
from tests.steps import progress, seen

D, H, C = 4, 5, 3
RATE, MOMENTUM, RADIUS, STRENGTH = 0.2, 0.9, 0.5, 0.8


def apply(params, x, keys=None):
    del keys
    return jnp.tanh(x @ params["w"]) @ params["v"]


LOSS = cross_entropy(single_head(apply))
KEYS = jax.random.split(jax.random.key(0), 3)
PARAMS = {
    "w": jax.random.normal(KEYS[0], (D, H)),
    "v": jax.random.normal(KEYS[1], (H, C)),
}
NUM_PARAMS = D * H + H * C
X = jax.random.normal(KEYS[2], (16, D))


def batch_of(task, step):
    """Two tasks whose labels disagree; every step sees other rows."""
    x = jnp.roll(X, step, axis=0)[:6]
    return as_batch(x, jnp.argmax(x[:, task : task + C], axis=1))


GRAD = jax.jit(jax.grad(lambda p, batch: mean_loss(LOSS, p, batch, KEYS[0])))


def grads_at(theta, batch):
    return as_numpy(
        GRAD(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), theta), batch)
    )


def as_numpy(tree):
    return {name: np.asarray(leaf, np.float64) for name, leaf in tree.items()}


def found(regularizer, lengths, **options):
    """The state of ``regularizer`` after tasks of so many steps, with a box."""
    method = make_method(
        LOSS,
        optax.sgd(RATE, MOMENTUM),
        regularizer=sum_of(regularizer, box(RADIUS)),
        **options,
    )
    state = method.init(PARAMS, at(slice(1), batch_of(0, 0)))
    step = jax.jit(method.step)
    for task, length in enumerate(lengths):
        for i in range(length):
            state, _ = step(jax.random.key(i), state, batch_of(task, i))
        state = method.end_task(jax.random.key(9), state, batch_of(task, 0))
    return state.params, state.regularizer[0]


def by_loops(lengths, importance_of, *, penalised=False):
    """The same in NumPy: momentum SGD, penalty and box by hand, then ``importance_of``.

    ``importance_of(grads, points)``, of the gradients and parameters of a task in order,
    gives the next importance. With ``penalised`` it gets gradients of loss and penalty,
    which is what the papers do not do.
    """
    theta, importance = as_numpy(PARAMS), None
    anchor = dict(theta)
    for task, length in enumerate(lengths):
        velocity = {name: np.zeros_like(leaf) for name, leaf in theta.items()}
        grads, points = [], [dict(theta)]
        for i in range(length):
            data, total = grads_at(theta, batch_of(task, i)), {}
            for name, leaf in theta.items():
                total[name] = data[name].copy()
                if importance:
                    away = leaf - anchor[name]
                    total[name] += STRENGTH * importance[name] * away
                velocity[name] = MOMENTUM * velocity[name] + total[name]
                new = leaf - RATE * velocity[name]
                if importance:
                    reach = RADIUS * np.abs(anchor[name])
                    new = np.clip(new, anchor[name] - reach, anchor[name] + reach)
                theta[name] = new
            grads.append(total if penalised else data)
            points.append(dict(theta))
        importance = importance_of(grads, points)
        anchor = dict(theta)
    return theta, importance


class Synapses:
    """Zenke et al. 2017: omega of equation 3, Omega of equation 5."""

    def __init__(self, damping):
        self.damping, self.total = damping, 0

    def __call__(self, grads, points):
        result = {}
        for name in points[0]:
            omega = np.zeros_like(points[0][name])
            for t in range(len(grads)):
                omega -= grads[t][name] * (points[t + 1][name] - points[t][name])
            moved = points[-1][name] - points[0][name]
            result[name] = np.maximum(omega, 0) / (moved**2 + self.damping)
            if self.total:
                result[name] += self.total[name]
        self.total = result
        return result


class Walk:
    """Chaudhry et al. 2018, section 4.

    Scores of intervals are added up over a task, averaged half and half with those of
    earlier tasks from the second one on, and normalised, as is the running Fisher.
    """

    def __init__(self, decay, interval, *, rest=False):
        self.decay, self.interval, self.rest = decay, interval, rest
        self.fisher = self.score = None

    def __call__(self, grads, points):
        scores = {name: np.zeros_like(leaf) for name, leaf in points[0].items()}
        start = 0
        for t in range(len(grads)):
            new = {name: leaf**2 for name, leaf in grads[t].items()}
            for name in new if self.fisher else ():
                new[name] = (
                    self.decay * self.fisher[name] + (1 - self.decay) * new[name]
                )
            self.fisher = new
            last = self.rest and t + 1 == len(grads)
            if (t + 1) % self.interval and not last:
                continue
            for name in scores:
                loss = sum(
                    -grads[s][name] * (points[s + 1][name] - points[s][name])
                    for s in range(start, t + 1)
                )
                walked = points[t + 1][name] - points[start][name]
                distance = 0.5 * self.fisher[name] * walked**2 + 1e-12
                scores[name] += np.maximum(loss / distance, 0)
            start = t + 1
        if self.score:
            scores = {name: (self.score[name] + scores[name]) / 2 for name in scores}
        self.score = scores
        largest = lambda tree: max(leaf.max() for leaf in tree.values())
        tops = largest(self.fisher), largest(self.score)
        return {
            name: self.fisher[name] / tops[0] + self.score[name] / tops[1]
            for name in scores
        }


def assert_close(left, right, rtol=1e-3):
    for name in left:
        scale = np.abs(right[name]).max()
        np.testing.assert_allclose(
            left[name], right[name], rtol=rtol, atol=rtol * scale
        )


def test_synaptic_intelligence_is_that_of_the_paper_over_two_tasks():
    """Oracle: a NumPy loop, in which the box clips real changes in the second task.

    Negative control: the gradient of loss and penalty gives another importance.
    """
    params, state = found(synaptic_intelligence(STRENGTH, damping=0.05), (7, 9))
    theta, importance = by_loops((7, 9), Synapses(0.05))
    assert_close(params, theta)
    assert_close(state.anchor, theta)
    assert_close(state.importance, importance)
    assert not any(np.any(leaf) for leaf in state.path.values())
    _, other = by_loops((7, 9), Synapses(0.05), penalised=True)
    assert np.abs(other["w"] - importance["w"]).max() > 0.01 * importance["w"].max()


CURVATURE, START = np.array([0.5, 1.0, 2.0]), np.array([1.0, -2.0, 0.5])


@functools.cache
def path_on_a_quadratic(rate, num_steps):
    """What SI adds up on ``sum(c p^2) / 2``, and where descent ends."""
    quadratic = per_example(lambda p, example, key: 0.5 * jnp.sum(CURVATURE * p**2))
    method = make_method(
        quadratic, optax.sgd(rate), regularizer=synaptic_intelligence(0.0)
    )
    batch = as_batch(np.zeros((1, 1), np.float32), [0])
    state = method.init(jnp.asarray(START, jnp.float32), batch)
    step = lambda state, _: (method.step(jax.random.key(0), state, batch)[0], None)
    state = jax.jit(lambda s: jax.lax.scan(step, s, length=num_steps)[0])(state)
    return np.asarray(state.regularizer.path), np.asarray(state.params)


def test_small_steps_on_a_quadratic_take_its_height_away(x64):
    """Oracle: omega is c (start^2 - end^2) / 2, up to an error of first order in the rate.

    With a rate half as large the error must be half as large.
    """
    del x64
    errors = []
    for rate, num_steps in ((0.02, 100), (0.01, 200)):
        omega, end = path_on_a_quadratic(rate, num_steps)
        height = 0.5 * CURVATURE * (START**2 - end**2)
        np.testing.assert_allclose(omega, height, rtol=rate * CURVATURE.max())
        errors.append(omega / height - 1)
    np.testing.assert_allclose(errors[0] / errors[1], 2.0, rtol=0.05)


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("lengths", [(6, 9), (7, 8, 4)])
def test_the_riemannian_walk_is_that_of_the_paper(interval, lengths):
    """Oracle: a NumPy loop. Steps beyond the last whole interval of a task count nowhere,
    and the intervals of the next task begin with it."""
    walk = riemannian_walk(STRENGTH, fisher_decay=0.7, interval=interval)
    params, state = found(walk, lengths)
    theta, importance = by_loops(lengths, Walk(0.7, interval))
    assert_close(params, theta, rtol=5e-3)
    assert_close(state.importance, importance, rtol=5e-3)
    assert max(leaf.max() for leaf in state.importance.values()) <= 2


def test_the_last_step_of_a_task_of_known_length_ends_an_interval():
    """Oracle: the NumPy loop with the rest. Negative control: the loop without it."""
    walk = riemannian_walk(STRENGTH, fisher_decay=0.7, interval=3)
    method = make_method(LOSS, optax.sgd(RATE, MOMENTUM), regularizer=walk)
    state = method.init(PARAMS, at(slice(1), batch_of(0, 0)))
    state = with_num_steps(state, 5)
    for i in range(5):
        state, _ = method.step(jax.random.key(i), state, batch_of(0, i))
    state = method.end_task(jax.random.key(9), state, batch_of(0, 0))
    importance = state.regularizer.importance
    assert_close(importance, by_loops((5,), Walk(0.7, 3, rest=True))[1])
    without = by_loops((5,), Walk(0.7, 3))[1]
    assert np.abs(importance["w"] - without["w"]).max() > 0.01


def test_averages_of_scores_weigh_two_tasks_alike_and_the_third_like_both():
    """Oracle: by hand. One parameter moves in each task, by its own length and gradient.

    Scores are 2 * loss / (F d^2); the Fisher is that of the last step (decay 0), so its
    part of the importance is one at the last parameter and zero elsewhere.
    """
    walk = riemannian_walk(1.0, fisher_decay=0.0, interval=1)
    params = jnp.zeros(3)
    state = walk.init(params, ())
    scores = []
    for task, (gradient, move) in enumerate([(-1.0, 0.5), (-2.0, 0.5), (-1.0, 0.1)]):
        one = jnp.zeros(3).at[task].set(1.0)
        step = seen((), params, grads=gradient * one, updates=move * one)
        step = step._replace(progress=progress(task))
        params = params + move * one
        state = walk.observe(None, state, step, params)
        state = walk.end_task(None, state, params, ())
        scores.append(-gradient * move / (0.5 * gradient**2 * move**2))
        shares = {0: [1], 1: [1, 1], 2: [1, 1, 2]}[task]
        wanted = np.zeros(3)
        wanted[: task + 1] = np.multiply(shares, scores)
        wanted = wanted / wanted.max() + np.asarray(one)
        np.testing.assert_allclose(state.importance, wanted, rtol=1e-5)


@pytest.mark.parametrize("part", [synaptic_intelligence, riemannian_walk])
def test_a_parameter_that_moved_uphill_does_not_matter(part):
    """Oracle: by hand, of two parameters with one gradient that moved to both sides."""
    options = {"interval": 1} if part is riemannian_walk else {}
    regularizer, params = part(1.0, **options), jnp.zeros(2)
    state = regularizer.init(params, ())
    grads, move = jnp.ones(2), jnp.array([0.5, -0.5])
    step = seen((), params, grads=grads, updates=move)
    state = regularizer.observe(None, state, step, params + move)
    state = regularizer.end_task(None, state, params + move, ())
    fisher = 1.0 if part is riemannian_walk else 0.0
    gain = 1.0 if part is riemannian_walk else 0.5 / (0.25 + 0.1)
    np.testing.assert_allclose(state.importance, [fisher, fisher + gain], rtol=1e-6)


@pytest.mark.parametrize(
    ("part", "copies", "counts"),
    [(synaptic_intelligence, 3, 0), (riemannian_walk, 6, 2)],
)
def test_the_state_does_not_grow_with_the_tasks(part, copies, counts):
    """Oracle: counting numbers, after one task and after three."""
    for lengths in ((1,), (1, 1, 1)):
        _, state = found(part(STRENGTH), lengths)
        sizes = [leaf.size for leaf in jax.tree.leaves(state)]
        assert sum(sizes) == copies * NUM_PARAMS + counts


@pytest.mark.parametrize("part", [synaptic_intelligence, riemannian_walk])
def test_numbers_of_64_bits_leave_a_state_of_32_as_it_is(part, x64):
    """Oracle: the dtypes of the first state, where a grid gives the numbers as float64."""
    del x64
    params = jnp.ones(3, jnp.float32)
    options = {"interval": 1} if part is riemannian_walk else {}

    def run(damping):
        regularizer = part(damping, damping=damping, **options)
        first = regularizer.init(params, ())
        step = seen((), params, grads=params, updates=-params)
        state = regularizer.observe(None, first, step, 2 * params)
        return first, regularizer.end_task(None, state, 2 * params, ())

    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    first, last = jax.eval_shape(jax.vmap(run), jnp.array([0.1, 0.2], jnp.float64))
    assert kinds(first) == kinds(last)


@pytest.mark.parametrize("part", [synaptic_intelligence, riemannian_walk])
def test_the_penalty_is_a_quadratic_in_the_unit_of_ewc(part):
    """Oracle: strength / 2 * sum importance * (params - anchor)^2, in NumPy."""
    regularizer = part(STRENGTH)
    _, state = found(regularizer, (10,))
    away = {name: leaf + 0.1 for name, leaf in PARAMS.items()}
    expected = sum(
        np.sum(state.importance[n] * (np.asarray(away[n]) - state.anchor[n]) ** 2)
        for n in away
    )
    assert expected > 0
    value = regularizer.penalty(state, away, ())
    np.testing.assert_allclose(value, STRENGTH / 2 * expected, rtol=1e-5)
