"""One battery for every named method and every part: all dtypes, 64 bits, old keys.

The contract: parameters, gradients and updates have the parameters' dtype; whatever
accumulates (norms, losses, Fishers, path integrals, averages) is float32 or wider; a state
changes neither shape nor dtype, also where rows are of another float dtype than the
parameters. Oracles: the state before, and the same numbers in float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import curvature, memory, methods, regularizers, transforms
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import (
    cross_entropy,
    mean_loss,
    single_head,
    token_cross_entropy,
)
from jaxcl.method import make_method
from jaxcl.tree import as_batch, at, wide_dtype
from jaxcl.typing import Average, Regularizer, Reset
from tests import test_contracts as parts
from tests import test_methods as whole
from tests.golden.setting import LLAMA, NORMED, RESNET
from tests.test_transforms import test_contracts as gradients


class Setting(NamedTuple):
    """What the dtypes are."""

    params: str = "float32"
    rows: str = "float32"
    x64: bool = False
    legacy_key: bool = False


SETTINGS = {
    "float32": Setting(),
    "bfloat16": Setting("bfloat16"),
    "bfloat16 alone": Setting("bfloat16", "bfloat16"),
    "bfloat16 rows": Setting("float32", "bfloat16"),
    "float16": Setting("float16"),
    "float64": Setting("float64", "float64", x64=True),
    "x64": Setting(x64=True),
    "x64, float64 rows": Setting("float32", "float64", x64=True),
    "legacy key": Setting(legacy_key=True),
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)

FISHERS = {
    "empirical": lambda: empirical_fisher(parts.LOSS),
    "chunks": lambda: empirical_fisher(parts.LOSS, num_examples=5, chunk_size=2),
    "sampled": lambda: curvature.sampled_fisher(parts.LOGITS),
    "exact": lambda: curvature.exact_fisher(parts.LOGITS),
    "most likely": lambda: curvature.most_likely_fisher(parts.LOGITS),
    "sensitivity": lambda: curvature.output_sensitivity(parts.LOGITS),
    "batched": lambda: curvature.batched_fisher(parts.LOSS, batch_size=4),
    "normalised": lambda: curvature.normalised(empirical_fisher(parts.LOSS)),
    "uniform": lambda: curvature.uniform_importance(),
    "shuffled": lambda: curvature.shuffled(empirical_fisher(parts.LOSS)),
}


def cast(tree, dtype):
    """The tree with its floating leaves in another dtype."""
    floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if floats(leaf) else leaf, tree)


def inputs(setting, params, batch):
    """Key, parameters and rows of a setting; only the inputs of a batch are cast."""
    key = jax.random.PRNGKey(2) if setting.legacy_key else jax.random.key(2)
    rows = batch._replace(x=cast(batch.x, setting.rows))
    return key, cast(params, setting.params), rows


def kinds(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def assert_wide(tree):
    for leaf in jax.tree.leaves(tree):
        assert leaf.dtype == wide_dtype(leaf)


def stepped(method, key, params, batch):
    """Two tasks of a step each; ``(states, info, learners)``."""
    states = [method.init(params, at(slice(1), batch))]
    info = None
    for _ in range(2):
        state, info = method.step(key, states[-1], at(slice(8), batch))
        states += [state, method.end_task(key, state, batch)]
    return states, info, method.learners(states[-1])


# ------------------------------------------------------------------ traced


@every_setting
@pytest.mark.parametrize("name", parts.CASES)
def test_parts_keep_their_dtypes(name, setting):
    """Oracle: the first state, and the parameters; traced, nothing is computed."""
    with jax.enable_x64(SETTINGS[setting].x64):
        given = inputs(SETTINGS[setting], parts.PARAMS, parts.BATCH)
        record, params = parts.CASES[name](), kinds(given[1])
        run = functools.partial(parts.cycle, record)
        (first, *later), out = jax.eval_shape(run, *given)
    for state in later:
        assert kinds(state) == kinds(first)
    if isinstance(record, Regularizer):
        (penalty, slope), projected, *_ = out
        assert_wide(penalty)
        assert kinds(slope) == kinds(projected) == params
    if isinstance(record, Average):
        assert kinds(out[-1]) == kinds(out[0]) == params
    if isinstance(record, Reset):
        assert kinds(out[-2]) == params


@pytest.mark.parametrize(
    "setting", sorted(set(SETTINGS) - {"float32", "bfloat16 rows"})
)
@pytest.mark.parametrize("name", whole.NAMED)
def test_methods_keep_their_dtypes(name, setting):
    """Oracle: the first state; losses and metrics are float32 or wider."""
    with jax.enable_x64(SETTINGS[setting].x64):
        given = inputs(SETTINGS[setting], whole.PARAMS, whole.TASK)
        run = functools.partial(stepped, whole.NAMED[name]())
        (first, *later), info, _ = jax.eval_shape(run, *given)
    for state in later:
        assert kinds(state) == kinds(first)
    assert_wide((info.loss, info.metrics))


@pytest.mark.parametrize("setting", ["float16", "bfloat16", "x64", "float64"])
@pytest.mark.parametrize("name", gradients.BATTERY)
def test_transformations_keep_their_dtypes(name, setting):
    """Oracle: the state and the gradients before; all leaves in the setting's dtype."""
    with jax.enable_x64(SETTINGS[setting].x64):
        params = cast(gradients.parameters(), SETTINGS[setting].params)
        gradients.check_types(gradients.BATTERY[name](), params)


