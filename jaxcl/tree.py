"""Algebra on parameter trees, and rows of batches."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, ScalarLike

from jaxcl.errors import (
    InputError,
    as_numbers,
    check_number,
    check_size,
    require,
    shown,
)
from jaxcl.lockstep import when
from jaxcl.typing import Batch


def at(index, tree: PyTree) -> PyTree:
    """Row ``index`` (a number, an array or a slice) of every leaf.

    Leaves on the host stay there, unless the index is on the device.
    """
    place = jnp.asarray if isinstance(index, jax.Array) else lambda leaf: leaf
    return jax.tree.map(lambda leaf: place(leaf)[index], tree)


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Inner product over all leaves, accumulated in float32 or better."""

    def leaf(x, y):
        dtype = wide_dtype(x, y)
        full = jax.lax.Precision.HIGHEST  # an accelerator would round the inputs
        # Over all axes at once: raveling would gather a leaf that is split over devices.
        return jnp.tensordot(x.astype(dtype), y.astype(dtype), x.ndim, precision=full)

    parts = jax.tree.leaves(jax.tree.map(leaf, a, b))
    return sum(parts, jnp.zeros((), parts[0].dtype if parts else jnp.float32))


@jax.custom_jvp
def norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean norm over all leaves, in float32 or better.

    Entries whose squares would over- or underflow (beyond about 1e19, or below 1e-19, in
    float32) are divided by the largest first. Its derivative at zero is zero, not NaN.
    """
    square = dot(tree, tree)
    if not jax.tree.leaves(tree):
        return square
    known = _is_exact(square)
    scaled = lambda _: _scaled_norm(tree)
    # On a CPU the passes of the scaled form would cost a tenth of a small network's step;
    # an accelerator would wait for the host to decide, and is quick at passes.
    if jax.default_backend() == "cpu":
        return when(~known, scaled, jnp.sqrt(square))
    return scaled(None)


def _is_exact(square: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether no term that matters to a sum of squares over- or underflows."""
    limits = jnp.finfo(square.dtype)
    return (square > float(limits.tiny / limits.eps**2)) & (square < jnp.inf)


@norm.defjvp
def _(points, changes):
    return norm(*points), dot(normalized(*points), *changes)


def normalized(tree: PyTree) -> PyTree:
    """``tree / |tree|``, in float32 or better; zero for zero."""
    length = norm(tree)
    return jax.tree.map(lambda leaf: safe_divide(wide(leaf), length), tree)


