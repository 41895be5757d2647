"""Schedules by the fraction of a task that is done."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import Array, ScalarLike

from jaxcl.transforms._perturb import transformation
from jaxcl.tree import wide


def scale_by_progress(
    schedule: Callable[[Array], ScalarLike],
) -> optax.GradientTransformationExtraArgs:
    """Multiply updates by ``schedule(fraction)``, the fraction of the task that is done.

    Tasks of 30, 10 and 2 steps all follow the full schedule, in one compiled program::

        cosine = lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done))
        optimizer = optax.chain(optax.adam(1e-3), scale_by_progress(cosine))

    The fraction is ``step / num_steps`` in [0, 1), as both training loops set it. It is 0
    where the length of a task is not known, as in a custom loop that does not set it.

    An update needs ``progress``, a :class:`~jaxcl.typing.Progress`;
    :func:`jaxcl.method.make_method` gives it.
    """

    def update(updates, state, params=None, *, progress, **_):
        del params
        factor = schedule(progress.fraction())
        scale = lambda leaf: (factor * wide(leaf)).astype(leaf.dtype)
        return jax.tree.map(scale, updates), state

    return transformation(optax.init_empty_state, update, needs_params=False)