@pytest.mark.parametrize("name", gradients.BATTERY)
def test_what_accumulates_and_perturbed_points_are_float32_or_wider(name):
    """Oracle: the dtypes of the state, and of every point that a gradient is asked at."""
    points = []

    def asked(params):
        points.append(params)
        return gradients.grad_fn(params)

    params = cast(gradients.parameters(), "bfloat16")
    built, more = gradients.BATTERY[name](), gradients.extras | {"grad_fn": asked}
    update = lambda params, state: built.update(params, state, params, **more)
    state = jax.eval_shape(built.init, params)
    jax.eval_shape(update, params, state)
    assert bool(points) == (name not in ("agem", "gem"))
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    assert_wide([leaf for leaf in jax.tree.leaves((state, points)) if is_float(leaf)])


def test_sam_climbs_from_bfloat16_parameters_by_less_than_their_rounding():
    """Oracle: the gradient of a quadratic at the perturbed point, in float64.

    Negative control: a point in bfloat16, where the climb is lost.
    """
    stiffness = np.array([1.0, 3.0, 20.0])
    start, rho = jnp.array([1.0, -2.0, 3.0], jnp.bfloat16), 1e-3
    field = lambda params: jnp.float32(stiffness * 1e4) * (params - start)
    grads = jnp.array([3.0, 0.0, 4.0], jnp.bfloat16)
    built = transforms.sam(rho)
    found, _ = built.update(grads, built.init(start), start, grad_fn=field)
    want = stiffness * 1e4 * rho * np.array([0.6, 0.0, 0.8])
    np.testing.assert_allclose(np.float64(found), want, rtol=5e-3)
    narrow = lambda params: field(params.astype(jnp.bfloat16))
    lost, _ = built.update(grads, built.init(start), start, grad_fn=narrow)
    np.testing.assert_array_equal(np.float64(lost), 0)


def test_sharpness_in_bfloat16_is_that_of_its_parameters_in_float32():
    """Oracle: the same in float32; a rise of 1e-3 is nothing in bfloat16."""
    half = cast(parts.PARAMS, "bfloat16")
    loss = lambda params: mean_loss(parts.LOSS, params, parts.BATCH, jax.random.key(0))
    for measured in (
        lambda params: curvature.sam_sharpness(loss, params, 1e-3),
        lambda params: curvature.top_eigenvalue(jax.random.key(1), loss, params),
    ):
        found, want = jax.jit(measured)(half), jax.jit(measured)(cast(half, "float32"))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, want, rtol=1e-4)


@every_setting
@pytest.mark.parametrize("name", FISHERS)
def test_fishers_are_float32_or_wider(name, setting):
    """Oracle: the parameters' shapes, in float32, or in float64 for such parameters."""
    with jax.enable_x64(SETTINGS[setting].x64):
        given = inputs(SETTINGS[setting], parts.PARAMS, parts.BATCH)
        found = jax.eval_shape(FISHERS[name](), *given)
    want = jax.tree.map(lambda leaf: (leaf.shape, wide_dtype(leaf)), given[1])
    assert kinds(found) == want


TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6) % 7
IMAGES = jax.random.normal(jax.random.key(4), (2, 8, 8, 1))
NETWORKS = {
    "mlp": (NORMED, cross_entropy, as_batch(parts.X[:2].repeat(2, 1), [0, 1])),
    "resnet": (RESNET, cross_entropy, as_batch(IMAGES, [0, 1])),
    "llama": (LLAMA, token_cross_entropy, as_batch(TOKENS[:, :-1], TOKENS[:, 1:])),
}


MIXED = ["bfloat16", "bfloat16 rows", "float64", "x64, float64 rows"]


@pytest.mark.parametrize("setting", MIXED)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_drawn_in_float32_and_learn_in_every_dtype(name, setting):
    """Oracle: the dtype that is documented, and the first state."""
    network, loss_of, batch = NETWORKS[name]
    loss = loss_of(single_head(network.apply))
    method = methods.sam(loss, optax.adam(0.1))
    with jax.enable_x64(SETTINGS[setting].x64):
        drawn = jax.eval_shape(network.init, jax.random.key(0))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(drawn)} == {"float32"}
        fill = lambda leaf: jnp.ones(leaf.shape, leaf.dtype)
        given = inputs(SETTINGS[setting], jax.tree.map(fill, drawn), batch)
        run = functools.partial(stepped, method)
        (first, *later), info, _ = jax.eval_shape(run, *given)
    for state in later:
        assert kinds(state) == kinds(first)
    assert_wide((info.loss, info.metrics))


