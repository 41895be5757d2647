"""The words of the library: its data, and the contract of every part of a method.

A *batch* is rows with weights; a *stream* is tasks in order; a *method* is
put together from a gradient transformation, an optimizer and four small records:
:class:`Regularizer`, :class:`Memory`, :class:`Average` and :class:`Reset`.

Every record holds pure functions only. What a function needs to know is an argument, what
it changes is returned, and a state never changes structure, shape or dtype: that one
property lets ``scan`` walk the tasks, ``vmap`` run the seeds, and a run resume exactly.

Letters in shapes: ``T`` tasks, ``s`` seeds, ``n`` examples of a set, ``b`` rows of a
batch, ``d`` features, ``c`` classes, ``p`` parameters, ``m`` memory rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
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
    weight: PyTree  # [b] float32, 0 or 1
    task: PyTree  # [b] int32, the index of the task a row comes from


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


class Context(NamedTuple):
    """What a penalty may look at besides its own state and the parameters."""

    batch: Batch
    replay: Batch
    average: (
        Params  # the average's reading; the parameters themselves without an average
    )
    key: Key


#: ``(params, batch, keys [b]) -> [b]``: the loss of each example. Row ``i`` depends on row
#: ``i`` only, and draws from its own key, the same in every gradient of a step.
Loss = Callable[[Params, Batch, Keys[Array, " b"]], Float[Array, " b"]]

#: ``(params, batch, keys=None) -> [b, ...]``: what of the network's answer belongs to each
#: example, such as the logits of its task's head; ``keys`` is None for evaluation.
Outputs = Callable[..., Float[Array, "b ..."]]

#: ``(params) -> grads``: a gradient elsewhere, on the same batch and with the same key.
GradFn = Callable[[Params], Params]


class Regularizer(NamedTuple):
    """What pulls parameters towards the past: softly (penalty) or hard (project).

    Attributes:
      init: ``(params) -> state``.
      penalty: ``(state, params, context) -> scalar``, added to the loss.
      project: ``(state, params) -> params``, applied after the optimizer's update.
      end_task: ``(key, state, params, task) -> state``, once at the end of a task;
        ``task`` is the whole training set of the task, or the part the caller chose.
    """

    init: Callable[[Params], State]
    penalty: Callable[[State, Params, Context], Float[Array, ""]]
    project: Callable[[State, Params], Params]
    end_task: Callable[[Key, State, Params, Batch], State]


class Memory(NamedTuple):
    """Which examples are kept, and which of them come back.

    Attributes:
      init: ``(example) -> state``; ``example`` is a batch of one row, for shapes only.
      sample: ``(key, state) -> batch``; rows have weight 0 while the memory is empty.
        Leaves are ``[b, ...]``, or ``[T, m, ...]`` when grouped by task.
      observe: ``(key, state, batch) -> state``, after every step.
      end_task: ``(key, state, params, task) -> state``, once at the end of a task.
    """

    init: Callable[[Batch], State]
    sample: Callable[[Key, State], Batch]
    observe: Callable[[Key, State, Batch], State]
    end_task: Callable[[Key, State, Params, Batch], State]


class Average(NamedTuple):
    """A second, slower copy of the parameters.

    Attributes:
      init: ``(params) -> state``.
      observe: ``(state, params) -> state``, after every step.
      read: ``(state, params) -> params``, what evaluation uses.
      end_task: ``(state, params) -> (state, params)``, once at the end of a task;
        the returned parameters are where training goes on.
    """

    init: Callable[[Params], State]
    observe: Callable[[State, Params], State]
    read: Callable[[State, Params], Params]
    end_task: Callable[[State, Params], tuple[State, Params]]


class Reset(NamedTuple):
    """What keeps a network able to learn by touching its parameters after a step.

    Attributes:
      init: ``(params) -> state``.
      reset: ``(key, state, params, batch) -> (state, params, mask)``, after every
        step; ``mask`` is a tree of booleans shaped like ``params``: there the
        optimizer's statistics are cleared. ``None`` means nowhere. A count that all
        parameters share goes on: Adam then no longer corrects the bias of moments that
        begin anew, and the first steps of a renewed weight are up to ``(1 - b1) /
        sqrt(1 - b2)`` learning rates long, 3.2 by default.
    """

    init: Callable[[Params], State]
    reset: Callable[[Key, State, Params, Batch], tuple[State, Params, PyTree]]


class MethodState(NamedTuple):
    """Everything the next step needs; leaves of parts that are absent do not exist."""

    params: Params
    gradient: optax.OptState
    optimizer: optax.OptState
    regularizer: State
    memory: State
    average: State
    reset: State


class StepInfo(NamedTuple):
    """What one step tells the reader; nothing here feeds the next step."""

    loss: Float[Array, ""]  # data loss, before the update; plus penalty where perturbed
    finite: Bool[Array, ""]  # whether that loss is a number; loops look at the rest
    grad_norm: Float[Array, ""]  # of the gradient before its transformation


class Method(NamedTuple):
    """A learner for a stream of tasks: three pure functions and a reading.

    Attributes:
      init: ``(params, example) -> state``.
      step: ``(key, state, batch) -> (state, info)``.
      end_task: ``(key, state, task) -> state``.
      eval_params: ``(state) -> params``, the parameters to evaluate.
    """

    init: Callable[[Params, Batch], MethodState]
    step: Callable[[Key, MethodState, Batch], tuple[MethodState, StepInfo]]
    end_task: Callable[[Key, MethodState, Batch], MethodState]
    eval_params: Callable[[MethodState], Params]


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
    "PyTree",
    "Regularizer",
    "Reset",
    "State",
    "StepInfo",
    "Stream",
    "Units",
]
