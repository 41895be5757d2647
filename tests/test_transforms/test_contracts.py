"""Every transformation through the same battery."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxcl import transforms
from jaxcl.transforms import (
    across_devices,
    adaptive_rho,
    adaptive_strength,
    agem,
    c_flat,
    friendly_sam,
    gem,
    gnp,
    gsam,
    looksam,
    random_sam,
    reverse_sam,
    sam,
)

warm = lambda count: 0.1 * (count + 1)
measuring_sam = lambda rho: sam(rho, measure=True)
KEY = jax.random.key(0)
BATTERY = {
    "sam": lambda: sam(0.3),
    "sam measured": lambda: measuring_sam(0.3),
    "sam schedule": lambda: sam(warm),
    "sam masked": lambda: sam(0.3, mask={"kernel": True, "bias": False, "rest": None}),
    "gnp": lambda: gnp(0.3, alpha=0.6),
    "gsam": lambda: gsam(0.3, 0.6),
    "looksam": lambda: looksam(0.3, k=2),
    "looksam measured": lambda: looksam(0.3, k=2, measure=True),
    "friendly_sam": lambda: friendly_sam(0.3),
    "c_flat": lambda: c_flat(0.3, 0.2, measure=True),
    "agem": lambda: agem(),
    "gem": lambda: gem(),
    "reverse_sam": lambda: reverse_sam(0.3),
    "random_sam": lambda: random_sam(KEY, 0.3),
    "adaptive_rho": lambda: adaptive_rho(0.2),
    "adaptive_strength": lambda: adaptive_strength(measuring_sam, 0.3, reference=1.0),
}
COMPILED = ("gem", "looksam")  # loops and branches alone are compiled at every call
battery = pytest.mark.parametrize("name", BATTERY)


def parameters(seed=0, dtype=jnp.float32):
    """Parameters of two dtypes, one of them with a missing leaf beside."""
    random = np.random.default_rng(seed)
    kernel = jnp.asarray(random.normal(size=(2, 3)), jnp.float32)
    bias = jnp.asarray(random.normal(size=3)).astype(dtype)
    return {"kernel": kernel, "bias": bias, "rest": None}


grad_fn = lambda params: jax.tree.map(jnp.sin, params)
extras = {
    "grad_fn": grad_fn,
    "replay_grad_fn": lambda params: jax.tree.map(lambda p: -p, params),
    "task_grad_fn": lambda params: jax.tree.map(
        lambda p: jnp.stack([jnp.cos(p), -p, 0 * p]), params
    ),
    "value": 1.0,
    "unknown": "ignored",
}


def two_steps(transformation, params):
    state = transformation.init(params)
    for _ in range(2):
        grads, state = transformation.update(grad_fn(params), state, params, **extras)
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.1 * g, grads))
    return params, grads, state


def one_by_one(name, params):
    """Two steps, without a program around them where that is not slower."""
    run = lambda params: two_steps(BATTERY[name](), params)
    return (jax.jit(run) if name in COMPILED else run)(params)


def shapes(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.asarray(leaf).dtype), tree)


def numbers(tree):
    """Leaves that can be compared; keys as their data."""
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [
        np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf, np.float64)
        for leaf in jax.tree.leaves(tree)
    ]


def assert_close(found, want, **tolerances):
    for got, expected in zip(numbers(found), numbers(want), strict=True):
        np.testing.assert_allclose(got, expected, **tolerances)


INJECTED = {
    "sam": (sam, {"rho": 0.3}, ()),
    "gnp": (gnp, {"r": 0.3, "alpha": 0.6}, ()),
    "gsam": (gsam, {"rho": 0.3, "alpha": 0.6}, ()),
    "looksam": (looksam, {"rho": 0.3, "k": 2}, ("k",)),
    "friendly_sam": (friendly_sam, {"rho": 0.3}, ()),
    "c_flat": (c_flat, {"rho": 0.3, "strength": 0.2, "measure": True}, ("measure",)),
    "gem": (gem, {"margin": 0.0}, ()),
    "reverse_sam": (reverse_sam, {"rho": 0.3}, ()),
    "random_sam": (random_sam, {"key": KEY, "rho": 0.3}, ("key",)),
    "adaptive_rho": (adaptive_rho, {"target": 0.2}, ()),
    "adaptive_strength": (
        adaptive_strength,
        {"build": measuring_sam, "base": 0.3, "reference": 1.0},
        ("build", "sharpness"),
    ),
}


@pytest.mark.parametrize("name", INJECTED)
def test_numbers_can_be_injected_and_do_the_same(name):
    """Oracle: the transformation without injection."""
    build, arguments, static = INJECTED[name]
    injected = optax.inject_hyperparams(build, static_args=static)(**arguments)
    found = jax.jit(lambda params: two_steps(injected, params)[0])(parameters())
    want = jax.jit(lambda params: two_steps(build(**arguments), params)[0])(
        parameters()
    )
    assert_close(found, want, atol=1e-6)


def test_the_battery_misses_nothing_that_is_public():
    """Oracle: the public names, less records and what is no transformation."""
    built = {name.split()[0] for name in BATTERY}
    other = {
        "accumulated",
        "across_devices",
        "perturbation_curvature",
        "perturbation_rise",
        "scale_by_progress",
    }
    other |= {"rho_schedule"} | {n for n in transforms.__all__ if n.endswith("State")}
    assert built | other == set(transforms.__all__)


@battery
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_structures_shapes_and_dtypes_never_change(name, dtype):
    """Oracle: the state and gradients before."""
    with jax.enable_x64(dtype == "float64"):
        check_types(BATTERY[name](), parameters(dtype=dtype))


def check_types(transformation, params):
    assert isinstance(transformation, optax.GradientTransformationExtraArgs)
    state = jax.eval_shape(transformation.init, params)
    update = lambda p, s: transformation.update(grad_fn(p), s, p, **extras)
    grads, after = jax.eval_shape(update, params, state)
    abstract = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert abstract(grads) == shapes(params)
    assert abstract(after) == abstract(state)


@battery
def test_a_new_state_may_be_given_away_and_made_again(name):
    """Oracle: JAX, which refuses one buffer given twice or one that is gone."""
    transformation = BATTERY[name]()
    give = jax.jit(lambda state: state, donate_argnums=0)
    for _ in range(2):
        give(transformation.init(parameters()))


@battery
def test_one_program_serves_a_scan_and_a_vmap_and_computes_what_single_steps_do(name):
    """Oracle: steps one by one, for two starts; also one trace for both calls."""
    traces = []

    def counted(params):
        traces.append(1)
        return two_steps(BATTERY[name](), params)

    starts = [parameters(seed) for seed in (1, 2)]
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), *starts)
    program = jax.jit(jax.vmap(counted))
    together = program(both)
    program(jax.tree.map(lambda leaf: 2 * leaf, both))
    assert len(traces) == 1
    for i, start in enumerate(starts):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        assert_close(row, one_by_one(name, start), rtol=1e-4, atol=1e-5)


@battery
def test_a_zero_gradient_gives_zero_and_no_nan_also_when_differentiated(name):
    """Oracle: zero, because every gradient around is zero as well."""
    zero = jax.tree.map(jnp.zeros_like, parameters())
    flat_fn = lambda params: jax.tree.map(lambda p: 0.0 * p, params)
    flat = extras | {
        "grad_fn": flat_fn,
        "replay_grad_fn": flat_fn,
        "task_grad_fn": lambda p: jax.tree.map(lambda x: jnp.stack([0 * x] * 3), p),
    }

    def total(params):
        transformation = BATTERY[name]()
        state = transformation.init(params)
        for _ in range(2):
            grads, state = transformation.update(params, state, params, **flat)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(grads)), (grads, state)

    differentiate = jax.grad(total, has_aux=True)
    if name in COMPILED:
        differentiate = jax.jit(differentiate)
    slopes, (grads, state) = differentiate(zero)
    for leaf in numbers((slopes, state)):
        assert np.all(np.isfinite(leaf))
    for leaf in numbers(grads):
        np.testing.assert_array_equal(leaf, 0.0)


@battery
def test_it_goes_first_in_a_chain_whose_other_parts_want_other_arguments(name):
    """Oracle: its own gradient, scaled."""
    params = parameters()
    patient = optax.contrib.reduce_on_plateau(patience=1000)  # wants value=
    chain = optax.chain(BATTERY[name](), patient, optax.scale(-2.0))

    def both(params):
        grads, alone = grad_fn(params), BATTERY[name]()
        return (
            chain.update(grads, chain.init(params), params, **extras)[0],
            alone.update(grads, alone.init(params), params, **extras)[0],
        )

    found, want = (jax.jit(both) if name in COMPILED else both)(params)
    assert_close(found, jax.tree.map(lambda g: -2.0 * g, want), rtol=1e-6)


@battery
@pytest.mark.parametrize("sync", [True, False])
def test_over_devices_gradients_and_states_are_the_same_on_all(name, sync):
    """Oracle: JAX's own check, which refuses what it cannot prove to be replicated."""
    across = across_devices(BATTERY[name](), "data", sync=sync)

    def body(params, row):
        """Gradients that differ between devices, as their shares of a batch do."""
        vary = lambda tree: jax.tree.map(lambda leaf: leaf + jnp.sum(row), tree)
        asked = {n: lambda p, f=f: vary(f(p)) for n, f in extras.items() if callable(f)}
        own = vary(params)
        return across.update(grad_fn(own), across.init(params), params, **asked)

    spec = jax.sharding.PartitionSpec
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    specs = {"in_specs": (spec(), spec("data")), "out_specs": spec()}
    mapped = jax.shard_map(body, mesh=mesh, **specs)
    jax.eval_shape(mapped, parameters(), jnp.ones(2))
    if name == "sam":  # the check does refuse: here, each device's own row
        refused = jax.shard_map(lambda params, row: row, mesh=mesh, **specs)
        with pytest.raises(ValueError, match="out_specs"):
            jax.eval_shape(refused, parameters(), jnp.ones(2))