@every_setting
def test_a_step_record_and_an_optimizer_get_the_parameters_dtype(setting):
    """Oracle: the parameters, for gradients, updates and what the optimizer is given."""
    seen = []
    spy = optax.GradientTransformation(
        lambda params: (),
        lambda grads, state, params=None: (seen.append(grads), (grads, state))[1],
    )
    record = lambda state, step: (
        seen.extend([step.grads, step.updates]),
        0.0 * step.losses.sum(),
    )[1]
    method = make_method(
        whole.LOSS,
        optax.chain(spy, optax.adam(0.1)),
        gradient=transforms.sam(0.1),
        regularizer=regularizers.l2(0.1),
        metrics={"spied": record},
    )
    seen.clear()  # of the trial of an optimizer when a method is built
    with jax.enable_x64(SETTINGS[setting].x64):
        given = inputs(SETTINGS[setting], whole.PARAMS, whole.TASK)
        jax.eval_shape(functools.partial(stepped, method), *given)
    assert len(seen) == 3 * 2
    for tree in seen:
        assert kinds(tree) == kinds(given[1])


# ------------------------------------------------------------------ values

NUMBERS = {
    **{f"part {name}": name for name in parts.CASES},
    **{f"method {name}": name for name in whole.NAMED},
    **{f"gradient {name}": name for name in gradients.BATTERY},
    **{f"fisher {name}": name for name in FISHERS},
}
#: LookSAM scales up a small difference, whose first digits bfloat16 does not have.
CHAOTIC = {"gradient looksam", "gradient looksam measured"}


def numbers(case, setting):
    """What a case computes in a setting, as float64; one compiled program."""
    kind, name = case.split(" ")[0], NUMBERS[case]

    def run(key, params, batch):
        if kind == "part":
            return parts.cycle(parts.CASES[name](), key, params, batch)
        if kind == "method":
            states, *rest = stepped(whole.NAMED[name](), key, params, batch)
            return states[-1], rest
        if kind == "gradient":
            return gradients.two_steps(gradients.BATTERY[name](), params)
        return FISHERS[name]()(key, params, batch)

    of_parts = parts.PARAMS, parts.BATCH
    start, batch = (
        of_parts if kind in ("part", "fisher") else (whole.PARAMS, whole.TASK)
    )
    start = gradients.parameters() if kind == "gradient" else start
    with jax.enable_x64(setting.x64):
        found = jax.jit(run)(*inputs(setting, start, batch))
    return gradients.numbers(found)


@pytest.mark.parametrize("case", NUMBERS)
def test_64_bits_and_bfloat16_compute_what_float32_does(case):
    """Oracle: the same in float32; draws are the same, whatever is enabled.

    Tolerances are relative to the largest entry of each array.
    """
    want = numbers(case, Setting())
    near = {1e-5: Setting(x64=True)}
    near |= {} if case in CHAOTIC else {0.03: Setting("bfloat16")}
    for tolerance, setting in near.items():
        for got, leaf in zip(numbers(case, setting), want, strict=True):
            size = max(np.abs(leaf).max(initial=0), 1e-3)
            np.testing.assert_allclose(got / size, leaf / size, atol=tolerance)


@pytest.mark.parametrize("name", sorted(set(FISHERS) - {"sampled", "uniform"}))
def test_a_fisher_of_float64_rows_is_that_of_float32_rows(name):
    """Oracle: the Fisher of the same rows in float32. (Draws of labels differ.)"""
    want = numbers(f"fisher {name}", Setting())
    found = numbers(f"fisher {name}", SETTINGS["x64, float64 rows"])
    for got, leaf in zip(found, want, strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["experience_replay", "ewc"])
def test_an_old_key_is_the_new_one_of_the_same_seed(name):
    """Oracle: equal bits."""
    for old, new in zip(
        numbers(f"method {name}", Setting(legacy_key=True)),
        numbers(f"method {name}", Setting()),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


def test_one_row_is_counted_once_under_64_bits():
    """Oracle: counting. A zero of 64 bits would be two numbers of 32."""
    with jax.enable_x64(True):
        store = memory.reservoir(10, 2)
        method = methods.plain(whole.LOSS, optax.sgd(0.1), memory=store)
        batch = as_batch(whole.X[:1], whole.TASK.y[:1])
        state = method.init(whole.PARAMS, batch)
        for count in (1, 2):
            state, _ = method.step(jax.random.key(0), state, batch)
            assert state.memory.seen == count
            assert state.memory.seen.dtype == jnp.int32


def test_every_public_fisher_is_in_the_battery():
    """Oracle: the package's own list."""
    others = {"Fisher", "example_gradients", "sam_sharpness", "top_eigenvalue"}
    sizes = {"largest_entry", "mean_entry", "trace"}
    assert len(set(curvature.__all__) - others - sizes) == len(FISHERS) - 1  # chunks
