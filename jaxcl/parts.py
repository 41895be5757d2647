"""Checks of what a method is composed of, made once when it is built."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxcl.errors import (
    InputError,
    check_function,
    check_kind,
    check_number,
    check_size,
)
from jaxcl.typing import Average, Memory, Regularizer, Reset

#: Names that steps and the lines of the host loop have already.
REPORTED = frozenset(
    {
        *("at", "examples_per_second", "finite", "grad_norm", "loss", "not_finite"),
        *("penalty", "results", "seconds", "step", "task", "valid"),
    }
)

_OBSERVE, _END = "key, state, step, params", "key, state, params, data"

#: The functions of each part: ``{argument: (type, remedy, {function: its arguments})}``.
_PARTS = {
    "regularizer": (
        Regularizer,
        "build it, and add several by sum_of",
        {
            "init": "params, example",
            "penalty": "state, params, context",
            "project": "state, params",
            "observe": _OBSERVE,
            "end_task": _END,
        },
    ),
    "memory": (
        Memory,
        "build it, such as reservoir(...)",
        {
            "init": "params, example",
            "sample": "key, state",
            "observe": _OBSERVE,
            "end_task": _END,
        },
    ),
    "average": (
        Average,
        "build it, such as ema(...)",
        {
            "init": "params, example",
            "read": "state, params",
            "observe": _OBSERVE,
            "end_task": _END,
        },
    ),
    "reset": (
        Reset,
        "build it, and join several by chain_resets",
        {"init": "params, example", "reset": "key, state, params, batch"},
    ),
}


def check_parts(**parts: Any) -> None:
    """Refuse parts of another type, and functions of theirs that take other arguments.

    Args:
      parts: by the arguments of :func:`jaxcl.make_method`; None if absent.

    Raises:
      ValueError: naming the part.
    """
    for name, part in parts.items():
        kind, remedy, functions = _PARTS[name]
        check_kind("make_method", kind, remedy, optional=True, **{name: part})
        for field, arguments in functions.items() if part is not None else ():
            function = getattr(part, field)
            check_function("make_method", arguments, **{f"{name}.{field}": function})


def check_losses(loss: Any, replay_loss: Any, replay_weight: Any) -> None:
    """Refuse losses and weights of another kind.

    Raises:
      ValueError: naming the argument.
    """
    if callable(replay_weight):
        check_function("make_method", "batch, replay, progress", weight=replay_weight)
    else:
        check_number("make_method", replay_weight=replay_weight)
    check_kind("make_method", Callable, "such as cross_entropy(outputs)", loss=loss)
    check_function("make_method", "params, batch, keys", loss=loss)
    if replay_loss is not None:
        check_kind("make_method", Callable, replay_loss=replay_loss)
        check_function("make_method", "params, batch, keys", replay_loss=replay_loss)


def check_settings(metrics: Any, learners: Any, chunk_size: Any, **flags: Any) -> None:
    """Refuse other settings of another kind, and metrics whose names are taken.

    Raises:
      ValueError: naming the argument.
    """
    check_size("make_method", optional=True, chunk_size=chunk_size)
    check_kind("make_method", bool, "True or False", **flags)
    check_kind("make_method", Callable, optional=True, learners=learners)
    remedy = "give {name: (state, step) -> scalar}"
    check_kind("make_method", Mapping, remedy, optional=True, metrics=metrics)
    for name, read in (metrics or {}).items():
        check_function("make_method", "state, step", **{f"metrics[{name!r}]": read})
        if name in REPORTED:
            msg = (
                f"make_method: metrics has {name!r}, which steps report anyway; rename "
                "it."
            )
            raise InputError(msg)


__all__ = ["REPORTED", "check_losses", "check_parts", "check_settings"]
