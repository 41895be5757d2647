import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.curvature import (
    batched_fisher,
    empirical_fisher,
    exact_fisher,
    example_gradients,
    most_likely_fisher,
    output_sensitivity,
    sampled_fisher,
)
from jaxcl.losses import cross_entropy, single_head
from jaxcl.tree import as_batch, at
from tests.oracles import loop_fisher

ROWS, CLASSES = 10, 3


def apply(params, x, keys=None):
    del keys
    return jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]


LOGITS = single_head(apply)
LOSS = cross_entropy(LOGITS)


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def network():
    return {"in": draw(0, 4, 5), "bias": draw(1, 5), "out": draw(2, 5, CLASSES)}


def make_task(weight=None):
    labels = np.random.default_rng(4).integers(0, CLASSES, ROWS)
    return as_batch(draw(3, ROWS, 4), labels, weight=weight)


PADDED = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1, 0])


def assert_close(found, expected, rtol=1e-6):
    """Relative to the largest entry of the leaf."""
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, 0, atol=rtol * abs(e).max()),
        found,
        expected,
    )


def log_likelihood(params, row, label):
    return jax.nn.log_softmax(apply(params, row.x))[label]


def given_label(params, row):
    del params
    return [(1.0, row.y)]


def every_class(params, row):
    return list(zip(jax.nn.softmax(apply(params, row.x)), range(CLASSES), strict=True))


def test_the_empirical_fisher_is_the_mean_of_squares_whatever_the_chunk(key, x64):
    """Oracle: a Python loop over real rows, in 64 bits; padding holds wild values."""
    del x64
    params, task = network(), make_task(PADDED)
    expected = loop_fisher(log_likelihood, given_label, params, task, PADDED)
    wild = task._replace(x=jnp.where(PADDED[:, None] == 0, 1e3, task.x))
    for chunk_size in (None, 3):
        fisher = empirical_fisher(LOSS, chunk_size=chunk_size)
        found = jax.jit(fisher)(key, params, wild)
        assert_close(found, expected, rtol=1e-12)


def test_the_exact_fisher_is_an_expectation_over_classes(key, x64):
    """Oracles: a loop over rows and classes; the Gauss-Newton diagonal, densely."""
    del x64
    params, task = network(), make_task(PADDED)
    found = jax.jit(exact_fisher(LOGITS, chunk_size=4))(key, params, task)
    loop = loop_fisher(log_likelihood, every_class, params, task, PADDED)
    assert_close(found, loop, rtol=1e-12)

    def gauss_newton(params):
        jacobian = jax.vmap(jax.jacrev(apply), (None, 0))(params, task.x)
        shares = jax.nn.softmax(jax.vmap(apply, (None, 0))(params, task.x))
        middle = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(shares)
        diagonal = lambda j: jnp.einsum(
            "b,bc...,bck,bk...->...", PADDED / PADDED.sum(), j, middle, j
        )
        return jax.tree.map(diagonal, jacobian)

    assert_close(found, jax.jit(gauss_newton)(params), rtol=1e-10)


def test_the_sampled_fisher_approaches_the_exact_one(key):
    """Oracle: the exact Fisher, within 5 %; 4,000 draws leave about 1 % of noise."""
    params, task = network(), make_task(PADDED)

    def check(key, params, task):
        many = sampled_fisher(LOGITS, num_draws=4000)(key, params, task)
        return many, exact_fisher(LOGITS)(key, params, task)

    many, exact = jax.jit(check)(key, params, task)
    assert_close(many, exact, rtol=0.05)
    given = loop_fisher(log_likelihood, given_label, params, task, PADDED)
    assert np.abs(given["in"] - exact["in"]).max() > 0.1 * exact["in"].max()


def test_one_draw_takes_one_class_by_its_probability(key):
    """Oracle: the squares for each class of one row, and how often each is met."""
    params, task = network(), at(slice(1), make_task())
    grads = jax.jit(jax.jacobian(lambda p: jax.nn.log_softmax(apply(p, task.x[0]))))
    squares = grads(params)["in"] ** 2
    draw_one = jax.jit(jax.vmap(sampled_fisher(LOGITS), (0, None, None)))
    drawn = draw_one(jax.random.split(key, 400), params, task)["in"]
    gaps = np.abs(drawn[:, None] - squares[None]).max((2, 3))
    assert np.all(gaps.min(1) < 1e-6 * squares.max())
    shares = np.bincount(gaps.argmin(1), minlength=CLASSES) / 400
    expected = jax.nn.softmax(apply(params, task.x[0]))
    np.testing.assert_allclose(shares, expected, atol=0.1)  # four standard errors


