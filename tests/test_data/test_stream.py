"""Building, cutting, stacking and checking streams."""

import jax
import numpy as np
import optax
import pytest

from jaxcl.data import (
    array_dataset,
    as_images,
    class_pairs,
    digits,
    from_arrays,
    permuted,
    permuted_labels,
    prototypes,
    stack_plans,
    stack_tasks,
    stream_tasks,
    synthetic_images,
    take_tasks,
    validate,
)
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.training import first_example, run_stream
from jaxcl.tree import as_batch, at, num_tasks
from jaxcl.typing import Batch


def arrays(tasks=3, rows=4, classes=5):
    """A batch [T, n, ...] of numpy arrays."""
    rng = np.random.default_rng(tasks * rows)
    return Batch(
        x=rng.standard_normal((tasks, rows, 2)).astype(np.float32),
        y=rng.integers(0, classes, (tasks, rows)).astype(np.int32),
        weight=np.ones((tasks, rows), np.float32),
        task=np.repeat(np.arange(tasks, dtype=np.int32)[:, None], rows, 1),
    )


def made(**changes):
    """A good stream with some training leaves replaced."""
    train = arrays()._replace(**changes)
    return from_arrays(train, arrays(rows=2), num_classes=5, name="made")


def test_stacked_tasks_come_back_one_by_one():
    """Oracle: indexing the arrays that were given."""
    train, test = arrays(), arrays(rows=2)
    stream = from_arrays(train, test, num_classes=5)
    for task in range(3):
        plan = at(task, stream.plan)
        for make, given in ((stream.train, train), (stream.test, test)):
            found = make(stream.pool, plan)
            jax.tree.map(np.testing.assert_array_equal, found, at(task, given))
    assert num_tasks(stream.plan) == 3
    assert (stream.num_classes, stream.name) == (5, "arrays")


def test_a_pair_of_arrays_is_a_batch_of_real_rows():
    """Oracle: the batch of the same arrays; lists are arrays."""
    train, test = arrays(), arrays(rows=2)
    want = from_arrays(train, test, num_classes=5)
    for form in (lambda leaf: leaf, np.ndarray.tolist, list):
        pairs = [(form(part.x), form(part.y)) for part in (train, test)]
        stream = from_arrays(*pairs, num_classes=5)
        jax.tree.map(np.testing.assert_array_equal, stream.pool, want.pool)


def test_tasks_that_say_no_number_are_numbered_in_both_splits():
    """Oracle: the place in the stack; numbers that were given stay (control)."""
    unsaid = [part._replace(task=0 * part.task) for part in (arrays(), arrays(rows=2))]
    stream = from_arrays(*unsaid, num_classes=5)
    for task in range(3):
        plan = at(task, stream.plan)
        assert stream.train(stream.pool, plan).task.tolist() == [task] * 4
        assert stream.test(stream.pool, plan).task.tolist() == [task] * 2
    said = [part._replace(task=part.task[::-1]) for part in (arrays(), arrays(rows=2))]
    for test in (said[1], unsaid[1]):  # a test set without numbers has the task's
        pool = from_arrays(said[0], test, num_classes=5).pool
        assert pool.train.task[:, 0].tolist() == [2, 1, 0]
        assert pool.test.task[:, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("numbers", "shared"),
    [((0, 0, 2), "0, 1"), ((0, 1, 0), "0, 2"), ((3, 0, 0), "1, 2")],
)
def test_tasks_that_share_number_0_by_omission_are_refused(numbers, shared):
    """Oracle: the places of the zeros; one zero alone is a number (control)."""
    train, test = arrays(), arrays(rows=2)
    given = np.repeat(np.array(numbers, np.int32)[:, None], 4, 1)
    refused = rf"from_arrays: tasks {shared} all have number 0, .*task="
    with pytest.raises(ValueError, match=refused):
        from_arrays(train._replace(task=given), test, num_classes=5)
    pairs = [(at(t, train)._replace(task=given[t]), at(t, test)) for t in range(3)]
    with pytest.raises(ValueError, match=refused):
        stack_tasks(pairs, num_classes=5)
    alone = from_arrays(
        train._replace(task=given + (given == 0) * [[0], [4], [5]]), test, num_classes=5
    )
    assert len(set(alone.pool.train.task[:, 0].tolist())) == 3


