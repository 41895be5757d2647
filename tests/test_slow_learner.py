"""I-LoRA on factors of a linear network, against a loop over its equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.averages import ema
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import reservoir
from jaxcl.method import default_learner
from jaxcl.methods import slow_learner
from jaxcl.tree import as_batch

INPUTS, RANK, CLASSES, ROWS, REPLAYED = 5, 2, 4, 6, 3
RATE, DECAY, STRENGTH, CAPACITY = 0.3, 0.8, 0.7, 10
KEY = jax.random.key(3)


def states(params, x):
    """The network: its hidden states are its logits, x A B."""
    return x @ params["q_proj"]["lora_a"] @ params["q_proj"]["lora_b"]


def make(optimizer=None, **options):
    return slow_learner(
        cross_entropy(single_head(lambda params, x, keys=None: states(params, x))),
        optimizer or optax.sgd(RATE),
        states,
        decay=DECAY,
        strength=STRENGTH,
        capacity=CAPACITY,
        sample_size=REPLAYED,
        **options,
    )


def start():
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape) / 2, jnp.float32)
    pair = {"lora_a": draw(INPUTS, RANK), "lora_b": draw(RANK, CLASSES)}
    return {"q_proj": pair}


def batches(count):
    random = np.random.default_rng(1)
    for _ in range(count):
        x = random.normal(size=(ROWS, INPUTS)).astype(np.float32)
        yield as_batch(x, random.integers(CLASSES, size=ROWS))


def gradient(a, b, x, outer):
    """Of a sum over rows of a function of x A B, from its derivatives there."""
    return x.T @ outer @ b.T, a.T @ x.T @ outer


def mean_cross_entropy_slope(a, b, x, y):
    """The derivative of the mean cross-entropy of rows by their logits."""
    scores = x @ a @ b
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return (shares - np.eye(CLASSES)[y]) / len(x)


def cut(matrix):
    """Factors of the nearest matrix of the rank."""
    u, s, v = np.linalg.svd(matrix)
    return u[:, :RANK] * s[:RANK], v[:RANK]


def losses_with_states(params, batch, keys):
    """Both from one pass."""
    held = states(params, batch.x)
    loss = cross_entropy(lambda *_: held)
    return loss(params, batch, keys), held


@pytest.mark.parametrize("with_hidden", [None, losses_with_states])
@pytest.mark.parametrize("of_products", [False, True])
@pytest.mark.parametrize("start_after", [0, 1])
def test_every_step_is_that_of_a_loop(of_products, start_after, with_hidden):
    """Oracle: the equations in float64; which rows are replayed is read off the memory.

    A third of the run is the first task, at whose end the slow learner may start.
    """
    method = make(
        of_products=of_products, start_after=start_after, with_hidden=with_hidden
    )
    memory = reservoir(CAPACITY, REPLAYED)
    given = list(batches(9))
    state = method.init(start(), given[0])
    a, b = (np.asarray(leaf, np.float64) for leaf in start()["q_proj"].values())
    slow_a, slow_b, ended = a, b, 0
    step = jax.jit(method.step)
    for number, batch in enumerate(given):
        if number == 3:
            state = method.end_task(KEY, state, batch)
            ended = 1
            if start_after:
                slow_a, slow_b = a, b
        key = jax.random.fold_in(KEY, number)
        replay = memory.sample(jax.random.split(key, 7)[1], state.memory)
        state, _ = step(key, state, batch)

        x, y = np.asarray(batch.x, np.float64), np.asarray(batch.y)
        slopes = gradient(a, b, x, mean_cross_entropy_slope(a, b, x, y))
        if number:  # both halves of the union count alike; then the distillation
            past, labels = np.asarray(replay.x, np.float64), np.asarray(replay.y)
            outer = mean_cross_entropy_slope(a, b, past, labels)
            union = [
                (new + old) / 2
                for new, old in zip(slopes, gradient(a, b, past, outer), strict=True)
            ]
            gap = past @ a @ b - past @ slow_a @ slow_b
            outer = STRENGTH * 2 * gap / gap.size
            slopes = [
                one + other
                for one, other in zip(union, gradient(a, b, past, outer), strict=True)
            ]
        a, b = a - RATE * slopes[0], b - RATE * slopes[1]
        if ended < start_after:
            slow_a, slow_b = a, b
        elif of_products:
            mixed = DECAY * slow_a @ slow_b + (1 - DECAY) * a @ b
            slow_a, slow_b = cut(mixed)
        else:
            slow_a = DECAY * slow_a + (1 - DECAY) * a
            slow_b = DECAY * slow_b + (1 - DECAY) * b

        held = method.learners(state)
        near = {"rtol": 1e-3, "atol": 1e-5}
        product = lambda tree: states(tree, np.eye(INPUTS, dtype=np.float32))
        np.testing.assert_allclose(product(held["fast"]), a @ b, **near)
        np.testing.assert_allclose(product(held["slow"]), slow_a @ slow_b, **near)
    # Negative control: the learners are not the same, so that their places matter.
    assert np.abs(slow_a @ slow_b - a @ b).max() > 0.01


def moved(method, count=4):
    """The state after some steps, at which the learners differ."""
    given = list(batches(count))
    state = method.init(start(), given[0])
    for number, batch in enumerate(given):
        state, _ = method.step(jax.random.fold_in(KEY, number), state, batch)
    return state


def test_both_learners_are_evaluated_and_the_slow_one_is_the_default():
    """Oracle: their order, and the state's own average and parameters."""
    method = make()
    state = moved(method)
    held = method.learners(state)
    assert list(held) == ["slow", "fast"]
    assert held["fast"] is state.params
    jax.tree.map(np.testing.assert_array_equal, held["slow"], state.average.average)
    first = default_learner(method, state)
    jax.tree.map(np.testing.assert_array_equal, first, held["slow"])
    slow, fast = held["slow"]["q_proj"]["lora_a"], held["fast"]["q_proj"]["lora_a"]
    assert np.abs(slow - fast).max() > 0.01


def test_learners_of_the_user_take_their_place():
    """Oracle: the names given, as for any other method."""
    method = make(learners=lambda state: {"mine": state.params})
    assert list(method.learners(moved(method, 1))) == ["mine"]


def test_what_has_an_average_of_its_own_is_refused():
    """Oracle: the words; a schedule-free optimizer, and a second average."""
    free = make(optimizer=optax.contrib.schedule_free_sgd(RATE))
    with pytest.raises(ValueError, match="a schedule-free optimizer takes no average="):
        free.init(start(), next(batches(1)))
    with pytest.raises(
        ValueError, match="average is set by the method itself, got ano"
    ):
        make(average=ema(0.5))
