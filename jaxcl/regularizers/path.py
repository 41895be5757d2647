r"""Path importance: how much each parameter's changes decreased the loss.

Both regularizers here are quadratic penalties in the unit of
:mod:`jaxcl.regularizers.ewc`, ``strength / 2 * sum_i importance_i (params - anchor)_i^2``,
so ``strength`` is twice the coefficient of their papers, which have no 1/2. They need no
pass over the data at the end of a task, and their state does not grow with the tasks.

The decrease in one step is, to first order, :math:`-g \cdot \Delta\theta` with the gradient
of the data loss alone and the actual change: :class:`jaxcl.typing.StepRecord` has both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, ScalarLike

from jaxcl.curvature import largest_entry
from jaxcl.errors import check_number, check_size
from jaxcl.regularizers.base import weighted_distance, wide_copy, zeros_of
from jaxcl.tree import copied, safe_divide, wide
from jaxcl.typing import Params, Regularizer


class SynapticState(NamedTuple):
    """Trees like the parameters, in float32 or better."""

    importance: Params  # Omega: the sum over past tasks
    anchor: Params  # the parameters at the end of the last task, or at the start
    path: Params  # omega: decrease of the loss so far in this task


def synaptic_intelligence(
    strength: ScalarLike, *, damping: ScalarLike = 0.1
) -> Regularizer:
    r"""SI: importance is the decrease of the loss along the path, per squared distance.

    .. math::
       \omega = \sum_t -g_t \, \Delta\theta_t, \qquad
       \Omega \leftarrow \Omega +
       \frac{\max(\omega, 0)}{(\theta_{end} - \theta_{start})^2 + \xi}

    A negative :math:`\omega` (changes that raised the loss) counts as zero, as in the
    authors' code. The path and its end should be those of training: with
    :func:`jaxcl.averages.interpolate`, which moves the parameters at the end of a task,
    the distance is too short and the importance too large.

    Args:
      strength: twice the paper's c.
      damping: :math:`\xi`, above zero; bounds the importance of parameters that hardly
        changed.

    State: :class:`SynapticState`; a step costs two passes over the parameters more than
    EWC.

    Source: Zenke et al. 2017, arXiv:1703.04200, equations 3 to 5.
    """
    check_number("synaptic_intelligence", strength=strength)
    check_number("synaptic_intelligence", above=True, damping=damping)

    def init(params, _example):
        start = wide_copy(params)
        return SynapticState(zeros_of(start), start, zeros_of(start))

    def observe(_key, state, step, _params):
        path = jax.tree.map(jnp.add, state.path, _loss_decrease(step))
        return state._replace(path=path)

    def end_task(_key, state, params, _data):
        now = wide_copy(params)

        def add(importance, path, end, start):
            # Omega += max(omega, 0) / ((theta_end - theta_start)^2 + xi)
            gain = jnp.maximum(path, 0) / (jnp.square(end - start) + damping)
            return importance + gain.astype(importance.dtype)

        importance = jax.tree.map(add, state.importance, state.path, now, state.anchor)
        return SynapticState(importance, now, zeros_of(now))

    penalty = _penalty(strength)
    return Regularizer(init, penalty, observe=observe, end_task=end_task)


class WalkState(NamedTuple):
    """Trees like the parameters, in float32 or better."""

    importance: Params  # of the last task's end: Fisher and score, normalised
    anchor: Params  # the parameters at the end of the last task, or at the start
    fisher: Params  # running mean of squared gradients
    score: Params  # path score: that of earlier tasks plus this task's
    taken: Params  # decrease of the loss since the last addition to the score
    since: Params  # the parameters at that time
    count: Int[Array, ""]  # steps of this task so far; int32
    tasks_seen: Int[Array, ""]  # tasks that have ended; int32


def riemannian_walk(
    strength: ScalarLike,
    *,
    fisher_decay: ScalarLike = 0.9,
    interval: int = 10,
    damping: ScalarLike = 1e-12,
) -> Regularizer:
    r"""RWalk: a running Fisher plus a path score, the loss decrease per distance.

    Every ``interval`` steps, and at the last step of a task whose length is known
    (``progress.num_steps``), a parameter's score gains

    .. math:: \max\Big(0, \frac{\sum_t -g_t \, \Delta\theta_t}
       {\tfrac12 F\, (\theta_t - \theta_{t - interval})^2 + \epsilon}\Big)

    where :math:`F \leftarrow a F + (1 - a)\, g^2` with the gradient of each step's mean
    loss, from :math:`F = g^2` at the first step. Intervals begin with the task; steps
    after the last completed one are not counted. The score ``s`` of a task is averaged with
    that of the tasks before it, :math:`\bar s_1 = s_1` and
    :math:`\bar s_k = (\bar s_{k-1} + s_k) / 2`. At the end of a task :math:`\bar s` and
    ``F`` are divided by their largest entries, so that both are in [0, 1], and their sum
    is the importance.

    Args:
      strength: twice the paper's lambda.
      fisher_decay: a in [0, 1], kept per step; one minus the paper's alpha. (The authors'
        code keeps 0.1 per interval, of a mean over it.)
      interval: steps between two additions to the score; the paper's Delta t.
      damping: epsilon, above zero.

    State: :class:`WalkState`.

    Source: Chaudhry et al. 2018, arXiv:1801.10112, section 4.
    """
    check_number("riemannian_walk", strength=strength)
    check_number("riemannian_walk", most=1.0, fisher_decay=fisher_decay)
    check_number("riemannian_walk", above=True, damping=damping)
    check_size("riemannian_walk", interval=interval)

    def init(params, _example):
        start = wide_copy(params)
        importance, fisher, score, taken = (zeros_of(start) for _ in range(4))
        counts = (jnp.zeros((), jnp.int32) for _ in range(2))
        since = copied(start)
        return WalkState(importance, start, fisher, score, taken, since, *counts)

    def observe(_key, state, step, params):
        count = state.count + 1
        last = step.progress.step + 1 == step.progress.num_steps
        due = (count % interval == 0) | last
        first = (state.count == 0) & (state.tasks_seen == 0)
        kept = jnp.where(first, 0.0, fisher_decay)  # a start from zero would bias F

        def follow(old, grad):
            # F <- a F + (1 - a) g^2
            return (kept * old + (1 - kept) * jnp.square(wide(grad))).astype(old.dtype)

        fisher = jax.tree.map(follow, state.fisher, step.grads)
        taken = jax.tree.map(jnp.add, state.taken, _loss_decrease(step))

        def add(score, taken, fisher, now, since):
            walked = 0.5 * fisher * jnp.square(wide(now) - since) + damping
            gain = jnp.maximum(taken / walked, 0).astype(score.dtype)
            return jnp.where(due, score + gain, score)

        score = jax.tree.map(add, state.score, taken, fisher, params, state.since)
        taken = jax.tree.map(lambda leaf: jnp.where(due, 0, leaf), taken)
        later = lambda new, old: jnp.where(due, wide(new), old)
        since = jax.tree.map(later, params, state.since)
        changed = {"fisher": fisher, "score": score, "taken": taken, "since": since}
        return state._replace(count=count, **changed)

    def end_task(_key, state, params, _data):
        # The score in the state is twice the average, except for the first task.
        both = map(_by_largest, (state.fisher, state.score))
        share = jnp.where(state.tasks_seen == 0, 1.0, 0.5)
        return state._replace(
            importance=jax.tree.map(jnp.add, *both),
            anchor=wide_copy(params),
            score=jax.tree.map(lambda leaf: share * leaf, state.score),
            taken=zeros_of(state.taken),
            since=wide_copy(params),
            count=jnp.zeros_like(state.count),
            tasks_seen=state.tasks_seen + 1,
        )

    penalty = _penalty(strength)
    return Regularizer(init, penalty, observe=observe, end_task=end_task)


def _loss_decrease(step):
    """``-g * change`` of each parameter: the decrease of the loss, to first order."""
    return jax.tree.map(lambda g, move: -wide(g) * wide(move), step.grads, step.updates)


def _penalty(strength):
    """``strength / 2 * sum_i importance_i (params - anchor)_i^2``."""

    def penalty(state, params, _context):
        distance = weighted_distance(state.importance, params, state.anchor)
        return 0.5 * strength * distance

    return penalty


def _by_largest(tree: Params) -> Params:
    """The tree divided by its largest entry; zero stays zero."""
    largest = largest_entry(tree)
    return jax.tree.map(lambda leaf: safe_divide(leaf, largest), tree)
