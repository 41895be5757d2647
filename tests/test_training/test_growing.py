"""Streams of the host loop: uneven, ended early, growing, begun where others ended."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.averages import ema
from jaxcl.curvature import empirical_fisher
from jaxcl.data import Dataset, Task, array_dataset, number_tasks, stack_tasks
from jaxcl.losses import cross_entropy, single_head
from jaxcl.memory import episodic, reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric, TaskMetric, classification
from jaxcl.models import mlp
from jaxcl.regularizers import ewc
from jaxcl.training import (
    EarlyStopping,
    Options,
    first_example,
    learn,
    restore,
    run_stream,
)
from jaxcl.tree import as_batch
from jaxcl.typing import Regularizer

MODEL = mlp((5, 8, 3))
LOGITS = single_head(MODEL.apply)
LOSS = cross_entropy(LOGITS)
METRIC = classification(LOGITS)
OPTIONS = Options(num_steps=6, batch_size=8, eval_batch_size=16, save_every=1e9)
KEY = jax.random.key(3)


def rows(seed, count, task):
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 5)).astype(np.float32)
    y = np.argmax(x @ random.standard_normal((5, 3)), axis=1)
    return as_batch(x, y, task=task)


def task(number, count=24, **others):
    name, test = f"task {number}", array_dataset(rows(number, 40, number))
    return Task(name, array_dataset(rows(number, count, number)), test, **others)


def build(frozen):
    del frozen
    return make_method(
        LOSS,
        optax.adam(0.05),
        regularizer=ewc(empirical_fisher(LOSS), 5.0),
        memory=reservoir(10, 4),
        average=ema(0.8),
    )


def run(tasks, folder=None, *, options=OPTIONS, build=build, metrics=METRIC, **others):
    start = MODEL.init(jax.random.key(0))
    return learn(
        KEY, build, start, tasks, options, folder=folder, metrics=metrics, **others
    )


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


TASKS = [task(0), task(1), task(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(TASKS, folder), folder


# ------------------------------------------------------------------------- what is measured


def test_results_hold_every_metric_of_every_learner_from_the_start_on(whole):
    """Oracle: each learner evaluated by hand, at the start and at the end."""
    result, _ = whole
    assert set(result.results) == {"accuracy", "loss"}
    assert list(result.results["loss"]) == ["average", "params"] == [*result.learners]
    ends = result.learners | {"start": MODEL.init(jax.random.key(0))}
    for row, name, params in ((3, "params", "params"), (3, "average", "average")):
        for column in range(3):
            batch = TASKS[column].test.read(np.arange(40))
            want = METRIC.rows(ends[params], (), batch)["loss"].mean()
            found = result.results["loss"][name][row, column]
            np.testing.assert_allclose(found, want, rtol=1e-5)
    batch = TASKS[1].test.read(np.arange(40))
    want = METRIC.rows(ends["start"], (), batch)["accuracy"].mean()
    np.testing.assert_allclose(result.results["accuracy"]["params"][0, 1], want)
    assert result.params is result.learners["average"]


def test_sets_for_evaluation_only_are_further_columns(whole):
    """Oracle: the same rows as the test set of a task; which columns are NaN."""
    options = OPTIONS._replace(eval_tasks="seen", eval_every_tasks=2, eval_start=False)
    extra = {"general": TASKS[0].test, "other": TASKS[2].test}
    result = run(TASKS, options=options, evaluation=extra)
    found = result.results["loss"]["params"]
    assert found.shape == (4, 5)
    assert np.isnan(found).tolist() == [
        [True] * 5,
        [True] * 5,
        [False, False, True, False, False],
        [False] * 5,
    ]
    np.testing.assert_array_equal(found[2:, 3], found[2:, 0])
    want = whole[0].results["loss"]["params"]
    np.testing.assert_array_equal(found[3, :3], want[3])


def test_what_is_asked_of_a_finished_run_is_measured_at_its_end(whole, tmp_path):
    """Oracle: a run that was asked from the start, whose last row is the same; the rows
    before are NaN, and nothing is learned."""
    run(TASKS, tmp_path, metrics=())
    for extra in ({}, {"general": TASKS[0].test}):
        late = run(TASKS, tmp_path, evaluation=extra)
        same(late.run_state.state.params, whole[0].run_state.state.params)
        found, want = (
            late.results["loss"]["average"],
            whole[0].results["loss"]["average"],
        )
        np.testing.assert_array_equal(found[3, :3], want[3])
        np.testing.assert_array_equal(found[3, 3:], want[3, :1] if extra else [])
        assert np.isnan(found[:3]).all()
    with pytest.warns(UserWarning, match="had finished"):
        run(TASKS, tmp_path, evaluation=extra)


def test_a_large_test_set_is_looked_at_through_the_same_random_rows_every_time():
    """Oracle: the numbers that were read; the first ones would be 0, 1, 2, ..."""
    read = []

    def watched(numbers):
        if len(numbers) == 10:
            read.append(numbers.tolist())
        return TASKS[0].test.read(numbers)

    given = [TASKS[0]._replace(test=Dataset(40, watched))]
    options = OPTIONS._replace(eval_examples=10, eval_batch_size=10)
    run(given, options=options)
    assert len(read) == 2
    assert read[0] == read[1]
    assert len(set(read[0])) == 10
    assert sorted(read[0]) != list(range(10))


def test_uneven_tasks_are_learned_alike_by_both_loops():
    """Oracle: the device loop on the stacked tasks; one has fewer rows than a batch, one
    more. Negative control: batches of which padding is a part."""
    tasks = [task(0, 5), task(1, 19)]
    stream = stack_tasks(tasks, num_classes=3)
    result = run(tasks, metrics=())

    def ends(batch_size):
        method = build(())
        state = method.init(MODEL.init(jax.random.key(0)), first_example(stream))
        sizes = {"num_steps": OPTIONS.num_steps, "batch_size": batch_size}
        return run_stream(KEY, method, stream, state, **sizes)[0]

    want = ends(OPTIONS.batch_size)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, result.run_state.state, want)
    with pytest.raises(AssertionError):
        jax.tree.map(close, result.run_state.state.params, ends(4).params)


def test_a_metric_of_a_whole_set_is_computed_on_the_host(whole):
    """Oracle: NumPy on the test rows; names must differ from those of others."""

    def largest(key, params, frozen, rows):
        del key, frozen
        batch = rows.read(np.arange(rows.count))
        return {"largest": np.asarray(LOGITS(params, batch)).max()}

    metric = TaskMetric(("largest",), largest)
    result = run(TASKS, metrics=[METRIC, metric])
    batch = TASKS[1].test.read(np.arange(40))
    want = np.asarray(LOGITS(result.learners["params"], batch)).max()
    np.testing.assert_allclose(result.results["largest"]["params"][3, 1], want)
    found, wanted = (r.results["loss"]["average"] for r in (result, whole[0]))
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="different names, got 'loss' twice"):
        run(TASKS, metrics=[METRIC, TaskMetric(("loss",), largest)])


def test_every_line_of_metrics_is_told_to_a_callback(tmp_path):
    """Oracle: the file; without a folder the lines are the same but for the time."""
    heard, alone = [], []
    run(TASKS, tmp_path, on_report=heard.append)
    run(TASKS, on_report=alone.append)
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in text]
    assert [line["at"] for line in heard] == [line["at"] for line in written]
    assert [line.get("loss") for line in heard] == [
        line.get("loss") for line in written
    ]
    assert [line.get("loss") for line in alone] == [line.get("loss") for line in heard]
    assert {"penalty", "grad_norm"} <= set(heard[1])


# --------------------------------------------------------------------------- uneven tasks


def test_tasks_have_steps_or_epochs_of_their_own_and_may_be_smaller_than_a_batch():
    """Oracle: counting reports, and one compilation of the step for all; a task of five
    rows is learned by whole-batch descent, by hand."""
    traces, lines = [], []

    def counting(frozen):
        del frozen
        method = make_method(LOSS, optax.sgd(0.1))

        def step(key, state, batch):
            traces.append(1)
            return method.step(key, state, batch)

        return method._replace(step=step)

    tasks = [
        task(0, num_steps=3),
        task(1, num_epochs=2),  # 24 rows, batches of 8
        task(2, count=5, num_epochs=4),
    ]
    options = OPTIONS._replace(num_steps=None, report_every=1)
    result = run(tasks, options=options, build=counting, on_report=lines.append)
    steps = [(line["task"], line["step"]) for line in lines if "loss" in line]
    assert [sum(t == k for t, _ in steps) for k in range(3)] == [3, 6, 4]
    assert len(traces) == 1
    assert result.run_state.task == 3
    before = run(tasks[:2], options=options, build=counting).learners["params"]
    data = tasks[2].train.read(np.arange(5))
    for _ in range(4):
        mean = lambda p: jnp.mean(LOSS(p, data, jax.random.split(KEY, 5)))
        grads = jax.grad(mean)(before)
        before = jax.tree.map(lambda p, g: p - 0.1 * g, before, grads)
    for ours, want in zip(
        jax.tree.leaves(result.learners["params"]), jax.tree.leaves(before), strict=True
    ):
        np.testing.assert_allclose(ours, want, atol=1e-5)
    with pytest.raises(ValueError, match="'task 0' has no number of steps; give it"):
        run([task(0)], options=options)


@pytest.mark.parametrize("lower", [True, False])
def test_a_task_ends_early_and_goes_back_to_where_validation_was_best(lower, tmp_path):
    """Oracle: the curve of the validation metric, made to turn at step 4: it ends two
    looks later, with the parameters of the run that is stopped there by its length."""
    sign = 1.0 if lower else -1.0
    move = optax.GradientTransformation(  # one to the right at every step
        lambda params: (), lambda grads, state, params: (jnp.ones_like(grads), state)
    )
    build = lambda frozen: make_method(
        lambda params, batch, keys: params + 0 * batch.x[:, 0], move
    )
    far = RowMetric(
        lambda params, frozen, batch: {
            "far": sign * (params - 4.0) ** 2 + 0 * batch.x[:, 0]
        }
    )
    valid = array_dataset(rows(9, 6, 0))
    tasks = [task(0, valid=valid, num_steps=20), task(1, valid=valid, num_steps=3)]
    stopping = EarlyStopping("far", patience=2, lower_is_better=lower)
    options = OPTIONS._replace(eval_every=1, early_stopping=stopping, report_every=1)
    lines = []
    result = learn(
        KEY,
        build,
        jnp.zeros(()),
        tasks,
        options,
        folder=tmp_path,
        metrics=far,
        on_report=lines.append,
    )
    steps = [(line["task"], line["step"]) for line in lines if "loss" in line]
    assert steps == [(0, k) for k in range(1, 7)] + [(1, 1), (1, 2), (1, 3)]
    assert float(result.params) == 5.0  # 4, and the first look of task 1 was its best
    np.testing.assert_allclose(result.results["far"]["params"][1], 0.0)
    with pytest.raises(
        ValueError, match="needs validation rows, task 'task 2' has none"
    ):
        run([task(2)], options=options)
    with pytest.raises(ValueError, match="early_stopping watches 'far', got metrics"):
        run([tasks[0]], options=options)


# ------------------------------------------------------------------------ streams that grow


def test_a_stream_grows_in_its_folder_and_ends_like_the_whole(whole, tmp_path):
    """Law: two tasks, then three in the same folder, are three at once, bit for bit; what
    was measured of the first two stays. Negative control: other tasks are refused."""
    first = run(TASKS[:2], tmp_path)
    assert first.results["loss"]["params"].shape == (3, 2)
    grown = run(TASKS, tmp_path)
    same(grown.run_state, whole[0].run_state)
    for metric in ("accuracy", "loss"):
        found, want = (r.results[metric]["params"] for r in (grown, whole[0]))
        np.testing.assert_array_equal(found[:, :2], want[:, :2])
        np.testing.assert_array_equal(
            found[2:], want[2:]
        )  # also the new task before it
        assert np.isnan(found[:2, 2]).all()
    assert int(grown.run_state.state.regularizer.tasks_seen) == 3
    with pytest.raises(ValueError, match="holds a run of 3 tasks, got 2"):
        run(TASKS[:2], tmp_path)
    other = [TASKS[0], task(7), TASKS[2]]
    with pytest.raises(ValueError, match="task 1 has name 'task 1', got 'task 7'"):
        run(other, tmp_path)
    changed = TASKS[1]._replace(train=array_dataset(rows(8, 24, 1)))
    with pytest.raises(ValueError, match=r"task 1 has rows '.*', got '"):
        run([TASKS[0], changed, TASKS[2]], tmp_path)


def test_a_run_begins_where_another_one_ended(whole, tmp_path):
    """Oracle: the state of the checkpoint, which begins the new run: Fisher, memory and
    average. Nothing is written where there is no folder."""
    _, folder = whole
    two = run(TASKS[:2], tmp_path / "two")
    options = OPTIONS._replace(num_steps=1)
    lines = []
    going = run(
        [TASKS[2]], options=options, start=tmp_path / "two", on_report=lines.append
    )
    held = two.run_state.state
    found = going.run_state.state
    assert int(found.regularizer.tasks_seen) == 3
    assert int(found.memory.seen) == int(held.memory.seen) + 8
    assert int(found.progress.task) == 3
    start = two.results["loss"]["average"][2]
    test = run([TASKS[1]], options=options, start=tmp_path / "two")
    np.testing.assert_allclose(test.results["loss"]["average"][0, 0], start[1])
    kept = sorted(int(p.stem) for p in (folder / "checkpoints").glob("*.json"))
    earlier = run(
        [TASKS[2]], options=options, start=folder / "checkpoints" / str(kept[0])
    )
    assert int(earlier.run_state.state.regularizer.tasks_seen) == 2


def test_a_part_of_another_structure_is_refused_by_its_path_or_begins_anew(tmp_path):
    """Oracle: the message; the other parts go on, the fresh one has seen nothing."""
    run(TASKS[:2], tmp_path)
    options = OPTIONS._replace(num_steps=1)

    def larger(frozen):
        del frozen
        return make_method(
            LOSS,
            optax.adam(0.05),
            regularizer=ewc(empirical_fisher(LOSS), 5.0),
            memory=reservoir(20, 4),
            average=ema(0.8),
        )

    words = (
        r"memory\.kept\.x float32\[10,5\], the method float32\[20,5\]; .*fresh=\('me"
    )
    with pytest.raises(ValueError, match=words):
        run([TASKS[2]], options=options, build=larger, start=tmp_path)
    found = run(
        [TASKS[2]], options=options, build=larger, start=tmp_path, fresh=("memory",)
    ).run_state.state
    assert int(found.memory.seen) == 8
    assert int(found.regularizer.tasks_seen) == 3
    with pytest.raises(ValueError, match=r"fresh must name parts .* got \('Fisher',\)"):
        run([TASKS[2]], options=options, start=tmp_path, fresh=("Fisher",))
    (tmp_path / "a.json").write_text("{}")
    for name in ("nowhere", "a.b"):  # its note would be a.b.json
        with pytest.raises(ValueError, match="start must be the folder of a run"):
            run([TASKS[2]], options=options, start=tmp_path / name)


def test_a_state_with_a_row_for_each_task_needs_room_from_the_start(tmp_path):
    """Oracle: the message; with room for three tasks two may come first."""

    def slots(count):
        return lambda frozen: make_method(
            LOSS, optax.sgd(0.1), memory=episodic(count, 4, 4)
        )

    run(TASKS[:2], tmp_path / "small", build=slots(2))
    with pytest.raises(ValueError, match=r"memory\.kept\.x: on disk float32\[2,4,5\]"):
        run(TASKS, tmp_path / "small", build=slots(3))
    run(TASKS[:2], tmp_path / "room", build=slots(3))
    grown = run(TASKS, tmp_path / "room", build=slots(3))
    assert int(grown.run_state.state.memory.tasks_seen) == 3
    bounded = OPTIONS._replace(max_tasks=2)
    run(TASKS[:2], tmp_path / "bounded", build=slots(2), options=bounded)
    with pytest.raises(
        ValueError, match=r"room for 2 tasks \(max_tasks\), got 3; begin"
    ):
        run(TASKS, tmp_path / "bounded", build=slots(2), options=bounded)


def test_room_may_be_given_later_and_not_be_made_larger(tmp_path):
    """Oracle: the same run without it; the message."""
    run(TASKS[:1], tmp_path)
    bounded = OPTIONS._replace(max_tasks=2)
    grown = run(TASKS[:2], tmp_path, options=bounded)
    same(grown.run_state.state, run(TASKS[:2]).run_state.state)
    with pytest.raises(ValueError, match=r"room for 2 tasks \(max_tasks\), got 3"):
        run(TASKS[:2], tmp_path, options=bounded._replace(max_tasks=3))


def unnumbered(part):
    return Dataset(
        part.count, lambda at: part.read(at)._replace(task=np.zeros(len(at), np.int32))
    )


def sees_numbers(frozen):
    del frozen
    number = lambda state, step: step.batch.task[0].astype(float)
    return make_method(LOSS, optax.sgd(0.1), metrics={"number": number})


NUMBER = RowMetric(lambda params, frozen, batch: {"number": batch.task.astype(float)})


def numbers_seen(tasks, folder=None, **others):
    """The task numbers of the training rows that a run learned from, and of test rows."""
    lines = []
    given = {"build": sees_numbers, "metrics": NUMBER, "on_report": lines.append}
    result = run(tasks, folder, **given, **others)
    learned = {line["number"] for line in lines if "number" in line}
    return sorted(learned), result.results["number"]["params"][-1].tolist()


def test_tasks_are_numbered_in_the_same_way_however_a_run_is_come_by(tmp_path):
    """Oracle: the places in the stream. Negative control: numbers that are given stay, of
    tasks in another order and of rows of several tasks in one."""
    bare = [
        t._replace(train=unnumbered(t.train), test=unnumbered(t.test)) for t in TASKS
    ]
    assert numbers_seen(bare) == ([0, 1, 2], [0, 1, 2])
    half = [t._replace(test=bare[place].test) for place, t in enumerate(TASKS)]
    assert numbers_seen(half) == ([0, 1, 2], [0, 1, 2])
    turned = TASKS[::-1]
    assert numbers_seen(turned) == ([0, 1, 2], [2, 1, 0])

    numbers_seen(bare[:2], tmp_path / "a")
    assert numbers_seen(bare, tmp_path / "a")[1] == [0, 1, 2]
    later = numbers_seen(bare[2:], tmp_path / "b", start=tmp_path / "a")
    assert later == ([3], [3])
    again = numbers_seen([bare[2], bare[0]], tmp_path / "b", start=tmp_path / "a")
    assert again == ([4], [3, 4])
    alone = numbers_seen([bare[2], bare[0], bare[1]], tmp_path / "b")
    assert alone == ([5], [3, 4, 5])
    one = TASKS[1]._replace(name=bare[2].name)
    with pytest.raises(ValueError, match=r"task 0 has task numbers \[3\], got \[1\]"):
        numbers_seen([one, bare[0]], tmp_path / "b")


def test_a_number_that_only_some_tasks_lack_is_refused():
    """Oracle: two tasks of three would share head 0; one that returns may (control)."""
    bare = TASKS[1]._replace(train=unnumbered(TASKS[1].train))
    for tasks, places in (
        ([TASKS[0], bare, TASKS[2]], "0, 1"),
        ([*TASKS, bare], "0, 3"),
    ):
        with pytest.raises(
            ValueError, match=f"learn: tasks {places} all have number 0"
        ):
            numbers_seen([*tasks[:-1], tasks[-1]._replace(name="last")])
    returns = [*TASKS, TASKS[0]._replace(name="again")]
    last = number_tasks(returns)[3]
    assert set(last.train.read(np.arange(9)).task) == {0}


def test_rows_of_several_tasks_keep_their_numbers():
    """Oracle: the numbers that were given; where only unread rows have some, a message."""
    mixed = rows(1, 24, 0)._replace(task=np.arange(24) % 3)
    tasks = [task(0)._replace(train=array_dataset(mixed)), task(0)._replace(name="b")]
    (first, second) = number_tasks(tasks)
    np.testing.assert_array_equal(first.train.read(np.arange(24)).task, mixed.task)
    assert set(second.train.read(np.arange(24)).task) == {0}
    large = rows(1, 1000, 0)
    hidden = large._replace(task=(np.arange(1000) == 501).astype(np.int32))
    tasks[0] = task(0)._replace(train=array_dataset(hidden))
    assert set(number_tasks(tasks)[1].train.read(np.arange(3)).task) == {1}
    with pytest.raises(ValueError, match="rows with task 0 and rows with 1; number"):
        number_tasks(tasks)[0].train.read(np.arange(1000))


def test_another_evaluation_set_of_the_same_name_is_measured(tmp_path):
    """Oracle: the test set of the task whose rows it has."""
    for place in (0, 2):
        found = run(TASKS, tmp_path, evaluation={"general": TASKS[place].test})
        last = found.results["loss"]["params"][-1]
        assert last[3] == last[place]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    ends = [line for line in map(json.loads, lines) if "columns" in line]
    assert len(ends) == 4 + 1  # nothing that was measured is lost


@pytest.mark.parametrize("where", ["observe", "end_task"])
def test_a_part_must_keep_the_form_of_its_state(where, tmp_path):
    """Oracle: the message, before the first step, which names the part."""
    wrong = lambda key, state, *others: None
    part = Regularizer(lambda params, example: params, **{where: wrong})
    with pytest.raises(
        ValueError, match=r"form of the state, got nothing at regul"
    ) as e:
        run(
            TASKS,
            tmp_path,
            build=lambda frozen: make_method(LOSS, optax.sgd(0.1), regularizer=part),
        )
    assert "\n" not in str(e.value)
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_is_known_to_be_better_when_lower():
    """Oracle: the run that says so. Negative control: the run that says the opposite."""
    valid = array_dataset(rows(9, 6, 0))

    def ended(lower):
        stopping = EarlyStopping("loss", patience=1, lower_is_better=lower)
        options = OPTIONS._replace(eval_every=1, early_stopping=stopping)
        return run([task(0, valid=valid)], options=options).params

    want = jax.tree.leaves(ended(True))
    same(jax.tree.leaves(ended(None)), want)
    assert not np.array_equal(jax.tree.leaves(ended(False))[0], want[0])


def test_restore_reads_what_learn_wrote(whole):
    """Oracle: the state that was returned."""
    result, folder = whole
    found = restore(folder / "checkpoints", result.run_state).tree
    same(found.state, result.run_state.state)
    assert int(found.task) == 3


def test_progress_follows_the_tasks():
    """Oracle: counting; a schedule reads the fraction of a task that is done."""
    seen = []
    look = optax.GradientTransformationExtraArgs(
        lambda params: (),
        lambda grads, state, params, *, progress, **_: (
            jax.debug.callback(lambda f: seen.append(float(f)), progress.fraction()),
            (grads, state),
        )[1],
    )
    build = lambda frozen: make_method(LOSS, optax.chain(look, optax.sgd(0.1)))
    run([task(0, num_steps=4), task(1, num_steps=2)], build=build, metrics=())
    jax.effects_barrier()
    assert sorted(seen) == [0.0, 0.0, 0.25, 0.5, 0.5, 0.75]


def test_the_end_of_a_task_sees_the_rows_that_were_learned_from_first():
    """Oracle: the row numbers of the batches, in their order; the first k different ones.
    Negative control: they are not rows 0 to k - 1."""
    read, ends = [], []

    def numbered(numbers):
        read.append(numbers.tolist())
        batch = TASKS[0].train.read(numbers)
        return batch._replace(x=numbers[:, None] + np.zeros((1, 5), np.float32))

    def build(frozen):
        del frozen
        method = make_method(LOSS, optax.sgd(0.0))

        def end_task(key, state, data):
            jax.debug.callback(lambda x: ends.append(x[:, 0].tolist()), data.x)
            return method.end_task(key, state, data)

        return method._replace(end_task=end_task)

    given = [TASKS[0]._replace(train=Dataset(24, numbered))]
    options = OPTIONS._replace(num_steps=2, batch_size=4, end_task_examples=6)
    run(given, options=options, build=build, metrics=())
    jax.effects_barrier()
    steps = [numbers for numbers in read if len(numbers) == 4]
    first = list(dict.fromkeys(steps[0] + steps[1]))[:6]
    assert ends == [sorted(first)]
    assert sorted(first) != list(range(6))


def test_a_look_inside_a_task_measures_the_tasks_so_far():
    """Oracle: the number of columns, and the end of the task for the last look."""
    lines = []
    options = OPTIONS._replace(eval_every=3)
    result = run(TASKS, options=options, on_report=lines.append)
    evaluations = [line for line in lines if "results" in line and "ended" not in line]
    assert [(line["task"], line["step"]) for line in evaluations] == [
        (task, step) for task in range(3) for step in (3, 6)
    ]
    for line in evaluations:
        assert len(line["results"]["loss"]["params"]) == line["task"] + 1
    last = evaluations[-1]["results"]["loss"]["params"]
    want = result.results["loss"]["params"][
        3
    ]  # nothing moves the weights at a task's end
    np.testing.assert_allclose(last, want, rtol=1e-6)
