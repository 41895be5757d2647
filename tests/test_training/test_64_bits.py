"""Both loops where 64 bits are enabled, as a context manager, and with old keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.data import Dataset, Task, digits, permuted, stream_tasks, subset
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh
from jaxcl.training import accuracy_row, first_example, learn, run_stream
from jaxcl.training.batches import prefetch
from tests.test_training.test_host import (
    LOGITS,
    METRIC,
    MODEL,
    OPTIONS,
    assert_same_bits,
    build,
)

IMAGES = subset(digits(), key=jax.random.key(5), num_train=40, num_test=16)
STREAM = permuted(jax.random.key(1), IMAGES, num_tasks=2)
RATE = jnp.float32(0.1)


def start(dtype):
    """Parameters; drawn in float32 whatever is enabled."""
    weights = MODEL.init(jax.random.key(2))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), weights)


def device_loop(params="float32", rows="float32"):
    cast = lambda batch: batch._replace(x=batch.x.astype(rows))
    stream = STREAM._replace(
        train=lambda pool, plan: cast(STREAM.train(pool, plan)),
        test=lambda pool, plan: cast(STREAM.test(pool, plan)),
    )

    @jax.jit
    def run(rate, params):
        method = build(rate)
        state = method.init(params, first_example(stream))
        look = accuracy_row(LOGITS, stream)
        sizes = {"num_steps": 6, "batch_size": 8}
        key = jax.random.key(3)
        return run_stream(key, method, stream, state, **sizes, after=look)

    state, record = run(RATE, start(params))
    return state, record.after


def as_rows(task, dtype, stop_at=None):
    """The task with inputs of a dtype, made by JAX while they are read, in any thread."""
    batches = 0

    def changed(rows):
        def read(numbers):
            nonlocal batches
            batches += len(numbers) == OPTIONS.batch_size
            if batches == stop_at:
                raise KeyboardInterrupt
            batch = rows.read(numbers)
            return batch._replace(x=jnp.asarray(batch.x, dtype))

        return Dataset(rows.count, read)

    return Task(task.name, changed(task.train), changed(task.test))


def host_loop(folder, params="float32", rows="float32", key=None, **others):
    stop_at = others.pop("stop_at", None)
    tasks = [as_rows(task, rows, stop_at) for task in stream_tasks(STREAM)]
    key = jax.random.key(3) if key is None else key
    given = {
        "folder": folder,
        "frozen": RATE,
        "metrics": METRIC,
        "quiet": True,
        **others,
    }
    done = learn(key, build, start(params), tasks, OPTIONS, **given)
    return done.run_state.state, np.float32(done.results["accuracy"]["params"][1:])


def without_keys(state):
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [leaf for leaf in jax.tree.leaves(state) if not is_key(leaf)]


def assert_close(found, want):
    for got, leaf in zip(without_keys(found), without_keys(want), strict=True):
        np.testing.assert_allclose(
            np.asarray(got, np.float64), np.asarray(leaf, np.float64), atol=2e-5
        )


@pytest.fixture(scope="module")
def in_float32():
    """The stream learned without 64 bits."""
    return device_loop()


KINDS = [("float32", "float32"), ("float32", "float64"), ("float64", "float64")]


@pytest.mark.parametrize(("params", "rows"), KINDS)
def test_both_loops_learn_under_64_bits_what_they_learn_without(
    params, rows, in_float32, tmp_path
):
    """Oracle: the device loop in float32; parameters keep their dtype."""
    with jax.enable_x64(True):
        for state, matrix in (
            device_loop(params, rows),
            host_loop(tmp_path, params, rows),
        ):
            assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
                jnp.dtype(params)
            }
            assert_close((state, matrix), in_float32)
    assert device_loop()[1].dtype == jnp.float32  # and it ends with the context


@pytest.mark.parametrize(("params", "rows"), KINDS[1:])
def test_a_run_under_64_bits_goes_on_with_the_same_bits(params, rows, tmp_path):
    """Oracle: the run left alone. It ends by an error in the second task."""
    with jax.enable_x64(True):
        want = host_loop(tmp_path / "whole", params, rows)
        with pytest.raises(KeyboardInterrupt):
            host_loop(tmp_path / "cut", params, rows, stop_at=4)
        assert_same_bits(host_loop(tmp_path / "cut", params, rows), want)


def test_a_mesh_under_64_bits_gets_rows_of_64_bits(in_float32, tmp_path):
    """Oracle: the device loop in float32. Rows are placed by a thread of its own."""
    plan = ShardingPlan(make_mesh(data=4, fsdp=2), fsdp(at_least=256))
    with jax.enable_x64(True):
        found = host_loop(tmp_path, "float32", "float64", sharding=plan)
    assert_close(found[0], in_float32[0])


def test_an_old_key_learns_what_the_new_one_of_its_seed_learns(tmp_path):
    """Oracle: equal bits."""
    new = host_loop(tmp_path / "new")
    old = host_loop(tmp_path / "old", key=jax.random.PRNGKey(3))
    assert_same_bits(old, new)


def test_rows_are_read_ahead_under_the_setting_of_who_asked():
    """Oracle: NumPy's float64; negative control: without the context."""
    read = lambda number: jnp.asarray(np.float64(number))
    with jax.enable_x64(True):
        assert [row.dtype for row in prefetch(read, range(3))] == 3 * [jnp.float64]
    assert [row.dtype for row in prefetch(read, range(3))] == 3 * [jnp.float32]
