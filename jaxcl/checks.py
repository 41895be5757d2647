"""What numbers may be: refused when a part is built, before any compute."""

import math
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def check_number(
    who: str,
    *,
    least: float = 0.0,
    most: float = math.inf,
    above: bool = False,
    infinite: bool = False,
    **values: Any,
) -> None:
    """Refuse numbers that are known now and lie outside a range, or are no scalars.

    Traced values, schedules and ``None`` pass: they are not known.

    Args:
      who: who complains.
      least: the smallest that is allowed.
      most: the largest.
      above: ``least`` itself is refused too.
      infinite: infinity is welcome.
      values: by the names of the arguments.

    Raises:
      ValueError: naming who, the argument, what it must be and what it was.
    """
    if most < math.inf:
        wanted = f"a number in {'(' if above else '['}{least:g}, {most:g}]"
    else:
        finite = "number" if infinite else "finite number"
        wanted = f"a {finite} {'above' if above else 'of at least'} {least:g}"
    for name, value in values.items():
        if value is None or callable(value) or isinstance(value, Tracer):
            continue
        if np.ndim(value) == 0:
            known = float(value)
            inside = least < known <= most if above else least <= known <= most
            if inside and (infinite or math.isfinite(known)):
                continue
        msg = f"{who}: {name} must be {wanted}, got {value}."
        raise ValueError(msg)


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
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if (whole and value >= least) or (optional and value is None):
            continue
        came = f"{value}" if isinstance(value, int | float) else type(value).__name__
        msg = (
            f"{who}: {name} must be an int of at least {least}, known before tracing, "
            f"got {came}."
        )
        raise ValueError(msg)


def is_zero(value) -> bool:
    """Whether a strength is zero for good, so that what it scales need not be computed."""
    return isinstance(value, int | float | np.number) and bool(value == 0)


__all__ = ["check_limits", "check_number", "check_size", "is_zero"]
