"""The golden cases: one small computation for each part of the library.

``CASES[name]()`` returns a tree of arrays.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcl import (
    averages,
    curvature,
    losses,
    memory,
    metrics,
    plasticity,
    regularizers,
    transforms,
)
from jaxcl.data import from_arrays, stream_tasks
from jaxcl.method import default_learner
from jaxcl.training import (
    Options,
    accuracy_row,
    first_example,
    learn,
    over_runs,
    run_stream,
)
from jaxcl.tree import at
from tests.golden.runs import RUNS, everything_with, named
from tests.golden.setting import (
    LLAMA,
    LOGITS,
    LOSS,
    MODEL,
    NORMED,
    PARAMS,
    RESNET,
    ROWS,
    TASKS,
    batch_of,
    composed,
    drawn,
    loss_of,
    mean_loss,
    padded,
    program,
    walk_memory,
)

FEATURES = lambda params, x: MODEL.hidden(params, x)[-1]

# ------------------------------------------------------------- gradients over many rows


def across_devices():
    """Two devices, pretended by ``vmap``, each with half of the rows."""
    halves = jax.tree.map(lambda leaf: leaf[:20].reshape(2, 10, *leaf.shape[1:]), ROWS)

    def update(sync, rows):
        grad_fn = jax.grad(mean_loss(LOSS, rows))
        gradient = transforms.across_devices(transforms.sam(0.1), "devices", sync=sync)
        state = gradient.init(PARAMS)
        return gradient.update(grad_fn(PARAMS), state, PARAMS, grad_fn=grad_fn)[0]

    def both(rows):
        on_each = lambda sync: jax.vmap(partial(update, sync), axis_name="devices")
        return {"together": on_each(True)(rows), "apart": on_each(False)(rows)}

    return program(both)(halves)


def accumulated():
    """The mean gradient over three parts of unequal weight."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(3, 10, *leaf.shape[1:]), ROWS)

    def whole(params, parts):
        grad = lambda params, part: jax.grad(mean_loss(LOSS, part))(params)
        weight = jnp.array([1.0, 2.0, 3.0])
        return transforms.accumulated(grad, parts, weight=weight)(params)

    return program(whole)(PARAMS, parts)


# ------------------------------------------------------------------------------ memories

MEMORIES = {
    "reservoir": lambda: memory.reservoir(12, 6),
    "reservoir_distinct": lambda: memory.reservoir(12, 6, replace=False),
    "episodic": lambda: memory.episodic(2, 6, 4),
    "episodic_distinct": lambda: memory.episodic(2, 6, 4, replace=False),
    "episodic_grouped": lambda: memory.episodic(2, 6, 4, grouped=True),
    "class_balanced": lambda: memory.episodic(
        2, 6, 4, select=memory.class_balanced_examples
    ),
    "kmeans_examples": lambda: memory.episodic(
        2, 6, 4, select=memory.kmeans_examples(FEATURES, num_iterations=3, chunk_size=8)
    ),
}


def kmeans():
    """Centroids of weighted points."""
    draw = program(
        lambda key, rows: memory.kmeans(
            key, rows.x, rows.weight, 4, num_iterations=3, chunk_size=8
        )
    )
    return draw(jax.random.key(2), at(0, padded(TASKS)))


# ----------------------------------------------------------------------------- curvature

FISHERS = {
    "empirical": curvature.empirical_fisher(LOSS),
    "empirical_of_some": curvature.empirical_fisher(LOSS, num_examples=8, chunk_size=4),
    "sampled": curvature.sampled_fisher(LOGITS, num_draws=2),
    "exact": curvature.exact_fisher(LOGITS, chunk_size=8),
    "batched": curvature.batched_fisher(LOSS, batch_size=8),
    "normalised": curvature.normalised(curvature.empirical_fisher(LOSS)),
    "normalised_by_largest": curvature.normalised(
        curvature.empirical_fisher(LOSS), curvature.largest_entry
    ),
    "normalised_by_trace": curvature.normalised(
        curvature.empirical_fisher(LOSS), curvature.trace
    ),
    "shuffled": curvature.shuffled(curvature.empirical_fisher(LOSS)),
    "uniform": curvature.uniform_importance(),
}


