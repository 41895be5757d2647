"""Trees of arrays as flat files, and how far two files are apart."""

import json

import jax
import numpy as np


def flat(name, tree):
    """``{name/path: array}``; keys as their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join([name, *map(step_of, path)]): numbers(leaf) for path, leaf in leaves
    }


def step_of(entry):
    """One step of a path as a word, as projections were named when it was written."""
    for kind in ("name", "key", "idx"):
        if hasattr(entry, kind):
            return str(getattr(entry, kind)).removesuffix("_proj")
    raise TypeError(entry)


def numbers(leaf):
    """The leaf for NumPy."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def save(path, held):
    """Write ``{path: array}``: all numbers of one dtype in a row, and where each begins.

    An entry of a zip archive costs more than most of these arrays.
    """
    kinds = {str(array.dtype): [] for array in held.values()}
    index = []
    for name, array in held.items():
        kinds[str(array.dtype)].append(array.ravel())
        index.append((name, str(array.dtype), array.shape))
    rows = {kind: np.concatenate(parts) for kind, parts in kinds.items()}
    np.savez_compressed(path, index=json.dumps(index), **rows)


def load(path):
    """What :func:`save` wrote."""
    with np.load(path) as file:
        rows = {kind: file[kind] for kind in file.files}
    held, begins = {}, dict.fromkeys(rows, 0)
    for name, kind, shape in json.loads(str(rows["index"])):
        begin = begins[kind]
        begins[kind] += int(np.prod(shape))
        held[name] = rows[kind][begin : begins[kind]].reshape(shape)
    return held


def deviation(found, want):
    """How far apart two arrays are, relative to the largest entry that is wanted.

    Zero if they are equal bit for bit; infinite where shape, dtype, an integer, a boolean
    or the place of a number that is not finite differs.
    """
    if found.shape != want.shape or found.dtype != want.dtype:
        return np.inf
    if found.tobytes() == want.tobytes():
        return 0.0
    if not np.issubdtype(want.dtype, np.floating):
        return np.inf
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(found)) or not np.array_equal(
        found[~finite], want[~finite], equal_nan=True
    ):
        return np.inf
    gap = np.abs(found[finite].astype(np.float64) - want[finite])
    # Zeros of two signs are equal numbers and not equal bits.
    return float(gap.max(initial=0) / max(np.abs(want[finite]).max(initial=0), 1e-30))


def compare(found, want):
    """``{path: deviation}`` over both files; infinite where one lacks the entry."""
    return {
        path: deviation(found[path], want[path])
        if path in found and path in want
        else np.inf
        for path in sorted({*found, *want})
    }
