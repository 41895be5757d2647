"""Data, models, and the contract of every part of a method.

A *batch* is rows with weights; a *stream* is tasks in order; a *method* is
put together from a gradient transformation, an optimizer and four small records:
:class:`Regularizer`, :class:`Memory`, :class:`Average` and :class:`Reset`. All four have
``init(params, example)``; what happens in a step reaches them as a :class:`StepRecord`.

Every record holds pure functions only. What a function needs to know is an argument, what
it changes is returned, and a state never changes structure, shape or dtype: that one
property lets ``scan`` walk the tasks, ``vmap`` run the seeds, and a run resume exactly.

Letters in shapes: ``T`` tasks, ``s`` seeds, ``n`` examples of a set, ``b`` rows of a
batch, ``d`` features, ``c`` classes, ``p`` parameters, ``m`` memory rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree
from jaxtyping import Key as Keys

Key = PRNGKeyArray
Params = PyTree
State = Any


class Batch(NamedTuple):
    """Rows of labelled data; also one row, where every leaf lacks the leading axis.

    Rows of weight zero are padding: every mean in the library is a weighted one, so they
    count nowhere. They are computed with all the same, and zero times NaN is NaN: pad
    with copies of a real row, as the library does. Build a batch with
    :func:`jaxcl.tree.as_batch`.
    """

    x: PyTree  # inputs, leaves [b, ...]
    y: PyTree  # labels, [b] int32 for classification
    weight: PyTree  # [b] float32; 0 for padding, else above 0
    task: PyTree  # [b] int32, the index of the task a row comes from
    stored: PyTree = ()  # what a memory keeps beside each row (DER: logits), [b, ...]


class Stream(NamedTuple):
    """Tasks in order: the rows they share, and a plan that turns rows into tasks.

    ``pool`` holds what all tasks share (images, labels); ``plan`` holds what makes each
    task itself (a permutation, row numbers, ...), every leaf with leading axis ``T``.
    ``train(pool, plan_t)`` and ``test(pool, plan_t)`` make the batch of the task whose
    plan is ``plan_t``; they are traced, so a task exists only while it is learned. Seeds
    share the pool and differ in the plan.
    """

    pool: PyTree
    plan: PyTree  # leaves [T, ...]
    train: Callable[[PyTree, PyTree], Batch]
    test: Callable[[PyTree, PyTree], Batch]
    num_classes: int  # outputs that the model needs
    name: str  # what it is, for logs and reports


class Progress(NamedTuple):
    """Where in its stream a method is; int32 scalars, part of its state."""

    task: Int[Array, ""]  # tasks that have ended
    step: Int[Array, ""]  # steps done of the task at hand
    num_steps: Int[
        Array, ""
    ]  # steps the task will have, set by the loops; 0: not known

    def fraction(self) -> Float[Array, ""]:
        """How much of the task is done, in [0, 1]; zero where its length is not known."""
        return jnp.where(
            self.num_steps > 0, self.step / jnp.maximum(self.num_steps, 1), 0
        )


class Context(NamedTuple):
    """What a penalty may look at besides its own state and the parameters."""

    batch: Batch
    replay: Batch  # rows [r, ...]; weight 0 while the memory is empty
    keys: Keys[Array, " b"]  # of the batch's rows, the same as in the loss
    replay_keys: Keys[Array, " r"]
    average: Params  # the average's reading; without an average the parameters
    progress: Progress


class StepRecord(NamedTuple):
    """What one step did; every part of a method observes the same record."""

    params: Params  # before the step
    grads: Params  # of the data loss alone: without penalty, not transformed
    updates: Params  # the change really made, after projection and reset
    batch: Batch
    replay: Batch  # rows [r, ...]
    losses: PyTree  # [b], of the batch, before the step
    progress: Progress  # before the step


#: ``(params, batch, keys [b]) -> [b]``: the loss of each example. Row ``i`` depends on row
#: ``i`` only, and draws from its own key, the same in every gradient of a step.
Loss = Callable[[Params, Batch, Keys[Array, " b"]], Float[Array, " b"]]

#: ``(params, batch, keys=None) -> [b, ...]``: what of the network's answer belongs to each
#: example, such as the logits of its task's head; ``keys`` is None for evaluation.
Outputs = Callable[..., Float[Array, "b ..."]]

#: ``(params) -> grads``: a gradient elsewhere, on the same batch and with the same key.
GradFn = Callable[[Params], Params]


# What a part does that leaves a field out.


def no_state(params: Params, example: PyTree) -> State:
    """Nothing to remember."""
    del params, example
    return ()


def no_observation(key: Any, state: State, step: Any, params: Params) -> State:
    """Learn nothing from a step."""
    del key, step, params
    return state


def no_end(key: Any, state: State, params: Params, data: Any) -> State:
    """Learn nothing from the end of a task."""
    del key, params, data
    return state


def no_penalty(state: State, params: Params, context: Any) -> Float[Array, ""]:
    """Add nothing to the loss; a method with it computes no second gradient."""
    del state, params, context
    return jnp.zeros((), jnp.float32)


def no_projection(state: State, params: Params) -> Params:
    """Leave the parameters where the update put them."""
    del state
    return params


def _read_params(state, params):
    del state
    return params


def _end_average(key, state, params, data):
    del key, data
    return state, params


def _no_reset(key, state, params, batch):
    del key, batch
    return state, params, None


class Regularizer(NamedTuple):
    """What holds parameters near the past: a penalty, a projection, or both.

    ``Regularizer()`` does nothing: the neutral element of
    :func:`jaxcl.regularizers.sum_of`.

    Attributes:
      init: ``(params, example) -> state``; ``example`` is a batch of one real row.
      penalty: ``(state, params, context) -> scalar``, added to the loss.
      project: ``(state, params) -> params``, applied after the optimizer's update.
      observe: ``(key, state, step, params) -> state``, after every step; ``step`` is the
        :class:`StepRecord` and ``params`` are those after it.
      end_task: ``(key, state, params, data) -> state``, once at the end of a task;
        ``data`` is the training set of the task, or the part the caller chose.
    """

    init: Callable[[Params, Batch], State] = no_state
    penalty: Callable[[State, Params, Context], Float[ArrayLike, ""]] = no_penalty
    project: Callable[[State, Params], Params] = no_projection
    observe: Callable[[Key, State, StepRecord, Params], State] = no_observation
    end_task: Callable[[Key, State, Params, Batch], State] = no_end


class Memory(NamedTuple):
    """Which examples are kept, and which of them come back.

    Attributes:
      init: ``(params, example) -> state``; slots that hold nothing yet are copies of the
        example, a batch of one real row, with weight zero.
      sample: ``(key, state) -> batch``; rows have weight 0 while the memory is empty.
        Leaves are ``[r, ...]``, or ``[T, m, ...]`` when grouped by task.
      observe: ``(key, state, step, params) -> state``, after every step.
      end_task: ``(key, state, params, data) -> state``, once at the end of a task.
    """

    init: Callable[[Params, Batch], State]
    sample: Callable[[Key, State], Batch]
    observe: Callable[[Key, State, StepRecord, Params], State] = no_observation
    end_task: Callable[[Key, State, Params, Batch], State] = no_end


class Average(NamedTuple):
    """A second, slower copy of the parameters; ``Average()`` reads the parameters.

    Attributes:
      init: ``(params, example) -> state``.
      read: ``(state, params) -> params``, what is evaluated; may be another tree that the
        model's ``apply`` accepts.
      observe: ``(key, state, step, params) -> state``, after every step.
      end_task: ``(key, state, params, data) -> (state, params)``, once at the end of a
        task; the returned parameters are where training goes on.
    """

    init: Callable[[Params, Batch], State] = no_state
    read: Callable[[State, Params], Params] = _read_params
    observe: Callable[[Key, State, StepRecord, Params], State] = no_observation
    end_task: Callable[[Key, State, Params, Batch], tuple[State, Params]] = _end_average


class Reset(NamedTuple):
    """What keeps a network able to learn by touching its parameters after a step.

    ``Reset()`` does nothing: the neutral element of
    :func:`jaxcl.plasticity.chain_resets`.

    Attributes:
      init: ``(params, example) -> state``.
      reset: ``(key, state, params, batch) -> (state, params, mask)``, after every
        step; ``mask`` is a tree of booleans shaped like ``params``: there the
        optimizer's statistics are cleared. ``None`` means nowhere. A count that all
        parameters share goes on: Adam then no longer corrects the bias of moments that
        begin from zero, and the first steps of a reset weight are up to ``(1 - b1) /
        sqrt(1 - b2)`` learning rates long, 3.2 by default.
    """

    init: Callable[[Params, Batch], State] = no_state
    reset: Callable[[Key, State, Params, Batch], tuple[State, Params, PyTree]] = (
        _no_reset
    )


class MethodState(NamedTuple):
    """Everything the next step needs; leaves of parts that are absent do not exist."""

    params: Params
    gradient: optax.OptState
    optimizer: optax.OptState
    regularizer: State
    memory: State
    average: State
    reset: State
    progress: Progress


class StepInfo(NamedTuple):
    """What one step reports; nothing here feeds the next step."""

    loss: Float[Array, ""]  # data loss (batch and replay), before the update
    finite: Bool[Array, ""]  # whether loss and penalty are; loops look at the rest
    metrics: Mapping[str, Float[Array, ""]]  # grad_norm, penalty, and the user's own


class Method(NamedTuple):
    """A learner for a stream of tasks: four pure functions.

    Attributes:
      init: ``(params, example) -> state``; ``example`` is a batch of one real row.
      step: ``(key, state, batch) -> (state, info)``.
      end_task: ``(key, state, data) -> state``.
      learners: ``(state) -> {name: pytree}``: what is evaluated, the default one first.
        Each value stands for the parameters in ``apply``.
    """

    init: Callable[[Params, Batch], MethodState]
    step: Callable[[Key, MethodState, Batch], tuple[MethodState, StepInfo]]
    end_task: Callable[[Key, MethodState, Batch], MethodState]
    learners: Callable[[MethodState], Mapping[str, PyTree]]


class Units(NamedTuple):
    """Where one hidden layer's units live in a parameter tree of nested dicts.

    Unit ``i`` reads the inputs of its layer through ``incoming[..., i]`` and is read by
    the next layer through ``outgoing[..., i, :]``; with CReLU also through
    ``outgoing[..., i + width, :]``. The same holds for the channels of a convolution.
    """

    incoming: tuple[str, ...]  # path of the kernel [..., width]
    vectors: tuple[tuple[str, ...], ...]  # paths of what each unit has one of, [width]
    outgoing: tuple[str, ...]  # path of the next kernel [..., copies * width, d]
    shift: tuple[str, ...] | None  # path of the next layer's bias [d], if it has one
    width: int
    copies: int  # activations per unit: 1, or 2 with CReLU


def _no_hidden(params, x):
    del params, x
    msg = (
        "model: it has no hidden activations; give them as from_flax(..., hidden=...) or "
        "Model(init, apply, hidden)."
    )
    raise ValueError(msg)


class Model(NamedTuple):
    """A network as pure functions of a batch; most of the library needs only ``apply``.

    Any pair of functions will do: ``Model(init, apply)``.

    Attributes:
      init: ``(key) -> params``, a tree of arrays.
      apply: ``(params, x [b, ...], keys=None) -> [b, ...]``; row ``i`` depends on row ``i``
        of ``x`` only. ``keys [b]`` are those of the rows, for dropout; None for evaluation.
      hidden: ``(params, x) -> tuple`` of activations ``[b, ...]``, in order; the last one
        is what the output layer reads. Optional: for measures, distillation of features,
        and choosing examples by them.
      units: ``units[k]`` tells where the units behind ``hidden[k]`` live; may be shorter,
        and empty for networks that unit-wise resets do not know.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., Array]
    hidden: Callable[[Params, PyTree], tuple[Array, ...]] = _no_hidden
    units: tuple[Units, ...] = ()


__all__ = [
    "Array",
    "Average",
    "Batch",
    "Bool",
    "Context",
    "Float",
    "GradFn",
    "Int",
    "Key",
    "Keys",
    "Loss",
    "Memory",
    "Method",
    "MethodState",
    "Model",
    "Outputs",
    "Params",
    "Progress",
    "PyTree",
    "Regularizer",
    "Reset",
    "State",
    "StepInfo",
    "StepRecord",
    "Stream",
    "Units",
    "no_end",
    "no_observation",
    "no_penalty",
    "no_projection",
    "no_state",
]
