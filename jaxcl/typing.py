"""Data, models, and the contract of every part of a method.

A *batch* is rows with weights; a *stream* is tasks in order; a *method* is composed of a
gradient transformation, an optimizer and four small records: :class:`Regularizer`,
:class:`Memory`, :class:`Average` and :class:`Reset`. All four have
``init(params, example)``, and observe each step as a :class:`StepRecord`.

Every record holds pure functions only. What a function depends on is an argument, what it
changes is returned, and a state never changes structure, shape or dtype. This allows
``scan`` over tasks, ``vmap`` over seeds, and exact resume.

Letters in shapes: ``T`` tasks, ``s`` seeds, ``n`` examples of a set, ``b`` rows of a
batch, ``d`` features, ``c`` classes, ``p`` parameters, ``m`` memory rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree
from jaxtyping import Key as Keys

from jaxcl.errors import require

Key = PRNGKeyArray
Params = PyTree
State = Any


class Batch(NamedTuple):
    """Rows of labelled data; also one row, where every leaf lacks the leading axis.

    Rows of weight zero are padding: every mean in the library is weighted, so they have
    no effect. Their outputs are computed nevertheless, and zero times NaN is NaN: pad
    with copies of a real row, as the library does. Build a batch with
    :func:`jaxcl.tree.as_batch`.
    """

    x: PyTree  # inputs, leaves [b, ...]
    y: PyTree  # labels, [b] int32 for classification
    weight: PyTree  # [b] float32; 0 for padding, else above 0
    task: PyTree  # [b] int32, the index of the task a row comes from
    stored: PyTree = ()  # what a memory keeps with each row (DER: logits), [b, ...]


class Stream(NamedTuple):
    """Tasks in order: data common to all tasks, and a plan that makes tasks of them.

    ``train(pool, plan_t)`` and ``test(pool, plan_t)`` make the batch of the task whose
    plan is ``plan_t``; they are traced, so a task is in memory only while it is learned.
    Seeds have one pool and different plans.
    """

    pool: PyTree  # common to all tasks: images, labels
    plan: PyTree  # specific to each: a permutation, row numbers, ...; leaves [T, ...]
    train: Callable[[PyTree, PyTree], Batch]
    test: Callable[[PyTree, PyTree], Batch]
    num_classes: int  # outputs that the model needs
    name: str  # for logs and reports
    shuffle: bool = True  # else rows are learned in their order


class Progress(NamedTuple):
    """The position of a method in its stream; int32 scalars, part of its state."""

    task: Int[Array, ""]  # tasks that have ended
    step: Int[Array, ""]  # steps done of the current task
    num_steps: Int[Array, ""]  # of the task, set by the training loops; 0: not known

    def fraction(self) -> Float[Array, ""]:
        """The fraction of the task that is done, in [0, 1]; 0 if its length is unknown."""
        known = self.num_steps > 0
        return jnp.where(known, self.step / jnp.maximum(self.num_steps, 1), 0)


class Context(NamedTuple):
    """The inputs of a penalty besides its own state and the parameters."""

    batch: Batch
    replay: (
        Batch  # rows [r, ...]; weight 0 while the memory is empty; padding may be cut
    )
    keys: Keys[Array, " b"]  # of the batch's rows, the same as in the loss
    replay_keys: Keys[Array, " r"]
    average: Params  # the average's reading; without an average the parameters
    progress: Progress


class StepRecord(NamedTuple):
    """The record of one step; every part of a method observes the same one."""

    params: Params  # before the step
    grads: Params  # of the data loss alone: without penalty, not transformed
    updates: Params  # the actual change, after projection and reset
    batch: Batch
    replay: Batch  # rows [r, ...]
    losses: PyTree  # [b], of the batch, before the step
    progress: Progress  # before the step


#: ``(params, batch, keys [b]) -> [b]``: the loss of each example. Row ``i`` depends on row
#: ``i`` only, and uses its own key, the same in every gradient of a step.
Loss = Callable[[Params, Batch, Keys[Array, " b"]], Float[Array, " b"]]

#: ``(params, batch, keys=None) -> [b, ...]``: the network's outputs for each example, such
#: as the logits of its task's head; ``keys`` is None for evaluation.
Outputs = Callable[..., Float[Array, "b ..."]]

#: ``(params) -> grads``: a gradient at other parameters, with the same batch and key.
GradFn = Callable[[Params], Params]

#: ``(params, example) -> state``: of a part; ``example`` is a batch of one real row.
Init = Callable[[Params, Batch], State]

#: ``(key, state, step, params) -> state``: after every step; ``params`` are those after it.
Observe = Callable[[Key, State, StepRecord, Params], State]

#: ``(key, state, params, data) -> state``: once at the end of a task; ``data`` is the
#: training set of the task, or the part the caller chose.
EndTask = Callable[[Key, State, Params, Batch], State]


def no_penalty(state: State, params: Params, context: Any) -> Float[Array, ""]:
    """Add nothing to the loss; a method with it computes no second gradient."""
    del state, params, context
    return jnp.zeros((), jnp.float32)


def no_projection(state: State, params: Params) -> Params:
    """Leave the parameters unchanged."""
    del state
    return params


class Regularizer(NamedTuple):
    """Keeps parameters near past solutions by a penalty, a projection, or both.

    ``Regularizer()`` does nothing. ``penalty(state, params, context)`` is added to the
    loss; ``project(state, params) -> params`` is applied after the optimizer's update.
    """

    init: Init = lambda params, example: ()
    penalty: Callable[[State, Params, Context], Float[ArrayLike, ""]] = no_penalty
    project: Callable[[State, Params], Params] = no_projection
    observe: Observe = lambda key, state, step, params: state
    end_task: EndTask = lambda key, state, params, data: state


class Memory(NamedTuple):
    """Which examples are stored, and which of them are replayed.

    Empty slots are copies of the example of weight zero: :func:`jaxcl.memory.blank_rows`.
    ``sample(key, state)`` gives leaves ``[r, ...]``, or ``[T, m, ...]`` when grouped by
    task; rows have weight 0 while the memory is empty.
    """

    init: Init
    sample: Callable[[Key, State], Batch]
    observe: Observe = lambda key, state, step, params: state
    end_task: EndTask = lambda key, state, params, data: state


class Average(NamedTuple):
    """A second, slower copy of the parameters; ``Average()`` reads the parameters.

    ``read(state, params)`` is evaluated; it may be another tree that the model's ``apply``
    accepts. ``end_task`` gives ``(state, params)``: training continues from these.
    """

    init: Init = lambda params, example: ()
    read: Callable[[State, Params], Params] = lambda state, params: params
    observe: Observe = lambda key, state, step, params: state
    end_task: Callable[[Key, State, Params, Batch], tuple[State, Params]] = (
        lambda key, state, params, data: (state, params)
    )


class Reset(NamedTuple):
    """Maintains plasticity by changing parameters after a step; ``Reset()`` does nothing.

    ``reset(key, state, params, batch) -> (state, params, mask)`` is called after every
    step; ``mask`` is a tree of booleans shaped like ``params``: where it is true, the
    optimizer's statistics are cleared. ``None`` means nowhere. A step count common to all
    parameters is not reset: Adam then does not correct the bias of moments that begin from
    zero, and the first steps of a reset weight are up to ``(1 - b1) / sqrt(1 - b2)``
    learning rates long, 3.2 by default.
    """

    init: Init = lambda params, example: ()
    reset: Callable[[Key, State, Params, Batch], tuple[State, Params, PyTree]] = (
        lambda key, state, params, batch: (state, params, None)
    )


class MethodState(NamedTuple):
    """The state of a method; parts that are absent have no leaves."""

    params: Params
    gradient: optax.OptState
    optimizer: optax.OptState
    regularizer: State
    memory: State
    average: State
    reset: State
    progress: Progress


class StepInfo(NamedTuple):
    """What one step reports; the next step does not depend on it."""

    loss: Float[Array, ""]  # data loss (batch and replay), before the update
    finite: Bool[Array, ""]  # whether loss and penalty are; loops check the rest
    metrics: Mapping[str, Float[Array, ""]]  # grad_norm, penalty, and the user's own


class Method(NamedTuple):
    """A learner for a stream of tasks: four pure functions.

    ``learners(state)`` is what is evaluated, by name and the default one first; each value
    takes the place of the parameters in ``apply``.
    """

    init: Callable[[Params, Batch], MethodState]  # (params, example)
    step: Callable[[Key, MethodState, Batch], tuple[MethodState, StepInfo]]
    end_task: Callable[[Key, MethodState, Batch], MethodState]
    learners: Callable[[MethodState], Mapping[str, PyTree]]


class Units(NamedTuple):
    """The weights of one hidden layer's units in a parameter tree of nested dicts.

    The incoming weights of unit ``i`` are ``incoming[..., i]``, and its outgoing weights
    ``outgoing[..., i, :]``; with CReLU also ``outgoing[..., i + width, :]``. The same
    holds for the channels of a convolution.
    """

    incoming: tuple[str, ...]  # path of the kernel [..., width]
    vectors: tuple[tuple[str, ...], ...]  # paths of biases, scales, ..., each [width]
    outgoing: tuple[str, ...]  # path of the next kernel [..., copies * width, d]
    shift: tuple[str, ...] | None  # path of the next layer's bias [d], if it has one
    width: int
    copies: int  # activations per unit: 1, or 2 with CReLU


def _no_hidden(*_: Any) -> Any:
    remedy = "give them as from_flax(..., hidden=...) or Model(init, apply, hidden)"
    return require(False, "model", f"it has no hidden activations; {remedy}")


class Model(NamedTuple):
    """A network as pure functions of a batch; most of the library needs only ``apply``.

    Any pair of functions can be used: ``Model(init, apply)``.

    Attributes:
      init: ``(key) -> params``, a tree of arrays.
      apply: ``(params, x [b, ...], keys=None) -> [b, ...]``; row ``i`` depends on row ``i``
        of ``x`` only. ``keys [b]`` are those of the rows, for dropout; None for evaluation.
      hidden: ``(params, x) -> tuple`` of activations ``[b, ...]``, in order; the last one
        is the input of the output layer. Optional: for measures, feature distillation,
        and selection of examples by features.
      units: ``units[k]`` describes the units of ``hidden[k]``; may be shorter, and empty
        for networks that unit-wise resets do not support.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    hidden: Callable[[Params, PyTree], tuple[Array, ...]] = _no_hidden
    units: tuple[Units, ...] = ()
