import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.regularizers import l2, l2_init

START = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
POINT = {"w": jnp.array([2.0, 0.0]), "b": jnp.array([1.0])}


def test_l2_penalises_the_norm_with_the_half():
    """Oracle: 0.4 / 2 * (4 + 0 + 1), and a gradient of 0.4 times the parameters."""
    value, grad = jax.value_and_grad(lambda p: l2(0.4).penalty((), p, None))(POINT)
    np.testing.assert_allclose(value, 1.0, rtol=1e-6)
    np.testing.assert_allclose(grad["w"], 0.4 * POINT["w"], rtol=1e-6)


def test_l2_init_penalises_the_distance_from_the_start_for_ever(key):
    """Oracle: 0.4 / 2 * (1 + 4 + 4), before and after a task."""
    part = l2_init(0.4)
    state = part.init(START, ())
    later = part.end_task(key, state, POINT, None)
    for now in (state, later):
        np.testing.assert_allclose(part.penalty(now, POINT, None), 1.8, rtol=1e-6)
        assert part.penalty(now, START, None) == 0.0


def test_squares_of_half_precision_parameters_add_up_in_float32():
    """Oracle: 4,000 ones; bfloat16 cannot count beyond 256 one by one."""
    params = {"w": jnp.ones(4000, jnp.bfloat16)}
    np.testing.assert_allclose(l2(2.0).penalty((), params, None), 4000.0)