def test_a_task_that_returns_keeps_number_0():
    """Oracle: the stream's own tasks, taken twice."""
    stream = take_tasks(made(), [0, 1, 0])
    again = stack_tasks(stream_tasks(stream), num_classes=5)
    assert again.pool.train.task[:, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("channels", [(), (3,)])
def test_images_stay_bytes_in_memory_and_rows_are_floats(key, channels):
    """Oracle: bit for bit the rows of a stream of an image set of the same pixels.

    Control: bytes in other shapes and integers of other types are not pixels.
    """
    x = np.random.default_rng(0).integers(0, 256, (12, 5, 4, *channels), dtype=np.uint8)
    y = np.arange(12) % 2
    want = permuted_labels(key, as_images(x, y, x, y), num_tasks=2, flat=False)
    want = np.asarray(want.train(want.pool, at(0, want.plan)).x).reshape(x.shape)
    stream = from_arrays((x[None], y[None]), (x[None], y[None]), num_classes=2)
    assert stream.pool.train.x.dtype == np.uint8
    rows = array_dataset(as_batch(x, y))
    for found in (
        stream.train(stream.pool, at(0, stream.plan)).x,
        rows.read(np.arange(12)).x,
        stream_tasks(stream)[0].test.read(np.arange(12)).x,
    ):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, want)
    for other in (x.reshape(12, -1), x.astype(np.int32)):
        kept = array_dataset(as_batch(other, y)).read(np.arange(12)).x
        np.testing.assert_array_equal(kept, other)
        assert kept.dtype == other.dtype


@pytest.mark.parametrize(
    ("tasks", "kept"),
    [(slice(1, None), [1, 2]), ([2, 0], [2, 0]), (np.array([-1]), [2])],
)
def test_taken_tasks_keep_their_numbers(tasks, kept):
    """Oracle: indexing by hand; the pool is the same object."""
    stream = made()
    part = take_tasks(stream, tasks)
    assert part.plan.tolist() == kept
    assert part.pool is stream.pool
    assert part.train(part.pool, at(0, part.plan)).task.tolist() == [kept[0]] * 4


