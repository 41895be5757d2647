"""Rows drawn by a key: a validation set, and some rows to evaluate on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcl.data import (
    Dataset,
    Task,
    array_dataset,
    random_row_numbers,
    random_rows,
    train_valid_split,
)
from jaxcl.tree import as_batch

COUNTS = (30, 9, 4)  # rows of each class


def numbered(weight=None):
    """Rows whose input is their number, of three classes in mixed order."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS))
    x = np.arange(len(y), dtype=np.float32)[:, None]
    return as_batch(x, y, weight=weight, task=2)


def numbers_of(part):
    """The numbers of the rows of a batch or of a dataset, and their labels."""
    batch = part.read(np.arange(part.count)) if isinstance(part, Dataset) else part
    return np.asarray(batch.x)[:, 0].astype(int).tolist(), np.asarray(batch.y)


@pytest.mark.parametrize("make", [lambda batch: batch, array_dataset])
@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.77, 0.999])
def test_a_split_deals_out_every_row_once(key, make, stratify, fraction):
    """Oracle: sets of numbers, counts by hand; rows keep their order and their labels."""
    batch = numbered()
    parts = train_valid_split(
        key, make(batch), valid_fraction=fraction, stratify=stratify
    )
    (train, train_y), (valid, valid_y) = map(numbers_of, parts)
    assert sorted(train + valid) == list(range(43))
    assert len(valid) == min(max(round(43 * fraction), 1), 42)
    for rows, labels in ((train, train_y), (valid, valid_y)):
        assert rows == sorted(rows)
        np.testing.assert_array_equal(labels, batch.y[np.array(rows)])
    if stratify:
        shares = len(valid) * np.array(COUNTS) / 43
        assert np.all(np.abs(np.bincount(valid_y, minlength=3) - shares) < 1)


def test_batches_and_datasets_are_split_alike_and_keys_differently(key):
    """Law: the kind of the data does not matter; the control is another key."""
    split = lambda key, data: [
        numbers_of(part)[0] for part in train_valid_split(key, data, valid_fraction=0.3)
    ]
    batch = numbered()
    assert split(key, batch) == split(key, array_dataset(batch))
    assert split(key, batch) == split(jax.random.key(0), batch)
    assert split(key, batch) != split(jax.random.key(1), batch)


def test_every_row_is_for_validation_equally_often(key):
    """Oracle: a binomial law of 800 splits, within five standard deviations.

    Without strata a class of 4 rows is often absent; with them it never is.
    """
    keys = jax.random.split(key, 800)
    share, absent, rows = {}, {}, jax.device_get(numbered())
    for stratify in (False, True):
        hits, absent[stratify] = np.zeros(43), 0
        for seed in range(800):
            _, valid = train_valid_split(
                keys[seed], rows, valid_fraction=10 / 43, stratify=stratify
            )
            hits[numbers_of(valid)[0]] += 1
            absent[stratify] += not np.any(valid.y == 2)
        share[stratify] = hits / 800
    deviation = np.sqrt(10 / 43 * 33 / 43 / 800)
    np.testing.assert_allclose(share[False], 10 / 43, atol=5 * deviation)
    quota = np.array([7, 2, 1]) / COUNTS  # 6.98, 2.09 and 0.93 rows, rounded
    np.testing.assert_allclose(share[True], quota[rows.y], atol=5 * deviation)
    assert absent[False] > 200  # 33 % by the hypergeometric law
    assert absent[True] == 0


def test_padding_is_in_neither_part(key):
    """Oracle: the real rows; their weights stay what they were."""
    weight = np.where(np.arange(43) % 3 == 0, 0, 1 + np.arange(43))
    parts = train_valid_split(key, numbered(weight), valid_fraction=0.5)
    rows = [numbers_of(part)[0] for part in parts]
    assert sorted(rows[0] + rows[1]) == np.flatnonzero(weight).tolist()
    for part, numbers in zip(parts, rows, strict=True):
        np.testing.assert_array_equal(part.weight, weight[numbers])


