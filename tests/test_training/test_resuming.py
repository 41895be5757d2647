"""What a folder keeps of its runs, which learner is the default, and what steps count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.data import Dataset, Task, array_dataset
from jaxcl.errors import InputError
from jaxcl.interleave import interleave
from jaxcl.learners import nearest_mean, nearest_mean_outputs
from jaxcl.losses import cross_entropy, heads
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric, classification
from jaxcl.models import mlp
from jaxcl.training import EarlyStopping, Options, learn
from jaxcl.tree import as_batch
from tests.test_training.test_growing import (
    KEY,
    LOGITS,
    LOSS,
    METRIC,
    MODEL,
    OPTIONS,
    TASKS,
    rows,
    run,
    task,
)


def test_the_first_learner_that_is_named_is_the_default():
    """Oracle: the order of the names, which is not that of the alphabet."""
    zeros = lambda params: jax.tree.map(jnp.zeros_like, params)
    learners = lambda state: {"zero": zeros(state.params), "fast": state.params}
    build = lambda frozen: make_method(LOSS, optax.sgd(0.1), learners=learners)
    result = run(TASKS[:1], build=build)
    assert list(result.learners) == list(result.results["loss"]) == ["zero", "fast"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(result.params))
    np.testing.assert_allclose(result.matrix("loss"), np.log(3), rtol=1e-6)


def test_results_of_metrics_and_sets_that_are_left_out_once_stay(tmp_path):
    """Oracle: what was measured before; a run in between measures nothing of it."""
    sets = {"general": TASKS[2].test}
    first = run(TASKS[:1], tmp_path, evaluation=sets)
    with pytest.warns(UserWarning, match="had finished"):
        run(TASKS[:1], tmp_path, metrics=())
    run(TASKS[:2], tmp_path, metrics=())
    grown = run(TASKS, tmp_path, evaluation=sets)
    for column, old in ((0, 0), (3, 1)):
        found = grown.results["loss"]["params"][:2, column]
        np.testing.assert_array_equal(found, first.results["loss"]["params"][:, old])


def test_a_run_begins_at_the_end_of_a_task_only(tmp_path):
    """Oracle: the message, and the checkpoint of a task's end beside that inside one."""
    count = []

    def stopping(numbers):
        count.append(len(numbers) == 8)
        if sum(count) == 9:
            raise KeyboardInterrupt
        return TASKS[1].train.read(numbers)

    cut = [TASKS[0], TASKS[1]._replace(train=Dataset(24, stopping))]
    options = OPTIONS._replace(save_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(
            [cut[0], cut[1], TASKS[2]], tmp_path, options=options._replace(num_steps=12)
        )
    kept = sorted(int(p.stem) for p in (tmp_path / "checkpoints").glob("*.json"))
    inside = tmp_path / "checkpoints" / str(kept[-1])
    with pytest.raises(
        ValueError, match=r"must be the end of a task, got .* step . of"
    ):
        run(TASKS[2:], start=inside)
    state = run(TASKS[2:], start=tmp_path).run_state.state
    assert int(state.progress.task) == 2  # the first task, and this one


def test_skipped_steps_count_as_progress_and_bad_ones_are_seen_before_an_early_end():
    """Oracle: counting; an optimizer that is not finite from the fifth step on."""
    rate = lambda count: jnp.where(count >= 4, jnp.nan, 0.1)
    build = lambda frozen: make_method(LOSS, optax.sgd(rate))
    skip = OPTIONS._replace(on_non_finite="skip")
    with pytest.warns(UserWarning, match="2 steps were not finite"):
        result = run([task(0), task(1, num_steps=3)], options=skip, build=build)
    assert int(result.run_state.state.progress.task) == 2
    seen = []
    look = optax.GradientTransformationExtraArgs(
        lambda params: (),
        lambda grads, state, params, *, progress, **_: (
            jax.debug.callback(lambda step: seen.append(int(step)), progress.step),
            (jax.tree.map(lambda g: g * jnp.nan, grads), state),
        )[1],
    )
    build = lambda frozen: make_method(LOSS, optax.chain(look, optax.sgd(0.1)))
    with pytest.warns(UserWarning, match="6 steps were not finite"):
        run([task(0)], options=skip, build=build, metrics=())
    jax.effects_barrier()
    assert seen == [0, 1, 2, 3, 4, 5]
    valid = array_dataset(rows(9, 6, 0))
    stopping = EarlyStopping("loss", patience=1, lower_is_better=True)
    options = OPTIONS._replace(eval_every=2, early_stopping=stopping)
    with pytest.warns(UserWarning, match="was stopped"):
        stopped = run([task(0, valid=valid)], options=options, build=build)
    assert stopped.status == "diverged"


def test_a_validation_metric_that_is_no_number_ends_a_task_by_patience():
    """Oracle: counting evaluations."""
    odd = RowMetric(lambda params, frozen, batch: {"odd": batch.x[:, 0] * jnp.nan})
    valid = array_dataset(rows(9, 6, 0))
    stopping = EarlyStopping("odd", patience=2)
    options = OPTIONS._replace(eval_every=1, early_stopping=stopping)
    lines = []
    with pytest.warns(UserWarning, match="not finite"):
        run(
            [task(0, valid=valid)],
            options=options,
            metrics=odd,
            on_report=lines.append,
        )
    assert [line["step"] for line in lines if "valid" in line] == [1, 2]


def test_tasks_that_say_no_number_are_numbered_by_their_place():
    """Oracle: two tasks of opposite labels, each learned in a head of its own. Negative
    control: tasks that say a number keep it."""
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    plain = lambda labels: array_dataset(as_batch(x, labels))
    tasks = [Task(name, plain(v), plain(v)) for name, v in (("a", y), ("b", 1 - y))]
    model = mlp((5, 16, 4))
    outputs = heads(model.apply, 2)
    build = lambda frozen: make_method(cross_entropy(outputs), optax.adam(0.02))

    def learned(tasks):
        return learn(
            KEY,
            build,
            model.init(KEY),
            tasks,
            Options(60, 20),
            folder=None,
            metrics=classification(outputs),
        ).matrix()

    assert learned(tasks).min(initial=1.0, where=np.tril(np.ones((2, 2), bool))) > 0.9
    said = lambda labels: array_dataset(as_batch(x, labels, task=1))
    same = [Task(name, said(v), said(v)) for name, v in (("a", y), ("b", 1 - y))]
    assert learned(same)[1, 0] < 0.2  # both in head 1


def test_learners_are_made_from_an_interleaved_memory():
    """Oracle: the class means of the memory by hand."""
    hidden = MODEL.hidden
    learners = lambda state: {
        "nearest": nearest_mean(hidden, 3)(state),
        "params": state.params,
    }
    method = interleave(
        make_method(LOSS, optax.sgd(0.1), learners=learners),
        reservoir(8, 4),
        every=2,
    )
    batch = rows(0, 8, 0)
    state = method.init(MODEL.init(KEY), batch)
    for step in range(3):
        state, _ = method.step(jax.random.key(step), state, batch)
    kept = state.memory.replay.kept
    features = np.array(hidden(state.params, kept.x)[-1])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = method.learners(state)["nearest"]
    for label in range(3):
        own = features[np.asarray(kept.y) == label]
        if len(own):
            mean = own.mean(0) / np.linalg.norm(own.mean(0))
            np.testing.assert_allclose(found.means[label], mean, atol=1e-5)
    outputs = nearest_mean_outputs(LOGITS, hidden)
    assert outputs(found, batch).shape == (8, 3)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (
            {"metrics": (), "evaluation": {"a": TASKS[0].test}},
            "evaluation sets need metr",
        ),
        ({"evaluation": {"a": Dataset(0, None)}}, "evaluation set 'a' has no rows"),
        ({"fresh": ("memory",)}, "for a run that begins with start=, got none"),
        ({"folder": ""}, "folder must be a path, got ''"),
        ({"metrics": [METRIC, METRIC]}, "different names, got 'accuracy' twice"),
    ],
)
def test_what_cannot_go_together_is_one_line(others, words):
    """Oracle: the messages."""
    with pytest.raises(ValueError, match=words) as error:
        run(TASKS[:1], **others)
    assert "\n" not in str(error.value)


