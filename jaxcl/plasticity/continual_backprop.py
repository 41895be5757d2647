"""Continual backpropagation: reset the least useful units, a few at a time."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from jaxcl.errors import check_number
from jaxcl.lockstep import when
from jaxcl.plasticity.units import (
    check_units,
    leaf,
    mean_over_rows,
    nowhere,
    reset_units,
)
from jaxcl.tree import safe_divide, wide, wide_dtype
from jaxcl.typing import Key, Params, Reset, Units


class Traces(NamedTuple):
    """Running statistics of the units of one layer; means without bias correction."""

    utility: Float[Array, " width"]
    mean: Float[Array, " k"]  # of the activations, [copies * width]
    age: Int[Array, " width"]  # steps since the unit was reset
    pending: Float[Array, ""]  # resets that are due; a fraction below one is kept


#: ``(h [b, ..., k], mean [k], weight [b], reads [width], writes [k]) -> [k]``: the utility
#: of each activation on this batch. ``reads`` and ``writes`` are the mean absolute
#: incoming and outgoing weights; ``k = copies * width``, and copies are summed.
Utility = Callable[[Array, Array, Array, Array, Array], Array]


def contribution(h, mean, weight, reads, writes):
    """``mean|w_out| * mean_x|h|``: the contribution of a unit to the next layer.

    Reference: Dohare et al. 2024 (Nature 632, 768), equation 1.
    """
    del mean, reads
    return writes * mean_over_rows(jnp.abs(h), weight)


def adaptable_contribution(h, mean, weight, reads, writes):
    """``mean|w_out| * mean_x|h - mean h| / mean|w_in|``.

    The contribution of a unit's *variation*, times its adaptability: small incoming
    weights change quickly. A unit without incoming weights has utility zero.

    Reference: Dohare et al. 2021, arXiv:2108.06325.
    """
    copies = h.shape[-1] // reads.size
    away = mean_over_rows(jnp.abs(h - mean), weight)
    return safe_divide(writes * away, jnp.tile(reads, copies))


def continual_backprop(
    hidden: Callable[[Params, PyTree], tuple[Array, ...]],
    units: tuple[Units, ...],
    init: Callable[[Key], Params],
    *,
    rate: ScalarLike = 1e-4,
    maturity: ScalarLike = 100,
    decay: ScalarLike = 0.99,
    utility: Utility = adaptable_contribution,
) -> Reset:
    r"""Reset the mature units of least utility, a fraction ``rate`` of them per step.

    Each layer tracks, with :math:`a_i` the age of unit :math:`i` and
    :math:`\hat f = f / (1 - \eta^a)`, :math:`\hat u = u / (1 - \eta^a)`,

    .. math::
        f_i \leftarrow \eta f_i + (1 - \eta)\, \mathrm{mean}_x h_i, \qquad
        u_i \leftarrow \eta u_i + (1 - \eta)\,
            \frac{\mathrm{mean} |w^{out}_i|\; \mathrm{mean}_x |h_i - \hat f_i|}
                 {\mathrm{mean} |w^{in}_i|}

    and adds ``rate`` times the number of units older than ``maturity`` to a counter. For
    every integer unit of the counter the eligible unit of least :math:`\hat u` is reset:
    new incoming weights and bias, zero outgoing weights, zero traces and age. Its mean
    contribution :math:`\hat f_i w^{out}_i` is added to the next layer's bias, if it has
    one, so that the outputs stay the same on average (in the authors' public code the
    addition has no effect). The optimizer's statistics of its weights are cleared.

    Args:
      hidden: ``(params, x [b, ...]) -> tuple`` of hidden activations ``[b, ...]``.
      units: where the units of the first ``len(units)`` activations live.
      init: ``(key) -> params``, draws a fresh network.
      rate: fraction of the mature units that is reset per step, in [0, 1].
      maturity: steps during which a new unit is not reset.
      decay: :math:`\eta`, fraction of the running means kept per step.
      utility: :func:`adaptable_contribution`, the formula above, or :func:`contribution`.

    Cost: one forward pass at the new parameters and one pass over the kernels per step; a
    new network only at steps that reset something.

    Reference: Dohare et al. 2021, arXiv:2108.06325; 2024, Nature 632, 768, algorithm 1.
    """
    check_units("continual_backprop", units)
    check_number("continual_backprop", most=1.0, rate=rate, decay=decay)
    check_number("continual_backprop", maturity=maturity)

    def reset(key, state, params, batch):
        real = jnp.any(batch.weight > 0)  # a batch of padding changes nothing
        layers = zip(units, state, hidden(params, batch.x), strict=False)
        seen = tuple(
            _observe(layer, traces, params, h, batch.weight, decay, utility)
            for layer, traces, h in layers
        )
        state = jax.tree.map(lambda new, old: jnp.where(real, new, old), seen, state)
        eligible = [real & (traces.age > maturity) for traces in state]

        def add(traces, mature):
            pending = traces.pending + rate * jnp.sum(mature)
            return traces._replace(pending=pending.astype(traces.pending.dtype))

        state = tuple(map(add, state, eligible))

        def replace(operand):
            params, mask, state = operand
            fresh, after = init(key), []
            for layer, traces, mature in zip(units, state, eligible, strict=True):
                worth = safe_divide(traces.utility, _since_birth(traces.age, decay))
                chosen = _lowest(worth, mature, jnp.floor(traces.pending))
                mean = _corrected_mean(layer, traces, decay)
                params, mask = reset_units(params, mask, fresh, layer, chosen, mean)
                after.append(_forget(layer, traces, chosen))
            return params, mask, tuple(after)

        due = real & jnp.any(jnp.stack([traces.pending >= 1 for traces in state]))
        params, mask, state = when(due, replace, (params, nowhere(params), state))
        return state, params, mask

    def start(layer, params):
        dtype = wide_dtype(leaf(params, layer.incoming))
        return Traces(
            utility=jnp.zeros(layer.width, dtype),
            mean=jnp.zeros(layer.copies * layer.width, dtype),
            age=jnp.zeros(layer.width, jnp.int32),
            pending=jnp.zeros((), dtype),
        )

    begin = lambda params, example: tuple(start(layer, params) for layer in units)
    return Reset(begin, reset)


def _observe(layer, traces, params, h, weight, decay, utility):
    """Traces after one more batch."""
    follow = lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype)
    mean = follow(traces.mean, mean_over_rows(h, weight))
    traces = traces._replace(age=traces.age + 1, mean=mean)
    incoming = jnp.abs(wide(leaf(params, layer.incoming)))
    outgoing = jnp.abs(wide(leaf(params, layer.outgoing)))
    reads = jnp.mean(incoming.reshape(-1, layer.width), axis=0)
    *taps, k, _ = outgoing.shape
    writes = jnp.mean(outgoing, axis=(*range(len(taps)), -1)).reshape(k)
    worth = utility(h, _corrected_mean(layer, traces, decay), weight, reads, writes)
    worth = worth.reshape(layer.copies, layer.width).sum(axis=0)
    return traces._replace(utility=follow(traces.utility, worth))


def _since_birth(age, decay):
    """Total weight of a running mean that started from zero ``age`` steps ago."""
    return 1 - jnp.asarray(decay, jnp.float32) ** age


def _corrected_mean(layer, traces, decay):
    since = jnp.tile(_since_birth(traces.age, decay), layer.copies)
    return safe_divide(traces.mean, since)


def _lowest(worth, eligible, count):
    """The ``count`` eligible units of least worth; ties go to the lower index."""
    order = jnp.argsort(jnp.where(eligible, worth, jnp.inf))
    place = jnp.arange(worth.size, dtype=jnp.int32)
    rank = jnp.zeros_like(place).at[order].set(place)
    return eligible & (rank < count)


def _forget(layer, traces, chosen):
    """Zero the traces of units that were reset, and subtract them from the counter."""
    return Traces(
        utility=jnp.where(chosen, 0.0, traces.utility),
        mean=jnp.where(jnp.tile(chosen, layer.copies), 0.0, traces.mean),
        age=jnp.where(chosen, 0, traces.age),
        pending=traces.pending - jnp.sum(chosen),
    )
