import jax
import jax.numpy as jnp
import numpy as np

from jaxcl.transforms import accumulated, sam


def part_loss(w, rows):
    return jnp.mean(jnp.sin(rows @ w) ** 2)


ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(12, 4)), jnp.float32)
W = jnp.array([0.3, -0.2, 0.5, 0.1])


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    """Oracle: the gradient of the batch held at once."""
    whole = accumulated(jax.grad(part_loss), ROWS.reshape(3, 4, 4))
    np.testing.assert_allclose(whole(W), jax.grad(part_loss)(W, ROWS), rtol=1e-5)


def test_sam_on_an_accumulated_gradient_has_one_perturbation_for_all_parts():
    """Oracle: SAM on the whole batch; negative control: a perturbation per part differs."""

    def transform(gradient):
        state = sam(0.5).init(W)
        return sam(0.5).update(gradient(W), state, W, grad_fn=gradient)[0]

    parts = ROWS.reshape(3, 4, 4)
    want = transform(lambda w: jax.grad(part_loss)(w, ROWS))
    found = transform(accumulated(jax.grad(part_loss), parts))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    each = [transform(lambda w, p=part: jax.grad(part_loss)(w, p)) for part in parts]
    assert np.max(np.abs(np.mean(each, axis=0) - want)) > 1e-3


def test_parts_count_by_their_weight():
    """Oracle: parts of 4, 4 and 2 rows, the last one padded by a loss that skips."""

    def masked_loss(w, part):
        rows, keep = part
        return jnp.sum(keep * jnp.sin(rows @ w) ** 2) / jnp.sum(keep)

    keep = jnp.ones(12).at[10:].set(0.0).reshape(3, 4)
    parts = ROWS.reshape(3, 4, 4), keep
    whole = accumulated(jax.grad(masked_loss), parts, weight=jnp.sum(keep, axis=1))
    np.testing.assert_allclose(whole(W), jax.grad(part_loss)(W, ROWS[:10]), rtol=1e-5)
    nothing = accumulated(jax.grad(masked_loss), parts, weight=jnp.zeros(3))
    np.testing.assert_array_equal(nothing(W), 0.0)


def test_bfloat16_gradients_are_summed_in_float32():
    """Oracle: the exact sum; in bfloat16, 256 + 1 stays 256."""
    parts = jnp.concatenate([jnp.array([256.0]), jnp.ones(15)])
    gradient = lambda w, part: (part + 0 * w).astype(jnp.bfloat16)
    found = accumulated(gradient, parts)(jnp.ones((), jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert float(found) == float(jnp.bfloat16((256 + 15) / 16))