def test_squares_of_batch_means_are_not_the_fisher(key):
    """Oracles: a loop over batches; at an optimum the batched estimate is F / B less."""
    params, task = network(), make_task(PADDED)

    def loop(params):
        squares, count = [], 0
        for start in range(0, ROWS, 4):
            rows = at(slice(start, start + 4), task)
            mean = lambda p, rows=rows: (
                jnp.sum(rows.weight * LOSS(p, rows, None)) / jnp.sum(rows.weight)
            )
            squares.append(jax.tree.map(jnp.square, jax.grad(mean)(params)))
            count += 1
        return jax.tree.map(lambda *s: sum(s) / count, *squares)

    batched = lambda size: jax.jit(batched_fisher(LOSS, batch_size=size))
    assert_close(batched(4)(key, params, task), jax.jit(loop)(params), rtol=2e-6)
    single = jax.jit(empirical_fisher(LOSS))(key, params, task)
    assert_close(batched(1)(key, params, task), single, rtol=2e-6)

    # Two rows that disagree on one input: the mean gradient vanishes at p = 1/2.
    torn = as_batch(jnp.ones((2, 1)), np.array([0, 1]))
    two = lambda w, x, keys: jnp.stack([x @ w, jnp.zeros(len(x))], axis=1)
    loss = cross_entropy(single_head(two))
    flat = jnp.zeros(1)
    np.testing.assert_allclose(empirical_fisher(loss)(key, flat, torn), 0.25)
    whole = batched_fisher(loss, batch_size=2)
    np.testing.assert_allclose(whole(key, flat, torn), 0.0)


def test_a_subset_holds_real_rows_once_each_and_at_random(key):
    """Oracle: rows whose squared gradients are powers of two spell what was chosen."""
    weight = np.array([1, 0, 1, 1, 1, 0, 1, 1])
    code = 2.0 ** np.arange(8)
    task = as_batch(jnp.sqrt(code), np.zeros(8, int), weight=weight)
    loss = lambda params, batch, keys: params * batch.x
    fisher = empirical_fisher(loss, num_examples=3, chunk_size=2)
    chosen = jax.jit(jax.vmap(fisher, (0, None, None)))
    sums = 3 * chosen(jax.random.split(key, 300), jnp.zeros(()), task)
    bits = np.round(np.asarray(sums)).astype(int)[:, None] >> np.arange(8) & 1
    np.testing.assert_array_equal(bits.sum(1), 3)
    np.testing.assert_array_equal(bits[:, weight == 0], 0)
    shares = bits[:, weight == 1].mean(0)  # each 1/2, standard error 0.03
    assert np.all(abs(shares - 0.5) < 0.13)

    everyone = empirical_fisher(loss, num_examples=6)(key, jnp.zeros(()), task)
    np.testing.assert_allclose(everyone, code[weight == 1].mean(), rtol=1e-6)
    more = empirical_fisher(loss, num_examples=7)(key, jnp.zeros(()), task)
    np.testing.assert_allclose(more, everyone, rtol=1e-6)


WEIGHTS = np.array([0.5, 2, 0, 1, 0.5, 2, 2, 0.25, 37, 0])


