"""Periodic work: right for every run, and skipped when no run is due."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.lockstep import when


def double_every_third(carry, _):
    count, value = carry
    count = count + 1
    value = when(count % 3 == 0, lambda v: 2 * v, value)
    return (count, value), None


def run(count, value):
    return jax.lax.scan(double_every_third, (count, value), length=7)[0]


def by_hand(count, value):
    for _ in range(7):
        count += 1
        value = 2 * value if count % 3 == 0 else value
    return count, value


def test_runs_in_and_out_of_step_equal_a_python_loop():
    """Oracle: plain Python, one run at a time; also two axes of runs."""
    starts = jnp.array([[0, 0, 0], [0, 1, 2]])
    values = jnp.arange(1.0, 7.0).reshape(2, 3)
    counts, found = jax.jit(jax.vmap(jax.vmap(run)))(starts, values)
    for i in range(2):
        for j in range(3):
            expected = by_hand(int(starts[i, j]), float(values[i, j]))
            assert (int(counts[i, j]), float(found[i, j])) == expected


def test_under_vmap_the_branch_stays_a_branch():
    """Oracle: the work is a callback that counts how often it is really done."""
    done = []

    def work(value):
        jax.debug.callback(lambda: done.append(1))
        return value + 1

    def step(carry, _):
        count, value = carry
        return (count + 1, when(count % 5 == 4, work, value)), None

    run = lambda v: jax.lax.scan(step, (jnp.zeros((), jnp.int32), v), length=10)[0]
    _, value = jax.jit(jax.vmap(run))(jnp.zeros(3))
    jax.effects_barrier()
    np.testing.assert_array_equal(value, [2, 2, 2])
    assert 2 <= len(done) <= 6  # twice, perhaps once per run; never ten times


def test_gradients_pass_through():
    """Oracle: the derivative of 4 v, from two doublings in seven steps."""
    assert jax.grad(lambda v: run(jnp.zeros((), jnp.int32), v)[1])(3.0) == 4