def importance(fisher, params=PARAMS, rows=None):
    """One importance of all parameters, at padded rows by default."""
    rows = at(0, padded(TASKS)) if rows is None else rows
    return program(fisher)(jax.random.key(4), params, rows)


def images():
    """Small images with labels."""
    random = np.random.default_rng(2)
    x = random.standard_normal((8, 6, 6, 1)).astype(np.float32)
    return batch_of(
        x, np.arange(8, dtype=np.int32) % 3, np.ones(8, np.float32), np.zeros(8, int)
    )


def sentences():
    """Short sequences of tokens, each the label of the one before it."""
    tokens = np.random.default_rng(3).integers(7, size=(6, 6)).astype(np.int32)
    ones = np.ones(6, np.float32)
    return batch_of(tokens[:, :-1], tokens[:, 1:], ones, np.zeros(6, np.int32))


def fisher_of_resnet():
    """The empirical Fisher of convolutions, normalisations and a linear layer."""
    loss = loss_of(losses.single_head(RESNET.apply))
    fisher = curvature.empirical_fisher(loss)
    return importance(fisher, drawn(RESNET), images())


def exact_fisher_of_resnet():
    """The exact one."""
    fisher = curvature.exact_fisher(losses.single_head(RESNET.apply))
    return importance(fisher, drawn(RESNET), images())


def fisher_of_llama():
    """The empirical Fisher of a decoder on whole sequences."""
    loss = losses.token_cross_entropy(losses.single_head(LLAMA.apply))
    return importance(curvature.empirical_fisher(loss), drawn(LLAMA), sentences())


def exact_fisher_of_llama():
    """The exact one of the last token's scores."""
    last = losses.single_head(lambda params, x, keys: LLAMA.apply(params, x)[:, -1])
    return importance(curvature.exact_fisher(last), drawn(LLAMA), sentences())


def sharpness():
    """Numbers about one point: its Hessian, SAM's rise, sizes of a Fisher, strengths."""

    @program
    def look(params, rows):
        loss, key = mean_loss(LOSS, rows), jax.random.key(4)
        fisher = curvature.empirical_fisher(LOSS)(key, params, rows)
        return {
            "top_eigenvalue": curvature.top_eigenvalue(key, loss, params, num_steps=20),
            "sam_sharpness": curvature.sam_sharpness(loss, params, 0.1),
            "trace": curvature.trace(fisher),
            "mean_entry": curvature.mean_entry(fisher),
            "largest_entry": curvature.largest_entry(fisher),
            "largest_stable": regularizers.largest_stable_strength(fisher, 0.1),
            "converted": regularizers.convert_strength(3.0, halved=False, ratio=0.5),
        }

    return look(PARAMS, ROWS)


def example_gradients():
    """The gradient of every row."""
    take = curvature.example_gradients
    return program(lambda p, rows: take(jax.random.key(4), LOSS, p, rows))(
        PARAMS, at(slice(4), ROWS)
    )


def plasticity_measures():
    """Every measure of a network's ability to learn."""
    model, start = NORMED, drawn(NORMED)
    loss = loss_of(losses.single_head(model.apply))
    look = lambda params, rows: plasticity.measure(
        jax.random.key(4), loss, model.hidden, params, start, rows
    )
    return program(look)(drawn(model, 5), ROWS)


# ------------------------------------------------------------------- models and whole runs