@pytest.mark.parametrize(
    "build",
    [
        lambda **more: empirical_fisher(LOSS, **more),
        lambda **more: exact_fisher(LOGITS, **more),
        lambda **more: sampled_fisher(LOGITS, **more),
        lambda **more: sampled_fisher(LOGITS, num_draws=7, **more),
    ],
    ids=["empirical", "exact", "sampled", "sampled often"],
)
def test_weights_of_any_size_weigh_squares(key, build, x64):
    """Oracle: a loop over rows, ``sum w F / sum w`` of the Fishers of each row alone."""
    del x64
    params, task = network(), make_task(WEIGHTS)
    fisher = jax.jit(build(chunk_size=3))
    total = jax.tree.map(np.zeros_like, params)
    for i, weight in enumerate(WEIGHTS):
        alone = task._replace(weight=jnp.zeros(ROWS).at[i].set(1.0))
        row = fisher(key, params, alone)
        total = jax.tree.map(lambda t, r, w=weight: t + w * r, total, row)
    expected = jax.tree.map(lambda leaf: leaf / WEIGHTS.sum(), total)
    found = fisher(key, params, task)
    assert_close(found, expected, rtol=1e-6)  # weights are float32
    ones = fisher(key, params, task._replace(weight=jnp.sign(task.weight)))
    assert np.abs(found["in"] - ones["in"]).max() > 0.05 * ones["in"].max()  # control


def test_the_most_likely_fisher_takes_the_label_of_highest_score(key, x64):
    """Oracle: a Python loop over rows, one gradient of the most likely label each."""
    del x64
    params, task = network(), make_task(WEIGHTS)
    best = lambda params, row: [(1.0, int(jnp.argmax(apply(params, row.x))))]
    loop = loop_fisher(log_likelihood, best, params, task, WEIGHTS)
    found = jax.jit(most_likely_fisher(LOGITS, chunk_size=3))(key, params, task)
    assert_close(found, loop, rtol=1e-6)
    given = jax.jit(empirical_fisher(LOSS))(key, params, task)
    assert np.abs(found["in"] - given["in"]).max() > 0.05 * given["in"].max()  # control


def test_output_sensitivity_is_the_mean_of_absolute_gradients(key, x64):
    """Oracle: equation 2 of MAS by a Python loop over rows, one gradient at a time."""
    del x64
    params, task = network(), make_task(WEIGHTS)
    square = lambda params, x: jnp.sum(jnp.square(apply(params, x)))
    gradient = jax.jit(jax.grad(square))
    total = jax.tree.map(np.zeros_like, params)
    for i, weight in enumerate(WEIGHTS):
        row = gradient(params, task.x[i])
        add = lambda t, g, w=weight: t + w * np.abs(g)
        total = jax.tree.map(add, total, row)
    expected = jax.tree.map(lambda leaf: leaf / WEIGHTS.sum(), total)
    fisher = output_sensitivity(LOGITS, chunk_size=3)
    assert_close(jax.jit(fisher)(key, params, task), expected, rtol=1e-6)


def test_weighted_squares_are_those_of_single_gradients(key, x64):
    """Oracle: Python loops over rows, classes and batches, one gradient at a time."""
    del x64
    params, task = network(), make_task(WEIGHTS)
    run = lambda fisher: jax.jit(fisher)(key, params, task)
    loop = loop_fisher(log_likelihood, given_label, params, task, WEIGHTS)
    assert_close(run(empirical_fisher(LOSS)), loop, rtol=1e-6)
    loop = loop_fisher(log_likelihood, every_class, params, task, WEIGHTS)
    assert_close(run(exact_fisher(LOGITS)), loop, rtol=1e-6)

    gradient = jax.jit(jax.grad(log_likelihood))
    squares = []
    for start in range(0, ROWS, 4):
        rows = range(start, min(start + 4, ROWS))
        grads = [gradient(params, at(i, task), int(task.y[i])) for i in rows]
        mean = lambda *leaves, own=WEIGHTS[rows]: np.average(leaves, 0, own)
        squares.append(jax.tree.map(np.square, jax.tree.map(mean, *grads)))
    batches = jax.tree.map(lambda *s: sum(s) / len(s), *squares)
    assert_close(run(batched_fisher(LOSS, batch_size=4)), batches, rtol=1e-6)


