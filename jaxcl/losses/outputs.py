"""Outputs by the task of an example: heads and masks."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxcl.errors import InputError, check_size, is_whole, reason_of, require
from jaxcl.typing import Outputs

#: The logit of a class that an example cannot have. It is large, negative and finite, so
#: that its probability is zero and the difference of two is not NaN.
MASKED = -1e9


def evaluated(outputs: Outputs, *place) -> Array:
    """``outputs(params, batch, ...)``, or one line for a network that takes inputs."""
    try:
        return outputs(*place)
    except Exception as error:
        known = isinstance(error, InputError)
        if known or not ("'Model'" in str(error) or _takes_inputs(outputs, *place)):
            raise
        msg = (
            "outputs: expected a function of (params, batch), got one that fails on a "
            f"batch ({reason_of(error, 80)}); wrap a network: "
            "losses.single_head(model.apply)."
        )
        raise InputError(msg) from error


def _takes_inputs(outputs, params, batch, *keys) -> bool:
    """Whether it is a network, a function of inputs instead of a batch."""
    with suppress(Exception):  # whatever the network raises
        jax.eval_shape(outputs, params, batch.x, *keys)
        return True
    return False


def single_head(apply: Callable) -> Outputs:
    """One head for all tasks: ``apply(params, x [b, ...], keys=None) -> logits [b, c]``.

    Or ``[b, n, c]``, for each of ``n`` tokens.
    """
    return lambda params, batch, keys=None: apply(params, batch.x, keys)


def heads(apply: Callable, sizes: int | list[int] | tuple[int, ...]) -> Outputs:
    """One head per task, selected by the task of each example: task-incremental learning.

    Outputs ``[b, max(sizes)]``; those of other tasks get no gradient. The network needs as
    many outputs as all heads together; for a task without a head the logits are NaN.
    Of a network with outputs for each token they are ``[b, n, max(sizes)]``.

    Args:
      apply: ``(params, x [b, ...], keys=None) -> [b, outputs]``, or ``[b, n, outputs]``.
      sizes: classes of every task, or a list of the classes of each. Heads of unequal
        width are padded to the widest with :data:`MASKED`.
    """
    split = _by_task("heads", sizes)

    def outputs(params, batch, keys=None):
        every = split(apply(params, batch.x, keys))
        # NaN for a task without a head: a gather would clamp its number to another head.
        known = (batch.task >= 0) & (batch.task < every.shape[1])
        task = _with_axes(batch.task, every.ndim)
        own = jnp.take_along_axis(every, task, axis=1)[:, 0]
        return jnp.where(_with_axes(known, own.ndim), own, jnp.nan)

    return outputs


def past_heads(apply: Callable, sizes: int | list[int] | tuple[int, ...]) -> Outputs:
    """The outputs of all tasks before each example's own, for distillation.

    The arguments are those of :func:`heads`. Of the outputs ``[b, T, c]`` (``[b, T, n, c]``
    for tokens) row ``t`` holds those of task ``t``; from the example's own task on it is
    zero and has no gradient.
    :func:`jaxcl.regularizers.distill` takes a mean over all ``T`` rows: give ``T`` times
    the strength for a sum over past tasks.
    """
    split = _by_task("past_heads", sizes)

    def outputs(params, batch, keys=None):
        every = split(apply(params, batch.x, keys))
        past = jnp.arange(every.shape[1]) < batch.task[:, None]
        return jnp.where(_with_axes(past, every.ndim), every, 0.0)

    return outputs


def class_mask(
    outputs: Outputs, allowed: Bool[Array, "..."] | Bool[np.ndarray, "..."]
) -> Outputs:
    """Mask the logits of classes that the task of an example does not allow.

    Class-incremental learning has one head for all classes. With ``allowed[t]`` true for
    the classes of tasks up to ``t``, classes that are not seen yet get no probability and
    no gradient; with those of task ``t`` alone, as in task-incremental learning, new
    examples give old classes no gradient either (the "labels trick").

    For training only: a test row is masked by its own task, which gives away part of the
    answer, so measure by ``outputs``. Replayed rows are masked by theirs, too.

    Outputs ``[b, c]``, or ``[b, n, c]`` for tokens, are :data:`MASKED` for a class that
    ``allowed`` ``[T, c]`` does not allow, and NaN for rows of a task without a row there.

    Reference: Zeno et al. 2018, arXiv:1803.10123 (labels trick).
    """

    def masked(params, batch, keys=None):
        logits, tasks = outputs(params, batch, keys), len(allowed)
        fits = np.shape(allowed) == (tasks, logits.shape[-1])
        shapes = f"[tasks, {logits.shape[-1]}], got {list(np.shape(allowed))}"
        wanted = f"allowed must have a column for each output, {shapes}"
        require(fits, "class_mask", wanted)
        mine = jnp.asarray(allowed, bool)[batch.task]
        mine = mine[:, None] if logits.ndim == 3 else mine
        known = (batch.task >= 0) & (batch.task < tasks)
        known = _with_axes(known, logits.ndim)
        return jnp.where(known, jnp.where(mine, logits, MASKED), jnp.nan)

    return masked


def _with_axes(values, ndim: int) -> Array:
    """Values ``[b]`` or ``[b, T]`` with so many axes, for broadcasting."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _by_task(who: str, sizes) -> Callable[[Array], Float[Array, "b T *n c"]]:
    """Split outputs ``[b, k]`` or ``[b, n, k]`` by task, as the second axis.

    Those of narrow heads are padded with MASKED.
    """
    equal = is_whole(sizes)
    many = sizes if isinstance(sizes, list | tuple) else [sizes]
    check_size(who, **{f"sizes[{k}]": size for k, size in enumerate(many)})
    wanted = f"a multiple of {sizes}" if equal else f"{sum(many)} as sizes say"

    def split(scores):
        total = scores.shape[-1]
        fits = total % sizes == 0 if equal else total == sum(many)
        message = f"the network must have outputs for all heads, {wanted}, got {total}"
        require(fits, who, message)
        if len(set(many)) == 1:  # no padding
            return jnp.moveaxis(scores.reshape(*scores.shape[:-1], -1, many[0]), -2, 1)
        parts = jnp.split(scores, np.cumsum(sizes)[:-1], axis=-1)
        kept = [(0, 0)] * (scores.ndim - 1)
        missing = [[*kept, (0, max(sizes) - size)] for size in sizes]
        padded = map(partial(jnp.pad, constant_values=MASKED), parts, missing)
        return jnp.stack(list(padded), axis=1)

    return split
