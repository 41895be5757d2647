"""Settings that could not work, refused before any compute, with what would do."""

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any

from jaxcl.errors import InputError


def nearest(word: str, names: Collection[str]) -> str:
    """The end of a refusal: what was meant, or all there is."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of {', '.join(names)}."


def check_names(field: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse names that are not known.

    Raises:
      ValueError: naming the field, the first such word, and what is nearest to it.
    """
    for word in given:
        if word not in known:
            msg = f"{field}: unknown {word!r}{nearest(word, known)}"
            raise InputError(msg)


def check_fields(
    config: Any,
    *,
    may_be_zero: Collection[str] = (),
    shares: Collection[str] = (),
    may_repeat: Collection[str] = ("hidden",),
) -> None:
    """Refuse numbers that could not work, and lists that are empty or repeat themselves.

    Args:
      config: a dataclass. Every number in it, ``seed`` aside, must be finite and above 0.
      may_be_zero: fields in which 0 stands for nothing or none.
      shares: fields that must be below 1.
      may_repeat: lists in which equal members mean something.

    Raises:
      ValueError: naming the field, what it must be, and what it was.
    """
    for field, value in dataclasses.asdict(config).items():
        members = value if isinstance(value, tuple) else (value,)
        if not members:
            msg = f"{field}: expected at least one, got none."
            raise InputError(msg)
        if len(set(members)) < len(members) and field not in may_repeat:
            msg = f"{field}: expected each one once, got {value}."
            raise InputError(msg)
        # A bool is an int to isinstance, and no number.
        numbers = [one for one in members if type(one) in (int, float)]
        most = 1 if field in shares else math.inf
        good = (
            0 < one < most or (one == 0 and field in may_be_zero) for one in numbers
        )
        if field != "seed" and not all(good):
            least = "of at least" if field in may_be_zero else "above"
            limit = " and below 1" if field in shares else ""
            msg = f"{field}: expected finite numbers {least} 0{limit}, got {value}."
            raise InputError(msg)


__all__ = ["check_fields", "check_names", "nearest"]
