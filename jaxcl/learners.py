"""Learners ``(state) -> pytree`` made from the memory, to evaluate instead of parameters.

Give ``make_method(..., learners=lambda state: {"nearest_mean": of(state), ...})``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from jaxcl.errors import check_key, check_size
from jaxcl.losses import MASKED
from jaxcl.method import default_learner, make_method
from jaxcl.tree import at, by_chunks, flat_rows, num_rows, safe_divide
from jaxcl.typing import Batch, Key, Loss, MethodState, Outputs, Params


class NearestMean(NamedTuple):
    """A network whose last layer is replaced by the class means of its features."""

    params: Params
    means: Float[Array, "c d"]  # of unit length
    known: Bool[Array, " c"]  # classes of which the memory has an example


def nearest_mean(
    hidden: Callable,
    num_classes: int,
    *,
    read: Callable[[MethodState], Params] = lambda state: state.params,
    chunk_size: int | None = None,
) -> Callable[[MethodState], NearestMean]:
    r"""Class means of the features of the examples in memory, as in iCaRL.

    .. math:: \mu_c = \overline{\textstyle\sum_{y_i = c} w_i \overline{h(x_i)}},
       \qquad \bar v = v / |v|

    Evaluate it with :func:`nearest_mean_outputs`.

    Args:
      hidden: ``(params, x [b, ...]) -> [b, ...]``, flattened per row; of a tuple, such as
        that of a model's ``hidden``, the last is taken.
      num_classes: ``c``.
      read: whose features are used, such as ``lambda state: average.read(state.average,
        state.params)`` for the average of a method.
      chunk_size: rows held at once; all if absent.

    Source: Rebuffi et al. 2017, arXiv:1611.07725, algorithm 1.
    """
    check_size("nearest_mean", num_classes=num_classes)

    def learner(state):
        rows, params = kept_rows(state), read(state)
        of_rows = lambda x: _unit_features(hidden, params, x)
        features = by_chunks(of_rows, (rows.x,), chunk_size)
        member = jax.nn.one_hot(rows.y, num_classes, axis=0) * rows.weight
        full = jax.lax.Precision.HIGHEST  # an accelerator would round the inputs
        sums = jnp.matmul(member, features, precision=full)
        return NearestMean(params, _unit(sums), jnp.any(member > 0, axis=1))

    return learner


def nearest_mean_outputs(outputs: Outputs, hidden: Callable) -> Outputs:
    r"""Outputs for parameters, and for a :class:`NearestMean` by distance.

    They are ``outputs`` for ordinary parameters; for a :class:`NearestMean`, with the
    ``hidden`` of :func:`nearest_mean`, :math:`-|\bar h(x) - \mu_c|^2`, and
    :data:`jaxcl.losses.MASKED` for a class without examples in memory; zeros while the
    memory is empty.

    Source: Rebuffi et al. 2017, arXiv:1611.07725, equation 2.
    """

    def scores(params, batch, keys=None):
        if not isinstance(params, NearestMean):
            return outputs(params, batch, keys)
        features = _unit_features(hidden, params.params, batch.x)
        gaps = features[:, None] - params.means
        scores = -jnp.sum(jnp.square(gaps), axis=-1)
        # All classes alike while the memory is empty: a loss of log c, not of zero.
        return jnp.where(params.known, scores, jnp.any(params.known) * MASKED)

    return scores


def from_memory_alone(
    key: Key,
    init: Callable[[Key], Params],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    num_epochs: int,
    batch_size: int,
) -> Callable[[MethodState], Params]:
    """A new network, trained only on the examples in memory: GDumb.

    It is drawn by ``init(key)``, and trained at each evaluation. Each epoch uses every
    example once, in random order; its last batch may be smaller. An empty memory gives
    the network as drawn.

    Args:
      key: draws the network, the order of the examples and the keys of the steps.
      init: ``(key) -> params``.
      loss: ``(params, batch, keys [b]) -> [b]``.
      optimizer: any of optax.
      num_epochs: passes over the memory. This full cost is paid at each evaluation.
      batch_size: rows per step, at most those that the memory can hold.

    Source: Prabhu et al. 2020, "GDumb: a simple approach that questions our progress in
    continual learning", ECCV.
    """
    check_key("from_memory_alone", key)
    check_size("from_memory_alone", num_epochs=num_epochs, batch_size=batch_size)

    def learner(state):
        rows = kept_rows(state)
        capacity = num_rows(rows)
        size = min(batch_size, capacity)
        steps = -(-capacity // size)
        place = jnp.arange(steps * size).reshape(steps, size)
        key_init, key_order, key_steps = jax.random.split(key, 3)
        method = make_method(loss, optimizer)
        start = method.init(init(key_init), at(slice(1), rows))
        real_steps = num_epochs * -(-jnp.sum(rows.weight > 0, dtype=jnp.int32) // size)
        start = start._replace(progress=start.progress._replace(num_steps=real_steps))

        def epoch(state, key):
            # Real rows first, in random order, so that batches are filled with them.
            draws = jax.random.uniform(key, rows.weight.shape, jnp.float32)
            draws -= 2 * (rows.weight > 0)
            missing = place.size - capacity
            order = jnp.pad(jnp.argsort(draws), (0, missing)).reshape(place.shape)
            return jax.lax.scan(step, state, (order, place < capacity))[0], None

        def step(state, chosen):
            index, once = chosen
            batch = at(index, rows)
            batch = batch._replace(weight=batch.weight * once)
            key = jax.random.fold_in(key_steps, state.progress.step)
            new, _ = method.step(key, state, batch)
            real = jnp.any(batch.weight > 0)
            keep = lambda new, old: jnp.where(real, new, old)
            return jax.tree.map(keep, new, state), None

        keys = jax.random.split(key_order, num_epochs)
        return default_learner(method, jax.lax.scan(epoch, start, keys)[0])

    return learner


def kept_rows(state: MethodState) -> Batch:
    """All rows that a method's memory stores, ``[m, ...]``; weight 0 where it is empty."""
    return flat_rows(state.memory.kept)


def _unit_features(hidden, params, x):
    found = hidden(params, x)
    found = found[-1] if isinstance(found, tuple) else found
    return _unit(found.reshape(len(found), -1).astype(jnp.float32))


def _unit(vectors):
    return safe_divide(vectors, jnp.linalg.norm(vectors, axis=-1, keepdims=True))
