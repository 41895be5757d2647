"""A few widths for rows of different lengths, so that little of a batch is padding.

Every width is a shape, and costs a compilation; every token of padding costs a token's
work. Rows are padded to the smallest width that holds them, and a training batch has rows
of one width (the ``groups`` of a :class:`jaxcl.data.Dataset`).
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from jaxcl.data.dataset import Dataset, Task
from jaxcl.errors import check_kind, check_number, check_size, is_whole, require, shown
from jaxcl.sequences import IGNORED
from jaxcl.typing import Batch

_CHUNK = 1024  # rows that are read at a time
_MOST_SIZES = 512  # the widths that are tried


def choose_widths(
    lengths: Sequence[int] | np.ndarray,
    *,
    most: int = 8,
    multiple: int = 8,
    padding: float = 0.15,
    longest: int | None = None,
) -> tuple[int, ...]:
    r"""The fewest widths of which little is padding, for rows of these lengths.

    A row of length ``l`` takes the smallest width ``w`` of at least ``l``. For each number
    of widths, dynamic programming over the histogram of lengths finds those with the least
    padding

    .. math:: 1 - \sum_i l_i \, / \sum_i w(l_i)

    ::

        choose_widths([5, 6, 7, 30, 31], most=2)              # (8, 32)

    Args:
      lengths: of the rows, in tokens.
      most: how many widths may be chosen.
      multiple: of which widths are multiples, as accelerators prefer; halved while such
        rounding alone pads more than ``padding``, as with texts of a few tokens.
      padding: the fraction of all positions, in [0, 1), that padding should stay below;
        where ``most`` widths do not reach it, the best of them.
      longest: where rows end, such as a model's last position: no width is above it.

    Cost: ``most`` tables of at most 512 x 512.
    """
    check_size("choose_widths", most=most, multiple=multiple)
    check_size("choose_widths", optional=True, longest=longest)
    check_number("choose_widths", padding=padding, most=1)
    held = np.asarray(lengths)
    usable = held.ndim == 1 and held.dtype.kind in "iu" and held.size and held.min() > 0
    wanted = "lengths must be integers above 0, one a row"
    require(
        usable, "choose_widths", f"{wanted}, got {shown(lengths)}; count the tokens"
    )
    held = held.astype(np.int64)  # small types would wrap around
    top = np.iinfo(np.int64).max if longest is None else longest
    over = f"rows of {held.max()} tokens do not fit into longest={longest}; cut them"
    require(held.max() <= top, "choose_widths", over)
    step = multiple
    rounded = lambda: np.minimum(-(-held // step) * step, top)
    while step > 1 and 1 - held.sum() / rounded().sum() > padding:
        step //= 2
    while len(np.unique(rounded())) > _MOST_SIZES:
        step *= 2
    return _best_widths(held, rounded(), most, padding)


def _best_widths(
    lengths: np.ndarray, rounded: np.ndarray, most: int, padding: float
) -> tuple[int, ...]:
    """The best widths among rounded lengths."""
    sizes, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # rows under each size
    # cost[i, j]: positions of one bucket for the sizes i to j, each row as wide as j.
    cost = np.where(
        np.arange(len(sizes))[:, None] <= np.arange(len(sizes)),
        sizes * (below[1:] - below[:-1, None]).astype(float),
        np.inf,
    )
    least, begins = cost[0], [np.zeros(len(sizes), int)]
    for _ in range(min(most, len(sizes)) - 1):
        if 1 - lengths.sum() / least[-1] < padding:
            break
        before = np.concatenate([[np.inf], least[:-1]])  # of the sizes under i
        total = before[:, None] + cost
        begins.append(total.argmin(axis=0))
        least = total.min(axis=0)
    widths, last = [], len(sizes) - 1
    for begin in reversed(begins):
        widths.append(int(sizes[last]))
        last = begin[last] - 1
        if last < 0:
            break
    return tuple(reversed(widths))


def usable_widths(who: str, widths: Sequence[int], longest: int) -> tuple[int, ...]:
    """Widths that a user gives, in order, if they hold the longest row."""
    listed = isinstance(widths, Sequence | np.ndarray) and not isinstance(widths, str)
    listed = listed and len(widths) and all(is_whole(w) and w > 0 for w in widths)
    wanted = f"widths must be integers above 0, got {shown(widths)}; try (32, 64, 128)"
    require(listed, who, wanted)
    ordered = tuple(sorted({int(width) for width in widths}))
    short = f"the longest row has {longest} tokens, the widest width is {ordered[-1]}"
    require(ordered[-1] >= longest, who, f"{short}; add a width, or lower max_length")
    return ordered


def row_lengths(dataset: Dataset) -> Int[np.ndarray, " n"]:
    """The number of tokens of each row, padding left out; every row is read once."""
    check_kind("row_lengths", Dataset, dataset=dataset)
    lengths = np.zeros(dataset.count, int)
    for rows, batch in by_group("row_lengths", dataset):
        lengths[rows] = np.asarray(batch.x["mask"]).sum(axis=1)
    return lengths


def padding_fraction(dataset: Dataset) -> float:
    """The fraction of all positions that is padding when each row has its group's width.

    In [0, 1); without ``groups`` each row has the width at which it is read. Every row is
    read once::

        padding_fraction(text_dataset("train.jsonl", tokenizer))    # such as 0.08
    """
    check_kind("padding_fraction", Dataset, dataset=dataset)
    real = positions = 0
    for _, batch in by_group("padding_fraction", dataset):
        mask = np.asarray(batch.x["mask"])
        real, positions = real + int(mask.sum()), positions + mask.size
    return 1 - real / positions


def by_group(who: str, dataset: Dataset):
    """Yield row numbers of one group, at most a thousand, and their batch."""
    groups = np.zeros(dataset.count, int) if dataset.groups is None else dataset.groups
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        for part in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
            batch = dataset.read(part)
            held = isinstance(batch.x, dict) and "mask" in batch.x
            wanted = "rows must be tokens with a mask, x = {'tokens': ..., 'mask': ...}"
            require(held, who, f"{wanted}; give a dataset of text")
            yield part, batch


def share_widths(
    tasks: Sequence[Task], *, widths: Sequence[int] | None = None, most: int = 8
) -> list[Task]:
    """The same tasks with the same widths for all of them.

    Widths that each dataset chose by itself would be compiled for each task again. These
    are chosen from the training rows of all tasks; a longer row of another set has a width
    of its own::

        tasks = share_widths([news, reviews])

    Args:
      tasks: of text; their rows are read once, for their lengths.
      widths: of all rows; chosen by :func:`choose_widths` if absent. Give them for a
        stream that may grow: others would be chosen with one more task, and
        :func:`jaxcl.training.learn` refuses a run whose rows have changed.
      most: how many to choose.
    """
    who = "share_widths"
    kind = "give a list of tasks"
    for task in tasks:
        check_kind(who, Task, kind, task=task)
    require(len(tasks), who, "expected tasks, got none; give a list with some")
    named = {
        (place, name): part
        for place, task in enumerate(tasks)
        for name in ("train", "test", "valid")
        if (part := getattr(task, name)) is not None
    }
    lengths = {key: row_lengths(part) for key, part in named.items()}
    longest = max(int(own.max()) for own in lengths.values())
    if widths is None:
        # As wide as before at most: a model's positions may end there.
        last = lambda key: np.array([lengths[key].argmax()])
        widest = lambda key: named[key].read(last(key)).x["mask"]
        top = max(widest(key).shape[1] for key in named)
        trained = [own for (_, name), own in lengths.items() if name == "train"]
        chosen = choose_widths(np.concatenate(trained), most=most, longest=top)
        widths = chosen if chosen[-1] >= longest else (*chosen, top)
    widths = usable_widths(who, widths, longest)
    fitted = [{} for _ in tasks]
    for (place, name), part in named.items():
        fitted[place][name] = _refitted(part, lengths[place, name], widths)
    return [task._replace(**own) for task, own in zip(tasks, fitted, strict=True)]


def _refitted(
    dataset: Dataset, lengths: np.ndarray, widths: tuple[int, ...]
) -> Dataset:
    """Rows of a dataset at other widths."""
    table = np.array(widths)
    groups = np.searchsorted(table, lengths).astype(np.int32)

    def read(numbers):
        width = int(table[groups[numbers].max(initial=0)])
        return resized(dataset.read(numbers), width)

    longest = np.array([lengths.argmax()])
    example = resized(dataset.read(longest), widths[-1])  # memories have room for all
    return Dataset(dataset.count, read, groups, example)


def resized(batch: Batch, width: int) -> Batch:
    """Rows of another width: padded on the right, or cut where all of them are padding."""

    def fitted(leaf, blank):
        more = max(width - leaf.shape[1], 0)
        pads = ((0, 0), (0, more))
        return np.pad(leaf[:, :width], pads, constant_values=blank)

    x = jax.tree.map(functools.partial(fitted, blank=0), batch.x)
    y = fitted(batch.y, IGNORED) if np.ndim(batch.y) == 2 else batch.y
    return batch._replace(x=x, y=y)
