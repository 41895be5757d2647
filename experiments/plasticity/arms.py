"""The arms: what is compared, each a method of a few lines, and the trials they are in."""

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

    name: str
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

    on_sphere = lambda model, hyper: fixed_norm()
    listed = [
        Arm("sgd", method()),
        Arm("sam", method(lambda h, key: sam(h["rho"]))),
        Arm("gnp", method(lambda h, key: gnp(h["r"], penalty=h["penalty"]))),
        # neighbours: nothing to lose, and what else is known to preserve plasticity
        Arm("fresh", method(average=lambda model, h: from_the_start())),
        Arm(
            "l2-init",
            method(regularizer=lambda model, h: l2_init(h["strength"])),
        ),
        Arm(
            "shrink-perturb",
            method(reset=lambda model, h: _shrink(config, model)),
        ),
        Arm(
            "redo",
            method(
                reset=lambda model, h: redo(
                    model.hidden,
                    model.units,
                    model.init,
                    threshold=config.dormant,
                    period=config.redo_period,
                )
            ),
        ),
        Arm(
            "continual-backprop",
            method(
                reset=lambda model, h: continual_backprop(
                    model.hidden,
                    model.units,
                    model.init,
                    rate=config.replacement_rate,
                )
            ),
        ),
        Arm("crelu", method(), activation=crelu),
        Arm("layer-norm", method(), layer_norm=True),
        # adaptive: strengths that follow the run
        Arm(
            "sam-tracking",
            method(lambda h, key: adaptive_rho(h["target"])),
        ),
        Arm("sam-warm", method(lambda h, key: sam(warm(h["rho"])), restart=True)),
        Arm(
            "gnp-warm",
            method(
                lambda h, key: gnp(h["r"], penalty=warm(h["penalty"])), restart=True
            ),
        ),
        # controls: weight norm held, sharpness pushed down, up, or at random
        Arm("sgd-sphere", method(regularizer=on_sphere)),
        Arm(
            "sam-sphere",
            method(lambda h, key: sam(h["rho"]), regularizer=on_sphere),
        ),
        Arm(
            "reverse-sphere",
            method(lambda h, key: reverse_sam(h["rho"]), regularizer=on_sphere),
        ),
        Arm(
            "noise-sphere",
            method(
                lambda h, key: random_sam(key, h["rho"]),
                regularizer=on_sphere,
            ),
        ),
    ]
    return {arm.name: arm for arm in listed}


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
    usual, warm = gnp_of(config.r, config.penalty), {"warm_share": config.warm_share}
    neighbours = [
        ("fresh", {}),
        ("l2-init", {"strength": config.l2_init_strength}),
        (
            "shrink-perturb",
            {
                "shrink": config.shrink,
                "perturb": config.perturb,
                "period": config.renewal_period,
            },
        ),
        ("redo", {"threshold": config.dormant, "period": config.redo_period}),
        ("continual-backprop", {"rate": config.replacement_rate}),
    ]
    if not config.resnet_width:  # it has normalisation, and one activation, of its own
        neighbours += [("crelu", {}), ("layer-norm", {})]
    return {
        "paper": [("sgd", {}), ("sam", sam_of(config.rho)), ("gnp", usual)],
        "neighbours": neighbours,
        "adaptive": [
            ("sam-tracking", {"target": config.target_sharpness}),
            ("sam-warm", sam_of(config.rho) | warm),
            ("gnp-warm", usual | warm),
        ],
        "controls": [
            ("sgd-sphere", {}),
            ("sam-sphere", sam_of(config.rho)),
            ("reverse-sphere", sam_of(config.rho)),
            ("noise-sphere", sam_of(config.rho)),
        ],
        "sweep": [
            *(("sam", sam_of(rho)) for rho in config.rhos),
            *(
                ("gnp", gnp_of(r, penalty))
                for r in config.radii
                for penalty in config.penalties
            ),
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
