"""The arms: what is compared, each a method of a few lines, and the trials they are in."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.plasticity.config import Config
from jaxcl.method import make_method
from jaxcl.models import crelu
from jaxcl.plasticity import continual_backprop, redo, shrink_and_perturb
from jaxcl.regularizers import l2_init
from jaxcl.runs.trials import Trial
from jaxcl.transforms import adaptive_rho, gnp, random_sam, reverse_sam, sam
from jaxcl.tree import norm, safe_divide
from jaxcl.typing import Average, Key, Loss, Method, Model, Regularizer

Hyper = dict[str, float]


class Arm(NamedTuple):
    """One program: a method whose numbers are arguments."""

    build: Callable[[Loss, Model, Hyper, Key], Method]  # the run's key
    activation: Callable = nnx.relu
    layer_norm: bool = False


def arms(config: Config, num_steps: int) -> dict[str, Arm]:
    """All arms by name; ``num_steps`` are the steps of one task."""

    def method(gradient=None, restart=False, **parts):
        """What most arms differ in: the gradient, from the numbers."""

        def build(loss, model, hyper, key):
            rate = hyper["learning_rate"]
            made = {name: part(model, hyper) for name, part in parts.items()}
            return make_method(
                loss,
                optax.sgd(rate, momentum=config.momentum or None),
                gradient=gradient(hyper, key) if gradient else None,
                reset_gradient=restart,
                **made,
            )

        return build

    def warm(value):
        """Rises linearly from zero at the start of each task."""
        rise = max(1.0, config.warm_share * num_steps)
        return lambda count: value * jnp.minimum(1.0, count / rise)

    of_sam = lambda h, key: sam(h["rho"])
    on_sphere = lambda model, h: fixed_norm()
    l2 = lambda model, h: l2_init(h["strength"])
    start_again = lambda model, h: from_the_start()
    shrink = lambda model, h: _shrink(config, model)
    dormant = lambda model, h: redo(
        *(model.hidden, model.units, model.init),
        threshold=config.dormant,
        period=config.redo_period,
    )
    unused = lambda model, h: continual_backprop(
        *(model.hidden, model.units, model.init), rate=config.replacement_rate
    )
    return {
        "sgd": Arm(method()),
        "sam": Arm(method(of_sam)),
        "gnp": Arm(method(lambda h, key: gnp(h["r"], penalty=h["penalty"]))),
        # neighbours: nothing to lose, and what else is known to preserve plasticity
        "fresh": Arm(method(average=start_again)),
        "l2-init": Arm(method(regularizer=l2)),
        "shrink-perturb": Arm(method(reset=shrink)),
        "redo": Arm(method(reset=dormant)),
        "continual-backprop": Arm(method(reset=unused)),
        "crelu": Arm(method(), activation=crelu),
        "layer-norm": Arm(method(), layer_norm=True),
        # adaptive: strengths that follow the run
        "sam-tracking": Arm(method(lambda h, key: adaptive_rho(h["target"]))),
        "sam-warm": Arm(method(lambda h, key: sam(warm(h["rho"])), restart=True)),
        "gnp-warm": Arm(
            method(lambda h, key: gnp(h["r"], penalty=warm(h["penalty"])), restart=True)
        ),
        # controls: weight norm held, sharpness pushed down, up, or at random
        "sgd-sphere": Arm(method(regularizer=on_sphere)),
        "sam-sphere": Arm(method(of_sam, regularizer=on_sphere)),
        "reverse-sphere": Arm(
            method(lambda h, key: reverse_sam(h["rho"]), regularizer=on_sphere)
        ),
        "noise-sphere": Arm(
            method(lambda h, key: random_sam(key, h["rho"]), regularizer=on_sphere)
        ),
    }


def trials(config: Config) -> list[Trial]:
    """Every run of the experiment, in the order they are done."""
    groups = arms_of_groups(config)
    seeds = dict.fromkeys(groups, config.other_seeds)
    seeds |= {"paper": config.seeds, "sweep": config.sweep_seeds}
    momentum = {"momentum": config.momentum} if config.momentum else {}
    return [
        Trial(setting, arm, {"learning_rate": rate, **momentum, **hyper}, seed, group)
        for group in config.groups
        for setting in config.settings
        for arm, hyper in groups[group]
        for rate in config.learning_rates
        for seed in range(min(seeds[group], config.seeds))
    ]


def arms_of_groups(config: Config) -> dict[str, list[tuple[str, Hyper]]]:
    """The arms of every group, each with the numbers that make it what it is."""
    sam_of = lambda rho: {"rho": rho}
    gnp_of = lambda r, penalty: {"r": r, "penalty": penalty}
    usual_sam, usual_gnp = sam_of(config.rho), gnp_of(config.r, config.penalty)
    warm, period = {"warm_share": config.warm_share}, config.renewal_period
    shrunk = {"shrink": config.shrink, "perturb": config.perturb, "period": period}
    neighbours = [
        ("fresh", {}),
        ("l2-init", {"strength": config.l2_init_strength}),
        ("shrink-perturb", shrunk),
        ("redo", {"threshold": config.dormant, "period": config.redo_period}),
        ("continual-backprop", {"rate": config.replacement_rate}),
    ]
    if not config.resnet_width:  # it has normalisation, and one activation, of its own
        neighbours += [("crelu", {}), ("layer-norm", {})]
    pairs = itertools.product(config.radii, config.penalties)
    return {
        "paper": [("sgd", {}), ("sam", usual_sam), ("gnp", usual_gnp)],
        "neighbours": neighbours,
        "adaptive": [
            ("sam-tracking", {"target": config.target_sharpness}),
            ("sam-warm", usual_sam | warm),
            ("gnp-warm", usual_gnp | warm),
        ],
        "controls": [
            ("sgd-sphere", {}),
            ("sam-sphere", usual_sam),
            ("reverse-sphere", usual_sam),
            ("noise-sphere", usual_sam),
        ],
        "sweep": [
            *(("sam", sam_of(rho)) for rho in config.rhos),
            *(("gnp", gnp_of(r, penalty)) for r, penalty in pairs),
        ],
    }


def from_the_start() -> Average:
    """Begin every task where the run began; what it learned is only read.

    The yardstick of plasticity: a network that has learned nothing before and so has
    lost nothing. The state holds the start and the parameters of the last step.
    """
    copy = lambda params: jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    return Average(
        init=lambda params, example: (copy(params), copy(params)),
        read=lambda state, params: state[1],
        observe=lambda key, state, step, params: (state[0], params),
        end_task=lambda key, state, params, data: (state, copy(state[0])),
    )


def fixed_norm() -> Regularizer:
    """Keep the parameters on the sphere they started on: ``|params| = |start|``."""

    def project(start, params):
        scale = safe_divide(start, norm(params))
        return jax.tree.map(lambda leaf: scale * leaf, params)

    return Regularizer(lambda params, example: norm(params), project=project)


def _shrink(config: Config, model: Model):
    """One draw for a whole period has the law of one per step, compounded."""
    period = config.renewal_period
    kept = (1.0 - config.shrink) ** period
    steps = jnp.arange(period)
    variance = jnp.sum((1.0 - config.shrink) ** (2 * steps)) * config.perturb**2
    return shrink_and_perturb(kept, jnp.sqrt(variance), model.init, period=period)
