"""Widths of rows: the least padding, shared by tasks, and how much of it there is."""

import itertools

import numpy as np
import pytest

from jaxcl.data import (
    Dataset,
    Task,
    array_dataset,
    choose_widths,
    padding_fraction,
    row_lengths,
    share_widths,
    train_valid_split,
)
from jaxcl.tree import as_batch
from jaxcl.typing import Batch


def padded_tokens(lengths, widths):
    """Positions of all rows, each at the smallest width that holds it."""
    return sum(min(w for w in widths if w >= length) for length in lengths)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 2, 3])
def test_widths_have_the_least_padding(seed, most):
    """Oracle: all sets of so many multiples of four, tried one after the other."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.geometric(0.08, 60), 47)
    widths = choose_widths(lengths, most=most, multiple=4, padding=0.15)
    sizes = np.unique(-(-lengths // 4) * 4)
    tried = [
        padded_tokens(lengths, chosen)
        for count in range(1, most + 1)
        for chosen in itertools.combinations(sizes.tolist(), count)
        if max(chosen) >= lengths.max()
    ]
    assert len(widths) <= most
    assert all(width % 4 == 0 for width in widths)
    if len(widths) == most:
        assert padded_tokens(lengths, widths) == min(tried)
    else:
        assert lengths.sum() / padded_tokens(lengths, widths) > 1 - 0.15


def test_no_more_widths_than_needed_are_chosen():
    """Law: with one width fewer more than the wanted fraction would be padding."""
    lengths = 8 * np.arange(1, 41)  # so that rounding to multiples pads nothing
    widths = choose_widths(lengths, padding=0.1, most=20)
    fraction = lambda widths: 1 - lengths.sum() / padded_tokens(lengths, widths)
    fewer = choose_widths(lengths, padding=0.0, most=len(widths) - 1)
    assert len(widths) > 3
    assert fraction(widths) < 0.1 <= fraction(fewer)


def test_widths_of_equal_rows_and_of_a_limit():
    """Oracle: by hand."""
    assert choose_widths([5, 6, 7, 30, 31], most=2) == (8, 32)
    assert choose_widths([64] * 9) == (64,)
    assert choose_widths(np.array([5, 6, 7, 250, 251], np.uint8), most=2) == (8, 256)
    assert choose_widths(np.array([60, 61]), longest=61) == (61,)
    assert choose_widths([60, 61]) == (64,)
    # Rounding 5 to 8 would pad three of eight: the multiple is halved twice.
    assert choose_widths([5, 5, 6]) == (6,)
    assert choose_widths([5, 5, 6], padding=0.5) == (8,)


def test_long_rows_are_no_slower():
    """Oracle: the same rows in units of a hundred tokens; the table stays small."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60_000, 20_000)
    widths = choose_widths(lengths, most=5, padding=0.0)
    want = choose_widths(lengths // 100 + 1, most=5, padding=0.0, multiple=1)
    np.testing.assert_allclose(widths, np.array(want) * 100, rtol=0.05)


def toy(lengths, widths, y=None, task=0):
    """Rows of tokens 1, 2, ... that are read at the smallest width that holds them."""
    lengths, table = np.array(lengths), np.array(widths)
    groups = np.searchsorted(table, lengths)

    def read(numbers):
        column = np.arange(table[groups[numbers].max()])
        real = column < lengths[numbers][:, None]
        x = {
            "tokens": np.where(real, column + 1, 0).astype(np.int32),
            "mask": real.astype(np.int32),
        }
        labels = np.where(real, column, -100).astype(np.int32) if y is None else y
        ones = np.ones(len(numbers), np.float32)
        number = np.full(len(numbers), task, np.int32)
        return Batch(x, labels if y is None else y[numbers], ones, number)

    return Dataset(len(lengths), read, groups)


def test_lengths_and_padding_are_those_of_the_rows():
    """Oracle: by hand; rows at the widths of their groups."""
    rows = toy([3, 9, 4, 10], (4, 12))
    np.testing.assert_array_equal(row_lengths(rows), [3, 9, 4, 10])
    assert padding_fraction(rows) == pytest.approx(1 - 26 / (2 * 4 + 2 * 12))
    one_width = rows._replace(groups=None)
    assert padding_fraction(one_width) == pytest.approx(1 - 26 / (4 * 12))


def test_a_thousand_rows_at_a_time_are_read():
    """Oracle: the sizes of what is read; lengths are in the order of the rows."""
    lengths, seen = np.arange(3000) % 7 + 1, []
    rows = toy(lengths, (4, 8))

    def read(numbers):
        seen.append(len(numbers))
        return rows.read(numbers)

    watched = rows._replace(read=read)
    np.testing.assert_array_equal(row_lengths(watched), lengths)
    assert max(seen) == 1024
    assert sum(seen) == 3000


@pytest.mark.parametrize("by_token", [True, False])
def test_tasks_share_the_widths_of_all_training_rows(by_token):
    """Law: every row keeps its tokens, mask and labels; only the padding changes.

    A longer test row has the width that it had; the control is the widths before.
    """
    y = None if by_token else np.arange(4, dtype=np.int32)
    first = Task("a", toy([3, 4, 3, 4], (4,), y), toy([2, 30], (40,), y))
    second = Task(
        "b", toy([15, 17], (20,), y, 1), toy([1], (8,), y), toy([16], (24,), y)
    )
    tasks = share_widths([first, second])
    held = [part for task in tasks for part in (task.train, task.test, task.valid)]
    before = [part for t in (first, second) for part in (t.train, t.test, t.valid)]
    widths = set()
    for rows, old in zip(held, before, strict=True):
        if old is None:
            assert rows is None
            continue
        for number in range(rows.count):
            new, was = (part.read(np.array([number])) for part in (rows, old))
            length = int(was.x["mask"].sum())
            widths.add(new.x["tokens"].shape[1])
            assert new.x["mask"].sum() == length
            for name in ("tokens", "mask"):
                np.testing.assert_array_equal(
                    new.x[name][:, :length], was.x[name][:, :length]
                )
            if by_token:
                np.testing.assert_array_equal(new.y[:, :length], was.y[:, :length])
                assert (new.y[:, length:] == -100).all()
            else:
                np.testing.assert_array_equal(new.y, was.y)
            np.testing.assert_array_equal(new.task, was.task)
    assert widths == {*choose_widths([3, 4, 3, 4, 15, 17], longest=40), 40}
    examples = [part.example.x["tokens"] for part in held if part is not None]
    assert {tokens.shape for tokens in examples} == {(1, 40)}  # room for all tasks
    given = share_widths([first, second], widths=[64, 32])
    assert given[0].train.read(np.arange(4)).x["tokens"].shape == (4, 32)
    assert given[1].train.groups.tolist() == [0, 0]


def test_a_batch_of_several_groups_has_the_widest_width():
    """Oracle: by hand."""
    [task] = share_widths(
        [Task("a", toy([3, 9], (12,)), toy([3], (4,)))], widths=[4, 9]
    )
    assert task.train.groups.tolist() == [0, 1]
    assert task.train.read(np.array([0])).x["tokens"].shape == (1, 4)
    both = task.train.read(np.array([0, 1]))
    np.testing.assert_array_equal(both.x["mask"].sum(axis=1), [3, 9])
    assert both.x["tokens"].shape == both.y.shape == (2, 9)


def test_a_split_keeps_the_groups_of_its_rows(key):
    """Oracle: the lengths of the rows that each part reads."""
    rows = toy(np.arange(1, 21), (5, 10, 20))
    for part in train_valid_split(key, rows, valid_fraction=0.3):
        lengths = row_lengths(part)
        assert part.count == len(lengths) > 5
        np.testing.assert_array_equal(
            part.groups, np.searchsorted([5, 10, 20], lengths)
        )
    plain = array_dataset(as_batch(np.ones((4, 2)), np.zeros(4, np.int32)))
    assert train_valid_split(key, plain, valid_fraction=0.5)[0].groups is None
