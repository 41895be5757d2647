"""Classes of errors, and checks of values where a user enters them."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax


class InputError(ValueError):
    """An argument, a setting or a file that cannot be used.

    The message is one line: who refuses it, what was expected, what it got, what to do. A
    command shows it without a traceback.
    """


class MissingFileError(InputError, FileNotFoundError):
    """A file or folder that is not there."""


class WriteError(InputError, OSError):
    """A file that could not be written, such as on a full disk."""


def require(holds: Any, who: str, message: str) -> None:
    """Refuse what does not hold, in one line: ``who: message``.

    Raises:
      InputError: the message should say what was expected, what came, and what to do.
    """
    if not holds:
        msg = f"{who}: {message}."
        raise InputError(msg)


def check_number(
    who: str,
    *,
    least: Any = 0.0,
    most: Any = math.inf,
    above: bool = False,
    infinite: bool = False,
    schedules: bool = False,
    optional: bool = False,
    **values: Any,
) -> None:
    """Refuse concrete numbers outside a range, and values that are not scalars.

    Traced values pass: they are not known.

    Args:
      who: the function, for the message.
      least: smallest allowed value.
      most: largest allowed value.
      above: ``least`` itself is refused too.
      infinite: infinity is allowed.
      schedules: functions of the update count pass, too.
      optional: None passes.
      values: by the names of the arguments.

    Raises:
      ValueError: naming the function, the argument, what was expected and what it was.
    """
    least = -math.inf if _is_traced(least) else float(least)
    if most < math.inf:
        wanted = f"a number in {'(' if above else '['}{least:g}, {most:g}]"
    else:
        finite = "number" if infinite else "finite number"
        wanted = f"a {finite} {'above' if above else 'of at least'} {least:g}"
    wanted += " or a schedule" if schedules else ""
    # Numbers of a grid (under vmap) and schedules are known only when the program runs.
    for name, value in values.items():
        if _is_traced(value) or (schedules and callable(value)):
            continue
        number = _as_float(value)
        inside = least < number if above else least <= number  # False for NaN
        inside &= number <= most and (infinite or math.isfinite(number))
        if not (inside or (optional and value is None)):
            msg = f"{who}: {name} must be {wanted}, got {shown(value)}."
            raise InputError(msg)


def _is_traced(value: Any) -> bool:
    """Whether it is known only to JAX, while tracing."""
    from jax.core import Tracer  # here, because a command shows its help without JAX

    return isinstance(value, Tracer)


def _as_float(value: Any) -> float:
    """A scalar as a float; NaN for anything else, including strings and booleans."""
    try:
        single = np.ndim(value) == 0 and not isinstance(value, str | bool)
        return float(value) if single else math.nan
    except (TypeError, ValueError):
        return math.nan


def check_key(who: str, key: Any) -> "jax.Array":
    """One key in typed form, from a typed or a raw one, traced or not.

    Raises:
      ValueError: for anything else, such as a seed or many keys, naming the function.
    """
    import jax
    import jax.numpy as jnp

    came = shown(key)
    if isinstance(key, jax.Array | np.ndarray):
        came = f"{key.dtype}{list(key.shape)}"
        with suppress(TypeError, ValueError):  # no raw key
            is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            typed: Any = key if is_typed else jax.random.wrap_key_data(jnp.asarray(key))
            if typed.ndim == 0:
                return typed
    msg = (
        f"{who}: key must be one JAX key, got {came}; make it by jax.random.key(seed)."
    )
    raise InputError(msg)


def check_size(
    who: str, *, least: int = 1, optional: bool = False, **values: Any
) -> None:
    """Refuse anything but an int known before tracing, or one that is too small.

    Args:
      who: the function, for the message.
      least: smallest allowed value.
      optional: None passes.
      values: by the names of the arguments.

    Raises:
      ValueError: naming the function, the argument, what was expected and what it was.
    """
    for name, value in values.items():
        if (is_whole(value) and value >= least) or (optional and value is None):
            continue
        wanted = f"an int of at least {least}, known before tracing"
        msg = f"{who}: {name} must be {wanted}, got {shown(value)}."
        raise InputError(msg)


def is_zero(value) -> bool:
    """Whether a strength is a constant zero, so that its term need not be computed."""
    return isinstance(value, int | float | np.number) and bool(value == 0)


def is_whole(value: Any) -> bool:
    """Whether it is an int that is known before tracing."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_kind(
    who: str, kind: Any, remedy: str = "", *, optional: bool = False, **values: Any
) -> None:
    """Refuse values of another type.

    Args:
      who: the function, for the message.
      kind: the class.
      remedy: what to do; a reference to the class if absent.
      optional: None passes.
      values: by the names of the arguments.

    Raises:
      ValueError: naming the function, the argument, what was expected and what it was.
    """
    for name, value in values.items():
        if isinstance(value, kind) or (optional and value is None):
            continue
        wanted = "a function" if kind is Callable else f"of type {kind.__name__}"
        remedy = remedy or f"see {kind.__module__}.{kind.__name__}"
        msg = f"{who}: {name} must be {wanted}, got {shown(value)}; {remedy}."
        raise InputError(msg)


def as_numbers(who: str, name: str, value: Any) -> np.ndarray:
    """An array, or lists of numbers, as a NumPy array.

    Raises:
      ValueError: for anything but numbers, and for lists of unequal length.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind in "OUSMm":
        wanted = "an array of numbers, or lists of equal length"
        msg = f"{who}: {name} must be {wanted}, got {shown(value)}."
        raise InputError(msg)
    return array


def shown(value: Any) -> str:
    """A value for a message: its text if that is short, else the name of its type."""
    text = repr(value) if isinstance(value, str) else str(value)
    short = len(text) <= 40 and "\n" not in text and " at 0x" not in text
    return text if short else type(value).__name__


def reason_of(error: Exception, most: int = 200) -> str:
    """The kind and the text of an error, for a message: one line, cut where it is long."""
    text = " ".join(f"{type(error).__name__}: {error}".splitlines())
    return text if len(text) <= most else f"{text[:most]}..."
