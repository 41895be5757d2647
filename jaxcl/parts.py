"""The parts of a method as they are used: absent ones neutral, errors with a note."""

import inspect
from collections.abc import Callable
from typing import Any

from jaxcl.errors import check_kind, require


def part_of(name: str, given: Any, neutral: Any) -> Any:
    """The part, its functions with notes; the neutral one if it is absent."""
    if given is None:
        return neutral
    check_kind("make_method", type(neutral), _JOIN.get(name, ""), **{name: given})
    # The neutral functions stay themselves: what they would do is left out of a step.
    own = {
        field: noted(f"{name}.{field}", function, getattr(neutral, field))
        for field, function in given._asdict().items()
        if function is not getattr(neutral, field)
    }
    return given._replace(**own)


_JOIN = {
    "regularizer": "add several by sum_of",
    "reset": "join several by chain_resets",
}


def noted(name: str, function: Callable, like: Callable | None = None) -> Callable:
    """The function; errors inside it get a note that names it."""
    if like is not None:
        _check_order(name, function, like)
    note = f"This happened in {name}, an argument of make_method."

    def noted(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise

    return noted


def _check_order(name: str, function: Callable, like: Callable) -> None:
    """Refuse arguments in another order, which may go unnoticed.

    A penalty ``(params, state, context)`` would be zero wherever the state is empty.
    """
    try:
        given, wanted = ([*inspect.signature(f).parameters] for f in (function, like))
    except (TypeError, ValueError):  # no function, or a builtin
        return
    moved = [w for k, w in enumerate(wanted) if w in given and given.index(w) != k]
    came = f"({', '.join(wanted)}), got ({', '.join(given)})"
    require(not moved, "make_method", f"{name} must be a function of {came}")
