"""Wrong calls of the parts of a method, and of a method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import memory, methods, plasticity, regularizers, transforms
from jaxcl.averages import (
    ema,
    ema_of_products,
    interpolate,
    starting_after,
    wise_ft,
)
from jaxcl.curvature import (
    batched_fisher,
    empirical_fisher,
    exact_fisher,
    sam_sharpness,
    sampled_fisher,
    top_eigenvalue,
)
from jaxcl.interleave import interleave
from jaxcl.learners import nearest_mean
from jaxcl.memory import episodic, reservoir
from jaxcl.memory.kmeans import kmeans
from jaxcl.method import make_method
from jaxcl.tree import as_batch, at, norm
from jaxcl.typing import Memory, Regularizer, Reset
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
    assert_raises,
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


def stepped(gradient=None, loss=LOSS, **parts):
    method = make_method(loss, SGD, gradient=gradient, **parts)
    return method.step(KEY, method.init(PARAMS, BATCH), BATCH)


def ended_with(regularizer):
    """The end of a task of a method with this regularizer."""
    method = make_method(LOSS, SGD, regularizer=regularizer)
    return method.end_task(KEY, method.init(PARAMS, BATCH), BATCH)


def observed(x, store=None, rows=MIXED):
    """A memory that was made for rows and gets others, with other inputs."""
    store = store or reservoir(4, 2)
    return store.observe(KEY, store.init((), rows), seen(rows._replace(x=x)), ())


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
    (
        lambda: regularizers.ewc(1.0, empirical_fisher(LOSS)),
        "ewc: strength must be a finite number .* got function",
    ),
    (
        lambda: empirical_fisher(max_loss)(KEY, PARAMS, BATCH),
        r"shape \[1\], got \[\]; lift a loss of one example by per_example",
    ),
    (lambda: empirical_fisher(OUTPUTS)(KEY, PARAMS, BATCH), "one number per example"),
    (
        lambda: batched_fisher(OUTPUTS, batch_size=2)(KEY, PARAMS, BATCH),
        r"one number per example, shape \[2\], got \[2, 2\]",
    ),
    (
        lambda: reservoir(10, sample_size=20),
        r"reservoir: sample_size must be a number in \[1, 10\], got 20",
    ),
    (lambda: plasticity.srank(BATCH.x), r"srank: .*\(4, 3\); give singular_values\("),
    (lambda: plasticity.effective_rank(BATCH.x), "effective_rank: values must be sing"),
    (lambda: plasticity.stable_rank(1.0), r"stable_rank: .* \[k\], got shape \(\)"),
    (lambda: plasticity.srank(jnp.ones(3), delta=-0.1), r"delta .* \[0, 1\], got -0.1"),
    (
        lambda: plasticity.dormant_fraction((), None, -1),
        "dormant_fraction: tau .* got -1",
    ),
    (
        lambda: measured(rho=-0.1),
        "sam_sharpness: rho must be .* got -0.1",
    ),
    (
        lambda: measured(tau=np.nan),
        "dormant_fraction: tau must be .* got nan",
    ),
    (lambda: sam_sharpness(loss_of, PARAMS, "1"), "sam_sharpness: rho .* got '1'"),
    (lambda: METHOD.step(KEY, STATE, at(slice(0), BATCH)), "step: rows .* 1, .* got 0"),
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
            "optimizer must .* got a transformation that goes uphill; give it as",
        )
        for part in (
            transforms.sam(0.1),
            transforms.agem(),
            transforms.gnp(0.1, alpha=0.5),
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(),
            optax.chain(optax.clip(1.0), optax.trace(0.9)),
        )
    ],
    (
        lambda: make_method(LOSS, SGD, regularizer=[]),
        r"Regularizer, .* \[\]; .* sum_of",
    ),
    (lambda: make_method(LOSS, SGD, memory=ema(0.9)), "memory must .* got Average"),
    (
        lambda: make_method(LOSS, optax.contrib.sam(SGD, SGD)).init(PARAMS, BATCH),
        "optimizer must .* got optax.contrib.sam, which moves .* opaque_mode=True",
    ),
    *[
        (
            lambda part=part: make_method(LOSS, SCHEDULE_FREE, **part).init(
                PARAMS, BATCH
            ),
            "a schedule-free optimizer takes no average= and no box",
        )
        for part in (
            {"average": wise_ft(0.5)},
            {"regularizer": regularizers.box(0.1)},
        )
    ],
    *[
        (
            lambda name=name, part=part: make_method(LOSS, SGD, **{name: part}),
            rf"{words}, got \(",
        )
        for name, part, words in (
            (
                "regularizer",
                Regularizer(penalty=lambda params, state, context: 0.0),
                r"regularizer.penalty must be .* \(state, params, context\)",
            ),
            (
                "memory",
                Memory(lambda params, example: (), lambda state, key: ()),
                r"memory.sample must be a function of \(key, state\)",
            ),
            (
                "reset",
                Reset(reset=lambda key, params, state, batch: (state, params, None)),
                r"reset.reset must be .* \(key, state, params, batch\)",
            ),
            (
                "metrics",
                {"length": lambda step, state: norm(state.params)},
                r"metrics\['length'\] must be a function of \(state, step\)",
            ),
            (
                "replay_weight",
                lambda replay, batch, progress: 1.0,
                r"replay_weight must be .* \(batch, replay, progress\)",
            ),
        )
    ],
    (
        lambda: stepped(transforms.sam),
        r"gradient must be an optax .*, such as sam\(0.05\), got function",
    ),
    (
        lambda: make_method(LOSS, 0.1),
        r"optimizer must be an optax transformation, such as optax.sgd\(0.1\), got 0.1",
    ),
    (
        lambda: make_method(LOSS, SGD, reset_optimizer="no"),
        "reset_optimizer must be of type bool, got 'no'",
    ),
    (
        lambda: make_method(LOSS, SGD, metrics={"task": lambda state, step: 0.0}),
        "metrics has 'task', which steps report; rename",
    ),
    (
        lambda: methods.agem(LOSS, SGD, num_tasks=2, memory=reservoir(4, 2)),
        "agem: num_tasks is for its own memory, got memory= as well",
    ),
    (lambda: stepped(transforms.agem()), "needs replayed rows, got none; give memory="),
    (
        lambda: stepped(transforms.gem(), memory=reservoir(4, 2)),
        "needs replay by task, got mixed rows; give .* grouped=True",
    ),
    (
        lambda: stepped(
            memory=reservoir(4, 2), replay_weight=lambda batch, *_: batch.weight
        ),
        r"replay_weight must return one number, got shape \[4\]; sum",
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
    (lambda: METHOD.end_task(STATE, KEY, BATCH), "end_task: key .* got MethodState"),
    *[
        (
            lambda gradient=gradient: stepped(gradient),
            "update: expected all params, .* hidden by .* a mask",
        )
        for gradient in (
            optax.masked(transforms.sam(0.1), RANKS),
            optax.partition(PARTS, RANKS),
        )
    ],
    (lambda: METHOD.step(STATE, KEY, BATCH), "step: key must .* got MethodState"),
    (lambda: METHOD.step(KEY, STATE, PAIR), "step: expected a Batch .* got tuple"),
    (lambda: METHOD.end_task(KEY, STATE, STREAM), "end_task: .* got Stream"),
    # averages and learners
    *[
        (
            lambda make=make, share=share: make(share),
            rf"^{make.__name__}: \w+ must be a number in \[0, 1\], got {share}",
        )
        for make in (ema, ema_of_products, interpolate, wise_ft)
        for share in (-0.1, 1.5, NAN)
    ],
    (
        lambda: starting_after(-1, ema(0.5)),
        "starting_after: num_tasks must be an int of at least 0, .* got -1",
    ),
    (
        lambda: interleave(METHOD, episodic(1, 1), every=0),
        "interleave: every must be",
    ),
    # curvature
    *[
        (lambda call=call: call(), f"{name} must be an int of at least 1, .* got")
        for call, name in (
            (lambda: empirical_fisher(LOSS, chunk_size=0), "fisher: chunk_size"),
            (lambda: exact_fisher(OUTPUTS, num_examples=0), "fisher: num_examples"),
            (lambda: sampled_fisher(OUTPUTS, num_draws=0), "sampled_fisher: num_draws"),
            (lambda: batched_fisher(LOSS, batch_size=-1), "batched_fisher: batch_size"),
        )
    ],
    *[
        (
            lambda build=build: build(tokens)(KEY, PARAMS, BATCH),
            rf"{build.__name__}: .*logits \[b, c\], got \(1, 1, 2\) for one row",
        )
        for build in (exact_fisher, sampled_fisher)
    ],
    (
        lambda: top_eigenvalue(KEY, jnp.sum, jnp.ones(2), num_steps=0),
        "top_eigenvalue: num_steps must be an int of at least 1, .* got 0",
    ),
    # memories
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
        "episodic: rows must have structure, .* like the example",
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
        (lambda x=x: observed(x), "reservoir: rows must have structure, .* the example")
        for x in (
            MIXED.x["a"],
            MIXED.x | {"a": jnp.ones((2, 3))},
            MIXED.x | {"b": jnp.ones(2)},
        )
    ],
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
        lambda: methods.dark_experience_replay(
            OUTPUTS, SGD, capacity=2, sample_size=1, alpha=1.0, num_logits=0
        ),
        "dark_experience_replay: num_logits must be an int of at least 1, .* got 0",
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
    (
        lambda: methods.ewc(LOSS, SGD, strength=1.0, regularizer=regularizers.l2(1.0)),
        "methods: regularizer is set by the method itself, .* make_method, with sum_of",
    ),
]


# What Python, JAX and optax refuse themselves; a note names the part of a method.
LEFT_TO_OTHERS = [
    (lambda: regularizers.sum_of([regularizers.l2(1.0)]), "'list' .* no .* 'penalty'"),
    (lambda: plasticity.chain_resets([]).init(PARAMS, BATCH), "'list' .* no .* 'init'"),
    (lambda: ended_with(regularizers.ewc(LOSS, 1.0)), "no .* in regularizer.end_task,"),
    (lambda: ended_with(regularizers.ewc(OUTPUTS, 1.0)), "in regularizer.end_task,"),
    (lambda: empirical_fisher(MODEL)(KEY, PARAMS, BATCH), "'Model' .* not callable"),
    (lambda: exact_fisher(MODEL)(KEY, PARAMS, BATCH), "'Model' .* not callable"),
    (lambda: sampled_fisher(LOSS)(KEY, PARAMS, BATCH), "missing 1 .* 'keys'"),
    (
        lambda: empirical_fisher(lambda batch, params, keys: batch.x)(
            KEY, PARAMS, BATCH
        ),
        "'dict' object has no attribute 'x'",
    ),
    (
        lambda: batched_fisher(MODEL.apply, batch_size=2)(KEY, PARAMS, BATCH),
        "'Batch' object has no attribute",
    ),
    (lambda: empirical_fisher(LOSS)(KEY, PARAMS, STREAM), "'Stream' .* no .* 'weight'"),
    (lambda: stepped(loss=MODEL), "'Model' object is not callable.* in loss,"),
    (lambda: stepped(loss=optax.squared_error), "positional arguments.* in loss,"),
    (lambda: stepped(loss=MODEL.apply), "'Batch' object has no .*in loss,"),
    (lambda: stepped(metrics=[len]), "'list' object has no attribute 'items'"),
    (
        lambda: stepped(metrics={"a": "b"}),
        r"'str' .* not callable.* in metrics\['a'\]",
    ),
    (
        lambda: stepped(regularizer=Regularizer(penalty=3.0)),  # pyright: ignore
        "'float' object is not callable.* in regularizer.penalty,",
    ),
    (
        lambda: stepped(
            regularizer=Regularizer(penalty=lambda s, p, c: p["out"]["bias"])
        ),
        r"for scalar-output functions. .* shape: \(2,\).* in regularizer.penalty,",
    ),
    (
        lambda: stepped(regularizer=Regularizer(project=lambda p: p)),
        "takes 1 positional argument but 2 were given.* in regularizer.project,",
    ),
    (
        lambda: stepped(memory=Memory(lambda p, e: (), lambda k: ())),
        "takes 1 positional argument but 2 were given.* in memory.sample,",
    ),
    (lambda: nearest_mean(MODEL.hidden, 2)(STATE), "no attribute 'kept'"),
    (
        lambda: interleave(METHOD, METHOD, every=2).step(KEY, STATE, BATCH),
        "values to unpack|no attribute 'sample'",
    ),
    (
        lambda: interleave(LOSS, episodic(1, 1), every=2).init(PARAMS, BATCH),
        "'function' object has no attribute 'init'",
    ),
    *[
        (
            lambda build=build: observed(
                TARGETS.x, build(4, 2, num_classes=3), TARGETS
            ),
            "integer|int32",
        )
        for build in BALANCED
    ],
    *[
        (lambda labels=labels: balanced_rows(labels), words)
        for labels, words in (
            (np.ones(4, np.float32), "Invalid integer data type"),
            (np.ones((4, 2), int), "Incompatible shapes for broadcasting"),
            ((np.ones(4, int), np.ones(4, int)), "'tuple' object has no attribute"),
        )
    ],
]


@refused(LEFT_TO_OTHERS)
def test_the_wrong_call_is_refused_by_another_library(call, words):
    """Oracle: the message, and the note on the part, written out."""
    assert_raises(call, words)


@refused(REFUSED)
def test_the_wrong_call_is_refused_in_one_line(call, words):
    """Oracle: the message says who, what was expected and what it was."""
    assert_refused(call, words)
