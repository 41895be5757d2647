"""What is called at the end of a task, and the memory of a step."""

import os
import signal

import jax
import numpy as np
import optax

from jaxcl.method import make_method
from jaxcl.metrics import evaluate
from jaxcl.training import step_memory
from tests.test_training.test_growing import (
    KEY,
    LOSS,
    METRIC,
    MODEL,
    OPTIONS,
    TASKS,
    run,
)

SIZES = 4  # bytes of a float32


def test_learners_are_given_before_the_first_task_and_after_each(tmp_path):
    """Oracle: the results of the run, of other parameters in each row."""
    seen = {}
    copy = lambda learners: jax.tree.map(np.array, learners["params"])
    note = lambda ended, learners, interrupted: seen.update({ended: copy(learners)})
    results = run(TASKS, tmp_path, on_task_end=note).results["loss"]["params"]
    assert sorted(seen) == [0, 1, 2, 3]
    for column, task in enumerate(TASKS):
        test = task.test.read(np.arange(task.test.count))
        losses = [evaluate(METRIC, seen[ended], test)["loss"] for ended in range(4)]
        np.testing.assert_allclose(losses, results[:, column], rtol=1e-6)
    assert len(np.unique(results)) == results.size


def test_a_signal_in_the_middle_leaves_it_to_the_resumed_run(tmp_path):
    """Oracle: the run left alone, and the order of calls."""
    calls = []

    def stop(ended, _, interrupted):
        calls.append(ended)
        if calls == [0, 1]:
            assert not interrupted()
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted()

    cut = run(TASKS, tmp_path, on_task_end=stop)
    assert cut.status == "interrupted"
    assert calls == [0, 1]
    resumed = run(TASKS, tmp_path, on_task_end=stop)
    assert resumed.status == "done"
    assert calls == [0, 1, 1, 2, 3]
    alone = run(TASKS)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, alone.params)
    for name, held in alone.results.items():
        found = resumed.results[name]["params"]
        np.testing.assert_array_equal(found, held["params"])


def test_it_is_called_without_metrics_and_not_by_a_run_that_had_finished(tmp_path):
    """Oracle: counting."""
    calls = []
    note = lambda ended, learners, interrupted: calls.append(ended)
    run(TASKS[:1], tmp_path, metrics=(), on_task_end=note)
    assert calls == [0, 1]
    run(TASKS[:2], tmp_path, metrics=(), on_task_end=note)
    assert calls == [0, 1, 2]


def test_the_memory_of_a_step_counts_the_state():
    """Oracle: Adam's two moments, by the number of weights; SGD has none."""
    params = MODEL.init(KEY)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    memory = lambda optimizer: step_memory(
        KEY, lambda frozen: make_method(LOSS, optimizer), params, TASKS, OPTIONS
    )
    plain, adam = memory(optax.sgd(0.1)), memory(optax.adam(0.1))
    assert plain >= SIZES * weights
    assert adam - plain >= 2 * SIZES * weights
