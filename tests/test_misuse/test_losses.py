"""Wrong calls of batches, losses, metrics and models."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxcl import curvature, losses, metrics, regularizers
from jaxcl.adapters import add_lora, partition
from jaxcl.data import array_dataset
from jaxcl.models import (
    DecoderConfig,
    Rope,
    cast_compute,
    decoder,
    from_flax,
    init_like_torch,
    mlp,
)
from jaxcl.models.resnet import resnet
from jaxcl.tree import as_batch, at
from tests.steps import context
from tests.test_misuse.table import (
    BATCH,
    KEY,
    LOSS,
    MODEL,
    OUTPUTS,
    PAIR,
    PARAMS,
    ROW,
    Y,
    assert_raises,
    assert_refused,
    loss_of,
    refused,
)

QUESTIONS = BATCH._replace(
    x=jnp.ones((4, 2, 3)), y={"labels": jnp.zeros((4, 2, 1), int)}
)
COLUMN = BATCH._replace(y=BATCH.y[:, None])
TOKENS = jnp.zeros((2, 7), jnp.int32)
SMALL = DecoderConfig(
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
)
NORM = "replace running statistics .BatchNorm. by GroupNorm or LayerNorm"
THIRDS = np.array([[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.7, 0.4, 0.6]])


def tagged(metric):
    """The entities of a set of rows."""
    return metric.of_data(KEY, PARAMS, (), array_dataset(BATCH))


def kept(regularizer):
    """The penalty of a step in the second task."""
    state = regularizer.end_task(KEY, regularizer.init(PARAMS, BATCH), PARAMS, BATCH)
    return regularizer.penalty(state, PARAMS, context(BATCH, BATCH, PARAMS))


def six(params, x, keys=None):
    """A network with six outputs."""
    del params, keys
    return jnp.zeros((x.shape[0], 6))


#: Networks of others, which get a batch in place of inputs; ``@`` is the reader's own.
FOREIGN = [
    lambda params, x, keys=None: linen.Dense(2).apply(linen.Dense(2).init(KEY, x), x),
    lambda params, x, keys=None: x @ jnp.ones((3, 2)),
]
WRAP = r"got one that fails on a batch \(.*; wrap a network: losses.single_head\(model"


def column_loss(*place):
    """A vector for each example."""
    return LOSS(*place)[:, None]


def evaluated(values, *finish):
    row_metric = metrics.RowMetric(lambda *_: values, *finish)
    return metrics.evaluate([row_metric], (), BATCH)


def vector(means):
    """A mean for each class."""
    return {"f1": means["hits"]}


def errors(*entries, **rows):
    return metrics.summary(entries, lower_is_better=True, **rows)


class Net(nnx.Module):
    """A layer, and the parts that are given."""

    def __init__(self, rngs, **parts):
        self.last = nnx.Linear(3, 2, rngs=rngs)
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x):
        return self.last(x)


class Statistics(linen.Module):
    """Running statistics in linen."""

    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=True)(linen.Dense(2)(x))


def bare(module, *x):
    """A model without ``hidden``, asked for it."""
    model = from_flax(module, *x)
    return model.hidden(model.init(KEY), BATCH.x)


def other_leaves(model, change):
    """A model's outputs from parameters that a change gave other leaves."""
    return model.apply(change(model.init(KEY)), BATCH.x)


def traced(model, x, name="apply"):
    """Call a function of a model on inputs, without computing anything."""
    params = jax.eval_shape(model.init, KEY)
    return jax.eval_shape(getattr(model, name), params, x)


