"""What a run is: what a checkpoint must agree with for a run to go on from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxcl.errors import check_kind
from jaxcl.training.fingerprint import fingerprint
from jaxcl.typing import Key

#: Options that a checkpoint must agree with: they decide what is learned or measured.
_DECISIVE = (
    "num_steps",
    "batch_size",
    "on_non_finite",
    "end_task_examples",
    "eval_examples",
    "early_stopping",
)


def identity(
    key: Key,
    options: Any,
    frozen: PyTree,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a checkpoint must agree with for a run to go on from it, but for its tasks."""
    decisive = {name: getattr(options, name) for name in _DECISIVE}
    stopping = options.early_stopping
    decisive["early_stopping"] = None if stopping is None else list(stopping)
    decisive |= {"key": jax.random.key_data(key).tolist()}
    if jax.tree.leaves(frozen):
        decisive |= {"frozen": fingerprint(frozen)}
    return dict(metadata or {}) | decisive  # the caller's names hide none of these


def check_plain(who: str, metadata: Mapping[str, Any] | None) -> None:
    """Refuse what no JSON file can hold, before a run has spent time on it.

    Raises:
      ValueError: naming who, and what it holds.
    """
    remedy = "give a dict of finite numbers and text"
    check_kind(who, Mapping, remedy, optional=True, metadata=metadata)
    try:
        json.dumps(dict(metadata or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"{who}: metadata must be a dict of finite numbers and text: {error}."
        raise ValueError(msg) from error


def check_metadata(path: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse the checkpoint of another run, with what differs.

    Raises:
      ValueError: naming up to eight differences.
    """
    lines = [
        f"{name} {held.get(name, 'absent')!r}, not {wanted.get(name, 'absent')!r}"
        for name in sorted({*held, *wanted})
        if held.get(name) != wanted.get(name)
    ]
    if lines:
        msg = (
            f"restore: {path} is of another run: {'; '.join(lines[:8])}. Resume with its "
            "settings, or start in a new folder."
        )
        raise ValueError(msg)


__all__ = ["check_metadata", "check_plain", "identity"]
