"""Memories of sequences that come in several widths."""

import jax
import numpy as np
import pytest

from jaxcl.errors import InputError
from jaxcl.memory import class_balanced_reservoir, reservoir
from jaxcl.sequences import widen
from jaxcl.tree import as_batch
from tests.steps import seen

WIDTHS = (4, 7, 5)


def sequences(width, first=0, *, labels="tokens", count=3):
    """Three sequences of so many tokens, the last one without padding."""
    random = np.random.default_rng(width)
    mask = np.arange(width) < np.arange(width - count + 1, width + 1)[:, None]
    tokens = random.integers(1, 9, (count, width)) * mask
    y = np.where(mask, tokens + 1, -100) if labels == "tokens" else np.arange(count)
    return as_batch({"tokens": tokens, "mask": mask.astype(np.int32)}, y, task=first)


def padded_by_hand(batch, width):
    """The same rows at another width, leaf by leaf in NumPy."""

    def pad(leaf, value):
        found = np.full((len(leaf), width), value, np.int32)
        found[:, : leaf.shape[1]] = leaf
        return found

    x = {name: pad(leaf, 0) for name, leaf in batch.x.items()}
    y = pad(batch.y, -100) if batch.y.ndim == 2 else batch.y
    return batch._replace(x=x, y=y)


def observed(memory, batches):
    state = memory.init((), jax.tree.map(lambda leaf: leaf[:1], sequences_of(batches)))
    for number, batch in enumerate(batches):
        state = memory.observe(jax.random.key(number), state, seen(batch), ())
    return state


def sequences_of(batches):
    """The widest batch."""
    return max(batches, key=lambda batch: batch.x["tokens"].shape[1])


@pytest.mark.parametrize(
    ("memory", "labels"),
    [
        (reservoir(5, 2), "tokens"),
        (class_balanced_reservoir(5, 2, num_classes=3), "classes"),
    ],
)
def test_shorter_sequences_are_stored_at_the_full_width(memory, labels):
    """Oracle: the same rows padded by hand before they are offered."""
    batches = [sequences(width, labels=labels) for width in WIDTHS]
    by_hand = [padded_by_hand(batch, 7) for batch in batches]
    for ours, theirs in zip(
        jax.tree.leaves(observed(memory, batches)),
        jax.tree.leaves(observed(memory, by_hand)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_stored_is_computed_at_the_width_of_the_batch_and_padded_by_zeros():
    """Oracle: NumPy, and the widths at which it is computed."""
    widths = []

    def store(params, batch):
        tokens = batch.x["tokens"]
        widths.append(tokens.shape[1])
        squares = params * tokens[..., None] ** np.arange(1, 3)
        return {"squares": squares, "total": squares.sum(axis=(1, 2))}

    memory = reservoir(3, 2, store=store)
    state = memory.init(2.0, jax.tree.map(lambda leaf: leaf[:1], sequences(7)))
    for width in (4, 7):
        batch = sequences(width)
        state = memory.observe(jax.random.key(0), state, seen(batch, 2.0), ())
        tokens = state.kept.x["tokens"].astype(np.float32)
        squares = 2 * tokens[..., None] ** np.arange(1, 3)
        np.testing.assert_array_equal(state.kept.stored["squares"], squares)
        total = squares.sum(axis=(1, 2))
        np.testing.assert_array_equal(state.kept.stored["total"], total)
    assert widths == [7, 4, 7]


def test_sequences_longer_than_the_memory_and_other_arrays_are_refused():
    """Oracle: the message; rows without a mask are never padded."""
    memory = reservoir(5, 2)
    state = memory.init((), jax.tree.map(lambda leaf: leaf[:1], sequences(4)))
    with pytest.raises(InputError, match="like the example given to init"):
        memory.observe(jax.random.key(0), state, seen(sequences(5)), ())
    plain = lambda width: as_batch(np.ones((3, width), np.float32), np.zeros(3, int))
    state = memory.init((), jax.tree.map(lambda leaf: leaf[:1], plain(4)))
    with pytest.raises(InputError, match="like the example given to init"):
        memory.observe(jax.random.key(0), state, seen(plain(3)), ())


def test_widening_pads_every_leaf_and_nothing_else():
    """Oracle: NumPy; equal widths are the same arrays, and arrays without a mask too."""
    narrow, wide = sequences(4), sequences(7)
    for ours, theirs in zip(
        jax.tree.leaves(widen(narrow, wide)),
        jax.tree.leaves(padded_by_hand(narrow, 7)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert widen(narrow, narrow).x["tokens"] is narrow.x["tokens"]
    images = as_batch(np.ones((3, 5, 5), np.float32), np.zeros(3, int))
    assert widen(images, wide) is images
