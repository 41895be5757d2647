"""Trainable and frozen parts of a parameter tree."""

from collections.abc import Callable
from typing import Any

import jax

from jaxcl.adapters.paths import Rule, key_of, path_of, select
from jaxcl.errors import require
from jaxcl.typing import Params

#: Marks a part without leaves; None is a tree of its own.
_NOTHING: Any = object()


def partition(params: Params, rule: Rule) -> tuple[Params, Params]:
    """Split parameters into a trainable and a frozen tree.

    The trainable part is a nested dict of its leaves only, so that regularizers, memories,
    Fishers, averages and transformations need not know of the rest::

        trainable, frozen = partition(params, [lora_rule, "out"])

        def build(frozen):
            apply = with_frozen(model.apply, frozen)
            loss = token_cross_entropy(single_head(apply))
            return make_method(loss, optax.adamw(1e-4), gradient=sam(0.05))

        learn(key, build, trainable, tasks, options, frozen=frozen, folder=None)

    ``combine(*partition(params, rule))`` is ``params``. Nothing is copied.

    Args:
      params: nested dicts of arrays, or any other tree.
      rule: which leaves are trained: a function of a path such as
        ``layers/attention/q_proj/lora_a``; a regular expression, which has to match one or
        more consecutive names of the path, such as ``out`` or ``layers/.*/bias``; or a
        list of these, of which one has to match.

    Returns:
      ``(trainable, frozen)``. Dicts hold their own leaves only; in nodes of other kinds
      (lists, records) None takes the place of what is trained.

    Raises:
      ValueError: if the rule, or one of a list, selects nothing; with the nearest names.
    """
    leaves = [tuple(entries) for entries, _ in jax.tree.leaves_with_path(params)]
    paths = {entries: path_of(entries) for entries in leaves}
    found = select("partition", rule, paths.values())
    chosen = {entries for entries, path in paths.items() if path in found}
    trainable, frozen = _split(params, chosen, ())
    return trainable, {} if frozen is _NOTHING else frozen


def _split(node: Any, chosen: set, path: tuple) -> tuple[Any, Any]:
    """The two parts of a subtree."""
    children, structure = _one_level(node)
    if _is_leaf(children):
        return (node, _NOTHING) if path in chosen else (_NOTHING, node)
    parts = [
        (key_of(entry), *_split(child, chosen, (*path, entry)))
        for (entry,), child in children
    ]
    trainable = {key: part for key, part, _ in parts if part is not _NOTHING}
    if type(node) is dict:
        frozen: Any = {key: part for key, _, part in parts if part is not _NOTHING}
        frozen = _NOTHING if parts and not frozen else frozen
    else:
        kept = [None if part is _NOTHING else part for _, _, part in parts]
        frozen = structure.unflatten(kept)
    return trainable or _NOTHING, frozen


def _one_level(node: Any):
    """``([(path of one entry, child)], structure)``; of a leaf, itself with no path."""
    return jax.tree.flatten_with_path(node, is_leaf=lambda part: part is not node)


def _is_leaf(children: Any) -> bool:
    return len(children) == 1 and children[0][0] == ()


def combine(trainable: Params, frozen: Params) -> Params:
    """The parameters of which these are the parts; the inverse of :func:`partition`.

    Dicts are united, so ``frozen`` may be any base without places for what is trained; a
    leaf that both trees have is taken from ``trainable``. Nothing is copied or computed:
    it may be called in every step.

    Raises:
      ValueError: where one tree has an array and the other a dict, or ``frozen`` has a
        list or record without the place.
    """
    return _united(trainable, frozen, "")


def _united(trainable: Any, frozen: Any, place: str) -> Any:
    if frozen is None or (isinstance(frozen, tuple) and not frozen):
        return trainable
    children, structure = _one_level(frozen)
    is_leaf = _is_leaf(children)
    alike = is_leaf is not isinstance(trainable, dict)
    held = "an array" if is_leaf else "a dict"
    came = f"trainable and frozen differ at {place or 'the root'}, {held} in frozen"
    require(alike, "combine", f"{came}; give two parts of one tree")
    if is_leaf:
        return trainable
    own = {key_of(entry): child for (entry,), child in children}
    below = lambda key: f"{place}/{key}".lstrip("/")
    parts = {
        key: _united(part, own[key], below(key)) if key in own else part
        for key, part in trainable.items()
    }
    if type(frozen) is dict:
        return {**frozen, **parts}
    odd = next((key for key in parts if key not in own), None)
    lacks = f"frozen has no place for {below(odd)}; give two parts of one tree"
    require(odd is None, "combine", lacks)
    return structure.unflatten([parts.get(key, child) for key, child in own.items()])


def with_frozen(function: Callable, frozen: Params) -> Callable:
    """``function(combine(trainable, frozen), ...)`` as a function of ``trainable, ...``.

    For any function whose first argument is the parameters: ``model.apply``,
    ``model.hidden``, outputs or a loss. Call it inside ``build(frozen)``, so that the
    frozen weights are arguments of the compiled program.
    """

    def over(trainable, *args, **options):
        return function(combine(trainable, frozen), *args, **options)

    return over