def test_test_rows_unlike_those_of_training_and_two_lengths_are_one_line():
    """Oracle: the messages."""
    wide = as_batch(np.zeros((4, 7), np.float32), np.zeros(4, int))
    words = (
        r"test of task 'task 0' has rows of x float32\[7\] .*, unlike train .*t32\[5\]"
    )
    with pytest.raises(InputError, match=words):
        run([TASKS[0]._replace(test=array_dataset(wide))])
    with pytest.raises(ValueError, match="has num_steps and num_epochs; leave one out"):
        run([task(0, num_steps=2, num_epochs=1)])
    same = [TASKS[1], TASKS[0]._replace(train=array_dataset(wide))]
    with pytest.raises(ValueError, match="train of task 'task 0' has rows of"):
        run(same)
    both = TASKS[0]._replace(train=array_dataset(wide), test=array_dataset(wide))
    words = (
        r"rows of task 'task 0', x float32\[7\] and y int32\[\] in batches of 16, do not "
        r"fit in metrics .* \(16, 7\) .* \(16, 5\)"
    )
    with pytest.raises(InputError, match=words) as error:
        run([both])
    assert "\n" not in str(error.value)


def test_progress_begins_with_the_steps_of_earlier_processes(tmp_path):
    """Oracle: counting; the last call of the first part does not return."""

    def cut(steps, text):
        calls.append((steps, text.partition(",")[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt

    calls, options = [], OPTIONS._replace(report_every=2, save_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(TASKS[:2], tmp_path, options=options, on_progress=cut)
    first, calls = calls[:2], [None] * 3
    run(TASKS[:2], tmp_path, options=options, on_progress=cut)
    assert first == [(1, "task 0"), (1, "task 0")]
    assert calls[3] == (2, "resumed")
    assert sum(steps for steps, _ in calls[3:]) == 12
