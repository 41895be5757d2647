"""The identity of a run: what must agree with a checkpoint to resume from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxcl.errors import InputError, check_kind
from jaxcl.training.fingerprint import fingerprint
from jaxcl.typing import Key

#: Options that must agree with a checkpoint: they affect what is learned or measured.
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
    """What must agree with a checkpoint to resume from it, except the tasks."""
    decisive = {name: getattr(options, name) for name in _DECISIVE}
    stopping = options.early_stopping
    decisive["early_stopping"] = None if stopping is None else list(stopping)
    if stopping is not None:
        decisive["eval_every"] = options.eval_every
    decisive |= {"key": jax.random.key_data(key).tolist()}
    if jax.tree.leaves(frozen):
        decisive |= {"frozen": fingerprint(frozen)}
    return dict(metadata or {}) | decisive  # the caller's names cannot replace these


def check_plain(who: str, metadata: Mapping[str, Any] | None) -> None:
    """Refuse metadata that JSON cannot hold, before the run begins.

    Raises:
      ValueError: naming the function, and the error.
    """
    remedy = "give a dict of finite numbers and text"
    check_kind(who, Mapping, remedy, optional=True, metadata=metadata)
    try:
        json.dumps(dict(metadata or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"{who}: metadata must be a dict of finite numbers and text: {error}."
        raise InputError(msg) from error


def check_metadata(path: Path, held: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse the checkpoint of another run, with the differences.

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
        raise InputError(msg)


__all__ = ["check_metadata", "check_plain", "identity"]
