"""The compiled parts of a run: spread over a mesh they do what one device does, and a
further run like an earlier one compiles nothing."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl import methods
from jaxcl.averages import ema
from jaxcl.losses import cross_entropy, past_heads, single_head
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.models import mlp
from jaxcl.plasticity import redo
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh, place_rows
from jaxcl.training.compiled import compile_program
from jaxcl.transforms import c_flat, gsam, looksam
from jaxcl.tree import as_batch

MODEL = mlp((12, 32, 6))
LOGITS = single_head(MODEL.apply)
LOSS, SGD = cross_entropy(LOGITS), optax.sgd(0.1, momentum=0.9)
EPISODES = {"num_tasks": 2, "capacity_per_task": 8}
METHODS = {
    "sgd": lambda: make_method(LOSS, SGD),
    "adam": lambda: make_method(LOSS, optax.adam(0.01)),
    "sam": lambda: methods.sam(LOSS, SGD),
    "gnp": lambda: methods.gnp(LOSS, SGD),
    "gsam": lambda: make_method(LOSS, SGD, gradient=gsam(0.05, 0.1)),
    "looksam": lambda: make_method(LOSS, SGD, gradient=looksam(0.05, k=2)),
    "c-flat": lambda: make_method(LOSS, SGD, gradient=c_flat()),
    "a-gem": lambda: methods.agem(LOSS, SGD, sample_size=8, **EPISODES),
    "gem": lambda: methods.gem(LOSS, SGD, **EPISODES),
    "er": lambda: methods.experience_replay(LOSS, SGD, capacity=16, sample_size=8),
    "ewc": lambda: methods.ewc(LOSS, SGD, strength=10.0),
    "online-ewc": lambda: methods.ewc(LOSS, SGD, strength=10.0, decay=0.9),
    "c&f": lambda: methods.create_and_find(LOSS, SGD, strength=10.0, num_examples=16),
    "lwf": lambda: methods.learning_without_forgetting(
        LOGITS, SGD, kept=past_heads(MODEL.apply, 3)
    ),
    "ema": lambda: make_method(LOSS, SGD, average=ema(0.9)),
    "wise-ft": lambda: methods.interpolation(LOSS, SGD, alpha=0.5),
    "redo": lambda: make_method(
        LOSS, SGD, reset=redo(MODEL.hidden, MODEL.units, MODEL.init, period=2)
    ),
}


def task(number):
    """Rows of one task, of two of which the last is padding."""
    keys = jax.random.split(jax.random.key(number))
    x = jax.random.normal(keys[0], (16, 12))
    y = jax.random.randint(keys[1], (16,), 0, 6)
    return as_batch(x, y, weight=jnp.ones(16).at[-1].set(0.0), task=number)


METRIC = classification(LOGITS)


def walked(name, sharding):
    """The state after two tasks of three steps, and the sums of a metric."""
    program = compile_program(
        lambda frozen: METHODS[name](),
        MODEL.init(jax.random.key(0)),
        (),
        jax.tree.map(lambda leaf: leaf[:1], task(0)),
        tested=task(0),
        metrics=METRIC,
        sharding=sharding,
    )
    shard = (
        (lambda rows: rows) if sharding is None else (lambda b: place_rows(sharding, b))
    )
    state, losses = program.start(MODEL.init(jax.random.key(0))), []
    for number in range(2):
        rows = shard(task(number))
        for step in range(3):
            key = jax.random.key(9)
            state, info = program.step(
                state, key, np.int32(3 * number + step), np.int32(3), rows
            )
            losses.append(float(info.loss))
        state = program.end_task(state, jax.random.key(number), rows)
    return (
        state,
        losses,
        program.total(next(iter(program.read(state).values())), shard(task(0))),
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_a_mesh_does_what_it_does_on_one_device(name):
    """Oracle: one device: losses, the whole state, the score. The mesh has eight pretend
    ones; rows lie on all of them, kernels and what is shaped like them on two."""
    sharding = ShardingPlan(make_mesh(data=4, fsdp=2), fsdp(at_least=100))
    alone, spread = walked(name, None), walked(name, sharding)
    kernels = [leaf for leaf in jax.tree.leaves(spread[0].params) if leaf.ndim == 2]
    assert {len(leaf.sharding.device_set) for leaf in kernels} == {8}
    assert kernels[0].addressable_shards[0].data.size == kernels[0].size // 2
    for ours, theirs in zip(
        jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True
    ):
        if not jnp.issubdtype(jnp.result_type(ours), jax.dtypes.prng_key):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.fixture
def compilations():
    """Names of the functions that were compiled so far in the test."""
    names = []

    def count(event, _, **metadata):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(metadata.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(count)
    yield names
    jax.monitoring.unregister_event_duration_listener(count)


def first_kernel(build, **options):
    """The first kernel after a step and the end of a task, and what is measured."""
    rows, params = task(0), MODEL.init(jax.random.key(0))
    example = jax.tree.map(lambda leaf: leaf[:1], rows)
    program = compile_program(
        build, params, (), example, tested=example, metrics=METRIC, **options
    )
    state = program.start(params)
    state, _ = program.step(state, jax.random.key(1), np.int32(0), np.int32(3), rows)
    state = program.end_task(state, jax.random.key(2), rows)
    params = program.read(state)["params"]
    assert program.total(params, rows)[1] == 15
    return np.asarray(params["hidden_0"]["kernel"])


def test_a_run_like_an_earlier_one_compiles_nothing(compilations):
    """Oracle: counting, and the bits of the first run. Negative control: the same words in
    another function, another policy."""
    build = lambda frozen: make_method(LOSS, optax.sgd(0.1))
    another = lambda frozen: make_method(LOSS, optax.sgd(0.1))
    want = first_kernel(build)
    own = {f"jit({name})" for name in ("start", "step", "end_task", "read", "total")}
    assert own <= set(compilations)
    compilations.clear()
    np.testing.assert_array_equal(first_kernel(build), want)
    assert compilations == []
    first_kernel(another)
    assert set(compilations) == own
    compilations.clear()
    first_kernel(build, on_non_finite="skip")
    assert set(compilations) == own


def test_what_build_reads_from_outside_may_be_another_in_the_next_run():
    """Oracle: a function that has the second rate from the start. The rate is a free name,
    or an attribute of an object that is called."""
    rate = 0.1
    build = lambda frozen: make_method(LOSS, optax.sgd(rate))

    class Builder:
        rate = 0.1

        def __call__(self, frozen):
            del frozen
            return make_method(LOSS, optax.sgd(self.rate))

    builder = Builder()
    slow = [first_kernel(build), first_kernel(builder)]
    rate = builder.rate = 0.5
    want = first_kernel(lambda frozen: make_method(LOSS, optax.sgd(0.5)))
    for before, way in zip(slow, (build, builder), strict=True):
        np.testing.assert_array_equal(first_kernel(way), want)
        assert not np.array_equal(before, want)


def test_no_program_keeps_its_functions_alive():
    """Oracle: a weak reference, which is empty once nobody holds the function."""
    build = lambda frozen: make_method(LOSS, SGD)
    first_kernel(build)
    found = weakref.ref(build)
    del build
    gc.collect()
    assert found() is None