def test_a_weighted_subset_is_the_weighted_mean_of_the_rows_chosen(key):
    """Oracle: all subsets of three real rows, one by one. The draw looks at no weight."""
    weight = np.array([0.5, 2, 0, 1, 4])
    squares = np.array([1.0, 10, 1e6, 100, 1000])
    task = as_batch(jnp.sqrt(squares), np.zeros(5, int), weight=weight)
    loss = lambda params, batch, keys: params * batch.x
    fisher = empirical_fisher(loss, num_examples=3)
    chosen = jax.jit(jax.vmap(fisher, (0, None, None)))
    found = chosen(jax.random.split(key, 200), jnp.zeros(()), task)
    subsets = [list(c) for c in itertools.combinations([0, 1, 3, 4], 3)]
    wanted = np.array([np.average(squares[c], weights=weight[c]) for c in subsets])
    gaps = np.abs(np.asarray(found)[:, None] / wanted - 1)
    assert np.all(gaps.min(axis=1) < 1e-5)
    shares = np.bincount(gaps.argmin(axis=1), minlength=4) / 200
    assert np.all(abs(shares - 0.25) < 0.16)  # five standard errors


def test_a_task_of_padding_has_no_importance(key):
    """Oracle: zero."""
    task = make_task(np.zeros(ROWS))
    for fisher in (
        empirical_fisher(LOSS),
        exact_fisher(LOGITS, num_examples=2),
        batched_fisher(LOSS, batch_size=4),
    ):
        for leaf in jax.tree.leaves(jax.jit(fisher)(key, network(), task)):
            np.testing.assert_array_equal(leaf, 0)


def test_a_row_draws_from_its_own_key_whatever_the_chunk(key):
    """Oracle: example_gradients; the loss drops inputs at random."""

    def noisy(params, batch, keys):
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (4,)))(keys)
        return LOSS(params, batch._replace(x=batch.x * kept), keys)

    params, task = network(), make_task()

    def check(key, params, task):
        one, many = (
            empirical_fisher(noisy, chunk_size=size)(key, params, task)
            for size in (3, ROWS)
        )
        keys = jax.random.split(key)  # the first makes the keys of the rows
        grads = example_gradients(keys[0], noisy, params, task)
        loop = jax.tree.map(lambda g: jnp.mean(g**2, axis=0), grads)
        other = empirical_fisher(noisy)(keys[1], params, task)
        return one, many, loop, other

    one, many, loop, other = jax.jit(check)(key, params, task)
    assert_close(one, many, rtol=2e-6)
    assert_close(one, loop, rtol=2e-6)
    assert not np.allclose(one["in"], other["in"], rtol=1e-2)


def test_seeds_by_vmap_are_seeds_one_by_one(key):
    """Law: vmap over parameters and tasks equals two runs."""
    fisher = exact_fisher(LOGITS, chunk_size=4)
    stack = lambda tree, factor: jax.tree.map(
        lambda leaf: jnp.stack([leaf, factor * leaf]), tree
    )
    params, tasks = stack(network(), 2), stack(make_task(PADDED), 1)
    both = jax.jit(jax.vmap(fisher, (None, 0, 0)))(key, params, tasks)
    second = jax.jit(fisher)(key, at(1, params), at(1, tasks))
    assert_close(at(1, both), second, rtol=2e-6)


def test_the_body_is_compiled_once_and_memory_does_not_grow_with_the_task(key):
    """Oracle: the compiler's own count of products and temporary bytes."""
    params = network()

    def compiled(rows, chunk_size):
        task = as_batch(jnp.zeros((rows, 4)), np.zeros(rows, int))
        fisher = jax.jit(empirical_fisher(LOSS, chunk_size=chunk_size))
        lowered = fisher.lower(key, params, task)
        scratch = lowered.compile().memory_analysis().temp_size_in_bytes
        return lowered.as_text().count("dot_general"), scratch

    (even, small), (odd, large) = compiled(48, 16), compiled(4801, 16)
    assert even == odd
    # The order of the rows is the only temporary that may grow: an integer a row.
    assert large - small <= 8 * (4801 - 48)


def test_the_fisher_of_half_precision_parameters_is_kept_in_float32(key):
    """Oracle: the dtype, and the float32 Fisher within bfloat16's rounding."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), network())
    task = make_task()
    task = task._replace(x=task.x.astype(jnp.bfloat16))
    found = jax.jit(empirical_fisher(LOSS))(key, params, task)
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)
    expected = jax.jit(empirical_fisher(LOSS))(
        key, wide(params), task._replace(x=wide(task.x))
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_close(found, expected, rtol=0.05)
