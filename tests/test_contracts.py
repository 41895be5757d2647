"""One battery for every public regularizer, memory, average and reset.

Transformations have theirs in ``test_transforms/test_contracts.py``, whole methods in
``test_methods.py``. Oracles: the state before, the record without ``vmap`` and
without ``jit``, and the laws that padding is no experience and a buffer has one owner.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl import averages, memory, plasticity, regularizers
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import cross_entropy, largest_logits, single_head
from jaxcl.models import mlp
from jaxcl.tree import as_batch, at
from jaxcl.typing import Average, Memory, Regularizer, Reset
from tests.names import public
from tests.steps import context, seen

MODEL = mlp((4, 5, 3))
LOGITS = single_head(MODEL.apply)
LOSS = cross_entropy(LOGITS)
PARAMS = MODEL.init(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (6, 4))
BATCH = as_batch(X, jnp.arange(6) % 3)
PADDING = BATCH._replace(weight=jnp.zeros(6))

REGULARIZERS = {
    "no_regularizer": lambda: Regularizer(),
    "l2": lambda: regularizers.l2(0.1),
    "l2_init": lambda: regularizers.l2_init(0.1),
    "ewc": lambda: regularizers.ewc(empirical_fisher(LOSS), 1.0),
    "online ewc": lambda: regularizers.ewc(empirical_fisher(LOSS), 1.0, decay=0.9),
    "box": lambda: regularizers.box(0.5),
    "boxed": lambda: regularizers.boxed(regularizers.l2(0.1), 0.5),
    "distill": lambda: regularizers.distill(LOGITS, 1.0),
    "feature_distillation": lambda: regularizers.feature_distillation(
        MODEL.hidden, 1.0
    ),
    "scaled": lambda: regularizers.scaled(2.0, regularizers.l2(0.1)),
    "synaptic_intelligence": lambda: regularizers.synaptic_intelligence(1.0),
    "riemannian_walk": lambda: regularizers.riemannian_walk(1.0, interval=1),
    "sum_of": lambda: regularizers.sum_of(regularizers.l2(0.1), regularizers.box(0.5)),
}
MEMORIES = {
    "no_memory": lambda: memory.no_memory(),
    "reservoir": lambda: memory.reservoir(8, 4),
    "reservoir with outputs": lambda: memory.reservoir(8, 4, store=LOGITS),
    "reservoir with largest logits": lambda: memory.reservoir(
        8, 4, store=largest_logits(LOGITS, 2)
    ),
    "past_only": lambda: memory.reservoir(8, 4, past_only=True),
    "shared_episodic": lambda: memory.shared_episodic(5, 4),
    "greedy_balanced": lambda: memory.greedy_balanced(5, 4, num_classes=3),
    "class_balanced_reservoir": lambda: memory.class_balanced_reservoir(
        5, 4, num_classes=3
    ),
    "episodic": lambda: memory.episodic(2, 4, 3),
    "grouped": lambda: memory.episodic(2, 4, grouped=True),
    "k-means": lambda: memory.episodic(
        2, 3, select=memory.kmeans_examples(lambda params, x: x, num_iterations=2)
    ),
}
AVERAGES = {
    "no_average": lambda: Average(),
    "ema": lambda: averages.ema(0.9),
    "ema_of_products": lambda: averages.ema_of_products(0.9),
    "starting_after": lambda: averages.starting_after(1, averages.ema(0.9)),
    "interpolate": lambda: averages.interpolate(0.5),
    "wise_ft": lambda: averages.wise_ft(0.5),
}
RESETS = {
    "no_reset": lambda: Reset(),
    "shrink_and_perturb": lambda: plasticity.shrink_and_perturb(0.9, 0.1, MODEL.init),
    "redo": lambda: plasticity.redo(
        MODEL.hidden, MODEL.units, MODEL.init, threshold=0.9, period=1
    ),
    "continual_backprop": lambda: plasticity.continual_backprop(
        MODEL.hidden, MODEL.units, MODEL.init, rate=0.1, maturity=0
    ),
    "chain_resets": lambda: plasticity.chain_resets(
        Reset(), plasticity.shrink_and_perturb(0.9, 0.1, MODEL.init)
    ),
}


def cycle(record, key, params, batch):
    """Everything a record can do, twice; ``(states, results)``."""
    change = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    step = seen(batch, params, grads=params, updates=change)
    if isinstance(record, Regularizer):
        state, out = record.init(params, at(slice(1), batch)), []
        states = [state]
        for _ in range(2):
            look = context(batch, batch, params)
            penalty = jax.value_and_grad(record.penalty, argnums=1)
            out += [penalty(state, params, look), record.project(state, params)]
            state = record.observe(key, state, step, params)
            state = record.end_task(key, state, params, batch)
            states.append(state)
        return states, out
    if isinstance(record, Memory):
        state, out = record.init(params, at(slice(1), batch)), []
        states = [state]
        for _ in range(2):
            out.append(record.sample(key, state))
            state = record.observe(key, state, step, params)
            state = record.end_task(key, state, params, batch)
            states.append(state)
        return states, out
    if isinstance(record, Average):
        state, out = record.init(params, at(slice(1), batch)), []
        states = [state]
        for _ in range(2):
            state = record.observe(key, state, step, params)
            out.append(record.read(state, params))
            state, params = record.end_task(key, state, params, batch)
            states.append(state)
        return states, [*out, params]
    state, out = record.init(params, at(slice(1), batch)), []
    states = [state]
    for _ in range(2):
        state, params, mask = record.reset(key, state, params, batch)
        states.append(state)
        out += [params, mask]
    return states, out


CASES = {**REGULARIZERS, **MEMORIES, **AVERAGES, **RESETS}
KINDS = {
    **dict.fromkeys(REGULARIZERS, Regularizer),
    **dict.fromkeys(MEMORIES, Memory),
    **dict.fromkeys(AVERAGES, Average),
    **dict.fromkeys(RESETS, Reset),
}


KEYS = jax.random.split(jax.random.key(2), 2)


@functools.cache
def compiled(name):
    """The cycle of one record for two keys side by side, and how often it was traced."""
    traces = []

    def run(key, params, batch):
        traces.append(1)
        return cycle(CASES[name](), key, params, batch)

    return jax.jit(jax.vmap(run, (0, None, None))), traces


def numbers(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    return [np.asarray(leaf, np.float64) for leaf in leaves]


@pytest.mark.parametrize("name", CASES)
def test_states_keep_structure_shape_and_dtype_and_one_trace_serves_all(name):
    """Oracle: the first state; a second batch of the same shape traces nothing."""
    run, traces = compiled(name)
    assert isinstance(CASES[name](), KINDS[name])
    (first, *later), _ = run(KEYS, PARAMS, BATCH)
    run(KEYS[::-1], PARAMS, PADDING)
    assert len(traces) == 1
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    for state in later:
        assert shapes(state) == shapes(first)


@pytest.mark.parametrize("name", CASES)
def test_compiled_and_side_by_side_runs_are_those_without_jit_one_by_one(name):
    """Oracle: the cycle without a program around it, one key at a time."""
    both = compiled(name)[0](KEYS, PARAMS, BATCH)
    for i, key in enumerate(KEYS):
        alone = numbers(cycle(CASES[name](), key, PARAMS, BATCH))
        for fast, plain in zip(numbers(at(i, both)), alone, strict=True):
            np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_padding_alone_leaves_numbers_finite(name):
    """Oracle: finiteness, with every row of weight zero and a network of zeros."""
    run, _ = compiled(name)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for params in (PARAMS, zeros):
        for leaf in numbers(run(KEYS, params, PADDING)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_parameters_stay_bfloat16_and_states_keep_their_dtypes(name):
    """Oracle: the first state and the parameters; traced, nothing is computed."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    record = CASES[name]()
    run = lambda key, params, batch: cycle(record, key, params, batch)
    (first, *later), out = jax.eval_shape(run, jax.random.key(2), half, BATCH)
    for state in later:
        assert kinds(state) == kinds(first)
    if isinstance(record, Average | Reset):
        params = out[-1] if isinstance(record, Average) else out[-2]
        assert kinds(params) == kinds(half)


