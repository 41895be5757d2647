"""Start of a run from the state of another one."""

from collections.abc import Sequence
from pathlib import Path

import jax

from jaxcl.errors import InputError, shown
from jaxcl.training.checkpoint import Leaves, is_preserved, read_leaves, steps
from jaxcl.typing import MethodState


def started_from(
    start: str | Path,
    state: MethodState,
    fresh: Sequence[str],
) -> MethodState:
    """The state of a checkpoint, with some parts initialised instead.

    Args:
      start: folder of a run, or one of its checkpoints.
      state: the method's initial state; the parts in ``fresh`` are taken from it.
      fresh: fields of the state.

    Raises:
      ValueError: for an unknown field, a folder without checkpoints, or a part with
        another structure, by the path of its first leaf that differs.
    """
    wrong = [name for name in fresh if name not in MethodState._fields]
    if wrong or isinstance(fresh, str):
        msg = (
            f"learn: fresh must name parts of the state, such as ('memory',), got "
            f"{shown(fresh)}; there are {', '.join(MethodState._fields)}."
        )
        raise InputError(msg)
    place = _checkpoint_of(Path(start))
    held = read_leaves(place)
    if int(held.get(".step", 0)):
        msg = (
            f"learn: start must be the end of a task, got {place}, which is step "
            f"{int(held['.step'])} of one; give one of a task's end, or finish that run."
        )
        raise InputError(msg)
    parts = {
        name: part if name in fresh else _part(name, part, held, start)
        for name, part in state._asdict().items()
    }
    return MethodState(**parts)


def _checkpoint_of(place: Path) -> Path:
    """The latest checkpoint of a run's folder, or the one that is named."""
    for folder in (place / "checkpoints", place):
        if folder.is_dir() and (found := steps(folder)):
            ends = [step for step in found if is_preserved(folder / str(step))]
            return folder / str((ends or found)[-1])
    if place.with_suffix(".json").is_file():
        return place
    msg = (
        f"learn: start must be the folder of a run or FOLDER/checkpoints/NUMBER, got "
        f"{place}, where no checkpoint is."
    )
    raise InputError(msg)


def _part(name: str, part, held: Leaves, start):
    """One field of the state, with the leaves of the checkpoint."""
    prefix = f".state.{name}"
    wanted = {
        prefix + jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    }
    there = {
        key
        for key in held
        if key == prefix or key.startswith((f"{prefix}.", f"{prefix}["))
    }
    spec = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
    for key in sorted(wanted.keys() | there):
        old = spec(held[key]) if key in held else "absent"
        new = spec(wanted[key]) if key in wanted else "absent"
        if old != new:
            msg = (
                f"learn: the state in {start} has {key.removeprefix('.state.')} {old}, "
                f"the method {new}; build the same parts, or begin with new ones: "
                f"fresh=({name!r},)."
            )
            raise InputError(msg)
    leaves = [jax.device_put(held[key], leaf.sharding) for key, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(part), leaves)


__all__ = ["started_from"]