def projection(a: PyTree, b: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """``<a, b> / |b|^2`` and ``|b|``; zero for zero.

    As in :func:`norm`, where a product would over- or underflow both trees are divided by
    their largest entries first.
    """
    inner, square = dot(a, b), dot(b, b)
    limits, known = jnp.finfo(square.dtype), _is_exact(square)
    known &= (jnp.abs(inner) > float(limits.tiny / limits.eps)) & jnp.isfinite(inner)
    fast = safe_divide(inner, square), jnp.sqrt(square)
    scaled = lambda _: _scaled_projection(a, b)
    if jax.default_backend() != "cpu":
        return scaled(None)
    # Without examples in memory b is zero at every step: one pass tells.
    some = lambda nothing: when(_top(b) > 0, scaled, nothing)
    return when(~known, some, fast)


def _scaled_projection(a: PyTree, b: PyTree):
    """The projection of the trees divided by their largest entries, put together again."""
    (top, one), (other_top, other) = _scaled(a), _scaled(b)
    square = dot(other, other)
    share = safe_divide(dot(one, other), square)
    return share * (top / other_top), other_top * jnp.sqrt(square)


def _scaled_norm(tree: PyTree) -> Float[Array, ""]:
    """The norm of the leaves divided by their largest entry, times that entry."""
    top, unit = _scaled(tree)
    return top * jnp.sqrt(dot(unit, unit))


def _scaled(tree: PyTree) -> tuple[Float[Array, ""], PyTree]:
    """The largest entry by size (one where it is zero or no number), and the quotients."""
    top = _top(tree)
    top = jnp.where((top > 0) & (top < jnp.inf), top, 1)
    return top, jax.tree.map(lambda leaf: wide(leaf) / top, tree)


def _top(tree: PyTree) -> Float[Array, ""]:
    """The largest entry by size."""
    tops = [jnp.max(jnp.abs(wide(leaf)), initial=0) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, tops)


def wide_dtype(*leaves) -> jnp.dtype:
    """The dtype in which sums of these leaves are computed: float32 or better."""
    return functools.reduce(
        jnp.promote_types, (leaf.dtype for leaf in leaves), jnp.dtype(jnp.float32)
    )


def wide(leaf: Array | np.ndarray) -> Array:
    """The leaf in float32 or better."""
    return jnp.asarray(leaf, wide_dtype(leaf))


def copied(tree: PyTree) -> PyTree:
    """Every leaf in a separate buffer, so that a state made of it may be donated."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def axpy(scale: ScalarLike, x: PyTree, y: PyTree) -> PyTree:
    """``scale * x + y``, leaf by leaf, in the dtype of ``y``.

    The sum is formed in float32 or better, so that bfloat16 leaves round once.
    """

    def leaf(xi, yi):
        dtype = wide_dtype(xi, yi)
        return (scale * xi.astype(dtype) + yi.astype(dtype)).astype(yi.dtype)

    return jax.tree.map(leaf, x, y)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """``a - b``, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def random_normal_like(key: PRNGKeyArray, tree: PyTree) -> PyTree:
    """Standard normal leaves in the shapes and dtypes of ``tree``.

    All leaves are cut from one draw of float32, the same whether 64 bits are enabled or
    not: on a CPU every draw costs a second to compile.
    """
    leaves, structure = jax.tree.flatten(tree)
    size = sum(leaf.size for leaf in leaves)
    parts = cut_like(jax.random.normal(key, (size,), jnp.float32), leaves)
    drawn = [part.astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def cut_like(numbers: Float[Array, " n"], leaves: Sequence[Array]) -> list[Array]:
    """Consecutive parts of a vector in the shapes of the leaves."""
    ends = itertools.accumulate(leaf.size for leaf in leaves)
    parts = zip(ends, leaves, strict=True)
    return [numbers[end - leaf.size : end].reshape(leaf.shape) for end, leaf in parts]


def safe_divide(a, b):
    """``a / b``, and zero (with zero derivative) where ``b`` is zero."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def weighted_mean(values, weight):
    """``sum(weight * values) / sum(weight)``; zero where all weights are zero."""
    return safe_divide(jnp.sum(weight * values), jnp.sum(weight))


def by_chunks(function, parts, size: int | None, *, recompute: bool = False):
    """``function(*parts)`` on ``size`` rows at a time, then on the remaining rows.

    Args:
      function: ``(*parts) -> [b, ...]``, or a tree of such arrays, row by row.
      parts: trees of leaves ``[n, ...]``.
      size: rows at once, all if None. One that divides ``n`` compiles the function once,
        not twice.
      recompute: compute a chunk a second time for the gradient, and store nothing of it:
        the memory of one chunk, for four thirds of the work.
    """
    check_size("by_chunks", optional=True, chunk_size=size)
    total = jax.tree.leaves(parts)[0].shape[0]
    if size is None or size >= total:
        return function(*parts)
    function = jax.checkpoint(function) if recompute else function
    even = total - total % size
    stack = lambda leaf: leaf[:even].reshape(-1, size, *leaf.shape[1:])
    done = jax.lax.map(lambda part: function(*part), jax.tree.map(stack, parts))
    done = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), done)
    if even == total:
        return done
    rest = function(*jax.tree.map(lambda leaf: leaf[even:], parts))
    return jax.tree.map(lambda *both: jnp.concatenate(both), done, rest)


def as_batch(x: PyTree, y: PyTree, *, weight=None, task: int = 0) -> Batch:
    """Rows of one task as a batch.

    Args:
      x: inputs, leaves ``[n, ...]``; here and below a list of numbers is an array, and so
        is a frame or series of pandas. Images as uint8 stay bytes: streams and datasets
        made of them give float32 in [0, 1], a step of one's own has to convert them.
      y: labels, leaves ``[n, ...]``; integers and booleans become int32. Text is numbered
        by :func:`jaxcl.data.encode_labels`.
      weight: ``[n]``, 1 for a real row and 0 for padding; all ones if absent.
      task: index of the task the rows come from.

    Raises:
      ValueError: for leaves of unequal numbers of rows, text, dates and other objects, and
        labels beyond int32; for a weight or a task that is known to be negative.
    """
    x, y, weight = as_arrays("as_batch", x, y, weight)
    if not isinstance(task, Tracer):
        check_size("as_batch", least=0, task=np.asarray(task)[()])
    rows = np.shape((jax.tree.leaves((x, y)) or [0])[0])[:1]
    given = np.ones(rows) if weight is None else weight
    number = jnp.full(rows, task, jnp.int32)
    batch = Batch(x, y, jnp.asarray(given, jnp.float32), number)
    check_batch("as_batch", batch)
    if not isinstance(given, Tracer):
        known = np.asarray(given, np.float32)
        extremes = {"smallest": known.min(initial=0), "largest": known.max(initial=0)}
        check_number("as_batch", **{f"the {k} weight": v for k, v in extremes.items()})
    far = beyond_int32(y)
    fit = f"labels must fit in int32, got {far}; renumber them"
    require(far is None, "as_batch", fit)
    classes = lambda leaf: leaf.dtype.kind in "biu"
    narrow = lambda leaf: jnp.asarray(leaf, jnp.int32 if classes(leaf) else None)
    return batch._replace(y=jax.tree.map(narrow, y))


def beyond_int32(tree: PyTree) -> int | None:
    """The first known smallest or largest integer of a leaf that int32 cannot hold."""
    known = [leaf for leaf in jax.tree.leaves(tree) if not isinstance(leaf, Tracer)]
    # Arrays say their dtype themselves: those of floats are not copied from a device.
    dtype_of = lambda leaf: getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
    whole = lambda leaf: isinstance(leaf, int) or dtype_of(leaf).kind in "iu"  # 10**400
    integers = [np.asarray(leaf) for leaf in known if whole(leaf)]
    ends = (int(end(initial=0)) for leaf in integers for end in (leaf.min, leaf.max))
    return next((end for end in ends if not -(2**31) <= end < 2**31), None)


#: What to do about inputs, labels and weights other than numbers.
_REMEDIES = {
    "x": "encode it as numbers, or leave it out",
    "y": "number the classes with jaxcl.data.encode_labels",
    "weight": "give one number a row",
}


def as_arrays(who: str, *parts: PyTree) -> tuple[PyTree, ...]:
    """Inputs, labels and weights with lists of numbers and tables as NumPy arrays.

    Text, dates and objects, which no program takes, are refused.
    """
    for (name, remedy), part in zip(_REMEDIES.items(), parts, strict=False):
        odd = next(filter(None, map(_other_than_numbers, jax.tree.leaves(part))), None)
        require(odd is None, who, f"{name} must hold numbers, got {odd}; {remedy}")

    def of_numbers(node):
        leaves = jax.tree.leaves(node) if isinstance(node, list) else ()
        return bool(leaves) and all(isinstance(leaf, int | float) for leaf in leaves)

    def convert(node):
        if of_numbers(node):
            return as_numbers(who, "rows", node)
        return _from_pandas(who, node) if hasattr(node, "to_numpy") else node

    return jax.tree.map(convert, parts, is_leaf=of_numbers)


def _other_than_numbers(leaf) -> str | None:
    """A leaf that holds something else than numbers, for a message; else None."""
    if hasattr(leaf, "columns"):  # pandas
        kinds = zip(leaf.columns, leaf.dtypes, strict=True)
        odd = [str(name) for name, dtype in kinds if dtype.kind not in "biufc"]
        return f"text or objects in column {odd[0]!r}" if odd else None
    kind = getattr(getattr(leaf, "dtype", None), "kind", "")
    odd = isinstance(leaf, str | bytes) or kind in ("O", "S", "U", "M", "m")
    return shown(leaf) if odd else None


def _from_pandas(who: str, frame) -> np.ndarray:
    """A frame or series of numbers as one array."""
    dtypes = np.atleast_1d(frame.dtypes)
    kinds = [getattr(dtype, "numpy_dtype", dtype) for dtype in dtypes]
    try:
        return frame.to_numpy(np.result_type(*kinds))
    except (TypeError, ValueError) as error:
        msg = f"{who}: expected a table of numbers, none missing ({error}); fill it."
        raise InputError(msg) from error


def check_batch(who: str, batch: Batch) -> None:
    """Refuse anything but a batch of rows, such as ``(x, y)`` or a single row."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    alike = len({shape[:1] for shape in shapes}) == 1
    good = isinstance(batch, Batch) and np.ndim(batch.weight) == 1 and alike
    came = f"{type(batch).__name__} of shapes {shapes[:4]}; make one"
    wanted = f"expected a Batch of arrays [n, ...] with weight [n], got {came}"
    require(good, who, f"{wanted} with jaxcl.tree.as_batch from arrays of n rows")
    as_arrays(who, batch.x, batch.y)


def row_format(batch: Batch) -> str:
    """Dtypes and shapes of a row, as they will be on the device, for messages."""
    dtype = lambda leaf: jax.dtypes.canonicalize_dtype(leaf.dtype)
    kind = lambda leaf: f"{dtype(leaf)}{list(leaf.shape[1:])}"
    x, y = jax.tree.map(kind, (batch.x, batch.y))
    return f"x {x} and y {y}"


def check_params(who: str, params: PyTree) -> None:
    """Refuse parameters that cannot be trained, such as running statistics."""
    for path, leaf in jax.tree.leaves_with_path(params) or [((), params)]:
        place = jax.tree_util.keystr(path) or "its root"
        dtype = getattr(leaf, "dtype", None)
        real = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        came = f"{shown(leaf) if dtype is None else dtype} at {place}"
        remedy = "keep out what is not trained (build(frozen=)), and use no BatchNorm"
        message = f"params must be a tree of real arrays, got {came}; {remedy}"
        require(real and "'batch_stats'" not in place, who, message)


def flat_rows(rows: Batch) -> Batch:
    """Rows ``[b, ...]`` of a batch that may be grouped by task, ``[T, m, ...]``."""
    if rows.weight.ndim == 1:
        return rows
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)


def num_rows(batch: Batch) -> int:
    """How many rows a batch has, padding included."""
    return batch.weight.shape[0]


def num_tasks(plan: PyTree) -> int:
    """How many tasks a stream's plan describes."""
    return jax.tree.leaves(plan)[0].shape[0]