REFUSED = [
    # batches
    (lambda: as_batch(1.0, 2), r"as_batch: expected a Batch .* shapes \[\(\), \(\)"),
    (lambda: as_batch(BATCH.x, Y, weight=np.ones((4, 1))), r"weight \[n\].*\(4, 1\)"),
    (lambda: as_batch(BATCH.x, Y, task=[0] * 4), r"task must be an int .* got \[0 0"),
    (lambda: as_batch(BATCH.x, Y, task=-1), "as_batch: task .* at least 0, .* got -1"),
    (
        lambda: as_batch(BATCH.x, Y, task=1.5),
        "as_batch: task must be an int .* got 1.5",
    ),
    (lambda: as_batch(BATCH.x, Y, weight=[1, 1, -1, 1]), "smallest weight .* got -1.0"),
    (lambda: as_batch(BATCH.x, Y, weight=[1, np.nan, 1, 1]), "weight .* got nan"),
    (  # known, though a part of a traced function
        lambda: jax.jit(lambda x: as_batch(x, Y, weight=[1, 1, -1, 1]).x)(BATCH.x),
        "smallest weight .* got -1.0",
    ),
    (
        lambda: as_batch(BATCH.x, np.full(4, 2**40)),
        "labels must fit in int32, got 1099",
    ),
    (
        lambda: as_batch(BATCH.x, np.full(4, -(2**31) - 1)),
        "labels must .* got -21474836",
    ),
    (lambda: as_batch(BATCH.x, Y, weight=[1, np.inf, 1, 1]), "largest .* got inf"),
    # losses
    (
        lambda: loss_of(PAIR),
        "example_losses: expected a Batch .* got tuple .*; make one",
    ),
    (lambda: loss_of(ROW), r"example_losses: .* got Batch of shapes \[\(3,\), \(\)"),
    (lambda: loss_of(BATCH._replace(y=BATCH.weight)), r"integers .* got float32\[4\]"),
    (lambda: loss_of(BATCH._replace(y=jnp.eye(4, dtype=int))), r"got int32\[4, 4\]"),
    (lambda: loss_of(BATCH, OUTPUTS), r"one number per example, .*\[4\], got \[4, 2\]"),
    (
        lambda: losses.past_heads(MODEL.apply, 3)(PARAMS, BATCH),
        "past_heads: the network must have outputs .* a multiple of 3, got 2",
    ),
    (
        lambda: loss_of(BATCH, losses.squared_error(OUTPUTS)),
        r"loss: targets y must have the shape of the outputs, \(4, 2\), got \(4,\)",
    ),
    *[
        (
            lambda rows=rows: loss_of(rows, losses.dark_experience_loss(OUTPUTS, 1.0)),
            r"loss: stored outputs .* must have the shape .* \(4, 2\), got (none|\(4, 1)",
        )
        for rows in (BATCH, BATCH._replace(stored=np.ones((4, 1), np.float32)))
    ],
    (
        lambda: losses.dark_experience_loss(OUTPUTS, 1.0)(
            PARAMS,
            BATCH._replace(
                stored=losses.largest_logits(OUTPUTS, 1)(PARAMS, at(slice(2), BATCH))
            ),
            None,
        ),
        r"loss: stored logits must be of \[4\] tokens, got \[2\]; give both",
    ),
    (
        lambda: losses.largest_logits(OUTPUTS, 0),
        "largest_logits: k must be an int of at least 1, .* got 0",
    ),
    (
        lambda: losses.largest_logits(OUTPUTS, 3)(PARAMS, BATCH),
        "largest_logits: k must be at most the number of logits, 2, got 3; lower it",
    ),
    (
        lambda: losses.largest_logits(OUTPUTS, 1)(PARAMS, COLUMN),
        "largest_logits: labels must be integers",
    ),
    (
        lambda: losses.heads(six, 4)(PARAMS, BATCH),
        "heads: the network must have outputs for all heads, a multiple of 4, got 6",
    ),
    *[
        (
            lambda build=build, sizes=sizes: build(six, sizes)(PARAMS, BATCH),
            f"^{build.__name__}: the network must .* {sum(sizes)} as sizes say, got 6",
        )
        for build in (losses.heads, losses.past_heads)
        for sizes in ([3, 2], [3, 3, 3], [])
    ],
    *[
        (
            lambda build=build, sizes=sizes: build(six, sizes),
            rf"^{build.__name__}: sizes\[{place}\] must be an int of at least 1",
        )
        for build in (losses.heads, losses.past_heads)
        for place, sizes in (
            *((0, 0), (1, [2, 0]), (1, (1, -1)), (0, "2"), (0, 2.0), (1, [2, True])),
        )
    ],
    *[
        (
            lambda allowed=allowed: losses.class_mask(OUTPUTS, allowed)(PARAMS, BATCH),
            r"class_mask: allowed must have a column for each output, \[tasks, 2\], got",
        )
        for allowed in (np.ones(2, bool), np.ones((1, 1), bool), np.ones((3, 3), bool))
    ],
    (
        lambda: losses.accuracy(OUTPUTS, PARAMS, COLUMN),
        r"accuracy: labels must be integers \[n\]",
    ),
    (lambda: loss_of(COLUMN), "cross_entropy: labels must be integers"),
    (
        lambda: loss_of(BATCH, lambda *place: LOSS(*place).mean()),
        r"number per example, shape \[4\], got \[\]",
    ),
    (
        lambda: loss_of(BATCH, column_loss),
        r"number per example, shape \[4\], got \[4, 1\]",
    ),
    (
        lambda: losses.of_one(column_loss)(PARAMS, ROW, KEY),
        r"per example, shape \[1\], got \[1, 1\]",
    ),
    *[
        (lambda given=given, build=build: build(given), f"^outputs: .*{WRAP}")
        for given in (MODEL, MODEL.apply, *FOREIGN)
        for build in (
            lambda f: loss_of(BATCH, losses.cross_entropy(f)),
            lambda f: loss_of(BATCH, losses.squared_error(f)),
            lambda f: loss_of(BATCH, losses.token_cross_entropy(f)),
            lambda f: loss_of(BATCH, losses.dark_experience_loss(f, 1.0)),
            lambda f: losses.largest_logits(f, 1)(PARAMS, BATCH),
            lambda f: losses.accuracy(f, PARAMS, BATCH),
            lambda f: losses.token_accuracy(f)(PARAMS, BATCH),
            lambda f: metrics.evaluate(metrics.classification(f), PARAMS, BATCH),
            lambda f: metrics.evaluate(metrics.macro_f1(f, 2), PARAMS, BATCH),
            lambda f: metrics.evaluate(metrics.regression(f), PARAMS, BATCH),
            lambda f: metrics.evaluate(metrics.tokens(f), PARAMS, BATCH),
            lambda f: metrics.evaluate(metrics.choices(f), PARAMS, QUESTIONS),
            lambda f: tagged(metrics.entity_f1(f, ("O", "B-A"))),
            lambda f: curvature.exact_fisher(f)(KEY, PARAMS, BATCH),
            lambda f: curvature.sampled_fisher(f)(KEY, PARAMS, BATCH),
            lambda f: curvature.output_sensitivity(f)(KEY, PARAMS, BATCH),
            lambda f: kept(regularizers.distill(f, 1.0)),
        )
    ],
    *[
        (lambda build=build: loss_of(BATCH, losses.cross_entropy(build(MODEL))), WRAP)
        for build in (losses.single_head, lambda m: losses.heads(m, 2))
    ],
    # metrics
    (
        lambda: evaluated({"a": jnp.zeros(())}),
        r"rows must return real numbers per example, got float32\[\] for 'a'",
    ),
    (
        lambda: evaluated({"hits": jnp.zeros((4, 3))}, vector),
        r"finish must return one number per name, got shape \[3\] for 'f1'; reduce it",
    ),
    *[
        (
            lambda value=value: errors([value, 1.0], [1.0, 1.0]),
            f"matrix must be finite errors or NaN, .* got {value}",
        )
        for value in (np.inf, -np.inf)
    ],
    *[
        (
            lambda value=value: errors([1.0, 1.0], [1.0, 1.0], joint=[1.0, value]),
            f"the joint row must be finite errors or NaN, .* got {value}",
        )
        for value in (np.inf, -np.inf)
    ],
    *[
        (lambda matrix=matrix: metrics.summary(matrix), words)
        for matrix, words in (
            (np.ones((2, 3)), r"\[..., T, T\] of 1 or more tasks, got \(2, 3\)"),
            (np.ones(3), r"\[T, T\] \(of one seed\), got shape \(3,\)"),
            (np.ones((5, 2, 2)), r"\[T, T\] \(of one seed\), got shape \(5, 2, 2\)"),
            (np.ones((0, 0)), r"of 1 or more tasks, got \(0, 0\)"),
            (
                THIRDS * 100,
                r"fractions in \[0, 1\], .* got 90; divide .* lower_is_better=True",
            ),
            (THIRDS - 0.5, r"fractions in \[0, 1\], .* got -0.3"),
            (np.full((2, 2), np.inf), r"fractions in \[0, 1\], .* got inf"),
        )
    ],
    *[
        (
            lambda name=name, row=row: metrics.summary(THIRDS, **{name: row}),
            words.format(name),
        )
        for name in ("untrained", "joint")
        for row, words in (
            ([0.1, 0.2], "{} must have 3 accuracies, one a task, got"),
            ([0.1, 0.2, 3.0], "the {} row must be fractions .* got 3"),
            (THIRDS, r"{} row must be .* \[T\], got shape \(3, 3\)"),
        )
    ],
    # models
    *[
        (lambda build=build: from_flax(build), words)
        for build, words in (
            (
                lambda rngs: Net(rngs, norm=nnx.BatchNorm(4, rngs=rngs)),
                rf"norm.mean \(BatchStat\), norm.var \(BatchStat\); {NORM}",
            ),
            (Net(nnx.Rngs(0), norm=nnx.BatchNorm(4, rngs=nnx.Rngs(0))), NORM),
            (lambda rngs: Net(rngs, scale=jnp.ones(2)), r"got scale \(float32\[2\]\);"),
            (
                lambda rngs: Net(rngs, k=nnx.data(jnp.ones(3))),
                r"got k \(float32\[3\]\);",
            ),
            (
                lambda rngs: Net(rngs, v=nnx.Variable(jnp.ones(3))),
                r"got v \(Variable\)",
            ),
            (linen.Dense, "got the class Dense; make an instance of it"),
            (
                linen.Dense(2),
                r"linen module needs inputs; give from_flax\(module, x",
            ),
        )
    ],
    (
        lambda: from_flax(Statistics(), BATCH.x),
        f"expected params only, got batch_stats; {NORM}",
    ),
    *[
        (lambda model=model, change=change: other_leaves(model, change), words)
        for model in (
            from_flax(Net),
            from_flax(linen.Sequential([linen.Dense(2)]), BATCH.x),
        )
        for change, words in (
            (
                lambda params: add_lora(KEY, params, rank=1, targets=".*"),
                "^from_flax: params must have the leaves of the module, got .*lora_a, "
                ".*lora_scale besides; apply_lora",
            ),
            (
                lambda params: partition(params, ".*kernel")[0],
                "got no .*bias; combine the trained and the frozen part",
            ),
        )
    ],
    (lambda: bare(Net), "no hidden activations; give them as from"),
    (lambda: bare(linen.Dense(2), BATCH.x), "no hidden activations; give them as from"),
    (lambda: mlp(("64", 10)), r"mlp: sizes\[0\] must be .* got '64'"),
    (lambda: MODEL.init(0), r"model: key must be one JAX key, got .*int32"),
    (
        lambda: mlp((3, 2), init=init_like_torch, gain=1.0),
        "mlp: expected either init or gains, got both",
    ),
    (
        lambda: cast_compute(jnp.int8, MODEL.apply),
        "cast_compute: dtype must be floating, got .*int8",
    ),
    (lambda: mlp((3, 2), gain=np.nan), "mlp: gain must be a finite number .* got nan"),
    (lambda: mlp((3, 2), out_gain=-1.0), "mlp: out_gain .* at least 0, got -1.0"),
    *[
        (lambda sizes=sizes: mlp(sizes), f"mlp: {words}")
        for sizes, words in (
            ((784,), "len_sizes must be an int of at least 2, .* got 1"),
            ((), "len_sizes must be an int of at least 2, .* got 0"),
            ((4, 0, 2), r"sizes\[1\] must be an int of at least 1, .* got 0"),
        )
    ],
    *[
        (
            lambda activation=activation: mlp((4, 3, 2), activation=activation),
            r"mlp: activation must map \[b, d\] to \[b, k \* d\], got \(",
        )
        for activation in (
            lambda x: jax.nn.relu(x)[..., :-1],
            lambda x: jax.nn.relu(x)[:-1],
            lambda x: jnp.concatenate([x, -x]),  # along the rows
            lambda x: x.sum(axis=-1),
        )
    ],
    *[
        (lambda options=options: resnet(10, **options), f"resnet: .*{words}")
        for options, words in (
            ({"width": 6, "groups": 4}, "groups must divide width"),
            ({"width": 0}, "width"),
            ({"blocks": ()}, "blocks"),
            ({"blocks": (1, 0)}, "blocks"),
            ({"stem_stride": 0}, "stem_stride"),
        )
    ],
    *[
        (
            lambda shape=shape: traced(
                resnet(2, width=4, blocks=(1,), groups=2), jnp.zeros(shape)
            ),
            r"resnet: x must be \[b, height",
        )
        for shape in ((8, 8, 3), (2, 8, 8, 1), (2, 8, 8))
    ],
    *[
        (lambda change=change: decoder(SMALL._replace(**change)), f"decoder: .*{words}")
        for change, words in (
            ({"num_key_value_heads": 3}, "key heads must divide query heads"),
            ({"hidden_size": 18}, "these hidden_size, .* got 2, 4, 18"),
            ({"hidden_size": 12, "num_key_value_heads": 4}, "head be even, .* of 3"),
            ({"head_dim": 3}, "each head be even, got .* of 3"),
            ({"vocab_size": 0}, "vocab_size must be an int of at least 1"),
            ({"num_hidden_layers": 2.0}, "num_hidden_layers must be an int"),
            ({"rope": Rope(0.0)}, "rope_theta must be a finite number of at least 1"),
            ({"rope": Rope(kind="yarn")}, "default, linear, llama3, got 'yarn'"),
            ({"sliding_window": 0}, "sliding_window must be an int of at least 1"),
            ({"rms_norm_eps": -1.0}, "rms_norm_eps must be"),
        )
    ],
    *[
        (
            lambda x=x, name=name: traced(decoder(SMALL), x, name),
            f"decoder: x must {words}",
        )
        for x, words in (
            (
                jnp.zeros(7, jnp.int32),
                r"hold integers \[b, n\].* got tokens int32\[7\]",
            ),
            (jnp.zeros((2, 7)), r"hold integers .* got tokens float32\[2, 7\]"),
            (
                {"input_ids": TOKENS},
                "be tokens or a dict of tokens, mask, segments, got",
            ),
            (
                {"tokens": TOKENS, "attention_mask": TOKENS},
                "be tokens or a dict .* got",
            ),
        )
        for name in ("apply", "hidden")
    ],
]