def test_tasks_are_taken_from_all_seeds_at_once(key):
    """Oracle: stacking after taking is taking after stacking."""
    images = digits()
    streams = [
        permuted(jax.random.fold_in(key, seed), images, num_tasks=4, num_examples=9)
        for seed in range(2)
    ]
    late = take_tasks(stack_plans(streams), slice(1, 3), axis=1)
    early = stack_plans([take_tasks(stream, slice(1, 3)) for stream in streams])
    for a, b in zip(*map(jax.tree.leaves, (late.plan, early.plan)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert late.plan.rows.shape == (2, 2, 9)


def test_stacked_plans_are_the_plans_and_share_the_first_pool(key):
    """Oracle: indexing."""
    images = digits()
    streams = [
        permuted(jax.random.fold_in(key, seed), images, num_tasks=2)
        for seed in range(3)
    ]
    both = stack_plans(streams)
    assert both.pool is streams[0].pool
    for seed, stream in enumerate(streams):
        np.testing.assert_array_equal(both.plan.order[seed], stream.plan.order)


def test_good_streams_pass(key):
    """Oracle: the streams of this package are good, and come back as they are."""
    images = synthetic_images(key, num_train=60, num_test=40, size=4)
    for stream in (made(), class_pairs(images), prototypes(key, num_tasks=2)):
        assert validate(stream) is stream


Y, WEIGHT = arrays().y, arrays().weight


def test_padding_may_carry_any_label():
    """Oracle: weight 0 counts nowhere; with weight 1 the same label is refused."""
    y = Y.copy()
    y[1, 3] = 99
    weight = WEIGHT.copy()
    weight[1, 3] = 0
    validate(made(y=y, weight=weight))
    with pytest.raises(ValueError, match=r"task 1 must lie in"):
        validate(made(y=y))


def test_token_labels_may_be_ignored_but_not_too_large():
    """Oracle: -100 marks positions to skip in [rows, tokens]; 7 of 5 classes is wrong."""
    tokens = np.tile(Y[..., None], (1, 1, 3))
    tokens[0, 0, 0] = -100
    validate(made(y=tokens))
    tokens[2, 1] = [0, 7, -100]
    with pytest.raises(ValueError, match=r"task 2 must lie in \[0, 5\), got 0 to 7"):
        validate(made(y=tokens))


def test_labels_must_be_class_numbers_and_inputs_real():
    """Oracle: the same labels as numbers pass; so do targets, of one output or of many."""
    hot = np.eye(5)[Y]
    for wrong, words in (
        (
            {"y": Y.astype(np.float32)},
            "labels of 5 classes must be integers, got float32",
        ),
        ({"y": hot.astype(np.float32)}, "be class numbers, got one-hot rows; take"),
        ({"y": hot.astype(int)}, "be class numbers, got one-hot rows; take"),
        ({"x": arrays().x + 1j}, "train inputs must be real, got complex64"),
    ):
        with pytest.raises(ValueError, match=words):
            validate(made(**wrong))
    validate(made(y=(2 * hot).astype(np.float32)))
    targets = arrays()._replace(y=Y.astype(np.float32))
    validate(from_arrays(targets, targets, num_classes=1))


def test_tasks_that_name_no_number_are_numbered():
    """Oracle: counting; numbers that were given stay."""
    stacked = lambda tasks: jax.tree.map(
        lambda *leaves: np.stack(leaves),
        *(as_batch(np.ones((4, 2)), np.zeros(4, int), task=task) for task in tasks),
    )
    for given, wanted in (((0, 0, 0), [0, 1, 2]), ((2, 0, 1), [2, 0, 1])):
        made = from_arrays(stacked(given), stacked(given), num_classes=2)
        for index, number in enumerate(wanted):
            rows = made.train(made.pool, made.plan[index])
            np.testing.assert_array_equal(rows.task, number)


def rows_of(task, count, *, weight=None, classes=3):
    """A batch of its own task, inputs drawn from the number of the task and of rows."""
    rng = np.random.default_rng([task, count])
    x = rng.standard_normal((count, 2)).astype(np.float32)
    return as_batch(x, rng.integers(0, classes, count), weight=weight, task=task)


def test_tasks_of_unequal_lengths_are_filled_up_with_a_real_row():
    """Oracle: the batches themselves; padding is the first row whose weight is not 0."""
    weights = [None, [0, 2, 1], None]
    trains = [rows_of(t, n, weight=weights[t]) for t, n in enumerate((2, 3, 5))]
    tests = [rows_of(t, n) for t, n in enumerate((4, 1, 2))]
    pairs = list(zip(trains, tests, strict=True))
    stream = validate(stack_tasks(pairs, num_classes=3, name="uneven"))
    assert (stream.num_classes, stream.name) == (3, "uneven")
    for split, given, size in (("train", trains, 5), ("test", tests, 4)):
        make = getattr(stream, split)
        for task, batch in enumerate(given):
            found, count = make(stream.pool, stream.plan[task]), len(batch.weight)
            first = 1 if batch is trains[1] else 0
            for new, old in zip(found[:4], batch[:4], strict=True):
                assert len(new) == size
                np.testing.assert_array_equal(new[:count], old)
            assert not np.any(found.weight[count:])
            for new, old in zip(found[:2], batch[:2], strict=True):
                np.testing.assert_array_equal(
                    new[count:], np.stack([old[first]] * size)[count:]
                )
            assert found.task.tolist() == [task] * size


def test_stacked_tasks_come_apart_again():
    """Law: stream_tasks gives back the real rows, and the tasks are numbered."""
    pairs = [(rows_of(0, n), rows_of(0, n + 1)) for n in (3, 2)]
    for number, task in enumerate(stream_tasks(stack_tasks(pairs, num_classes=3))):
        for rows, batch in zip((task.train, task.test), pairs[number], strict=True):
            assert rows.count == len(batch.weight)
            found = rows.read(np.arange(rows.count))
            np.testing.assert_array_equal(found.x, batch.x)
            np.testing.assert_array_equal(found.y, batch.y)
            assert found.task.tolist() == [number] * rows.count


def test_tasks_of_the_host_loop_are_stacked():
    """Oracle: the stream that they come from."""
    pairs = [(rows_of(t, n), rows_of(t, n + 1)) for t, n in enumerate((3, 2))]
    stream = stack_tasks(pairs, num_classes=3)
    again = stack_tasks(stream_tasks(stream), num_classes=3)
    jax.tree.map(np.testing.assert_array_equal, again.pool, stream.pool)


def test_a_short_task_is_learned_as_if_it_were_alone(key):
    """Law: the bits of a stream of that task alone; another row is the control."""
    short, other, long = rows_of(0, 6), rows_of(0, 7), rows_of(1, 11)
    model = mlp((2, 4, 3))

    @jax.jit
    def learn(key, pool, plan):
        given = stream._replace(pool=pool, plan=plan)
        loss = cross_entropy(single_head(model.apply))
        method = make_method(loss, optax.sgd(0.1))
        state = method.init(model.init(key), first_example(given))
        return run_stream(key, method, given, state, num_steps=9, batch_size=4)

    ends = []
    for pairs in ([short, long], [short], [other]):
        stream = stack_tasks([(train, short) for train in pairs], num_classes=3)
        first = take_tasks(stream, [0])
        ends.append(learn(key, first.pool, first.plan)[0].params)
    jax.tree.map(np.testing.assert_array_equal, ends[0], ends[1])
    same = jax.tree.map(np.array_equal, ends[1], ends[2])
    assert not all(jax.tree.leaves(same))
