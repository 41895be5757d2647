"""The golden cases that train: every part of a method in a run of twenty steps.

``RUNS[name]()`` returns the info of every step and what the method holds at the end.
"""

import jax
import optax

from jaxcl import (
    averages,
    curvature,
    memory,
    methods,
    plasticity,
    regularizers,
    transforms,
)
from jaxcl.losses import single_head
from tests.golden.setting import (
    LOGITS,
    LOSS,
    MANY_HEADS,
    MODEL,
    NORMED,
    OWN_HEAD,
    PAST_HEADS,
    TASKS,
    composed,
    drawn,
    loss_of,
    make_tasks,
    padded,
    run,
)

SGD = optax.sgd(0.2)
ADAM = optax.adam(0.02)
REPLAY = {"capacity": 12, "sample_size": 6}
SLOTS = {"num_tasks": 2, "capacity_per_task": 6}
RISING = lambda count: 0.02 * (count + 1.0)

# ----------------------------------------------------------------------- named methods

METHODS = {
    "plain": lambda: methods.plain(LOSS, SGD),
    "sam": lambda: methods.sam(LOSS, SGD, rho=0.1),
    "gnp": lambda: methods.gnp(LOSS, SGD),
    "l2_init": lambda: methods.l2_init(LOSS, SGD, strength=0.05),
    "ewc": lambda: methods.ewc(LOSS, SGD, strength=3.0),
    "online_ewc": lambda: methods.ewc(LOSS, SGD, strength=3.0, decay=0.9),
    "create_and_find": lambda: methods.create_and_find(
        LOSS, SGD, rho=0.3, strength=3.0, num_examples=16
    ),
    "experience_replay": lambda: methods.experience_replay(LOSS, SGD, **REPLAY),
    "agem": lambda: methods.agem(LOSS, SGD, **SLOTS, sample_size=6),
    "gem": lambda: methods.gem(LOSS, SGD, **SLOTS),
    "learning_without_forgetting": lambda: methods.learning_without_forgetting(
        LOGITS, SGD, kept=LOGITS, strength=1.0
    ),
    "slow_learner": lambda: methods.slow_learner(
        LOSS, SGD, MODEL.hidden, decay=0.8, strength=0.5, **REPLAY
    ),
    "interpolation": lambda: methods.interpolation(LOSS, SGD, alpha=0.7),
}
#: On three tasks, so that the last one meets two past ones.
THREE = {
    "gem": lambda: methods.gem(LOSS, SGD, **SLOTS, margin=0.3),
    "gem_of_sam": lambda: methods.gem(LOSS, SGD, **SLOTS, gradient=transforms.sam(0.1)),
    "agem_of_sam": lambda: methods.agem(
        LOSS, SGD, **SLOTS, sample_size=6, gradient=transforms.sam(0.1)
    ),
    "ewc": lambda: methods.ewc(LOSS, SGD, strength=3.0),
}
#: Where each task has outputs of its own.
HEADS = {
    "learning_without_forgetting": lambda: methods.learning_without_forgetting(
        OWN_HEAD, SGD, kept=PAST_HEADS, strength=1.0, chunk_size=4
    ),
    "ewc": lambda: methods.ewc(loss_of(OWN_HEAD), SGD, strength=3.0),
}
#: With rows of weight zero in every batch and task.
PADDED = {
    "create_and_find": METHODS["create_and_find"],
    "experience_replay": METHODS["experience_replay"],
    "slow_learner": METHODS["slow_learner"],
    "gem": METHODS["gem"],
}
CHUNKED = {
    "experience_replay": lambda: methods.experience_replay(
        LOSS, SGD, **REPLAY, chunk_size=4
    ),
    "slow_learner": lambda: methods.slow_learner(
        LOSS, SGD, MODEL.hidden, decay=0.8, strength=0.5, **REPLAY, chunk_size=4
    ),
}

# ----------------------------------------------------------- what transforms a gradient

MASK = {"hidden_0": True, "out": {"kernel": True, "bias": False}}
ALIGNED = lambda s: transforms.sam(s, measure=True)
GRADIENTS = {
    "sam_adaptive": lambda: transforms.sam(0.5, adaptive=True, measure=True),
    "sam_masked_schedule": lambda: transforms.sam(RISING, mask=MASK, measure=True),
    "gnp": lambda: transforms.gnp(0.1, alpha=0.6, measure=True),
    "gsam": lambda: transforms.gsam(0.1, 0.4),
    "looksam": lambda: transforms.looksam(0.1, k=3),
    "friendly_sam": lambda: transforms.friendly_sam(0.1),
    "c_flat": lambda: transforms.c_flat(0.1, 0.2, measure=True),
    "reverse_sam": lambda: transforms.reverse_sam(0.1),
    "random_sam": lambda: transforms.random_sam(jax.random.key(3), 0.1),
    "adaptive_rho": lambda: transforms.adaptive_rho(0.05),
    "adaptive_strength": lambda: transforms.adaptive_strength(
        ALIGNED, 0.1, reference=1.0
    ),
}


def fisher_penalty():
    """Elastic weight consolidation on the empirical Fisher."""
    return regularizers.ewc(curvature.empirical_fisher(LOSS), 3.0)


def everything_with(optimizer):
    """Every kind of state that a step or the end of a task changes."""
    return composed(
        optimizer,
        gradient=transforms.looksam(0.1, k=2),
        regularizer=fisher_penalty(),
        memory=memory.reservoir(12, 6),
        average=averages.ema(0.8),
        reset=plasticity.redo(
            MODEL.hidden, MODEL.units, MODEL.init, threshold=0.3, period=5
        ),
    )


