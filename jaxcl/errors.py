"""Classes of errors, warnings, and checks of values where a user enters them."""

import math
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import numpy as np


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
    """Refuse what does not hold: say what was expected, what came, and what to do."""
    if not holds:
        msg = f"{who}: {message}."
        raise InputError(msg)


def warn(message: str) -> None:
    """Warn at the line outside the library that led here, however many calls ago."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_code.co_filename.startswith(_LIBRARY):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


_LIBRARY = os.path.join(os.path.dirname(__file__), "")


def check_number(
    who: str,
    *,
    least: Any = 0.0,
    most: Any = math.inf,
    above: bool = False,
    below: bool = False,
    infinite: bool = False,
    schedules: bool = False,
    optional: bool = False,
    **values: Any,
) -> None:
    """Refuse known numbers outside ``[least, most]``, and values that are not scalars.

    ``above`` refuses ``least`` itself, ``below`` refuses ``most``, and ``infinite`` allows
    infinity. With ``schedules`` functions of the update count pass, with ``optional`` None.
    """
    least = -math.inf if _is_traced(least) else float(least)
    if most < math.inf:
        ends = "(" if above else "[", ")" if below else "]"
        wanted = f"a number in {ends[0]}{least:g}, {most:g}{ends[1]}"
    else:
        finite = "number" if infinite else "finite number"
        wanted = f"a {finite} {'above' if above else 'of at least'} {least:g}"
    wanted += " or a schedule" if schedules else ""
    for name, value in values.items():
        # Numbers of a grid (under vmap) and schedules are known only when the program runs.
        unknown = _is_traced(value) or (schedules and callable(value))
        if unknown or (optional and value is None):
            continue
        number = _as_float(value)
        inside = least < number if above else least <= number  # False for NaN
        inside &= number < most if below else number <= most
        inside &= infinite or math.isfinite(number)
        require(inside, who, f"{name} must be {wanted}, got {shown(value)}")


def _is_traced(value: Any) -> bool:
    """Whether it is known only to JAX, while tracing."""
    from jax.core import Tracer  # here, because a command shows its help without JAX

    return isinstance(value, Tracer)


def _as_float(value: Any) -> float:
    """A scalar as a float; NaN for anything else, including strings and booleans."""
    with suppress(TypeError, ValueError, OverflowError):  # 10**400
        if np.ndim(value) == 0 and not isinstance(value, str | bool):
            return float(value)
    return math.nan


def check_key(who: str, key: Any) -> Any:
    """One key in typed form, from a typed or a raw one, traced or not."""
    import jax
    import jax.numpy as jnp

    with suppress(AttributeError, TypeError, ValueError):  # no key at all
        is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        typed = key if is_typed else jax.random.wrap_key_data(jnp.asarray(key))
        if typed.ndim == 0:
            return typed
    is_array = isinstance(key, jax.Array | np.ndarray)
    came = f"{key.dtype}{list(key.shape)}" if is_array else shown(key)
    remedy = "make it by jax.random.key(seed)"
    return require(False, who, f"key must be one JAX key, got {came}; {remedy}")


def check_size(
    who: str, *, least: int = 1, optional: bool = False, **values: Any
) -> None:
    """Refuse all but ints of at least ``least``, known before tracing (or None)."""
    for name, value in values.items():
        fits = is_whole(value) and value >= least
        wanted = f"an int of at least {least}, known before tracing, got {shown(value)}"
        require(fits or (optional and value is None), who, f"{name} must be {wanted}")


def is_zero(value) -> bool:
    """Whether a strength is a constant zero, so that its term need not be computed."""
    return isinstance(value, int | float | np.number) and bool(value == 0)


def is_whole(value: Any) -> bool:
    """Whether it is an int that is known before tracing."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_kind(
    who: str, kind: Any, remedy: str = "", *, optional: bool = False, **values: Any
) -> None:
    """Refuse values of another type (or None); the remedy is a reference if absent."""
    for name, value in values.items():
        if isinstance(value, kind) or (optional and value is None):
            continue  # before its text is made, which may be long
        remedy = remedy or f"see {kind.__module__}.{kind.__name__}"
        wanted = f"of type {kind.__name__}, got {shown(value)}; {remedy}"
        require(False, who, f"{name} must be {wanted}")


def as_numbers(who: str, name: str, value: Any) -> np.ndarray:
    """An array, or lists of numbers of equal length, as a NumPy array."""
    array = np.asarray(None)
    with suppress(TypeError, ValueError):  # lists of unequal length
        array = np.asarray(value)
    if array.dtype.kind in "OUSMm":
        wanted = "an array of numbers, or lists of equal length"
        require(False, who, f"{name} must be {wanted}, got {shown(value)}")
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