def outputs():
    """What the models make of given weights, and the losses of rows."""

    @program
    def compute(small, deep, decoder, rows, images, sentences):
        many = MODEL.apply(small, rows.x)
        seen = RESNET.apply(deep, images.x)
        said = LLAMA.apply(decoder, sentences.x)
        token = losses.token_cross_entropy(losses.single_head(LLAMA.apply))
        hits = losses.token_accuracy(losses.single_head(LLAMA.apply))
        distance = losses.squared_error(LOGITS)
        target = rows._replace(y=jnp.eye(3)[rows.y])
        return {
            "mlp": many,
            "resnet": seen,
            "llama": said,
            "cross_entropy": mean_loss(LOSS, rows)(small),
            "squared_error": mean_loss(distance, target)(small),
            "token_cross_entropy": mean_loss(token, sentences)(decoder),
            "token_accuracy": hits(decoder, sentences),
            "accuracy": losses.accuracy(LOGITS, small, rows, chunk_size=7),
        }

    return compute(PARAMS, drawn(RESNET), drawn(LLAMA), ROWS, images(), sentences())


def initial_weights():
    """The weights that models draw themselves."""
    drawing = {"mlp": MODEL, "normed": NORMED, "resnet": RESNET, "llama": LLAMA}
    draw = lambda key: {name: model.init(key) for name, model in drawing.items()}
    return program(draw)(jax.random.key(6))


def stream():
    """The tasks as a stream, tested on their own first rows."""
    return from_arrays(TASKS, at((slice(None), slice(12)), TASKS), num_classes=3)


def device_loop():
    """Two runs of the compiled stream, one after another in one program."""
    build = everything_with(optax.sgd(0.1, momentum=0.9))

    def walk(key, params):
        method, here = build(), stream()
        state = method.init(params, first_example(here))
        state, record = run_stream(
            key,
            method,
            here,
            state,
            num_steps=8,
            batch_size=10,
            after=accuracy_row(LOGITS, here),
        )
        return {
            "params": state.params,
            "evaluated": default_learner(method, state),
            "loss": record.loss,
            "finite": record.finite,
            "scores": record.after,
        }

    runs = over_runs(walk, (0, None), at_once=1)
    return program(runs)(jax.random.split(jax.random.key(8), 2), PARAMS)


def host_loop():
    """The stream step by step, with checkpoints and evaluation."""
    build = composed(
        optax.sgd(0.1, momentum=0.9),
        memory=memory.reservoir(12, 6),
        average=averages.ema(0.8),
    )

    options = Options(num_steps=8, batch_size=10, eval_batch_size=12, report_every=4)
    with tempfile.TemporaryDirectory() as folder:
        result = learn(
            jax.random.key(8),
            lambda frozen: build(),
            jax.tree.map(jnp.asarray, PARAMS),
            stream_tasks(stream()),
            options,
            folder=folder,
            metrics=metrics.classification(LOGITS),
            quiet=True,
        )
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    on_progress = [line for line in map(json.loads, lines) if "loss" in line]
    return {
        "params": result.params,
        "scores": np.float32(result.results["accuracy"]["average"][1:]),
        "losses": np.array([line["loss"] for line in on_progress], np.float32),
        "grad_norms": np.array([line["grad_norm"] for line in on_progress], np.float32),
    }


CASES = {
    **RUNS,
    **named("memory", MEMORIES, lambda build: walk_memory(build())),
    **named("fisher", FISHERS, importance),
    "gradient/across_devices": across_devices,
    "gradient/accumulated": accumulated,
    "memory/kmeans": kmeans,
    "fisher/resnet": fisher_of_resnet,
    "fisher/resnet_exact": exact_fisher_of_resnet,
    "fisher/llama": fisher_of_llama,
    "fisher/llama_exact": exact_fisher_of_llama,
    "curvature/sharpness": sharpness,
    "curvature/example_gradients": example_gradients,
    "plasticity/measure": plasticity_measures,
    "models/outputs": outputs,
    "models/initial_weights": initial_weights,
    "loop/device": device_loop,
    "loop/host": host_loop,
}