OPTIONS = {
    "adam": lambda: composed(ADAM),
    "momentum_kept": lambda: composed(
        optax.sgd(0.1, momentum=0.9), reset_optimizer=False
    ),
    "momentum_reset": lambda: composed(optax.sgd(0.1, momentum=0.9)),
    "looksam_reset": lambda: composed(
        SGD, gradient=transforms.looksam(RISING, k=3), reset_gradient=True
    ),
    "replay_weight": lambda: composed(
        SGD, memory=memory.reservoir(12, 6), replay_weight=0.5
    ),
    "sam_sees_penalty": lambda: composed(
        SGD, gradient=transforms.sam(0.1), regularizer=fisher_penalty()
    ),
    "sam_without_penalty": lambda: composed(
        SGD,
        gradient=transforms.sam(0.1),
        regularizer=fisher_penalty(),
        perturb_penalty=False,
    ),
    "everything": lambda: everything_with(optax.sgd(0.1, momentum=0.9)),
}


# --------------------------------------------------- regularizers, averages, plasticity

PENALTIES = {
    "l2": lambda: regularizers.l2(0.05),
    "l2_init": lambda: regularizers.l2_init(0.05),
    "box": lambda: regularizers.box(0.1),
    "boxed": lambda: regularizers.boxed(regularizers.l2(0.05), 0.1),
    "distill": lambda: regularizers.distill(LOGITS, 1.0, chunk_size=4),
    "scaled": lambda: regularizers.scaled(2.0, fisher_penalty()),
    "sum_of": lambda: regularizers.sum_of(
        regularizers.l2_init(0.05),
        regularizers.distill(LOGITS, 1.0),
        regularizers.box(0.2),
    ),
    "uniform": lambda: regularizers.ewc(curvature.uniform_importance(), 0.1, decay=0.0),
    "exact": lambda: regularizers.ewc(curvature.exact_fisher(LOGITS), 3.0),
}
AVERAGES = {
    "ema": lambda: averages.ema(0.8),
    "ema_warm_up": lambda: averages.ema(0.8, warm_up=True),
    "interpolate": lambda: averages.interpolate(0.6),
    "wise_ft": lambda: averages.wise_ft(0.6),
}
RESETS = {
    "redo": lambda model: plasticity.redo(
        model.hidden, model.units, model.init, threshold=0.5, period=4
    ),
    "continual_backprop": lambda model: plasticity.continual_backprop(
        model.hidden, model.units, model.init, rate=0.03, maturity=3, decay=0.8
    ),
    "contribution": lambda model: plasticity.continual_backprop(
        model.hidden,
        model.units,
        model.init,
        rate=0.03,
        maturity=3,
        decay=0.8,
        utility=plasticity.contribution,
    ),
    "shrink_and_perturb": lambda model: plasticity.shrink_and_perturb(
        0.95, 0.05, model.init
    ),
    "chain_resets": lambda model: plasticity.chain_resets(
        plasticity.shrink_and_perturb(0.9, 0.05, model.init, period=4),
        plasticity.redo(model.hidden, model.units, model.init, threshold=0.5, period=6),
    ),
}


def feature_distillation():
    """Features held near the slow average's, on the rows at hand."""
    regularizer = regularizers.feature_distillation(
        MODEL.hidden, 0.5, rows=lambda context: context.batch
    )
    return run(composed(SGD, regularizer=regularizer, average=averages.ema(0.8)))


# --------------------------------------------------------------------------------- all


def named(kind, builders, learn):
    """``{kind/name: () -> results}`` of a table of builders."""
    return {
        f"{kind}/{name}": lambda build=build: learn(build)
        for name, build in builders.items()
    }


def with_part(name):
    """Learn with plain descent and one part."""
    return lambda build: run(lambda: composed(SGD, **{name: build()})())


def on_three(build):
    """Learn three tasks."""
    return run(build, tasks=make_tasks(3), num_steps=7)


def on_heads(build):
    """Learn with a network that has outputs for each task."""
    return run(build, params=drawn(MANY_HEADS))


def on_padded(build):
    """Learn from rows of which a fourth is padding."""
    return run(build, tasks=padded(TASKS))


def with_reset(build):
    """Learn by Adam with resets of units."""
    return run(lambda: composed(ADAM, reset=build(MODEL))())


def reset_pairs(build):
    """The same where each unit has two activations and a normalisation."""
    logits = single_head(NORMED.apply)
    method = lambda: composed(ADAM, logits=logits, reset=build(NORMED))()
    return run(method, params=drawn(NORMED))


PAIRS = {name: RESETS[name] for name in ("redo", "continual_backprop")}
RUNS = {
    **named("method", METHODS, run),
    **named("three_tasks", THREE, on_three),
    **named("heads", HEADS, on_heads),
    **named("padded", PADDED, on_padded),
    **named("chunked", CHUNKED, run),
    **named("gradient", GRADIENTS, with_part("gradient")),
    **named("options", OPTIONS, lambda build: run(build())),
    **named("regularizer", PENALTIES, with_part("regularizer")),
    **named("average", AVERAGES, with_part("average")),
    **named("reset", RESETS, with_reset),
    **named("renewal_of_pairs", PAIRS, reset_pairs),
    "regularizer/feature_distillation": feature_distillation,
}
