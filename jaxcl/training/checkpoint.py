"""Exact resume: a tree of arrays and keys on disk, checked bit for bit.

A thin layer over orbax. It adds what an exact resume needs: random keys and empty arrays
are saved, the tree on disk is compared with the expected one before anything is read,
every file has a checksum, and if a checkpoint is damaged the one before it is used.

A folder holds ``<step>/`` as orbax writes it, and beside it ``<step>.json``: the leaves
and all checksums. See :mod:`jaxcl.training.checkpoint_files`.
"""

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxcl.errors import (
    InputError,
    MissingFileError,
    WriteError,
    check_size,
    require,
    shown,
    warn,
)
from jaxcl.files import (
    as_folder,
    as_metadata,
    differences,
    differing,
    write_checked,
)
from jaxcl.training.checkpoint_files import (
    BEGUN,
    MARK,
    DamageError,
    Note,
    all_steps,
    check_readable,
    checksums,
    clean,
    examined,
    is_ours,
    make_room,
    note_of,
    plain_path,
    set_aside,
    steps,
)
from jaxcl.training.processes import is_primary


class Restored(NamedTuple):
    """A restored tree, the step under which it was saved, and its notes."""

    step: int
    tree: PyTree
    notes: Mapping[str, Any]


def save(
    folder: str | Path,
    step: int,
    tree: PyTree,
    *,
    keep: int = 2,
    preserve: bool = False,
    metadata: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``tree`` as checkpoint ``step`` of ``folder``; keep the latest ``keep``.

    If the process is killed, earlier checkpoints are intact. Cost: one copy to the host,
    one write, one read for the checksums.

    Args:
      folder: holds the checkpoints; created if absent.
      step: position in the run, at least zero; an existing one is replaced.
      tree: arrays of any dtype, including typed keys. Numbers become arrays.
      keep: how many checkpoints stay on disk; with two, one may be damaged. Checkpoints
        with a later step are removed unless preserved: a run skipped them as damaged and
        repeats these steps. Other files are not touched.
      preserve: never remove this one to make room, and do not count it in ``keep``.
      metadata: identifies the run, for JSON; :func:`restore` can compare it.
      notes: further data for JSON; :func:`restore` returns it.

    Returns:
      The folder of this checkpoint.

    Raises:
      ValueError: for a leaf that is not an array or that JAX would store in fewer bits
        (float64 without x64), and ``metadata`` that JSON cannot hold.
      OSError: if it cannot be written and read again; existing checkpoints are intact.
    """
    check_size("save", least=0, step=step)
    check_size("save", keep=keep)
    path = as_folder("save", folder) / str(step)
    held = as_metadata("checkpoint", metadata)
    leaves = named_leaves(tree)
    from orbax.checkpoint import v1 as orbax  # here, because the import takes a second

    data = _numbered([numbers_of(leaf) for leaf in leaves.values()])
    data = data or {"none": jnp.zeros(1)}
    new = path.with_name(f"{step}.new")
    with _explained(path):
        if is_primary():
            path.parent.mkdir(parents=True, exist_ok=True)
            clean(path.parent)
            foreign = f"{path} was not written by jaxcl; move it to another place"
            require(not path.exists() or is_ours(path), "save", foreign)
        with plain_path(new) as place:
            orbax.save(place, data, overwrite=True, custom_metadata=MARK)
            if not is_primary():  # one process writes the checksums for all
                return path
            check_readable(place, path, data)
        keys = [item for item in leaves.items() if _is_key(item[1])]
        note = Note(
            leaves=leaf_specs(leaves),
            keys={name: str(jax.random.key_impl(key)) for name, key in keys},
            checksums=checksums(new),
            preserve=preserve,
            metadata=held,
            notes=dict(notes or {}),
        )
        write_checked(note_of(new), note._asdict())
        earlier = set_aside(path)
        os.replace(new, path)
        os.replace(note_of(new), note_of(path))
        shutil.rmtree(earlier, ignore_errors=True)
        (path.parent / BEGUN).unlink(missing_ok=True)
    make_room(path, keep, preserve=preserve)
    return path


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """State in one line that writing failed, and which checkpoints exist."""
    try:
        yield
    except (OSError, ValueError) as error:
        # Orbax raises errors of the system as ValueErrors. A timeout without a number is
        # of another process that did not respond.
        silent = isinstance(error, TimeoutError) and error.errno is None
        of_disk = isinstance(error, OSError) or "os_error_code" in str(error)
        if isinstance(error, InputError) or silent or not of_disk:
            raise
        there = steps(path.parent) if path.parent.is_dir() else []
        last = f"the last good one is {there[-1]}" if there else "there is none yet"
        msg = (
            f"save: checkpoint {path.name} of {path.parent} could not be written "
            f"({error}); {last}; make room, or give a folder that can be written, and "
            "start again."
        )
        raise WriteError(msg) from error


def restore(
    folder: str | Path, like: PyTree, *, metadata: Mapping[str, Any] | None = None
) -> Restored:
    """Read the latest undamaged checkpoint of ``folder`` into the structure of ``like``.

    Args:
      folder: where :func:`save` wrote.
      like: the expected tree: arrays or ``jax.ShapeDtypeStruct`` (as from
        ``jax.eval_shape``); leaves with a ``sharding`` are placed accordingly.
      metadata: as given to :func:`save`; not compared if absent.

    Returns:
      The step and the tree, bit for bit as saved. A damaged checkpoint is skipped with a
      warning that names it.

    Raises:
      FileNotFoundError: if ``folder`` holds no checkpoint.
      ValueError: if the tree on disk has other leaves, shapes or dtypes than ``like``, or
        other ``metadata``, with the differences; or if every checkpoint is damaged.
    """
    folder, wanted = as_folder("restore", folder), as_metadata("checkpoint", metadata)
    if not all_steps(folder) and all_steps(folder / "checkpoints"):
        folder = folder / "checkpoints"
    found, damaged = all_steps(folder), []
    if not found:
        msg = f"restore: no checkpoint in {folder}; save one first."
        raise MissingFileError(msg)
    for step in reversed(found):
        path = folder / str(step)
        try:
            note = examined(path)
        except DamageError as damage:
            damaged.append(f"{step} ({damage})")
            continue
        if damaged:
            warn(
                f"restore: passed over damaged checkpoints of {folder}: "
                f"{', '.join(damaged)}; went back to {step}."
            )
        other = "" if metadata is None else differences(note.metadata, wanted)
        remedy = "Resume with its settings, or start in a new folder"
        require(not other, "restore", f"{path} is of another run: {other}. {remedy}")
        _check_same(path, note.leaves, like)
        return Restored(step, _read(path, note.keys, like), note.notes)
    msg = (
        f"restore: every checkpoint of {folder} is damaged: {', '.join(damaged)}; bring "
        "one back, or start in a new folder."
    )
    raise InputError(msg)


@contextmanager
def saving(
    folder: str | Path, *, keep: int = 2, metadata: Mapping[str, Any] | None = None
) -> Iterator[Callable[..., None]]:
    """Yield a ``save(step, tree, preserve=False, notes=None)`` that is asynchronous.

    The tree is copied on the device first, so that it may be donated afterwards. One
    checkpoint is written at a time: a save waits for the one before it, and the context
    ends when the last one is on the disk. Errors of the disk are raised there. With many
    processes each save is written before it returns. Arguments are as in :func:`save`.
    """
    fixed = {"keep": keep, "metadata": as_metadata("checkpoint", metadata)}
    folder = as_folder("save", folder)
    with ThreadPoolExecutor(1, "checkpoint") as writer:
        last = writer.submit(int)  # nothing

        def later(
            step: int,
            tree: PyTree,
            preserve: bool = False,
            notes: Mapping[str, Any] | None = None,
        ) -> None:
            nonlocal last
            before, last = last, writer.submit(int)  # an error is raised once
            before.result()
            options = {**fixed, "preserve": preserve, "notes": notes}
            if jax.process_count() > 1:  # exchanges of processes must be in one order
                save(folder, step, tree, **options)
                return
            copied = jax.block_until_ready(jax.tree.map(jnp.copy, tree))
            last = writer.submit(save, folder, step, copied, **options)

        yield later
        last.result()


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by their paths, such as ``.params['w']``, all of them arrays."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
            try:
                array = jnp.asarray(leaf)
            except (TypeError, ValueError) as error:
                msg = (
                    f"checkpoint: {name or 'tree'} must be an array, got {shown(leaf)}."
                )
                raise InputError(msg) from error
            given = getattr(leaf, "dtype", array.dtype)
            cut = f"{name} is {given}, which JAX would cut to {array.dtype}"
            remedy = "convert it, or enable x64"
            require(given == array.dtype, "checkpoint", f"{cut}; {remedy}")
            leaf = array
        named[name] = leaf
    return named


def _is_key(leaf) -> bool:
    """Whether a leaf is a random key."""
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def numbers_of(leaf):
    """A key's numbers, or the leaf itself."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def leaf_specs(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of every leaf, such as ``float32[3,4]``."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in leaves.items()
    }


