"""A schedule by the fraction of a task, whatever its length."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.transforms import scale_by_progress
from tests.steps import progress


@pytest.mark.parametrize("length", [30, 10, 2])
def test_the_whole_schedule_is_followed_in_tasks_of_any_length(length):
    """Oracle: the schedule at k / length, by hand."""
    scale = optax.chain(optax.sgd(0.5), scale_by_progress(lambda done: 1 - done**2))
    state = scale.init(jnp.ones(2))
    for step in range(length):
        where = progress(1, step, length)
        updates, state = scale.update(jnp.ones(2), state, jnp.ones(2), progress=where)
        np.testing.assert_allclose(
            updates, -0.5 * (1 - (step / length) ** 2), rtol=1e-5
        )


def test_a_task_of_unknown_length_is_at_its_start():
    """Oracle: the schedule at zero; an update that knows nothing is refused."""
    scale = scale_by_progress(lambda done: 3.0 + done)
    updates, _ = scale.update(jnp.ones(2), scale.init(()), progress=progress(0, 7, 0))
    np.testing.assert_array_equal(updates, 3.0)
    with pytest.raises(TypeError, match="missing a required argument: 'progress'"):
        scale.update(jnp.ones(2), scale.init(()))


def test_half_precision_updates_keep_their_dtype():
    """Oracle: the dtype given."""
    scale = scale_by_progress(lambda done: jnp.float32(0.3) + done)
    ones = jnp.ones(2, jnp.bfloat16)
    assert scale.update(ones, (), progress=progress())[0].dtype == jnp.bfloat16
