"""Wrong calls of the parts of a method, and of a method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import memory, methods, plasticity, regularizers, transforms
from jaxcl.averages import ema, interpolate, wise_ft
from jaxcl.curvature import (
    batched_fisher,
    empirical_fisher,
    exact_fisher,
    sam_sharpness,
    sampled_fisher,
    top_eigenvalue,
)
from jaxcl.curvature.per_example import read_program
from jaxcl.interleave import interleave
from jaxcl.learners import nearest_mean
from jaxcl.memory import episodic, reservoir
from jaxcl.memory.kmeans import kmeans
from jaxcl.method import make_method
from jaxcl.models import mlp
from jaxcl.tree import as_batch, at
from jaxcl.typing import Memory, Regularizer
from tests.steps import seen
from tests.test_misuse.table import (
    BATCH,
    KEY,
    LOSS,
    METHOD,
    MODEL,
    NAN,
    OUTPUTS,
    PAIR,
    PARAMS,
    SGD,
    STATE,
    STREAM,
    assert_refused,
    loss_of,
    refused,
)

RANKS = jax.tree.map(lambda leaf: leaf.ndim > 1, PARAMS)
PARTS = {True: transforms.sam(0.1), False: optax.identity()}
SCHEDULE_FREE = optax.contrib.schedule_free_sgd(0.1)
FISHER = empirical_fisher(LOSS)
MIXED = as_batch({"a": np.ones((2, 1), np.float32), "b": np.arange(2)}, np.arange(2))
TARGETS = MIXED._replace(y=MIXED.x["a"])
BALANCED = (memory.greedy_balanced, memory.class_balanced_reservoir)


def max_loss(params, example, key):
    """A loss of one example, which per_example has not lifted."""
    del key
    return jnp.max(MODEL.apply(params, example.x[None]))


def tokens(params, batch):
    """Logits with an axis too many."""
    return OUTPUTS(params, batch)[:, None]


def measured(model=MODEL, params=PARAMS, **changes):
    place = (model.hidden, params, params, BATCH)
    return plasticity.measure(KEY, LOSS, *place, **changes)


def stepped(gradient=None, **parts):
    method = make_method(LOSS, SGD, gradient=gradient, **parts)
    return method.step(KEY, method.init(PARAMS, BATCH), BATCH)


def observed(x):
    """A reservoir that was made for ``MIXED`` and gets rows with other inputs."""
    store = reservoir(4, 2)
    return store.observe(KEY, store.init((), MIXED), seen(MIXED._replace(x=x)), ())


def ended(data, **options):
    """An episodic memory that was made for ``BATCH`` and gets another task."""
    store = episodic(2, 2, **options)
    return store.end_task(KEY, store.init((), BATCH), (), data)


def balanced_rows(labels):
    task = as_batch(np.ones((4, 1), np.float32), labels)
    return memory.class_balanced_examples(KEY, (), task, 2)


def backprop(units=MODEL.units, **options):
    return plasticity.continual_backprop(MODEL.hidden, units, MODEL.init, **options)


def redo(units=MODEL.units, **options):
    return plasticity.redo(MODEL.hidden, units, MODEL.init, **options)


def shrunk(shrink=0.9, sigma=0.1, **options):
    return plasticity.shrink_and_perturb(shrink, sigma, MODEL.init, **options)


REFUSED = [
    # what a method is made of, and a method
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
    *[
        (
            lambda part=part: make_method(LOSS, SGD, gradient=part),
            "gradient must .* got a transformation that reverses it, .* as optimizer",
        )
        for part in (SGD, optax.chain(transforms.sam(0.1), optax.adam(0.1)))
    ],
    *[
        (
            lambda part=part: make_method(LOSS, part),
            "optimizer must .* got a gradient transformation, .* uphill; give it as",
        )
        for part in (
            transforms.sam(0.1),
            transforms.agem(),
            transforms.gnp(0.1, alpha=0.5),
        )
    ],
    (lambda: make_method(LOSS, SGD, regularizer=[]), "Regularizer, .* sum_of"),
    (lambda: make_method(LOSS, SGD, memory=ema(0.9)), "memory must .* got Average"),
    (
        lambda: make_method(LOSS, optax.contrib.sam(SGD, SGD)).init(PARAMS, BATCH),
        "leave the parameters where they are evaluated, .* opaque_mode=True",
    ),
    *[
        (
            lambda part=part: make_method(LOSS, SCHEDULE_FREE, **part).init(
                PARAMS, BATCH
            ),
            f"a schedule-free optimizer takes no {words}",
        )
        for words, part in (
            ("average, it has its own; leave it out", {"average": wise_ft(0.5)}),
            (
                r"projection \(box\), which would hold",
                {"regularizer": regularizers.box(0.1)},
            ),
        )
    ],
    *[
        (
            lambda field=field, part=part: make_method(LOSS, SGD, **{part: field}),
            rf"{words}, got",
        )
        for part, field, words in (
            ("regularizer", Regularizer(penalty=3.0), r"penalty must .* context\)"),
            (
                "regularizer",
                Regularizer(project=lambda p: p),
                r"project must .* params\)",
            ),
            (
                "memory",
                Memory(lambda p, e: (), lambda k: ()),
                r"sample .* \(key, state\)",
            ),
            ("metrics", [len], "metrics must be of type Mapping"),
            ("metrics", {"a": "b"}, r"metrics\['a'\] must .* step\)"),
            ("reset_optimizer", "no", "reset_optimizer must be of type bool"),
        )
    ],
    (
        lambda: stepped(
            regularizer=Regularizer(penalty=lambda s, p, c: p["out"]["bias"])
        ),
        r"penalty of regularizer must be one float, .* float32\[2\]; sum",
    ),
    (
        lambda: make_method(LOSS, SGD, metrics={"task": lambda state, step: 0.0}),
        "metrics has 'task', which steps report anyway",
    ),
    (
        lambda: methods.agem(LOSS, SGD, num_tasks=2, memory=reservoir(4, 2)),
        "agem: num_tasks are of its own memory, got memory= as well",
    ),
    (lambda: stepped(transforms.agem()), "uses replay_grad_fn, .* got no memory; give"),
    (
        lambda: stepped(
            memory=reservoir(4, 2), replay_weight=lambda batch, *_: batch.weight
        ),
        r"replay_weight must return one number, shape \[\], got \[4\]; sum",
    ),
    (lambda: METHOD.init(MODEL, BATCH), "init: params must be a tree of real arrays"),
    (lambda: METHOD.init(PARAMS, STREAM), "init: expected a Batch .* got Stream"),
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
    # averages and learners
    *[
        (
            lambda make=make, share=share: make(share),
            rf"^{make.__name__}: \w+ must be a number in \[0, 1\], got {share}",
        )
        for make in (ema, interpolate, wise_ft)
        for share in (-0.1, 1.5, NAN)
    ],
    (lambda: nearest_mean(MODEL.hidden, 2)(STATE), "kept_rows: .* memory=reservoir"),
    (lambda: interleave(METHOD, METHOD, every=2), "memory must be of type Memory"),
    (
        lambda: interleave(LOSS, episodic(1, 1), every=2),
        "interleave: method must be of type Method",
    ),
    (
        lambda: interleave(METHOD, episodic(1, 1), every=0),
        "interleave: every must be",
    ),
    # curvature
    (lambda: empirical_fisher(LOSS, chunk_size=0), "chunk_size must be at least 1"),
    (lambda: exact_fisher(OUTPUTS, num_examples=0), "num_examples must be at least 1"),
    (lambda: sampled_fisher(OUTPUTS, num_draws=0), "num_draws must be at least 1"),
    (lambda: batched_fisher(LOSS, batch_size=-1), "batch_size must be at least 1"),
    *[
        (
            lambda build=build: build(tokens)(KEY, PARAMS, BATCH),
            rf"{build.__name__}: .*logits \[b, c\], got \(1, 1, 2\) for one row",
        )
        for build in (exact_fisher, sampled_fisher)
    ],
    (
        lambda: read_program(lambda p, x: (p @ x, p), jnp.ones(3), jnp.ones((2, 3))),
        "read_program: function must return",
    ),
    (
        lambda: top_eigenvalue(KEY, jnp.sum, jnp.ones(2), num_steps=0),
        "top_eigenvalue: num_steps must be at least 1, got 0",
    ),
    # memories
    *[
        (
            lambda build=build: build(4, 2, num_classes=3).init((), TARGETS),
            f"^{build.__name__}: labels must be int32",
        )
        for build in BALANCED
    ],
    *[
        (
            lambda build=build: build(4, 2, num_classes=0),
            f"^{build.__name__}: num_classes must be an int of at least 1",
        )
        for build in BALANCED
    ],
    *[
        (
            lambda sizes=sizes: episodic(*sizes),
            "episodic: .* must be an int of at least 1",
        )
        for sizes in ((0, 1), (1, -1), (1, 1, 0), (1.0, 1))
    ],
    (
        lambda: ended(BATCH._replace(x=jnp.ones((4, 5)))),
        "episodic: rows must be like the example",
    ),
    (
        lambda: ended(BATCH, select=lambda *args: args[2].x),
        "select must return one priority per row",
    ),
    (
        lambda: memory.kmeans_examples(lambda _, x: x, num_iterations=0),
        "kmeans_examples: num_iterations must be an int of",
    ),
    (
        lambda: kmeans(KEY, jnp.ones((3, 1)), jnp.ones(3), 2.0),
        "kmeans: num_clusters must be an int",
    ),
    *[
        (
            lambda sizes=sizes: reservoir(*sizes),
            "reservoir: .* must be an int of at least 1",
        )
        for sizes in ((0, 1), (1, 0), (2.5, 1), (1, None))
    ],
    *[
        (lambda x=x: observed(x), "reservoir: rows must be like the example")
        for x in (
            MIXED.x["a"],
            MIXED.x | {"a": jnp.ones((2, 3))},
            MIXED.x | {"b": jnp.ones(2)},
        )
    ],
    *[
        (
            lambda labels=labels: balanced_rows(labels),
            r"labels must be integers of shape \[n\], got",
        )
        for labels in (np.ones(4, np.float32), np.ones((4, 2), int))
    ],
    (
        lambda: balanced_rows((np.ones(4, int), np.ones(4, int))),
        r"got int32\(4,\), int32\(4,\)",
    ),
    # plasticity
    (lambda: backprop(()), "continual_backprop: units must"),
    (lambda: backprop(rate=2.0), "continual_backprop: rate must"),
    (lambda: backprop(decay=-0.1), "continual_backprop: decay must"),
    (lambda: backprop(maturity=-1), "continual_backprop: maturity must"),
    (lambda: redo(()), "redo: units must"),
    (lambda: redo(period=0), "redo: period must"),
    (lambda: redo(threshold=-0.1), "redo: threshold must"),
    (lambda: shrunk(shrink=1.1), "shrink_and_perturb: shrink must"),
    (lambda: shrunk(sigma=-1.0), "shrink_and_perturb: sigma must"),
    (lambda: shrunk(period=0), "shrink_and_perturb: period must"),
    (
        lambda: measured(mlp((3, 2)), mlp((3, 2)).init(KEY)),
        "measure: hidden must return at least one",
    ),
    # regularizers
    (lambda: regularizers.l2(-0.1), "l2: strength must be a finite"),
    (lambda: regularizers.l2_init(-0.1), "l2_init: strength must be a finite"),
    (
        lambda: regularizers.feature_distillation(MODEL.hidden, -1),
        "feature_distillation: strength must be a finite number",
    ),
    (
        lambda: regularizers.boxed(regularizers.l2(1.0), -0.1),
        "box: radius must be a number .*, got -",
    ),
    (
        lambda: regularizers.distill(OUTPUTS, 1.0, temperature=0.0),
        "distill: temperature must be .* above 0",
    ),
    (
        lambda: regularizers.ewc(FISHER, -1.0),
        "ewc: strength must be a finite number .*, got -1.0",
    ),
    (
        lambda: regularizers.ewc(FISHER, NAN),
        "ewc: strength must be a finite number .*, got nan",
    ),
    (
        lambda: regularizers.ewc(FISHER, 1.0, decay=1.5),
        r"ewc: decay must be a number in \[0, 1\]",
    ),
    (
        lambda: regularizers.ewc(FISHER, 1.0, decay=0.5, running_mean=True),
        "ewc: running_mean takes no decay, got 0.5; leave",
    ),
    (
        lambda: regularizers.synaptic_intelligence(-1.0),
        "synaptic_intelligence: strength must be",
    ),
    (
        lambda: regularizers.synaptic_intelligence(1.0, damping=0.0),
        "synaptic_intelligence: damping must be",
    ),
    (
        lambda: regularizers.riemannian_walk(-1.0),
        "riemannian_walk: strength must be",
    ),
    *[
        (
            lambda option=option: regularizers.riemannian_walk(1.0, **option),
            f"riemannian_walk: {next(iter(option))} must be",
        )
        for option in ({"fisher_decay": 1.5}, {"interval": 0}, {"damping": 0.0})
    ],
]


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
