"""The compiled parts of a run: spread over a mesh they do what one device does, and a
further run like an earlier one compiles nothing."""

import importlib

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
from jaxcl.training.compiled import Rows, compile_program
from jaxcl.transforms import c_flat, gsam, looksam
from jaxcl.tree import as_batch, at

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
ROWS = Rows(at(slice(1), task(0)), task(0), task(0), task(0), "task 0")


def walked(name, sharding):
    """The state after two tasks of three steps, and the sums of a metric."""
    program = compile_program(
        lambda frozen: METHODS[name](),
        MODEL.init(jax.random.key(0)),
        (),
        ROWS,
        key=jax.random.key(0),
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


def first_kernel(build, **options):
    """The first kernel after a step and the end of a task, and what is measured."""
    rows, params, key = task(0), MODEL.init(jax.random.key(0)), jax.random.key(0)
    program = compile_program(
        build, params, (), ROWS, key=key, metrics=METRIC, **options
    )
    state = program.start(params)
    state, _ = program.step(state, jax.random.key(1), np.int32(0), np.int32(3), rows)
    state = program.end_task(state, jax.random.key(2), rows)
    params = program.read(state)["params"]
    assert program.total(params, rows)[1] == 15
    return np.asarray(params["hidden_0"]["kernel"])


def sgd(rate):
    return make_method(LOSS, optax.sgd(rate))


def test_a_run_like_an_earlier_one_compiles_nothing(compilations):
    """Oracle: counting, and the bits of the first run; the same words in another function
    are the same program. Negative control: another policy."""
    want = first_kernel(lambda frozen: sgd(0.125))
    own = {f"jit({name})" for name in ("start", "step", "end_task", "read", "total")}
    assert own <= set(compilations)
    compilations.clear()
    np.testing.assert_array_equal(first_kernel(lambda frozen: sgd(0.125)), want)
    assert compilations == []
    first_kernel(lambda frozen: sgd(0.125), on_non_finite="skip")
    assert set(compilations) == own


RATE, SHIFT = 0.1, np.zeros((16, 6), np.float32)


def by_a_global():
    return sgd(RATE)


def shifted(params, batch, keys=None):
    return LOGITS(params, batch, keys) + SHIFT[: len(batch.y)]


class Builder:
    """A build function with a state."""

    rate = 0.1

    def __call__(self, frozen):
        del frozen
        return sgd(self.rate)


BUILDER = Builder()
WAYS = {
    "global": lambda frozen: sgd(RATE),
    "global of a helper": lambda frozen: by_a_global(),
    "schedule": lambda frozen: make_method(LOSS, optax.sgd(lambda count: RATE)),
    "attribute": BUILDER,
    "constant array": lambda frozen: make_method(
        cross_entropy(shifted), optax.sgd(0.1)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_build_reads_from_outside_may_be_another_in_the_next_run(way, monkeypatch):
    """Oracle: the state of a run of the second value alone, by the bare method. Nothing
    tells that a value has changed but the program."""
    before = first_kernel(WAYS[way])
    module = importlib.import_module(__name__)
    monkeypatch.setattr(module, "RATE", 0.5)
    monkeypatch.setattr(BUILDER, "rate", 0.5)
    monkeypatch.setattr(module, "SHIFT", 3.0 * np.eye(16, 6, dtype=np.float32))
    after = first_kernel(WAYS[way])
    method, rows = WAYS[way](()), task(0)
    state = method.init(MODEL.init(jax.random.key(0)), at(slice(1), rows))
    key = jax.random.fold_in(jax.random.key(1), 0)
    want = method.step(key, state, rows)[0].params["hidden_0"]["kernel"]
    np.testing.assert_allclose(after, want, rtol=1e-5, atol=1e-7)
    assert not np.allclose(before, after, rtol=1e-5, atol=1e-7)


def test_a_function_that_is_called_back_is_the_one_of_its_own_run():
    """Oracle: two lists, one for each run; the programs have the same text."""
    seen = [], []
    for mine in seen:

        def watch(state, step, mine=mine):
            jax.debug.callback(lambda loss: mine.append(float(loss)), step.losses[0])
            return state.progress.task

        first_kernel(
            lambda frozen, watch=watch: make_method(LOSS, SGD, metrics={"watch": watch})
        )
        jax.effects_barrier()
    assert [len(mine) for mine in seen] == [1, 1]