def test_a_dataset_is_read_only_for_its_labels():
    """Oracle: a counter of the rows that were read, in chunks of bounded size."""
    batch, read = array_dataset(as_batch(np.zeros((3000, 1)), np.arange(3000) % 2)), []
    data = Dataset(
        3000, lambda numbers: (read.append(len(numbers)), batch[1](numbers))[1]
    )
    for stratify, wanted in ((False, 0), (True, 3000)):
        read.clear()
        train, valid = train_valid_split(
            jax.random.key(0), data, valid_fraction=0.1, stratify=stratify
        )
        assert (train.count, valid.count) == (2700, 300)
        assert sum(read) == wanted
        assert max(read, default=0) <= 1024


def test_a_task_may_have_a_validation_set(key):
    """Oracle: the fields; without one it is None."""
    rows = array_dataset(numbered())
    task = Task("a", rows, rows)
    assert task.valid is None
    train, valid = train_valid_split(key, task.train, valid_fraction=0.1)
    task = task._replace(train=train, valid=valid)
    assert (task.train.count, task.test.count, task.valid.count) == (39, 43, 4)


draw = jax.jit(random_rows, static_argnames="count")


@pytest.mark.parametrize("count", [1, 30, 31, 32, 43, 60])
def test_drawn_rows_are_real_different_and_filled_up(key, count):
    """Oracle: sets of numbers and counts by hand; 31 of 43 rows are real."""
    weight = np.where(np.arange(43) % 10 < 7, 2.0 + np.arange(43), 0)
    batch = numbered(weight)
    drawn = draw(key, batch, count=count)
    rows, labels = numbers_of(drawn)
    assert len(rows) == count
    real = min(count, 31)
    assert len(set(rows[:real])) == real
    np.testing.assert_array_equal(drawn.weight[:real], weight[rows[:real]])
    assert np.all(np.asarray(drawn.weight[:real]) > 0)
    assert not np.any(drawn.weight[real:])
    assert set(rows) == set(rows[:real])  # padding is copies of a real row
    np.testing.assert_array_equal(labels, batch.y[np.array(rows)])
    assert drawn.task.tolist() == [2] * count


def test_every_real_row_is_drawn_equally_often(key):
    """Oracle: a binomial law of 4,000 draws, within five standard deviations.

    Control: the first rows, which a slice takes, are always the same.
    """
    batch = numbered(np.where(np.arange(43) < 40, 1.0 + np.arange(43), 0))
    keys = jax.random.split(key, 4_000)
    drawn = jax.jit(jax.vmap(lambda key: random_rows(key, batch, 8).x[:, 0]))(keys)
    share = np.bincount(np.asarray(drawn, int).ravel(), minlength=43) / 4_000
    deviation = np.sqrt(0.2 * 0.8 / 4_000)
    np.testing.assert_allclose(share[:40], 0.2, atol=5 * deviation)
    assert not share[40:].any()
    assert len(np.unique(np.asarray(drawn[:, 0]))) == 40


def test_the_rows_depend_on_the_key_only(key):
    """Laws: equal keys draw equal rows, fewer are the first of more, padding is free."""
    batch = numbered()
    rows = numbers_of(draw(key, batch, count=20))[0]
    assert numbers_of(draw(key, batch, count=20))[0] == rows
    assert numbers_of(draw(key, batch, count=7))[0] == rows[:7]
    longer = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:9]]), batch)
    longer = longer._replace(weight=longer.weight.at[43:].set(0))
    assert numbers_of(draw(key, longer, count=20))[0] == rows
    other = jax.random.fold_in(key, 1)
    assert numbers_of(draw(other, batch, count=20))[0] != rows


@pytest.mark.parametrize("count", [1, 10, 43, 50])
def test_numbers_for_a_dataset_are_those_of_the_rows(key, count):
    """Law: what is drawn by number on the host is what is drawn in a program."""
    numbers = random_row_numbers(key, 43, count)
    assert len(numbers) == min(count, 43)
    drawn = numbers_of(draw(key, numbered(), count=count))[0]
    assert numbers.tolist() == drawn[: len(numbers)]


def test_one_key_draws_the_same_rows_with_64_bits(key, x64):
    """Law: the draw is in 32 bits whatever the default; the rows by number."""
    del x64
    wide = numbers_of(random_rows(key, numbered(), 20))[0]
    with jax.enable_x64(False):
        assert random_row_numbers(key, 43, 20).tolist() == wide
