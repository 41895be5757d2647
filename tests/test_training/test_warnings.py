"""Warnings at the end of a run: what went wrong, and what may be too large."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcl.curvature import empirical_fisher
from jaxcl.data import digits, permuted, stream_tasks, subset
from jaxcl.losses import cross_entropy
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.regularizers import ewc
from jaxcl.training import Options, learn
from jaxcl.training.results import (
    WINDOW,
    add_losses,
    spent_so_far,
    warn_of_unlearned_tasks,
)
from tests.test_training.test_host import LOGITS, MODEL

ROOT = Path(__file__).parent.parent.parent
LOSS = cross_entropy(LOGITS)
STRENGTH = r"learning rate or the regularizer's strength .*largest_stable_strength"


@pytest.fixture(scope="module")
def tasks():
    images = subset(digits(), key=jax.random.key(5), num_train=60, num_test=50)
    return stream_tasks(permuted(jax.random.key(1), images, num_tasks=2))


@pytest.fixture(scope="module")
def ended(tasks):
    return run(tasks, 0.0)[0]


def run(tasks, strength, rate=0.3):
    """Two tasks with EWC of a strength; the messages of the run."""

    def build(rate):
        parts = {"regularizer": ewc(empirical_fisher(LOSS), strength)}
        return make_method(LOSS, optax.sgd(rate), **(parts if strength else {}))

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = learn(
            jax.random.key(0),
            build,
            MODEL.init(jax.random.key(2)),
            tasks,
            Options(60, 8),
            folder=None,
            frozen=jnp.float32(rate),
            metrics=classification(LOGITS),
            quiet=True,
        )
    return result, " ".join(str(warning.message) for warning in seen)


CALLS = """
import json, sys, warnings
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, optax
from jaxcl.data import Task, array_dataset
from jaxcl.losses import cross_entropy, single_head
from jaxcl.method import make_method
from jaxcl.metrics import classification
from jaxcl.models import mlp
from jaxcl.training import Options, learn, restore
from jaxcl.tree import as_batch

model = mlp((4, 3))
logits = single_head(model.apply)
x = np.random.default_rng(0).normal(size=(8, 4)).astype("f4")
rows = [array_dataset(as_batch(x, np.arange(8) % 3, task=t)) for t in range(2)]
tasks = [Task(f"task {t}", rows[t], rows[t]) for t in range(2)]
build = lambda rate: make_method(cross_entropy(logits), optax.sgd(rate))
params, metrics = model.init(jax.random.key(1)), classification(logits)
options = Options(50, 8, on_non_finite="continue", keep=1)

def run(folder, rate=0.0):
    return learn(jax.random.key(0), build, params, tasks, options, folder=folder,
                 frozen=jnp.float32(rate), metrics=metrics, quiet=True)

with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    run(None, jnp.nan)
    run("lost", jnp.nan)
    ended = run("here")
    Path("here/metrics.jsonl").write_text("")
    run("here")
    max(Path("here/checkpoints").glob("*.json"), key=lambda p: int(p.stem)).write_text("")
    restore("here", ended.run_state)
    run("here")
print(json.dumps([[str(one.message), one.filename] for one in seen]))
"""


def test_every_warning_is_reported_where_the_library_was_called(tmp_path):
    """Oracle: the file of a script, run without the checker of types, whose calls would
    stand between the two."""
    script = tmp_path / "script.py"
    script.write_text(CALLS)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    for said in (
        "steps were not finite",
        "what was measured on the test rows",
        "ended unstable or not learned",
        "lines up to the last checkpoint",
        "had finished",
        "passed over damaged checkpoints",
    ):
        assert {name for text, name in seen if said in text} == {str(script)}, said
    # By the folder Python tells two runs of one line apart, and shows both.
    places = [text.partition(" The run is in ")[2] for text, _ in seen[:4]]
    assert {bool(place): place.endswith("lost.") for place in places} == {0: 0, 1: 1}


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_a_run_that_learns_is_not_warned_of(tasks, strength):
    """Oracle: its accuracy, far above one of ten classes."""
    result, said = run(tasks, strength)
    assert result.matrix()[1, 1] > 0.4
    assert said == ""


def test_a_penalty_that_grows_and_stays_finite_is_warned_of(tasks):
    """Oracle: EWC beyond its stable strength: the penalty is above 1e9 and finite."""
    result, said = run(tasks, 10.0)
    assert result.status == "done"
    assert not result.run_state.num_bad
    assert "1 of 2 tasks ended unstable or not learned" in said
    assert re.search(STRENGTH, said), said


@pytest.mark.parametrize("strength", [0.0, 30.0])
def test_a_diverged_run_names_the_strength_of_its_regularizer(tasks, strength):
    """Oracle: a method without one is the control."""
    result, said = run(tasks, strength, rate=0.3 if strength else 1e30)
    assert result.status == "diverged"
    assert "steps were not finite" in said
    assert ("largest_stable_strength" in said) == bool(strength)


@pytest.mark.parametrize(
    ("first", "last", "before", "after", "warned"),
    [
        (2.3, 0.5, 0.1, 0.9, False),  # learned
        (2.3, 2.3, 0.1, 0.08, True),  # dead units: a constant answer
        (2.3, 2.3, 0.1, 0.3, False),  # slow, and better than before
        (0.1, 0.11, 0.95, 0.95, False),  # known before
        (5.0, 2.6, 0.1, 0.1, True),  # back to an untrained model
        (5.0, 6.0, 0.1, 0.3, True),  # worse than at its start
        (9.0, 1.0, np.nan, np.nan, False),
    ],
)
def test_a_task_that_was_not_learned_by_its_losses(
    ended, first, last, before, after, warned
):
    """Oracle: judged by hand, in a run that began at 2.3 and learned its first task."""
    spent = spent_so_far({}, 2)
    for task, (start, end) in enumerate([(2.3, 0.5), (first, last)]):
        add_losses(spent, task, [start] * WINDOW, [0.0] * WINDOW)
        add_losses(spent, task, [end] * 5 * WINDOW, [0.0] * 5 * WINDOW)
    matrix = np.array([[0.1, 0.1], [0.9, before], [0.8, after]])
    results = {"accuracy": {"params": matrix}}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warn_of_unlearned_tasks(ended.run_state, spent, results, ["a", "b"])
    assert bool(seen) == warned