@pytest.mark.parametrize("name", [*REGULARIZERS, *AVERAGES])
def test_every_state_can_be_donated_beside_the_parameters(name):
    """Oracle: JAX, to which a buffer that is given twice is an error.

    The parameters are donated beside each state, as a training step does.
    """
    give = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf + 0, tree), donate_argnums=0
    )
    record, params = CASES[name](), jax.tree.map(jnp.copy, PARAMS)
    state, params = give((record.init(params, at(slice(1), BATCH)), params))
    ended = record.end_task(jax.random.key(2), state, params, BATCH)
    give((ended, params) if isinstance(record, Regularizer) else ended)


@pytest.mark.parametrize("name", RESETS)
def test_padding_alone_renews_nothing(name):
    """Oracle: parameters and traces before; only counters may move.

    Shrink-and-perturb does not look at rows, so padding does not hold it.
    """
    if name in ("shrink_and_perturb", "chain_resets"):
        pytest.skip("acts by the count of steps, whatever the rows")
    record = RESETS[name]()
    key, params = jax.random.key(6), PARAMS
    state, params, _ = jax.jit(record.reset)(
        key, record.init(params, BATCH), params, BATCH
    )
    after, kept, mask = jax.jit(record.reset)(key, state, params, PADDING)
    jax.tree.map(np.testing.assert_array_equal, kept, params)
    assert mask is None or not any(leaf.any() for leaf in jax.tree.leaves(mask))
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(old.dtype, jnp.floating):
            np.testing.assert_array_equal(new, old)


def test_every_public_builder_is_in_the_battery():
    """Oracle: the packages' own lists."""
    others = {
        "AnchorState", "EwcState", "SynapticState", "WalkState",
        "BalancedState", "SharedState", "convert_strength",
        "largest_stable_strength", "EpisodicState", "ReservoirState", "Select", "after",
        "blank_rows",
        "class_balanced_examples", "episodic", "kmeans", "kmeans_examples",
        "random_examples", "EmaState", "Traces", "Utility", "adaptable_contribution",
        "contribution",
        "dead_fraction", "dormancy_score", "dormant_fraction", "effective_rank",
        "measure",
        "reset_units", "singular_values", "srank", "stable_rank",
    }  # fmt: skip
    found = {
        name
        for package in (averages, memory, plasticity, regularizers)
        for name in public(package)
    }
    assert found - others <= set(CASES)
