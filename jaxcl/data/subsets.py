"""Random subsets of a data set: for validation, and for evaluation on fewer rows."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcl.data.dataset import Dataset, subset
from jaxcl.data.draws import generator
from jaxcl.errors import check_key, check_number, check_size, require
from jaxcl.tree import at, check_batch, num_rows
from jaxcl.typing import Batch, Key

#: Rows in memory, or rows by number.
_Rows = TypeVar("_Rows", Batch, Dataset)


def train_valid_split(
    key: Key, data: _Rows, *, valid_fraction: float, stratify: bool = False
) -> tuple[_Rows, _Rows]:
    """Split rows at random into a training and a validation set.

    Every real row is in one of the two, in its original order; rows of weight 0 are in
    neither. The validation set has ``valid_fraction * n`` rows, rounded to the nearest
    integer, at least one and at most ``n - 1``::

        train, valid = train_valid_split(key, task.train, valid_fraction=0.1)
        task = task._replace(train=train, valid=valid)

    Args:
      key: draws the rows, on the host.
      data: a batch, leaves ``[n, ...]``, or a dataset, for which only row numbers are
        drawn.
      valid_fraction: fraction of the rows that is for validation, in (0, 1).
      stratify: whether the validation set has this fraction of each class, to within one
        row; ``y`` must be class numbers ``[n]``. A dataset is read once for them.

    Returns:
      ``(train, valid)``, of the kind of ``data``.
    """
    limits = {"most": 1.0, "above": True, "below": True}
    check_number("train_valid_split", valid_fraction=valid_fraction, **limits)
    if isinstance(data, Dataset):
        rows = np.arange(data.count)
    else:
        check_batch("train_valid_split", data)
        rows = np.flatnonzero(np.asarray(data.weight) > 0)
    two = f"needs at least two rows of weight above 0, got {len(rows)}"
    require(len(rows) >= 2, "train_valid_split", two)
    labels = _labels(data, rows) if stratify else np.zeros(len(rows), np.int32)
    rng = generator(key, "train_valid_split")
    chosen = _choose(rng, labels, valid_fraction)
    return _take(data, rows[~chosen]), _take(data, rows[chosen])


def _choose(rng, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Which rows are for validation, booleans [n]."""
    count = min(max(int(fraction * len(labels) + 0.5), 1), len(labels) - 1)
    _, group, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = count * sizes / len(labels)
    quota = np.floor(wanted).astype(int)
    # Largest remainders: each class is within one row of its fraction; the sum is `count`.
    quota[np.argsort(quota - wanted, kind="stable")[: count - quota.sum()]] += 1
    order = rng.permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    for number, size in enumerate(quota):
        chosen[order[group[order] == number][:size]] = True
    return chosen


def _take(data, rows: np.ndarray) -> Any:
    if isinstance(data, Dataset):
        return subset(data, rows)
    return at(rows, data)


def _labels(data, rows: np.ndarray) -> np.ndarray:
    """The classes of some rows."""
    if isinstance(data, Dataset):  # 1,024 rows are in memory at a time
        parts = np.split(rows, range(1024, len(rows), 1024))
        labels = np.concatenate([np.asarray(data.read(part).y) for part in parts])
    else:
        labels = np.asarray(at(rows, data).y)
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    found = f"got {labels.dtype}{list(labels.shape)}; leave stratify out"
    wanted = f"to stratify, y must be class numbers [n], {found}"
    require(classes, "train_valid_split", wanted)
    return labels


def random_rows(key: Key, batch: Batch, count: int) -> Batch:
    """Draw some rows of a batch uniformly without replacement.

    For an evaluation on a subset: the first rows of a file are often not representative.
    One key, which may be traced, always draws the same rows, and a smaller ``count`` gives
    the first of them; padding at the end of the batch changes nothing. Costs a partial
    sort. Rows of weight 0 are not drawn; other weights do not matter.

    Returns:
      A batch of ``count`` rows, in random order. If there are fewer real ones, it is
      padded with copies of a real row, of weight 0.
    """
    check_size("random_rows", count=count)
    real = jnp.asarray(batch.weight) > 0
    draws = _draws(key, num_rows(batch))
    draws = jnp.where(real, draws, 2.0)  # padding comes last
    _, rows = jax.lax.top_k(-draws, min(count, num_rows(batch)))
    rows = jnp.pad(rows, (0, count - len(rows)))
    counts = real[rows] & (jnp.arange(count) < num_rows(batch))
    drawn = at(jnp.where(counts, rows, rows[0]), batch)
    return drawn._replace(weight=jnp.where(counts, drawn.weight, 0))


def random_row_numbers(key: Key, num_rows: int, count: int) -> Int[np.ndarray, " k"]:
    """The numbers of the rows that :func:`random_rows` draws, for a dataset.

    ``[min(count, num_rows)]`` different ones in random order, drawn on the host; all rows
    of the dataset are real.
    """
    check_size("random_row_numbers", num_rows=num_rows, count=count)
    draws = np.asarray(_draws(key, num_rows))
    return np.argsort(draws, kind="stable")[:count]


def _draws(key: Key, size: int):
    """A number in [0, 1) for each row; a row's number does not depend on ``size``."""
    return jax.random.uniform(check_key("random_rows", key), (size,), jnp.float32)
