"""Wrong objects handed to public functions: one line that names them, or the right thing.

The checker of types that guards all other tests is off here, as it is for users.
"""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from jaxcl import (
    data,
    losses,
    metrics,
    plasticity,
    regularizers,
    training,
    transforms,
)
from jaxcl.averages import ema
from jaxcl.curvature import (
    batched_fisher,
    empirical_fisher,
    exact_fisher,
    sam_sharpness,
    sampled_fisher,
)
from jaxcl.memory import reservoir
from jaxcl.method import make_method
from jaxcl.metrics import RowMetric
from jaxcl.models import from_flax, mlp
from jaxcl.report import records, statistics
from jaxcl.sharding import AXES, replicate
from jaxcl.training import checkpoint
from jaxcl.tree import as_batch, at

KEY, SGD = jax.random.key(0), optax.sgd(0.1)
X, Y = np.zeros((4, 1, 3), np.uint8), np.array([0, 1, 0, 1])
IMAGES = data.as_images(X, Y, X, Y)
STREAM = data.permuted(KEY, IMAGES, num_tasks=3)
MODEL = mlp((3, 4, 2))
PARAMS = MODEL.init(KEY)
OUTPUTS = losses.single_head(MODEL.apply)
LOSS = losses.cross_entropy(OUTPUTS)
BATCH = as_batch(np.ones((4, 3), np.float32), Y)
ROW, PAIR = at(0, BATCH), (BATCH.x, BATCH.y)
METHOD = make_method(LOSS, SGD)
STATE = METHOD.init(PARAMS, BATCH)
SIZES = {"num_steps": 1, "batch_size": 2}
OPTIONS = training.Options(**SIZES)
TASKS = data.stream_tasks(STREAM)
EXPLICIT = (AxisType.Explicit,) * 3
MESH = training.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def untyped():
    """No checker of types stands before the library."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def permuted(key=KEY, images=IMAGES, num_tasks=2, **changes):
    return data.permuted(key, images, num_tasks=num_tasks, **changes)


def split(**given):
    return data.class_splits(KEY, IMAGES, **given)


def stacked(tasks):
    return data.stack_tasks(tasks, num_classes=2)


def parted(rows, fraction=0.5, key=KEY):
    return data.train_valid_split(key, rows, valid_fraction=fraction)


def walk(key=KEY, **changes):
    given = {"method": METHOD, "stream": STREAM, "state": STATE, **SIZES, **changes}
    return training.run_stream(key, **given)


def learn(build=lambda frozen: METHOD, tasks=TASKS, options=OPTIONS, **others):
    given = {"params": PARAMS, "folder": "nowhere", **others}
    return training.learn(KEY, build, given.pop("params"), tasks, options, **given)


def scored(score):
    rows = lambda params, frozen, batch: {"odd": score(batch.x[:, 0])}
    return learn(metrics=RowMetric(rows))


def placed(rule=replicate, mesh=MESH):
    return learn(sharding=training.ShardingPlan(mesh, rule))


def measured(**changes):
    place = (MODEL.hidden, PARAMS, PARAMS, BATCH)
    return plasticity.measure(KEY, LOSS, *place, **changes)


def loss_of(batch, loss=LOSS):
    return losses.mean_loss(loss, PARAMS, batch, KEY)


RANKS = jax.tree.map(lambda leaf: leaf.ndim > 1, PARAMS)
PARTS = {True: transforms.sam(0.1), False: optax.identity()}


def max_loss(params, example, key):
    """A loss of one example, which per_example has not lifted."""
    del key
    return jnp.max(MODEL.apply(params, example.x[None]))


def stepped(gradient):
    method = make_method(LOSS, SGD, gradient=gradient)
    return method.step(KEY, method.init(PARAMS, BATCH), BATCH)


REFUSED = [
    # data
    (lambda: data.as_images(X, [[0], [1, 2]], X, Y), "lists of equal length"),
    (lambda: data.as_images(X, Y, X, Y, num_classes=2.0), "num_classes must"),
    (lambda: data.subset(PAIR), "Images, got tuple; see jaxcl.data"),
    (lambda: data.subset(IMAGES, num_train=2.0), r"in \[1, 4\], got 2.0"),
    (lambda: permuted(key=0), "one JAX key, got 0"),
    (lambda: permuted(key=jax.random.split(KEY)), "one JAX key, got"),
    (lambda: permuted(images=X), "of type Images, got ndarray"),
    (lambda: permuted(num_tasks="2"), "num_tasks must be"),
    (lambda: permuted(normalise=True), r"finite \(mean, std > 0\).* got True"),
    (lambda: data.from_arrays([BATCH], [BATCH], num_classes=2), "train .* got list"),
    (lambda: data.take_tasks(STREAM, 1), "permuted-images has tasks 0 to 2, got 1"),
    (lambda: data.take_tasks(STREAM, [True, False, True]), "got .True, False, True"),
    (lambda: data.stack_plans(STREAM), "stream must be of type Stream, got Pool"),
    (lambda: data.validate(METHOD), "validate: .* type Stream, got Method"),
    (
        lambda: data.array_dataset(PAIR),
        "array_dataset: expected a Batch .* got tuple",
    ),
    (lambda: split(sizes=2), "class_splits: sizes must be the classes .* got 2; give"),
    (lambda: split(sizes=[1.0, 1.0]), r"sizes must be .* got \[1.0, 1.0\]; give"),
    (
        lambda: split(num_tasks=1.0),
        "class_splits: num_tasks must be at least 1, got 1.0",
    ),
    (lambda: stacked([]), r"stack_tasks: tasks must be a list of pairs .* got \[\]; m"),
    (lambda: stacked([BATCH, BATCH]), "stack_tasks: .* something else in it; make the"),
    (lambda: stacked([(BATCH,)]), "stack_tasks: tasks must be a list of pairs"),
    (
        lambda: stacked([PAIR]),
        "train of task 0: expected a Batch .* got ArrayImpl|ndarr",
    ),
    (lambda: data.joint(IMAGES), "joint: stream must be of type Stream, got Images"),
    (lambda: parted(PAIR), "train_valid_split: expected a Batch .* got tuple"),
    (
        lambda: parted(BATCH, "0.1"),
        r"valid_fraction must be a number .* got '0.1'; 0.1",
    ),
    (lambda: parted(BATCH, key=0), "train_valid_split: key must be one JAX"),
    (lambda: data.random_rows(0, BATCH, 2), "random_rows: key must be one JAX key"),
    (lambda: data.random_rows(KEY, PAIR, 2), "random_rows: expected a Batch .* tuple"),
    (lambda: data.random_rows(KEY, BATCH, 0), "random_rows: count must be an int"),
    (
        lambda: data.random_row_numbers(KEY, 0, 2),
        "random_row_numbers: num_rows must be an int of at least 1, .* got 0",
    ),
    # batches and losses
    (lambda: as_batch(1.0, 2), r"as_batch: x and y must be .* shapes \[\(\), \(\)\]"),
    (lambda: as_batch(BATCH.x, Y, weight=np.ones((4, 1))), r"weight \[n\].*\(4, 1\)"),
    (lambda: as_batch(BATCH.x, Y, task=[0] * 4), r"task one int, .* task \[0, 0"),
    (lambda: as_batch(BATCH.x, Y, task=-1), "as_batch: task .* at least 0, .* got -1"),
    (
        lambda: as_batch(BATCH.x, Y, task=1.5),
        "as_batch: task must be an int .* got 1.5",
    ),
    (lambda: as_batch(BATCH.x, Y, weight=[1, 1, -1, 1]), "smallest weight .* got -1.0"),
    (lambda: as_batch(BATCH.x, Y, weight=[1, np.nan, 1, 1]), "weight .* got nan"),
    (
        lambda: as_batch(BATCH.x, np.full(4, 2**40)),
        "labels must fit in int32, got 1099",
    ),
    (
        lambda: as_batch(BATCH.x, np.full(4, -(2**31) - 1)),
        "labels must .* got -21474836",
    ),
    (lambda: as_batch(BATCH.x, Y, weight=[1, np.inf, 1, 1]), "largest .* got inf"),
    (lambda: losses.single_head(MODEL), "a function, got Model; give model.apply"),
    (lambda: loss_of(PAIR), "example_losses: expected a Batch .* got tuple; make one"),
    (lambda: loss_of(ROW), r"example_losses: .* got leaves of shapes \[\(3,\), \(\)"),
    (lambda: loss_of(BATCH._replace(y=BATCH.weight)), r"integers .* got float32\[4\]"),
    (lambda: loss_of(BATCH._replace(y=jnp.eye(4, dtype=int))), r"got int32\[4, 4\]"),
    (lambda: loss_of(BATCH, losses.cross_entropy(MODEL.apply)), "give single_head"),
    (lambda: loss_of(BATCH, OUTPUTS), r"one number per example, .*\[4\], got \[4, 2\]"),
    (lambda: losses.heads(MODEL.apply, 0), "heads: sizes must .* got 0"),
    (lambda: losses.heads(MODEL.apply, "2"), "heads: sizes must .* got '2'"),
    (lambda: losses.past_heads(MODEL.apply, 2.0), "past_heads: sizes must .* got 2.0"),
    (lambda: losses.past_heads(MODEL.apply, [2, True]), r"sizes .* got \[2, True\]"),
    (
        lambda: losses.past_heads(MODEL.apply, 3)(PARAMS, BATCH),
        "past_heads: outputs must be a multiple of the 3 classes .* got 2; give",
    ),
    (lambda: losses.past_heads(MODEL, 2), "past_heads: apply .* Model; give"),
    (lambda: losses.per_example(MODEL), "per_example: loss must be a function, got"),
    (lambda: losses.squared_error(MODEL), "squared_error: outputs .* got Model; give"),
    (
        lambda: loss_of(BATCH, losses.squared_error(OUTPUTS)),
        r"squared_error: outputs and targets .* \(4, 2\) and \(4,\); reshape y",
    ),
    (lambda: losses.accuracy(MODEL, PARAMS, BATCH), "outputs must be a function"),
    (lambda: metrics.summary([[1.0], [0.5, 1.0]]), "summary: .* lists of equal length"),
    # the parts of a method
    (lambda: transforms.sam("0.05"), "sam: rho must be a finite number .* got '0.05'"),
    (lambda: transforms.sam(None), "sam: rho must be a finite number .* got None"),
    (lambda: transforms.sam(True), "sam: rho must be a finite number .* got True"),
    (lambda: regularizers.sum_of([regularizers.l2(1.0)]), "sum_of: .* got list"),
    (lambda: regularizers.ewc(1.0, empirical_fisher(LOSS)), "fisher must be a func"),
    (
        lambda: regularizers.ewc(LOSS, 1.0),
        r"ewc: fisher .* \(key, params, task\), got one of \(params, batch, keys\)",
    ),
    (lambda: regularizers.ewc(OUTPUTS, 1.0), r"\(key, params, task\), got one of"),
    (
        lambda: empirical_fisher(MODEL),
        r"empirical_fisher: loss .* got Model; such as cross_entropy\(",
    ),
    (
        lambda: empirical_fisher(lambda batch, params, keys: 0),
        r"loss must be .* \(params, batch, keys\), got one of \(batch, par",
    ),
    (
        lambda: empirical_fisher(max_loss)(KEY, PARAMS, BATCH),
        r"shape \[1\], got \[\]; .* lift a loss of one example by per_example",
    ),
    (lambda: empirical_fisher(OUTPUTS)(KEY, PARAMS, BATCH), "one number per example"),
    (
        lambda: batched_fisher(OUTPUTS, batch_size=2)(KEY, PARAMS, BATCH),
        r"one number per example, shape \[2\], got \[2, 2\]",
    ),
    (
        lambda: batched_fisher(MODEL.apply, batch_size=2)(KEY, PARAMS, BATCH),
        r"model: x must be inputs .* got a Batch; .*single_head\(",
    ),
    (
        lambda: exact_fisher(MODEL),
        r"exact_fisher: outputs .* got Model; such as single_head\(",
    ),
    (lambda: sampled_fisher(LOSS), "sampled_fisher: outputs .* got one of"),
    (
        lambda: reservoir(10, sample_size=20),
        "reservoir: sample_size must be at most the capacity, 10, got 20; lower",
    ),
    (lambda: plasticity.chain_resets([]), "of type Reset, got"),
    (
        lambda: plasticity.redo(None, MODEL.units[0], None),
        "one hidden layer, got Units",
    ),
    (lambda: plasticity.srank(BATCH.x), r"srank: .*\(4, 3\); give singular_values\("),
    (lambda: plasticity.effective_rank(BATCH.x), "effective_rank: values must be sing"),
    (lambda: plasticity.stable_rank(1.0), r"stable_rank: .* \[k\], got shape \(\)"),
    (lambda: plasticity.srank(jnp.ones(3), delta=-0.1), r"delta .* \[0, 1\], got -0.1"),
    (
        lambda: plasticity.dormant_fraction((), None, -1),
        "dormant_fraction: tau .* got -1",
    ),
    (lambda: measured(rho=-0.1), "measure: rho must be a finite number .* got -0.1"),
    (lambda: measured(tau=np.nan), "measure: tau must be a finite number .* got nan"),
    (lambda: sam_sharpness(loss_of, PARAMS, "1"), "sam_sharpness: rho .* got '1'"),
    (lambda: empirical_fisher(LOSS)(KEY, PARAMS, STREAM), "fisher: .* got Stream"),
    (
        lambda: make_method(MODEL, SGD),
        "make_method: loss must be a function, got Model",
    ),
    (
        lambda: make_method(optax.squared_error, SGD),
        r"\(params, batch, keys\), got one",
    ),
    (lambda: METHOD.step(KEY, STATE, at(slice(0), BATCH)), "step: rows .* 1, .* got 0"),
    (lambda: make_method(LOSS, 0.1), "optimizer must be an optax .* got 0.1; build"),
    (lambda: make_method(LOSS, SGD, gradient=transforms.sam), "got function"),
    (lambda: make_method(LOSS, SGD, regularizer=[]), "Regularizer, .* sum_of"),
    (lambda: make_method(LOSS, SGD, memory=ema(0.9)), "memory must .* got Average"),
    (lambda: METHOD.init(MODEL, BATCH), "init: params must be a tree of real arrays"),
    (lambda: METHOD.init(PARAMS, STREAM), "init: expected a Batch .* got Stream"),
    (
        lambda: transforms.random_sam(0, 0.1),
        "random_sam: key must be .* key, got 0; make",
    ),
    (
        lambda: METHOD.step(jax.random.split(KEY), STATE, BATCH),
        r"step: key .*fry>\[2\]",
    ),
    (
        lambda: METHOD.end_task(0, STATE, BATCH),
        "end_task: key must be one JAX key, got 0",
    ),
    (lambda: METHOD.end_task(STATE, KEY, BATCH), "end_task: state .* got PRNGKeyArray"),
    (
        lambda: stepped(optax.masked(transforms.sam(0.1), RANKS)),
        "sam: .* give it a mask",
    ),
    (
        lambda: stepped(optax.partition(PARTS, RANKS)),
        "sam: .* all parameters, .* give it a mask",
    ),
    (lambda: METHOD.step(STATE, KEY, BATCH), "step: state must .* got PRNGKeyArray"),
    (lambda: METHOD.step(KEY, STATE, PAIR), "step: expected a Batch .* got tuple"),
    (lambda: METHOD.end_task(KEY, STATE, STREAM), "end_task: .* got Stream"),
    (lambda: mlp(64), r"mlp: sizes must be .* ints above 0, got 64; \(784"),
    (lambda: mlp(("64", 10)), r"mlp: sizes must be .* got \('64', 10\); "),
    (lambda: MODEL.init(0), r"model: key must be one JAX key, got .*int32"),
    (lambda: mlp((3, 2), activation="relu"), "a function, got 'relu'"),
    (
        lambda: mlp((3, 2), init="torch"),
        "mlp: init must be a function, got 'torch'; su",
    ),
    (lambda: mlp((3, 2), gain=np.nan), "mlp: gain must be a finite number .* got nan"),
    (lambda: mlp((3, 2), out_gain=-1.0), "mlp: out_gain .* at least 0, got -1.0"),
    (
        lambda: from_flax(None),
        r"module must be a function \(rngs\) .* got None; give",
    ),
    # training
    (lambda: walk(method=STREAM, stream=METHOD), "method must .* Method, got Stream"),
    (lambda: walk(num_steps=0), "run_stream: num_steps must be an int of at least 1"),
    (lambda: walk(key=7), "run_stream: key must be one JAX key, got 7; make it by"),
    (lambda: walk(stream=IMAGES), "run_stream: stream must .* Stream, got Images"),
    (lambda: walk(state=PARAMS), "state must be of type MethodState, got dict"),
    (lambda: walk(tasks=[0, 3]), r"has tasks 0 to 2, got \[0, 3\]; list some"),
    (lambda: training.first_example([STREAM]), "first_example: .* got list"),
    (lambda: training.accuracy_row(STREAM, OUTPUTS), "accuracy_row: .* got function"),
    (lambda: training.steps_for(8.0, batch_size=2), "num_rows must be an int"),
    (lambda: training.make_mesh(fsdp=0), "make_mesh: fsdp must be an int .* got 0"),
    (lambda: training.make_mesh(data="1"), "make_mesh: data must be an int .* got '1'"),
    (lambda: training.make_mesh(tensor=None), "make_mesh: tensor must .* got None"),
    (lambda: learn(build=METHOD), r"function of \(frozen\), got Method"),
    (lambda: learn(build=lambda: METHOD), r"\(frozen\), got one of \(\)"),
    (
        lambda: learn(build=lambda _: LOSS),
        "Method, got function; let build return",
    ),
    (lambda: learn(params={"w": 1.0}), "tree of float arrays, got 1.0; give"),
    (lambda: learn(params={"w": Y}), r"tree of float arrays, got \[0 1 0 1\]; give"),
    (
        lambda: learn(params=None),
        "params must be a tree of float arrays, got None; give",
    ),
    (
        lambda: learn(tasks=[data.Task("a", BATCH, BATCH)]),
        "train must be of type Dataset, got Batch; .* array_dataset",
    ),
    (lambda: learn(tasks=iter(TASKS)), "tasks must be a list of tasks, got list_iter"),
    (lambda: learn(tasks=TASKS[0]), "tasks must be a list of tasks, got Task; make"),
    (lambda: learn(tasks=STREAM), "of type Task, got Pool; .* stream_tasks"),
    (lambda: learn(options={"num_steps": 2}), "options must be of type Options, got {"),
    (lambda: learn(folder=3), "learn: folder must be a path, got 3; give"),
    (lambda: learn(metadata=[1]), r"metadata must .* got \[1\]; give a dict of finite"),
    (
        lambda: learn(metadata="hi"),
        "learn: metadata must .* got 'hi'; give a dict of finite",
    ),
    (lambda: learn(metadata={"a": X}), "learn: metadata must be a dict of .* not JSON"),
    (lambda: placed(mesh=replicate), "learn: mesh must be of type Mesh, got function"),
    (
        lambda: placed(None),
        r"rule must be a function of \(path, shape, mesh\), got None",
    ),
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
    (lambda: scored(lambda x: (x, x)), "rows must return a JAX array .* got tuple"),
    (lambda: scored(lambda x: [x]), r"rows must return a JAX array .* got \["),
    (lambda: scored(lambda x: None), r"rows must return a JAX array .* got None"),
    (lambda: scored(lambda x: np.ones(x.shape)), "rows must .* for 'odd'; return"),
    (
        lambda: scored(lambda x: x + 1j),
        r"a real number .* \[256, ...\], got complex64\[256",
    ),
    (lambda: checkpoint.save("nowhere", 1, PARAMS, metadata={"a": X}), "not JSON"),
    (
        lambda: checkpoint.saving("x", metadata={"a": X}).__enter__(),
        "metadata must be a dict",
    ),
    (lambda: checkpoint.save("nowhere", 1.0, PARAMS), "step must be an int .* got 1.0"),
    (lambda: checkpoint.save("nowhere", 1, {"a": "b"}), r"\['a'\] must be an array"),
    # reports
    (lambda: records.check("results.jsonl"), "record must be of type dict, got 'r'"),
]


@pytest.mark.parametrize(
    ("call", "words"), REFUSED, ids=[words for _, words in REFUSED]
)
def test_the_wrong_object_is_named_in_one_line(call, words, tmp_path, monkeypatch):
    """Oracle: the message says who, what was expected and what came; nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


