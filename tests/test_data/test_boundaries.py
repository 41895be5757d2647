"""Streams whose tasks are blurred, gradual, or not marked."""

import jax
import numpy as np
import optax
import pytest

from jaxcl.data import (
    Task,
    array_dataset,
    blurry,
    gradual,
    number_tasks,
    stack_tasks,
    stream_tasks,
    task_free,
    train_valid_split,
)
from jaxcl.losses import cross_entropy, heads, single_head
from jaxcl.memory import greedy_balanced, reservoir
from jaxcl.method import make_method
from jaxcl.methods import experience_replay
from jaxcl.metrics import classification
from jaxcl.models import mlp
from jaxcl.training import Options, first_example, learn, run_stream, steps_for
from jaxcl.tree import as_batch

MODEL = mlp((3, 8, 2))
LOGITS = single_head(MODEL.apply)
LOSS = cross_entropy(LOGITS)


def rows(task, count, number=None):
    """Rows that carry their task and their place in it."""
    place = np.arange(count)
    x = np.stack([np.full(count, task), place, -place], 1).astype(np.float32)
    return array_dataset(
        as_batch(x, place % 2, task=task if number is None else number)
    )


def make(counts, numbered=("train", "test")):
    number = lambda task, split: task if split in numbered else 0
    return [
        Task(f"t{t}", rows(t, n, number(t, "train")), rows(t, 4, number(t, "test")))
        for t, n in enumerate(counts)
    ]


def read(dataset):
    return dataset.read(np.arange(dataset.count))


def sources(tasks):
    """Of each task, from which one its rows are, in their order."""
    return [read(task.train).x[:, 0].astype(int) for task in tasks]


MIXES = {
    "blurry": lambda key, tasks: blurry(key, tasks, minor_fraction=0.3),
    "gradual": lambda key, tasks: gradual(key, tasks, overlap=0.7),
    "task_free": lambda key, tasks: [task_free(tasks)],
}


@pytest.mark.parametrize("counts", [(40, 40, 40), (12, 50, 31)])
@pytest.mark.parametrize("numbered", [("train", "test"), ("train",), ()])
@pytest.mark.parametrize("kind", MIXES)
def test_every_row_appears_once_with_the_number_of_its_task(
    key, kind, counts, numbered
):
    """Law: the rows of all tasks together are those that were given, each once.

    Tasks without numbers are numbered by their place, and test rows like those of
    training, also in a stream of the compiled loop.
    """
    tasks = make(counts, numbered)
    mixed = MIXES[kind](key, tasks)
    found = [read(task.train) for task in mixed]
    x = np.concatenate([batch.x for batch in found])
    want = np.concatenate([read(task.train).x for task in make(counts)])
    order = lambda x: x[np.lexsort((x[:, 1], x[:, 0]))]
    np.testing.assert_array_equal(order(x), order(want))
    assert sum(task.train.count for task in mixed) == sum(counts)
    numbers = np.concatenate([batch.task for batch in found])
    np.testing.assert_array_equal(numbers, x[:, 0])
    stream = stack_tasks(mixed, num_classes=2)
    for task in [*mixed, *stream_tasks(stream)]:
        test = read(task.test)
        np.testing.assert_array_equal(test.task, test.x[:, 0])


def test_a_blurry_task_has_its_fraction_of_the_rows_of_each_other(key):
    """Oracle: the counts by hand: 40 - 12 own ones and 6 of each of two others.

    Another key mixes other rows; a fraction of 0 none.
    """
    mixed = blurry(key, make((40, 40, 40)), minor_fraction=0.3)
    counts = [np.bincount(found, minlength=3).tolist() for found in sources(mixed)]
    assert counts == [[28, 6, 6], [6, 28, 6], [6, 6, 28]]
    other = blurry(jax.random.key(5), make((40, 40, 40)), minor_fraction=0.3)
    assert not np.array_equal(read(other[0].train).x, read(mixed[0].train).x)
    mostly = blurry(key, make((40, 40)), minor_fraction=0.9)  # learn reads the middle
    assert [found[20] for found in sources(mostly)] == [0, 1]
    separate = blurry(key, make((12, 50)), minor_fraction=0)
    assert [set(found) for found in sources(separate)] == [{0}, {1}]


@pytest.mark.parametrize("overlap", [0.25, 1.0])
def test_the_next_task_appears_linearly_more_often_around_a_boundary(key, overlap):
    """Oracle: the integral of the linear probability, s^2 / 2w after s rows of w.

    Rows of a task are drawn evenly in time, so that a count differs from its expectation
    by less than three. Outside of the window there is no mixing.
    """
    counts = (400, 400, 800)
    found = np.concatenate(sources(gradual(key, make(counts), overlap=overlap)))
    for boundary, task, width in ((400, 1, overlap * 400), (800, 2, overlap * 400)):
        start, end = int(boundary - width / 2), int(boundary + width / 2)
        later = np.cumsum(found[start:end] >= task)
        steps = np.arange(1, end - start + 1)
        assert np.abs(later - steps**2 / (2 * width)).max() < 3
        assert (found[: start - 2] < task).all()
        assert (found[end + 2 :] >= task).all()


def test_without_overlap_gradual_tasks_are_separate_and_not_shuffled(key):
    """Oracle: the tasks as they were, in a random order of rows, kept in time."""
    tasks = gradual(key, make((30, 20)), overlap=0)
    assert [set(found) for found in sources(tasks)] == [{0}, {1}]
    assert not any(task.shuffle for task in tasks)
    assert read(tasks[0].train).x[:, 1].tolist() != list(range(30))


