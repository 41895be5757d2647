r"""Elastic weight consolidation: a quadratic penalty around past solutions.

The unit of strength, here and everywhere in the library::

    penalty = strength / 2 * sum_k sum_i F_k[i] (params[i] - anchor_k[i])^2

with ``F_k`` the *mean over single examples* of the squared gradient in task ``k``. With
strength equal to the number of examples this is the Laplace approximation of the
posterior. Other systems differ; :func:`convert_strength` converts:

==================  ==========  ==============================  ==========  =============
system              their term  their Fisher                    ``halved``  ratio
==================  ==========  ==============================  ==========  =============
Kirkpatrick 2017    1/2 F d^2   mean over examples              True        1
van de Ven          1/2 F d^2   mean over examples              True        1 (a)
Create-and-Find     1/2 F d^2   mean over examples, decayed     True        1
Avalanche           F d^2       batch means, mean over batches  False       1 / B (b)
Mammoth, online     F d^2       examples times their p(y)       False       none (c)
SequeL              F d^2       batch means, sum / examples     False       1 / B^2 (b)
TRACE               1/2 F d^2   batch means, sum over epochs    True        E / B (b)
==================  ==========  ==============================  ==========  =============

``B`` is the batch size, ``E`` the number of epochs.

(a) online, the decay also multiplies the penalty (Schwarz 2018, equation 8): ratio decay.

(b) near an optimum, against per-example Fishers. Against
:func:`~jaxcl.curvature.batched_fisher` of the same ``B`` it is exact: 1, 1 / B and E.

(c) not a multiple of ours; twice the coefficient is a first guess where p(y) is near 1.

Stability: gradient descent on the penalty alone diverges when
``learning_rate * strength * max(F) > 2``, and ``F`` grows with every task; see
:func:`largest_stable_strength`. Sharpness-aware gradients (SAM) shrink the Fisher, so
tune the strength for each, or use :func:`~jaxcl.curvature.normalised`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike

from jaxcl.curvature import Fisher, largest_entry
from jaxcl.errors import check_number, require
from jaxcl.regularizers.base import weighted_distance, wide_copy, zeros_of
from jaxcl.tree import dot, safe_divide, subtract, wide_dtype
from jaxcl.typing import Params, Regularizer


class EwcState(NamedTuple):
    """The sum of all tasks' quadratics, ``fisher * (params - anchor)^2 + constant``.

    Fisher and anchor are trees like the parameters, in float32 or better.
    """

    anchor: Params  # Fisher-weighted mean of past solutions; the last one online
    fisher: Params  # sum of the tasks' diagonals, zero before the first
    constant: Float[Array, ""]  # the sum's value at the anchor
    tasks_seen: Int[Array, ""]  # for logs; nothing depends on it


def ewc(
    fisher: Fisher,
    strength: ScalarLike,
    *,
    decay: ScalarLike | None = None,
    running_mean: bool = False,
) -> Regularizer:
    r"""Penalise the distance to past solutions, weighted by the Fisher information.

    Without ``decay``: one anchor per task, as in the first paper, at the memory and the
    cost per step of a single one. A sum of quadratics is a quadratic,

    .. math:: \sum_k F_k (\theta - a_k)^2 = F (\theta - a)^2 + c, \quad
       F = \sum_k F_k, \quad a = \sum_k F_k a_k / F,

    updated by ``c += F F_new / (F + F_new) (a_new - a)^2`` and
    ``a += F_new / (F + F_new) (a_new - a)``; value and gradient are exact.

    With ``decay``: online EWC, one anchor (the latest solution) and
    ``F = decay * F + F_new``. With ``running_mean``: likewise, and after ``t`` tasks
    ``F = (t F + F_new) / (t + 1)``, so that the strength means the same at every task.

    Before the first task the Fisher is zero, and so is the penalty. A step costs three
    operations per parameter, whatever the number of tasks. State: :class:`EwcState`.

    Args:
      fisher: computes the importance at the end of a task, such as
        ``empirical_fisher(loss)`` or ``exact_fisher(outputs)``.
      strength: see the unit at the top of this module.
      decay: fraction of the old Fisher kept per task, in [0, 1]; None for separate anchors.
      running_mean: take the mean of the tasks' Fishers; without ``decay``.

    Sources: Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3; Huszar 2018,
    arXiv:1712.03847, on the sum; Schwarz et al. 2018, arXiv:1805.06370, section 4, online;
    the running mean is that of the code of Serra et al. 2018, arXiv:1801.01423.
    """
    check_number("ewc", strength=strength)
    check_number("ewc", most=1.0, optional=True, decay=decay)
    message = f"running_mean takes no decay, got {decay}; leave one of them out"
    require(not running_mean or decay is None, "ewc", message)

    def init(params, _example):
        anchor = wide_copy(params)
        constant = jnp.zeros((), wide_dtype(*jax.tree.leaves(params)))
        return EwcState(anchor, zeros_of(anchor), constant, jnp.zeros((), jnp.int32))

    def penalty(state, params, _context):
        distance = weighted_distance(state.fisher, params, state.anchor)
        return 0.5 * strength * (distance + state.constant)

    def end_task(key, state, params, data):
        fresh = fisher(key, params, data)
        solution = wide_copy(params)
        if running_mean:
            new = 1.0 / (state.tasks_seen + 1)
            merged = _replace(state, solution, fresh, 1.0 - new, new)
        elif decay is None:
            merged = _add(state, solution, fresh)
        else:
            merged = _replace(state, solution, fresh, decay, 1.0)
        return merged._replace(tasks_seen=state.tasks_seen + 1)

    return Regularizer(init, penalty, end_task=end_task)


def _add(state, solution, fresh):
    """The quadratic of the state plus ``fresh * (params - solution)^2``."""
    total = jax.tree.map(jnp.add, state.fisher, fresh)
    share = jax.tree.map(safe_divide, fresh, total)
    moved = subtract(solution, state.anchor)

    def anchor(old, new, old_fisher, share, moved):
        # Where the old Fisher is zero, take the new solution without rounding.
        return jnp.where(old_fisher == 0, new, old + share * moved)

    between = jax.tree.map(lambda s, m: s * jnp.square(m), share, moved)
    return state._replace(
        anchor=jax.tree.map(anchor, state.anchor, solution, state.fisher, share, moved),
        fisher=total,
        constant=state.constant + dot(state.fisher, between),
    )


def _replace(state, solution, fresh, kept, added):
    """The quadratic of online EWC: the latest anchor, a weighted sum of diagonals."""
    mix = lambda old, new: (kept * old + added * new).astype(old.dtype)
    fisher = jax.tree.map(mix, state.fisher, fresh)
    return state._replace(anchor=solution, fisher=fisher)


def convert_strength(
    coefficient: ScalarLike, *, halved: bool, ratio: ScalarLike = 1.0
) -> Float[Array, ""]:
    """``coefficient * ratio``, the strength that equals another system's coefficient.

    Doubled if the factor 1/2 is absent there: Avalanche's ``lambda * sum(F d^2)`` is
    ``strength = 2 lambda`` for the same Fisher.

    ``halved`` and ``ratio`` (its Fisher divided by ours) are in the table at the top of
    this module.
    """
    return jnp.asarray((1.0 if halved else 2.0) * coefficient * ratio, jnp.float32)


def largest_stable_strength(
    fisher: Params, learning_rate: ScalarLike, *, loss_curvature: ScalarLike = 0.0
) -> Float[Array, ""]:
    r"""The strength above which plain gradient descent on the penalty diverges.

    .. math:: (2 / \text{learning rate} - \text{loss curvature}) \, / \max_i F_i

    ``fisher`` is the *accumulated* diagonal, ``EwcState.fisher``, which grows with the
    tasks; the limit is infinite while it is zero. Heavy-ball momentum ``m`` allows
    ``1 + m`` times more. Without the largest Hessian eigenvalue of the data loss it is
    that of the penalty alone, which is necessary but not sufficient.
    """
    room = jnp.maximum(2.0 / learning_rate - loss_curvature, 0.0)
    top = largest_entry(fisher)
    return jnp.where(top > 0, safe_divide(room, top), jnp.inf)