MATRIX, HALVES = [[1, 0, 0], [1, 1, 0], [0, 1, 1]], [0.5, 0.25, 1.0]
BOTH = [
    (lambda x, y: as_batch(x, y, weight=y), (np.ones((4, 3)), Y)),
    (lambda y: data.as_images(X, y, list(X), y)[:4], (Y,)),
    (metrics.average_incremental_accuracy, (np.array(MATRIX, float),)),
    (metrics.forward_transfer, (np.array(MATRIX, float), np.array(HALVES))),
    (metrics.learning_curve_area, (np.array(MATRIX, float),)),
    (statistics.slopes, (np.array([HALVES]),)),
    (statistics.tail_means, (np.array([HALVES]),)),
    (statistics.paired, (np.array(HALVES), np.zeros(3))),
]


@pytest.mark.parametrize(("call", "arrays"), BOTH)
def test_lists_of_numbers_do_what_arrays_do(call, arrays):
    """Oracle: the same call with arrays."""
    lists = [array.tolist() for array in arrays]
    assert isinstance(lists[0], list)
    jax.tree.map(np.testing.assert_array_equal, call(*lists), call(*arrays))


def test_shares_in_integers_are_not_cut_to_zero():
    """Oracle: by hand; in integers every share of the sum would be zero."""
    for matrix in (MATRIX, np.array(MATRIX), jnp.array(MATRIX)):
        found = metrics.average_incremental_accuracy(matrix)
        np.testing.assert_allclose(found, (1 + 1 + 2 / 3) / 3, rtol=1e-6)
