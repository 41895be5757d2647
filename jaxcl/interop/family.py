"""What a family of models gives for its folders to be read and written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jaxtyping import PyTree

from jaxcl.data.files import existing_file
from jaxcl.errors import InputError, is_whole, reason_of, require, shown

_WHO = "read_config"
_MOST = 2**31 - 1  # of a size
_LARGEST = 1e30  # of a number: its square is finite


class ConfigFile(NamedTuple):
    """The fields of a ``config.json``; what cannot be used is refused by name."""

    place: str  # its path, for messages
    fields: Mapping[str, Any]

    def refuse(self, message: str) -> NoReturn:
        """Refuse this file."""
        msg = f"{_WHO}: {self.place}: {message}."
        raise InputError(msg)

    def expect(self, holds: Any, message: str) -> None:
        """Refuse this file unless it holds."""
        require(holds, _WHO, f"{self.place}: {message}")

    def size(self, name: str, default: Any = None) -> int:
        """An int of at least 1; without a default it must be there."""
        value = self.fields.get(name, default)
        fits = is_whole(value) and 1 <= value <= _MOST
        wanted = f"{name} must be an int from 1 to {_MOST}"
        self.expect(fits, f"{wanted}, got {shown(value)}")
        return int(value)

    def size_or_none(self, name: str, default: Any = None) -> int | None:
        """An int of at least 1, or null."""
        known = self.fields.get(name, default) is not None
        return self.size(name, default) if known else None

    def number(self, name: str, default: Any = None, *, least: float = 0.0) -> float:
        """A finite number; without a default it must be there."""
        value = self.fields.get(name, default)
        real = isinstance(value, int | float) and not isinstance(value, bool)
        fits = real and least <= value <= _LARGEST
        wanted = f"{name} must be a number from {least:g} to {_LARGEST:g}"
        self.expect(fits, f"{wanted}, got {shown(value)}")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean, or null for the default."""
        value = self.fields.get(name)
        value = default if value is None else value
        wanted = f"{name} must be true or false, got {shown(value)}"
        self.expect(isinstance(value, bool), wanted)
        return value

    def only(self, name: str, *values: Any) -> None:
        """Refuse a field that is there and has none of the supported values."""
        value = self.fields.get(name)
        known = " or ".join([*map(json.dumps, values), "absent"])
        came = f"{name} must be {known}, got {shown(value)}; others are not supported"
        self.expect(value is None or value in values, came)

    def inside(self, name: str) -> "ConfigFile":
        """The fields of an object of this file; none if it is absent or null."""
        value = self.fields.get(name)
        value = {} if value is None else value
        wanted = f"{name} must be an object, got {shown(value)}"
        self.expect(isinstance(value, dict), wanted)
        return ConfigFile(f"{self.place}, {name}", value)


class Family(NamedTuple):
    """Models of one kind: their ``config.json``, and the names of their tensors.

    ``names`` has every leaf that a model of the family may have, such as
    ``layers/attention/q_proj/kernel`` for ``model.layers.{}.self_attn.q_proj.weight``. A
    name with ``{}`` is that of one tensor a layer, which are stacked in the leaf. Leaves
    named ``kernel``, ``[in, out]``, are transposed: their tensors are ``[out, in]``.
    """

    model_types: tuple[str, ...]  # in config.json
    config: type  # of the records that describe a model
    read: Callable[[ConfigFile], Any]  # the record
    write: Callable[[Any], dict[str, Any]]  # the fields of config.json
    shapes: Callable[[Any], PyTree]  # the parameters, without values
    names: Mapping[str, str]
    #: Patterns of tensors that a file may have and a model does not need.
    unused: Callable[[Any], tuple[str, ...]] = lambda config: ()
    #: A name in a file as it is in ``names``: prefixes, older spellings.
    spelling: Callable[[str], str] = lambda name: name


def read_json(who: str, path: Path, remedy: str) -> dict[str, Any]:
    """The object in a file of JSON."""
    existing_file(who, path, remedy)
    reason, held = "it holds no object", None
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = reason_of(error)
    if not isinstance(held, dict):
        msg = f"{who}: {path} is damaged ({reason}); {remedy}."
        raise InputError(msg)
    return held
