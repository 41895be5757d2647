"""A gradient transformation over a named device axis: one climb for all, or one each."""

from collections.abc import Hashable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxcl.transforms._perturb import transformation as make
from jaxcl.tree import wide


def across_devices(
    transformation: optax.GradientTransformation,
    axis_name: Hashable,
    *,
    sync: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Run a transformation inside ``jax.shard_map``, ``jax.pmap`` or a named ``vmap``.

    Every device holds the same parameters and state and a share of the batch; ``grads``
    and every ``*grad_fn`` are those of *its own* share (means, not sums). What comes
    back is the same on all devices. There are three ways to climb:

    * ``sync=True``: gradients are averaged before they are used, and so is every
      gradient that is asked for. The result is that of one device with the whole batch.
    * ``sync=False``: each device transforms its own gradient, and only the results are
      averaged. With :func:`jaxcl.transforms.sam` this is m-sharpness with ``m``
      examples per device: one collective a step instead of two. Numbers in the state
      (logs, means) are averaged too (of integers the largest is taken), so that it
      stays the same everywhere.
    * without this function: each device keeps its own result, and the caller averages.

    Gradients must be local. Inside ``jax.shard_map`` with its default
    ``check_vma=True``, ``jax.grad`` with respect to weights that do not vary over the
    axis already *sums* over devices, so that a later mean is as many times too large as
    there are devices. Cast the weights first, or average outside:
    ``jax.grad(loss)(jax.lax.pcast(params, axis_name, to="varying"), batch)``. Gradients
    that this function asks for itself are safe: it makes the point vary.

    Args:
      transformation: any transformation of this package, or a chain of them.
      axis_name: name of the mapped axis, or a tuple of names.
      sync: whether devices share the climb.

    Cost: one mean over devices per gradient (``sync``), or one per step.
    """
    inner = optax.with_extra_args_support(transformation)

    def update(grads, state, params=None, **extra):
        if sync:
            extra = {name: shared(name, value) for name, value in extra.items()}
            return inner.update(mean_over(axis_name, grads), state, params, **extra)
        own = varying(axis_name, params), varying(axis_name, state)
        result, state = inner.update(grads, own[1], own[0], **extra)
        return mean_over(axis_name, result), mean_over(axis_name, state)

    def shared(name, value):
        if not (name.endswith("grad_fn") and callable(value)):
            return value
        return lambda params: mean_over(axis_name, value(varying(axis_name, params)))

    return make(inner.init, update)


def mean_over(axis_name: Hashable, tree: PyTree) -> PyTree:
    """The mean over devices, in float32 or better; the largest of integers."""

    def leaf(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jax.lax.pmax(x, axis_name)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x  # a key, which is the same everywhere
        return jax.lax.pmean(wide(x), axis_name).astype(x.dtype)

    return jax.tree.map(leaf, tree)


def varying(axis_name: Hashable, tree: PyTree) -> PyTree:
    """The same numbers, marked as each device's own, so that ``grad`` does not sum them."""
    nothing = 0 * jax.lax.axis_index(axis_name)

    def leaf(x):
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return x + nothing.astype(x.dtype) if inexact else x

    return jax.tree.map(leaf, tree)


__all__ = ["across_devices"]
