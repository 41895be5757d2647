"""A small wavy landscape whose gradient is written twice: by JAX, and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

_random = np.random.default_rng(0)
_root = _random.normal(size=(7, 7))
CURVATURE = _root @ _root.T / 7 + np.eye(7)
WAVES = _random.normal(size=(5, 7))
START = _random.normal(size=7)


def tree(w):
    """Seven numbers as parameters."""
    w = jnp.asarray(w, jnp.float32)
    return {"bias": w[:3], "kernel": w[3:].reshape(2, 2)}


def flat(params):
    """Parameters as seven numbers in float64."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)]
    return np.concatenate(leaves)


def loss(params, curvature=CURVATURE):
    w = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    curvature, waves = jnp.asarray(curvature, w.dtype), jnp.asarray(WAVES, w.dtype)
    return 0.5 * w @ curvature @ w + jnp.sum(jnp.sin(waves @ w))


grad_fn = jax.jit(jax.grad(loss))


def slope(w):
    """The gradient of `loss`, by hand."""
    return CURVATURE @ w + WAVES.T @ np.cos(WAVES @ w)


def unit(v):
    return v / np.linalg.norm(v)


def run(
    transformation, num_steps=1, learning_rate=0.1, grad_fn=grad_fn, *, compiled=False
):
    """Gradient descent: what the transformation returned at each step, and its state.

    One operation at a time: these shapes are compiled once for all tests, which a program
    for each of them would not be. Branches are compiled whenever they are met: `compiled`.
    """
    params, rows = tree(START), []
    state = transformation.init(params)

    def update(grads, state, params):
        return transformation.update(grads, state, params, grad_fn=grad_fn)

    if compiled:
        update = jax.jit(update)
    for _ in range(num_steps):
        grads, state = update(grad_fn(params), state, params)
        params = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
        rows.append(flat(grads))
    return np.stack(rows), state


def descend(rule, num_steps=1, learning_rate=0.1):
    """The same in NumPy: `rule(step, w, g)` gives the gradient to use."""
    w, rows = START.copy(), []
    for step in range(num_steps):
        rows.append(rule(step, w, slope(w)))
        w = w - learning_rate * rows[-1]
    return np.stack(rows)