def test_the_one_task_of_a_task_free_stream_is_all_tasks_in_order():
    """Oracle: concatenation; a task's own order is kept."""
    tasks = make((5, 3))
    one = task_free(tasks, name="all")
    for split in ("train", "test"):
        parts = [read(getattr(task, split)) for task in tasks]
        want = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        jax.tree.map(np.testing.assert_array_equal, read(getattr(one, split)), want)
    numbers = np.array([6, 0, 7, 6])
    found = one.train.read(numbers).x[:, :2].tolist()
    assert found == [[1, 1], [0, 0], [1, 2], [1, 1]]
    assert (one.name, one.num_epochs, one.shuffle) == ("all", 1, False)


def watched(dataset, log):
    """A dataset that notes the rows of each batch of four."""

    def read(numbers):
        if len(numbers) == 4:
            log.extend(numbers.tolist())
        return dataset.read(numbers)

    return dataset._replace(read=read)


@pytest.mark.parametrize(
    "memory", [reservoir(8, 4), greedy_balanced(8, 4, num_classes=2)]
)
def test_both_loops_learn_a_gradual_stream_in_the_order_of_time(key, memory):
    """Oracle: the rows that the host loop reads, 0, 1, 2, ...; the compiled loop ends
    equal. Negative controls: shuffled tasks end elsewhere, in both loops."""
    tasks = gradual(key, make((24, 24)), overlap=0.5)
    sizes = {"num_steps": steps_for(24, batch_size=4), "batch_size": 4}

    def build(frozen):
        del frozen
        return make_method(LOSS, optax.sgd(0.01), memory=memory)

    def host(tasks):
        start = MODEL.init(jax.random.key(1))
        return learn(key, build, start, tasks, Options(**sizes), folder=None).params

    def compiled(stream):
        method = build(())
        state = method.init(MODEL.init(jax.random.key(1)), first_example(stream))
        return run_stream(key, method, stream, state, **sizes)[0].params

    log = []
    seen = [task._replace(train=watched(task.train, log)) for task in tasks]
    found = host(seen)
    assert log == [*range(24)] * 2
    stream = stack_tasks(tasks, num_classes=2)
    assert not stream.shuffle
    assert not stream_tasks(stream)[0].shuffle
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, compiled(stream))
    shuffled = [task._replace(shuffle=True) for task in tasks]
    jax.tree.map(close, host(shuffled), compiled(stream._replace(shuffle=True)))
    with pytest.raises(AssertionError):
        jax.tree.map(close, found, host(shuffled))


def test_a_task_free_run_is_measured_on_the_tasks_and_resumes_in_order_only(
    key, tmp_path
):
    """Oracle: the columns of the results; the message for the shuffled stream."""
    tasks = make((24, 24))
    one = task_free(gradual(key, tasks, overlap=0.5))

    def build(frozen):
        del frozen
        return experience_replay(LOSS, optax.sgd(0.01), capacity=8, sample_size=4)

    def run(one):
        given = {"evaluation": {task.name: task.test for task in tasks}}
        start, options = MODEL.init(key), Options(num_steps=None, batch_size=4)
        metrics = classification(LOGITS)
        return learn(
            key, build, start, [one], options, folder=tmp_path, metrics=metrics, **given
        )

    found = run(one)
    assert found.results["accuracy"]["params"].shape == (2, 3)
    assert found.run_state.state.progress.task == 1  # one end of a task
    with pytest.raises(ValueError, match="task 0 has shuffle False, got None"):
        run(one._replace(shuffle=True))


def test_a_task_free_run_scores_numbered_tasks_on_their_own_heads(key):
    """Oracle: two tasks of opposite labels, both learned. Negative control: the tasks as
    they were given, without numbers, of which the second is scored on the first's head."""
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    plain = lambda labels: array_dataset(as_batch(x, labels))
    given = [Task(name, plain(v), plain(v)) for name, v in (("a", y), ("b", 1 - y))]
    tasks = number_tasks(given)
    one = task_free(gradual(key, tasks, overlap=0.5))._replace(num_epochs=20)
    model = mlp((3, 16, 4))
    outputs = heads(model.apply, 2)
    found = learn(
        key,
        lambda frozen: make_method(cross_entropy(outputs), optax.adam(0.02)),
        model.init(key),
        [one],
        Options(None, 4),
        folder=None,
        metrics=classification(outputs),
        evaluation={task.name: task.test for task in tasks}
        | {f"{task.name}, bare": task.test for task in given},
    )
    own_a, own_b, bare_a, bare_b = found.results["accuracy"]["params"][-1, 1:]
    assert min(own_a, own_b, bare_a) > 0.9
    assert bare_b < 0.1


def test_validation_rows_are_numbered_and_a_mix_of_orders_is_refused(key):
    """Oracle: by hand."""
    tasks = make((20, 20), numbered=())
    for place, task in enumerate(tasks):
        train, valid = train_valid_split(key, task.train, valid_fraction=0.5)
        tasks[place] = task._replace(train=train, valid=valid)
    mixed = blurry(key, tasks, minor_fraction=0.1)
    assert [set(read(task.valid).task) for task in mixed] == [{0}, {1}]
    half = [mixed[0], mixed[1]._replace(shuffle=False)]
    with pytest.raises(ValueError, match="must all be shuffled, or none, got both"):
        stack_tasks(half, num_classes=2)