def _numbered(leaves: list) -> dict[str, Any]:
    """The leaves that the format can store, those with at least one entry, by number."""
    return {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}


def _read(path: Path, key_impls: dict[str, str], like: PyTree) -> PyTree:
    """The arrays of a checkpoint that is known to have the structure of ``like``."""
    from orbax.checkpoint import v1 as orbax

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def abstract(leaf):
        spec = jax.eval_shape(numbers_of, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        where = getattr(leaf, "sharding", None)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=where or here)

    def asked(spec):
        # Orbax makes arrays in its own threads, where `with jax.enable_x64(True)` has no
        # effect: they would be truncated to 32 bits. Those of 64 are read as NumPy arrays.
        wide = spec.dtype.itemsize > 4
        return np.broadcast_to(np.zeros((), spec.dtype), spec.shape) if wide else spec

    def concrete(name, spec, value):
        if value is None:
            value = jnp.zeros(spec.shape, spec.dtype, device=spec.sharding)
        if isinstance(value, np.ndarray):
            value = jax.device_put(value, spec.sharding)
        if name not in key_impls:
            return value
        return jax.random.wrap_key_data(value, impl=key_impls[name])

    leaves = named_leaves(like)
    specs = [abstract(leaf) for leaf in leaves.values()]
    numbered = {number: asked(spec) for number, spec in _numbered(specs).items()}
    with plain_path(path) as place:
        stored = orbax.load(place, numbered) if numbered else {}
    values = [stored.get(str(i)) for i in range(len(leaves))]
    parts = map(concrete, leaves, specs, values)
    return jax.tree.unflatten(jax.tree.structure(like), parts)


