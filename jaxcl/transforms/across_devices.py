"""A gradient transformation over a named device axis: shared, or one per device."""

from collections.abc import Hashable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, PyTree

from jaxcl.transforms._perturb import transformation as make
from jaxcl.tree import safe_divide, wide


def across_devices(
    transformation: optax.GradientTransformation,
    axis_name: Hashable,
    *,
    sync: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Run a transformation inside ``jax.shard_map``, ``jax.pmap`` or a named ``vmap``.

    Every device holds the same parameters and state and a part of the batch; ``grads``
    and every ``*grad_fn`` are those of *its own* part (means, not sums). The result is
    the same on all devices. Where parts differ in their number of rows, as with
    padding, give ``update(..., weight=jnp.sum(batch.weight))``, for the replay
    ``replay_weight=``, and for one grouped by task ``task_weight=`` with a sum for each
    task, ``[T]``: means over devices are then means over rows. There are three ways to
    perturb:

    * ``sync=True``: every gradient is averaged over devices before it is used. The
      result is that of one device with the full batch.
    * ``sync=False``: each device transforms its own gradient, and only the results and
      the states are averaged (of integers the largest is taken). With
      :func:`jaxcl.transforms.sam` this is m-sharpness with ``m`` examples per device: one
      collective a step instead of two.
    * without this function: each device keeps its own result, and the caller averages.

    Gradients must be local. Inside ``jax.shard_map`` with its default
    ``check_vma=True``, ``jax.grad`` with respect to weights that do not vary over the
    axis already *sums* over devices, so that a later mean is as many times too large as
    there are devices. Cast the weights first, or average outside:
    ``jax.grad(loss)(jax.lax.pcast(params, axis_name, to="varying"), batch)``. Gradients
    that this function evaluates itself are safe: it marks the point as varying.

    Args:
      transformation: any transformation of this package, or a chain of them.
      axis_name: name of the mapped axis, or a tuple of names.
      sync: whether devices share the perturbation.
    """
    inner = optax.with_extra_args_support(transformation)

    mean_over, varying = partial(_mean_over, axis_name), partial(_varying, axis_name)

    def update(grads, state, params=None, **extra):
        rows = {name: extra.pop(weight, None) for name, weight in _WEIGHTS.items()}
        if sync:
            for name, function in extra.items():
                if name.endswith("grad_fn") and callable(function):
                    extra[name] = shared(function, rows.get(name))
            grads = mean_over(grads, rows["grad_fn"])
            return inner.update(grads, state, params, **extra)
        grads, state = inner.update(grads, varying(state), varying(params), **extra)
        return mean_over(grads, rows["grad_fn"]), mean_over(state, rows["grad_fn"])

    def shared(function, weight):
        return lambda params: mean_over(function(varying(params)), weight)

    return make(inner.init, update, needs_params=False)


#: The argument with the weight of a device's rows, for each gradient.
_WEIGHTS = {
    "grad_fn": "weight",
    "replay_grad_fn": "replay_weight",
    "task_grad_fn": "task_weight",
}


def _mean_over(axis_name: Hashable, tree: PyTree, weight: ArrayLike | None) -> PyTree:
    """The mean over devices, in float32 or better; the largest of integers and booleans."""
    # A weight may have entries for the leading axes of all leaves; equal if absent.

    def mean(x):
        if weight is None:
            return jax.lax.pmean(x, axis_name)
        own = jnp.expand_dims(weight, range(jnp.ndim(weight), x.ndim))
        total = jax.lax.psum(own, axis_name)
        return safe_divide(jax.lax.psum(own * x, axis_name), total)

    def leaf(x):
        if x.dtype == bool:
            return jax.lax.pmax(x.astype(jnp.int32), axis_name).astype(bool)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jax.lax.pmax(x, axis_name)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x  # a key, which is the same everywhere
        return mean(wide(x)).astype(x.dtype)

    return jax.tree.map(leaf, tree)


def _varying(axis_name: Hashable, tree: PyTree) -> PyTree:
    """The same numbers, marked as varying, so that ``grad`` does not sum over devices."""
    nothing = 0 * jax.lax.axis_index(axis_name)

    inexact = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
    add = lambda x: x + nothing.astype(x.dtype) if inexact(x) else x
    return jax.tree.map(add, tree)