# What Python, JAX and Flax refuse themselves.
LEFT_TO_OTHERS = [
    (lambda: losses.per_example(MODEL), "Expected a callable value, got Model"),
    (lambda: metrics.summary([[1.0], [0.5, 1.0]]), "inhomogeneous shape"),
    (lambda: metrics.summary([["a"]]), "could not convert string to float: .*a"),
    (lambda: evaluated({"a": [1.0] * 4}), "'list' object has no attribute 'shape'"),
    (lambda: evaluated(jnp.zeros(4)), "object has no attribute 'items'"),
    (
        lambda: metrics.evaluate(metrics.TaskMetric(("a",), dict), (), BATCH),
        "'TaskMetric' object has no attribute 'rows'",
    ),
    (lambda: from_flax(lambda rngs: nnx.relu), "not a valid JAX type"),
    (lambda: from_flax(None), "'NoneType' object is not callable"),
    (lambda: mlp(64), "'int' object is not iterable"),
    (lambda: mlp((3, 2), activation="relu"), "Expected a callable value, got relu"),
    (lambda: mlp((3, 2), init="torch").init(KEY), "'str' object is not callable"),
    *[
        (
            lambda shape=shape: traced(mlp((4, 3, 2)), jnp.ones(shape)),
            "cannot reshape array of shape",
        )
        for shape in ((4,), (5, 3), (5, 2, 4), (4, 5))
    ],
]


@refused(LEFT_TO_OTHERS)
def test_the_wrong_call_is_refused_by_another_library(call, words):
    """Oracle: the message, written out."""
    assert_raises(call, words)


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