def read_leaves(path: Path) -> dict[str, jax.Array]:
    """All leaves of one checkpoint by their paths; an InputError if it is damaged."""
    try:
        note = examined(path)
    except DamageError as damage:
        msg = f"restore: {path} is damaged ({damage}); name an earlier one."
        raise InputError(msg) from None

    def expected(name, spec):
        dtype, _, shape = spec.rstrip("]").partition("[")
        if name in note.keys:
            dtype = jax.random.key(0, impl=note.keys[name]).dtype
        return jax.ShapeDtypeStruct([int(n) for n in shape.split(",") if n], dtype)

    # In the order of the note, in which leaves are numbered.
    like = OrderedDict((n, expected(n, spec)) for n, spec in note.leaves.items())
    return _read(path, {f"[{n!r}]": impl for n, impl in note.keys.items()}, like)


def _check_same(path: Path, on_disk: dict[str, str], like: PyTree) -> None:
    """Refuse a tree with other leaves, and list up to eight differences."""
    wanted = leaf_specs(named_leaves(like))
    lines = [
        f"{name}: on disk {on_disk.get(name, 'absent')}, "
        f"expected {wanted.get(name, 'absent')}"
        for name in differing(on_disk, wanted)
    ]
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    remedy = "Resume with the settings it was saved with, or start in a new folder"
    if ".task" in on_disk and ".task" not in wanted:
        remedy = "It is of a run: give the run_state of learn's result, not a part"
    other = f"{path} holds another tree: {'; '.join(lines[:8])}{more}. {remedy}"
    require(not lines, "restore", other)
