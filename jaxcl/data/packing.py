"""Several tokenised rows in one, so that almost nothing is padding."""

import numpy as np
from jaxtyping import Int

from jaxcl.data.tokens import TokenRows


def first_fit(lengths: np.ndarray, size: int) -> Int[np.ndarray, " n"]:
    """Put each row into the first bin with room for it; the number of each row's bin.

    In the order of the rows, so that rows of one bin are neighbours rather than alike.
    Cost: about one pass over the open bins for each row.

    Source: Johnson 1973, Near-optimal bin packing algorithms (first fit).
    """
    room, bins = np.zeros(len(lengths), int), np.zeros(len(lengths), int)
    shortest, opened, begin = int(lengths.min()), 0, 0
    for row, length in enumerate(lengths.tolist()):
        # Bins before `begin` are full for every row.
        while begin < opened and room[begin] < shortest:
            begin += 1
        fitting = room[begin:opened] >= length
        place = begin + int(fitting.argmax()) if fitting.any() else opened
        if place == opened:
            room[place] = size
            opened += 1
        room[place] -= length
        bins[row] = place
    return bins


def packed(rows: TokenRows, size: int) -> TokenRows:
    """Rows of at most ``size`` tokens put together, with segments from 1.

    The last label of each row counts nowhere, so that no label crosses segments; the
    weight of a packed row is the sum of those of its rows.
    """
    bins = first_fit(rows.lengths, size)
    order = np.argsort(bins, kind="stable")
    starts = np.cumsum(rows.lengths) - rows.lengths
    lengths = rows.lengths[order]
    # Where each token was: its row's start, and its place within the row.
    ends = np.cumsum(lengths)
    places = np.arange(ends[-1]) + np.repeat(starts[order] - (ends - lengths), lengths)
    # The number of each row within its bin, from 1.
    sorted_bins = bins[order]
    within = np.arange(len(order)) - np.searchsorted(sorted_bins, sorted_bins) + 1
    return rows._replace(
        tokens=rows.tokens[places],
        y=rows.y[places],
        lengths=np.bincount(bins, weights=rows.lengths).astype(int),
        weight=np.bincount(bins, weights=rows.weight).astype(np.float32),
        segments=np.repeat(within, lengths).astype(np.int32),
    )
