"""What may be handed in: refused when a part is built, before any compute."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_number(
    who: str,
    *,
    least: float = 0.0,
    most: float = math.inf,
    above: bool = False,
    infinite: bool = False,
    schedules: bool = False,
    optional: bool = False,
    **values: Any,
) -> None:
    """Refuse numbers that are known now and lie outside a range, or are no scalars.

    Traced values pass: they are not known.

    Args:
      who: who complains.
      least: the smallest that is allowed.
      most: the largest.
      above: ``least`` itself is refused too.
      infinite: infinity is welcome.
      schedules: functions of the update count pass, too.
      optional: None passes.
      values: by the names of the arguments.

    Raises:
      ValueError: naming who, the argument, what it must be and what it was.
    """
    if most < math.inf:
        wanted = f"a number in {'(' if above else '['}{least:g}, {most:g}]"
    else:
        finite = "number" if infinite else "finite number"
        wanted = f"a {finite} {'above' if above else 'of at least'} {least:g}"
    wanted += " or a schedule" if schedules else ""
    for name, value in values.items():
        if isinstance(value, Tracer) or (optional and value is None):
            continue
        if schedules and callable(value):
            continue
        known = _as_float(value)
        inside = least < known <= most if above else least <= known <= most
        if inside and (infinite or math.isfinite(known)):
            continue
        msg = f"{who}: {name} must be {wanted}, got {shown(value)}."
        raise ValueError(msg)


def _as_float(value: Any) -> float:
    """A scalar as a float; NaN for what is none, a number in quotes or a truth value."""
    try:
        single = np.ndim(value) == 0 and not isinstance(value, str | bool)
        return float(value) if single else math.nan
    except (TypeError, ValueError):
        return math.nan


def check_key(who: str, key: Any) -> None:
    """Refuse what is not one key of JAX, traced or not, such as a seed or many keys.

    Raises:
      ValueError: naming who, and what came.
    """
    came = shown(key)
    if isinstance(key, jax.Array | np.ndarray):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        raw = key.shape in ((2,), (4,)) and key.dtype == np.uint32  # all of JAX's own
        if key.ndim == 0 if typed else raw:
            return
        if key.ndim or isinstance(key, Tracer):
            came = f"{key.dtype}{list(key.shape)}"
    msg = (
        f"{who}: key must be one JAX key, got {came}; make it by jax.random.key(seed)."
    )
    raise ValueError(msg)


def as_key(who: str, key: Any) -> jax.Array:
    """One key in the typed form, from either form.

    Raises:
      ValueError: as :func:`check_key`.
    """
    check_key(who, key)
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key if typed else jax.random.wrap_key_data(key)


def check_limits(who: str, low: Any, high: Any) -> None:
    """Refuse an empty range, where both ends are known.

    Raises:
      ValueError: naming both.
    """
    known = (int, float, np.number, np.ndarray, jax.Array)
    if any(
        isinstance(end, Tracer) or not isinstance(end, known) for end in (low, high)
    ):
        return
    if float(low) > float(high):
        msg = (
            f"{who}: the lower limit must not be above the upper, got {low} and {high}."
        )
        raise ValueError(msg)


def check_size(
    who: str, *, least: int = 1, optional: bool = False, **values: Any
) -> None:
    """Refuse what is no whole number known before tracing, or too small.

    Args:
      who: who complains.
      least: the smallest that is allowed.
      optional: None passes.
      values: by the names of the arguments.

    Raises:
      ValueError: naming who, the argument, what it must be and what it was.
    """
    for name, value in values.items():
        if (is_whole(value) and value >= least) or (optional and value is None):
            continue
        msg = (
            f"{who}: {name} must be an int of at least {least}, known before tracing, "
            f"got {shown(value)}."
        )
        raise ValueError(msg)


def is_zero(value) -> bool:
    """Whether a strength is zero for good, so that what it scales need not be computed."""
    return isinstance(value, int | float | np.number) and bool(value == 0)


def is_whole(value: Any) -> bool:
    """Whether it is an int that is known before tracing."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_kind(
    who: str, kind: Any, remedy: str = "", *, optional: bool = False, **values: Any
) -> None:
    """Refuse what is of another type, such as a function or a record of another kind.

    Args:
      who: who complains.
      kind: the class.
      remedy: what to do; look at the documentation of the class if absent.
      optional: None passes.
      values: by the names of the arguments.

    Raises:
      ValueError: naming who, the argument, what it must be and what came.
    """
    for name, value in values.items():
        if isinstance(value, kind) or (optional and value is None):
            continue
        wanted = "a function" if kind is Callable else f"of type {kind.__name__}"
        remedy = remedy or f"see {kind.__module__}.{kind.__name__}"
        msg = f"{who}: {name} must be {wanted}, got {shown(value)}; {remedy}."
        raise ValueError(msg)


def check_function(who: str, arguments: str, **values: Any) -> None:
    """Refuse what cannot be called with these positional arguments.

    Args:
      who: who complains.
      arguments: such as ``params, frozen, batch``. A function that has one of these names
        at another place is refused, too.
      values: by their names.

    Raises:
      ValueError: naming who, the function, what it must take and what came.
    """
    wanted = arguments.split(", ")
    for name, value in values.items():
        came = shown(value)
        if callable(value):
            try:
                taken = inspect.signature(value).bind(*wanted).arguments
            except TypeError:
                taken = None
            except ValueError:  # built in, without a signature
                continue
            if taken and all(taken.get(word, word) == word for word in wanted):
                continue
            came = f"one of {inspect.signature(value)}"
        msg = f"{who}: {name} must be a function of ({arguments}), got {came}."
        raise ValueError(msg)


def as_numbers(who: str, name: str, value: Any) -> np.ndarray:
    """An array, or lists of numbers, as a NumPy array.

    Raises:
      ValueError: for what holds anything else, or lists of unequal length.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind in "OUSMm":
        msg = (
            f"{who}: {name} must be an array of numbers, or lists of equal length, got "
            f"{shown(value)}."
        )
        raise ValueError(msg)
    return array


def shown(value: Any) -> str:
    """What came, in one short line: small things themselves, others by their type."""
    words = repr(value) if isinstance(value, str) else str(value)
    short = len(words) <= 40 and "\n" not in words and " at 0x" not in words
    return words if short else type(value).__name__


__all__ = [
    "as_key",
    "as_numbers",
    "check_function",
    "check_key",
    "check_kind",
    "check_limits",
    "check_number",
    "check_size",
    "is_whole",
    "is_zero",
    "shown",
]
