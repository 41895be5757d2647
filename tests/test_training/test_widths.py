"""Sequences of several widths in the host loop."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxcl.curvature import empirical_fisher
from jaxcl.data import Dataset, Task, blurry, train_valid_split
from jaxcl.data.widths import resized
from jaxcl.losses import single_head, token_accuracy, token_cross_entropy
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric
from jaxcl.models import DecoderConfig, decoder
from jaxcl.regularizers import ewc
from jaxcl.sequences import IGNORED
from jaxcl.sharding import ShardingPlan, fsdp, make_mesh, num_parts
from jaxcl.training import Options, batches, learn
from jaxcl.training.batches import grouped_order, rows_to_test, take_rows
from jaxcl.tree import as_batch

WIDTHS = np.array([4, 6, 9])
KEY = jax.random.key(0)
MODEL = decoder(DecoderConfig(11, 8, 12, 2, 2, initializer_range=0.3))
OPTIONS = Options(num_steps=12, batch_size=4, report_every=100, eval_batch_size=5)


def sequences(index, count, *, full=False, task=0):
    """A dataset of sequences; all of the largest width if it is ``full``."""
    random = np.random.default_rng(index)
    lengths = random.integers(2, 10, count)
    tokens = random.integers(1, 11, (count, 10))
    groups = np.searchsorted(WIDTHS, lengths)

    def read(numbers):
        width = WIDTHS[-1] if full else WIDTHS[groups[numbers].max()]
        mask = np.arange(width) < lengths[numbers, None]
        x = tokens[numbers, :width] * mask
        y = np.where(mask, tokens[numbers, 1 : width + 1], IGNORED)
        x = {"tokens": x.astype(np.int32), "mask": mask.astype(np.int32)}
        return as_batch(x, y.astype(np.int32), task=task)

    return Dataset(count, read, groups)


def stream(**options):
    return [
        Task(f"task {t}", sequences(t, 30, **options), sequences(9 + t, 13, **options))
        for t in range(2)
    ]


def method(frozen):
    """Every part that keeps or reads sequences."""
    del frozen
    loss = token_cross_entropy(single_head(MODEL.apply))
    return make_method(
        loss,
        optax.sgd(0.05),
        memory=reservoir(12, sample_size=3),
        regularizer=ewc(empirical_fisher(loss), 2.0),
    )


def metrics():
    hits = token_accuracy(single_head(MODEL.apply))
    return RowMetric(lambda params, frozen, batch: {"hits": hits(params, batch)})


def learned(tasks, folder=None, **changes):
    options = OPTIONS._replace(**changes)
    params = MODEL.init(jax.random.key(1))
    run = partial(learn, KEY, method, params, metrics=metrics(), quiet=True)
    return run(tasks, options, folder=folder)


def close(ours, theirs, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, **tolerance)


def test_a_run_on_few_widths_is_that_on_the_largest_one(compilations):
    """Oracle: the same rows, all padded to the largest width; and a count of programs."""
    ours = learned(stream())
    steps = compilations.count("jit(step)")
    assert 2 <= steps <= len(WIDTHS)
    assert compilations.count("jit(total)") <= len(WIDTHS)
    assert compilations.count("jit(end_task)") == 1
    theirs = learned(stream(full=True))
    close(ours.run_state, theirs.run_state, rtol=2e-4, atol=2e-5)
    close(ours.results, theirs.results, atol=1e-6)


def test_a_run_on_few_widths_resumes_and_grows(tmp_path):
    """Oracle: a run in one go, bit for bit. Its second task has no long sequences."""
    first, second = stream()
    short = np.flatnonzero(second.train.groups < 2)
    narrow = second.train._replace(
        count=len(short),
        read=lambda numbers: second.train.read(short[numbers]),
        groups=second.train.groups[short],
    )
    tasks = [first, second._replace(train=narrow)]
    wanted = learned(tasks, tmp_path / "whole")
    learned(tasks[:1], tmp_path / "parts")
    close(learned(tasks, tmp_path / "parts").run_state, wanted.run_state, atol=0)


def test_few_rows_of_token_labels_are_tested_at_once():
    """Oracle: by hand; and the batches of a run, with and without its option."""
    row = stream()[0].test.read(np.arange(1))
    wide = resized(row, 300)
    assert rows_to_test(wide, None, None) == 8192 // 300 == 27
    assert rows_to_test(wide, 99, None) == 99
    assert rows_to_test(row, None, None) == 256
    assert rows_to_test(resized(row, 10_000), None, None) == 1
    classes = wide._replace(y=np.zeros(1, np.int32))
    assert rows_to_test(classes, None, None) == 256
    images = as_batch(np.zeros((1, 200, 200)), np.zeros((1, 200, 200), int))
    assert rows_to_test(images, None, None) == 256
    assert rows_to_test(wide._replace(y=()), None, None) == 256  # without labels
    with_mesh = ShardingPlan(make_mesh(), fsdp())
    assert rows_to_test(wide, None, with_mesh) == 24
    assert rows_to_test(resized(row, 10_000), None, with_mesh) == num_parts(with_mesh)

    read = []

    def counted(rows):
        note = lambda numbers: (read.append(len(numbers)), rows.read(numbers))[1]
        return rows._replace(read=lambda numbers: resized(note(numbers), 2000))

    first = stream()[0]
    first = first._replace(train=counted(first.train), test=counted(first.test))
    for wanted, size in ((None, 4), (6, 6)):
        read.clear()
        learned([first], eval_batch_size=wanted, num_steps=1, end_task_examples=1)
        assert set(read) == {1, OPTIONS.batch_size, size}


def test_the_example_makes_room_for_longer_sequences():
    """A law: a stream whose first rows are short learns longer ones, with an example."""
    first, second = stream()
    short = np.flatnonzero(first.train.groups < 1)
    few = Dataset(
        len(short),
        lambda numbers: first.train.read(short[numbers]),
        first.train.groups[short],
        example=first.train.read(np.array([int(np.argmax(first.train.groups))])),
    )
    tasks = [first._replace(train=few), second]
    kept = learned(tasks).run_state.state.memory.kept
    assert kept.x["tokens"].shape == (12, 9)


@pytest.mark.parametrize("batch_size", [4, 7, 30])
def test_a_pass_has_each_row_once_and_batches_of_one_group(batch_size):
    """Laws: rows of a batch are of one group but for what is left of narrower ones."""
    groups = sequences(0, 30).groups
    order = grouped_order(KEY, groups, num_steps=41, batch_size=batch_size)
    assert order.shape == (41, batch_size)
    counts = np.bincount(order.ravel(), minlength=30)
    assert counts.max() - counts.min() <= 3  # a pass that has begun, one that is cut
    mixed = sum(len(set(groups[batch])) > 1 for batch in order)
    passes = -(-41 * batch_size // 30)
    assert mixed <= 3 * passes
    other = grouped_order(
        jax.random.key(1), groups, num_steps=41, batch_size=batch_size
    )
    assert not np.array_equal(order, other)


def test_rows_of_every_pass_are_all_used_before_the_next_one():
    """Oracle: counting; with one group and full batches it is a permutation a pass."""
    order = grouped_order(KEY, np.zeros(12, int), num_steps=9, batch_size=4)
    for number in range(3):
        rows = order[3 * number : 3 * number + 3].ravel()
        assert sorted(rows) == list(range(12))
    plain = grouped_order(
        KEY, np.zeros(12, int), num_steps=3, batch_size=4, shuffle=False
    )
    np.testing.assert_array_equal(plain.ravel(), np.arange(12))


@pytest.mark.parametrize(("count", "batch_size"), [(30, 4), (30, 7), (31, 30), (9, 9)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_row(count, batch_size, shuffle):
    """Oracle: counting, after each of three epochs; the last batch begins the next."""
    groups = sequences(0, count).groups
    for epoch in (1, 2, 3):
        steps = -(-epoch * count // batch_size)
        order = grouped_order(
            KEY, groups, num_steps=steps, batch_size=batch_size, shuffle=shuffle
        )
        seen = np.bincount(order.ravel(), minlength=count)
        assert seen.min() == epoch, seen


def test_a_stream_in_order_is_learned_in_its_order():
    """Law: a row waits for its batch for as long as the rows of its group take to come,
    where narrow and wide ones alternate; not until all narrow ones were learned."""
    groups = np.arange(40) % 2
    order = grouped_order(KEY, groups, num_steps=10, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(np.sort(order.ravel()), np.arange(40))
    assert np.abs(order - 4 * np.arange(10)[:, None]).max() <= 8
    assert all(len(set(groups[batch])) == 1 for batch in order)


def test_all_processes_read_a_batch_at_one_width(monkeypatch):
    """Oracle: the batch of one process, cut by hand between two."""
    rows = sequences(0, 30)
    numbers = np.argsort(rows.groups, kind="stable")[[0, 1, 2, -2, -1]]
    wanted = take_rows(rows, numbers, size=6)
    monkeypatch.setattr(batches, "place_rows", lambda plan, batch: batch)
    for part in (np.s_[:3], np.s_[3:]):
        monkeypatch.setattr(batches, "own_rows", lambda plan, every, at=part: every[at])
        plan = ShardingPlan(make_mesh(), fsdp())
        ours = take_rows(rows, numbers, size=6, sharding=plan)
        close(ours, jax.tree.map(lambda leaf, at=part: leaf[at], wanted), atol=0)


def test_parts_of_a_dataset_keep_its_groups():
    """Oracle: the widths that are read."""
    first, second = stream()
    for part in train_valid_split(KEY, first.train, valid_fraction=0.3):
        numbers = np.flatnonzero(part.groups == 0)
        assert part.read(numbers).x["tokens"].shape[1] == WIDTHS[0]
    for task in blurry(KEY, [first, second], minor_fraction=0.3):
        numbers = np.flatnonzero(task.train.groups == 1)
        assert task.train.read(numbers).x["tokens"].shape[1] == WIDTHS[1]
        everything = task.train.read(np.arange(task.train.count))
        assert everything.x["tokens"].shape == (task.train.count, WIDTHS[-1])
