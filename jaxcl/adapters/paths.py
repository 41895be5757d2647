"""Paths of leaves and modules in a tree, and the patterns that select them."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jaxcl.errors import require, shown

#: ``(path) -> bool``, a regular expression, or a list of these; see :func:`select`.
Rule = Callable[[str], bool] | str | re.Pattern | Sequence[Any]


def path_of(entries: Any) -> str:
    """The path of a leaf or module, such as ``layers/attention/q_proj/kernel``."""
    return jax.tree_util.keystr(tuple(entries), simple=True, separator="/")


def key_of(entry: Any) -> Any:
    """The key of a path's entry: a name of a dict or record, or a number of a list."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return str(entry)


def nested(leaves: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Leaves by the entries of their paths, as nested dicts."""
    tree: dict[Any, Any] = {}
    for entries, leaf in leaves.items():
        node = tree
        for entry in entries[:-1]:
            node = node.setdefault(key_of(entry), {})
        node[key_of(entries[-1])] = leaf
    return tree


def tree_of(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by their paths, as nested dicts of text keys."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *names, last = path.split("/")
        node = tree
        for name in names:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def leaves_by_path(tree: PyTree) -> dict[tuple[Any, ...], Any]:
    """The leaves of a tree by the entries of their paths."""
    return {tuple(entries): leaf for entries, leaf in jax.tree.leaves_with_path(tree)}


def select(who: str, rule: Rule, paths: Iterable[str], *, end: bool = False) -> set:
    """The paths that a rule selects; a rule or part of one that selects none is refused.

    A text is a regular expression for one or more consecutive names of a path: ``out``
    selects ``out/kernel``, but not ``layers/out_proj/kernel``. With ``end`` these are its
    last names. A compiled expression selects the paths in which it is found anywhere.
    """
    paths = list(paths)
    parts = [rule] if callable(rule) or isinstance(rule, str | re.Pattern) else rule
    wanted = "a function of a path, a regular expression or a list of these"
    fits = isinstance(parts, list | tuple) and len(parts) > 0
    require(fits, who, f"the rule must be {wanted}, got {shown(rule)}")
    chosen: set[str] = set()
    for part in parts:
        matches = _matcher(who, part, end)
        found = {path for path in paths if matches(path)}
        if not found:
            word = part if isinstance(part, str) else getattr(part, "pattern", "")
            came = f"{part!r} selects nothing" if word else "the rule selects nothing"
            require(False, who, f"{came}; {nearest(word, paths, end=end)}")
        chosen |= found
    return chosen


def _matcher(who: str, part: Any, end: bool) -> Callable[[str], Any]:
    """The function of a path that a part of a rule is."""
    if isinstance(part, re.Pattern):
        return part.search
    if callable(part):
        return part
    wanted = "a function, a regular expression or names of a path"
    require(isinstance(part, str), who, f"a rule must be {wanted}, got {shown(part)}")
    try:
        re.compile(part)
    except re.error as error:
        msg = f"{part!r} must be a regular expression, got {error}"
        require(False, who, msg)
    return re.compile(rf"(?:^|/)(?:{part})(?:{'$' if end else '/|$'})").search


def nearest(word: str, paths: Sequence[str], *, end: bool = False) -> str:
    """The names closest to a word, for a message; some paths where none is close.

    With ``end``, as for :func:`select`, only the last names, up to twelve of them.
    """
    last = [path.rsplit("/", 1)[-1] for path in paths]
    names = last if end else [name for path in paths for name in path.split("/")]
    known = [*dict.fromkeys([*names, *paths])]
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    some = f"paths are {', '.join(paths[:3])}" if paths else "the tree has no leaves"
    if paths and end:
        some = f"names are {', '.join([*dict.fromkeys(last)][:12])}"
    return f"nearest: {', '.join(close)}" if close else some
