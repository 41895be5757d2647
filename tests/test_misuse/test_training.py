"""Wrong calls of training loops, sharding, checkpoints and reports."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxcl import training
from jaxcl.data import Task, array_dataset
from jaxcl.metrics import RowMetric, TaskMetric, classification
from jaxcl.report import records
from jaxcl.report.summaries import grid, summarize
from jaxcl.report.tables import summary_table
from jaxcl.sharding import AXES, fsdp, replicate
from jaxcl.training import checkpoint, over_runs, start_processes
from tests.test_misuse.table import (
    BATCH,
    KEY,
    METHOD,
    OPTIONS,
    OUTPUTS,
    PARAMS,
    SIZES,
    STATE,
    STREAM,
    TASKS,
    X,
    Y,
    assert_refused,
    refused,
)
from tests.test_report.test_summaries import noisy, sweep
from tests.test_report.toy_records import record

EXPLICIT = (AxisType.Explicit,) * 3
MESH = training.make_mesh(devices=jax.devices()[:1])
SGD = noisy("sgd", 0)
METRIC = classification(OUTPUTS)
INTEGERS = array_dataset(BATCH._replace(x=(100 * BATCH.x).astype(int)))
ONE = {"params": np.zeros((2, 1))}
ENDED = training.TrainResult(
    "done", {}, {"accuracy": ONE, "loss": ONE}, None, np.zeros(1), 0.0
)
THIRD = record("sam", 9, hyper={"learning_rate": 0.1, "rho": 0.5, "eta": 1.0})


def walk(key=KEY, **changes):
    given = {"method": METHOD, "stream": STREAM, "state": STATE, **SIZES, **changes}
    return training.run_stream(key, **given)


def learn(build=lambda frozen: METHOD, tasks=TASKS, options=OPTIONS, **others):
    given = {"params": PARAMS, "folder": "nowhere", **others}
    return training.learn(KEY, build, given.pop("params"), tasks, options, **given)


def bleu(key, params, frozen, dataset):
    """A task metric of one name."""
    del key, params, frozen, dataset
    return {"bleu": 0.5}


def scored(score):
    rows = lambda params, frozen, batch: {"odd": score(batch.x[:, 0])}
    return learn(metrics=RowMetric(rows))


def placed(rule=replicate, mesh=MESH):
    return learn(sharding=training.ShardingPlan(mesh, rule))


def grid_of(found=(), rows="rho", columns="learning_rate"):
    return grid([*sweep(), *found], rows=rows, columns=columns)


REFUSED = [
    # loops
    (lambda: walk(num_steps=0), "run_stream: num_steps must be an int of at least 1"),
    (lambda: walk(key=7), "run_stream: key must be one JAX key, got 7; make it by"),
    (lambda: walk(tasks=[0, 3]), r"has tasks 0 to 2, got \[0, 3\]; list some"),
    (lambda: training.steps_for(8.0, batch_size=2), "num_rows must be an int"),
    (lambda: training.make_mesh(fsdp=0), "make_mesh: fsdp must be an int .* got 0"),
    (lambda: training.make_mesh(data="1"), "make_mesh: data must be an int .* got '1'"),
    (lambda: training.make_mesh(tensor=None), "make_mesh: tensor must .* got None"),
    (lambda: learn(params={"w": 1.0}), r"real arrays, got 1.0 at \['w'\]; keep out"),
    (lambda: learn(params={"w": Y}), r"real arrays, got int\d+ at \['w'\]; keep out"),
    (lambda: learn(params=None), "real arrays, got None at its root; keep out"),
    (
        lambda: learn(build=METHOD),
        "a function of frozen, got Method; give one that makes",
    ),
    (lambda: learn(options={"num_steps": 3}), "options must be of type Options, got"),
    (
        lambda: learn(options=OPTIONS._replace(eval_start="no")),
        "eval_start must be of type bool, got 'no'; give True or False",
    ),
    (
        lambda: learn(
            options=OPTIONS._replace(eval_every=1, early_stopping="loss"),
        ),
        "early_stopping must be of type EarlyStopping, got 'loss'",
    ),
    (lambda: learn(evaluation=[BATCH]), "evaluation must be of type Mapping, got list"),
    (
        lambda: learn(evaluation={"a": BATCH}, metrics=METRIC),
        r"evaluation\['a'\] must be of type Dataset, got Batch; make it, .*array_dataset",
    ),
    (
        lambda: learn(options=OPTIONS._replace(eval_every=3)),
        "learn: eval_every=3 needs metrics, got none; give metrics= as well",
    ),
    (
        lambda: learn(sharding="fsdp"),
        "sharding must be of type ShardingPlan, got 'fsdp'",
    ),
    (  # the program of the metrics would convert them, as if they were those learned from
        lambda: learn(tasks=[TASKS[0]._replace(test=INTEGERS)], metrics=METRIC),
        r"test of task .* rows of x int32\[3\] and y .*, of x float32\[3\] .* same shapes",
    ),
    (
        lambda: learn(tasks=[Task("a", BATCH, BATCH)]),
        "train must be of type Dataset, got Batch; .* array_dataset",
    ),
    (lambda: learn(tasks=TASKS[0]), "task must be of type Task, got .*; give a list"),
    (lambda: learn(tasks=STREAM), "of type Task, got Pool; .* stream_tasks"),
    (lambda: learn(folder=3), "learn: folder must be a path, got 3; give"),
    (lambda: learn(folder=b"x"), "learn: folder must be a path, got b'x'; give"),
    (lambda: learn(start=3), "learn: start must be a path, got 3; give"),
    (lambda: checkpoint.save(3, 1, PARAMS), "save: folder must be a path, got 3"),
    (lambda: learn(metadata=[1]), "learn: metadata must be a dict of finite numbers"),
    (lambda: learn(metadata="hi"), "learn: metadata must be a dict of finite numbers"),
    (lambda: learn(metadata={"a": X}), "learn: metadata must be a dict of .* not JSON"),
    (
        lambda: placed(mesh=Mesh(MESH.devices[0], ("data", "tensor"))),
        "mesh must have the axes data, fsdp, tensor, all Auto, got Mesh.* make_mesh",
    ),
    (
        lambda: placed(mesh=Mesh(MESH.devices, AXES, axis_types=EXPLICIT)),
        r"mesh must have .* all Auto, got Mesh.*Explicit",
    ),
    (
        lambda: placed(lambda path, shape, mesh: None),
        r"a PartitionSpec that splits params/hidden_0/bias \[4\] .* got None; see fsdp",
    ),
    (
        lambda: placed(lambda path, shape, mesh: ("fsdp",)),
        r"got \('fsdp',\); see fsdp",
    ),
    (
        lambda: learn(metrics=TaskMetric("bleu", bleu)),
        "names must be of type tuple, got 'bleu'; such as",
    ),
    (
        lambda: learn(metrics=TaskMetric(("rouge",), bleu), folder=None),
        r"of_data must return .* each of \['rouge'\], got \['bleu'\]; name",
    ),
    (
        lambda: learn(options=OPTIONS._replace(num_steps=[3, 1])),
        r"num_steps must be one number .* got \[3, 1\]; .* is Task\(num_steps=\)",
    ),
    (
        lambda: learn(tasks=[TASKS[0], TASKS[1]._replace(name=TASKS[0].name)]),
        "must have different names, got .* twice",
    ),
    (
        lambda: learn(metrics=METRIC, evaluation={TASKS[0].name: TASKS[0].test}),
        "must have different names, got .* twice",
    ),
    (
        lambda: ENDED.matrix("bleu"),
        "matrix: metric must be one of accuracy, loss, got 'bleu'",
    ),
    (lambda: ENDED.matrix(learner="slow"), "learner must be one of params, got 'slow'"),
    (
        lambda: ENDED._replace(results={}).matrix(),
        "matrix: metric must be one of none, got None",
    ),
    (lambda: learn(metrics=5), "metrics must be a RowMetric, a TaskMetric or a list"),
    (
        lambda: scored(lambda x: x + 1j),
        r"rows must return real numbers per example, got complex64\[256",
    ),
    (lambda: checkpoint.save("nowhere", 1, PARAMS, metadata={"a": X}), "not JSON"),
    (
        lambda: checkpoint.saving("x", metadata={"a": X}).__enter__(),
        "metadata must be a dict",
    ),
    (lambda: checkpoint.save("nowhere", 1.0, PARAMS), "step must be an int .* got 1.0"),
    (lambda: checkpoint.save("nowhere", 1, {"a": "b"}), r"\['a'\] must be an array"),
    *[
        (
            lambda axes=axes: over_runs(lambda x: x, axes),
            "over_runs: in_axes must be 0 or None",
        )
        for axes in (1, (0, 1), (0, {"a": 0}))
    ],
    (lambda: fsdp(replicated="lora"), "fsdp: .*add a comma"),
    (
        lambda: start_processes("127.0.0.1:1", count=2, index=2),
        "index must be from 0 to 1, got 2",
    ),
    (lambda: checkpoint.save("nowhere", -1, PARAMS), "step must be .* got -1"),
    (lambda: checkpoint.save("nowhere", 0, {"x": np.ones(1)}), "x.* is float64"),
    # reports
    (lambda: records.check("results.jsonl"), "record must be of type dict, got 'r'"),
    *[
        (
            lambda change=change: records.check(
                [record(), {**record(seed=1), **change}]
            ),
            f"record 2 .*{re.escape(words)}",
        )
        for change, words in (
            ({"seed": "x"}, "'seed' is of type str"),
            ({"accuracy": "0.5"}, "'accuracy' is of type str"),
            ({"status": "stopped"}, "'done' or 'diverged', got 'stopped'"),
            ({"accuracy": [0.5, None]}, "between 0 and 1"),
            ({"accuracy": [0.5, 55.0]}, "between 0 and 1"),
            ({"accuracy": [0.5] * 3}, "'accuracy' has 3 values, expected 2"),
            ({"measures": {"rank": [1.0]}}, "'rank' has 1 values, expected 2"),
        )
    ],
    (
        lambda: records.check([{k: v for k, v in record().items() if k != "arm"}]),
        "lacks the field 'arm'",
    ),
    (lambda: records.check([record(), record()]), "is there twice, first as 1"),
    (lambda: records.check([]), "expected records of runs, got none"),
    (lambda: summarize(SGD, baseline="adam"), "no run of the baseline 'adam'.*'sgd'"),
    (
        lambda: summarize(SGD, baseline="sgd", quantity="median"),
        "summarize: quantity must be one of",
    ),
    (
        lambda: summarize(
            [*SGD, {**record("sgd", 3, [0.5] * 10), "run": "again"}], baseline="sgd"
        ),
        r"seed=3\) and .*again\) agree .* seed 3;",
    ),
    (
        lambda: summary_table(summarize(SGD, baseline="sgd"), quantity="median"),
        "summary_table: quantity must be .*'median'",
    ),
    (lambda: grid_of([record("sgd")]), "grid: .*one setting and one arm"),
    (lambda: grid_of(columns="momentum"), "grid: .*lacks 'rho' or 'momentum'"),
    (lambda: grid_of([THIRD]), "grid: .*differ in more than"),
]


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
