"""Grids of strengths under 64 bits, whose numbers are float64, change no dtype.

To build a method inside the function that is mapped makes its strengths traced numbers,
which are not weak as Python's are. Oracle throughout: the states and gradients before.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxcl import curvature, memory, plasticity, regularizers, transforms
from jaxcl.averages import ema, interpolate, wise_ft
from jaxcl.curvature import empirical_fisher
from jaxcl.losses import dark_experience_loss
from jaxcl.method import make_method
from tests import test_contracts as parts
from tests import test_methods as whole
from tests.test_dtypes import (
    SETTINGS,
    Setting,
    assert_wide,
    cast,
    every_setting,
    inputs,
    kinds,
    stepped,
)
from tests.test_transforms import test_contracts as gradients


def with_ewc(strength, **options):
    fisher = curvature.normalised(empirical_fisher(parts.LOSS))
    return regularizers.ewc(fisher, strength, **options)


STRONG = {
    "l2": regularizers.l2,
    "l2_init": regularizers.l2_init,
    "ewc": with_ewc,
    "online ewc": lambda s: with_ewc(s, decay=s),
    "running mean": lambda s: with_ewc(s, running_mean=True),
    "box": lambda s: regularizers.boxed(regularizers.l2(s), s),
    "distill": lambda s: regularizers.distill(parts.LOGITS, s, temperature=s),
    "feature_distillation": lambda s: regularizers.feature_distillation(
        parts.MODEL.hidden, s
    ),
    "scaled": lambda s: regularizers.scaled(s, regularizers.l2(s)),
    "synaptic_intelligence": lambda s: regularizers.synaptic_intelligence(s, damping=s),
    "riemannian_walk": lambda s: regularizers.riemannian_walk(
        s, fisher_decay=s, damping=s, interval=1
    ),
    "ema": ema,
    "ema, warm": lambda s: ema(s, warm_up=True),
    "interpolate": interpolate,
    "wise_ft": wise_ft,
    "shrink_and_perturb": lambda s: plasticity.shrink_and_perturb(
        s, s, parts.MODEL.init
    ),
    "redo": lambda s: plasticity.redo(
        parts.MODEL.hidden, parts.MODEL.units, parts.MODEL.init, threshold=s, period=1
    ),
    "continual_backprop": lambda s: plasticity.continual_backprop(
        parts.MODEL.hidden,
        parts.MODEL.units,
        parts.MODEL.init,
        rate=s,
        maturity=s,
        decay=s,
    ),
}
STRONG_GRADIENTS = {
    "sam": transforms.sam,
    "adaptive": lambda s: transforms.sam(s, adaptive=True, eta=s),
    "schedule": lambda s: transforms.sam(lambda count: s * (count + 1)),
    "reverse_sam": transforms.reverse_sam,
    "random_sam": lambda s: transforms.random_sam(jax.random.key(0), s),
    "gnp": lambda s: transforms.gnp(s, penalty=s, measure=True),
    "gsam": lambda s: transforms.gsam(s, s),
    "looksam": lambda s: transforms.looksam(s, k=2, alpha=s),
    "friendly_sam": lambda s: transforms.friendly_sam(s, sigma=s, decay=s),
    "c_flat": lambda s: transforms.c_flat(s, s),
    "gem": transforms.gem,
    "adaptive_rho": lambda s: transforms.adaptive_rho(s, low=s, high=s),
    "adaptive_strength": lambda s: transforms.adaptive_strength(
        gradients.measuring_sam, s, reference=s, power=s, decay=s
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STRONG)
def test_a_grid_of_float64_strengths_changes_no_dtype_of_a_part(name, dtype):
    """Oracle: the first state; under 64 bits the numbers of a grid are float64."""
    with jax.enable_x64(True):
        given = inputs(Setting(dtype), parts.PARAMS, parts.BATCH)
        run = lambda strength, *given: parts.cycle(STRONG[name](strength), *given)
        (first, *later), out = jax.eval_shape(run, jnp.float64(0.5), *given)
    for state in later:
        assert kinds(state) == kinds(first)
    if name in ("ema", "ema, warm", "interpolate", "wise_ft"):
        assert kinds(out[-1]) == kinds(given[1])
    if isinstance(out[0], tuple):  # of a penalty
        assert kinds(out[0][1]) == kinds(out[1]) == kinds(given[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STRONG_GRADIENTS)
def test_a_grid_of_float64_strengths_changes_no_dtype_of_a_gradient(name, dtype):
    """Oracle: the state and the gradients before."""
    with jax.enable_x64(True):
        params = cast(gradients.parameters(), dtype)

        def run(strength, params):
            built = STRONG_GRADIENTS[name](strength)
            state = built.init(params)
            more = gradients.extras
            grads, after = built.update(
                gradients.grad_fn(params), state, params, **more
            )
            return state, after, grads

        first, after, grads = jax.eval_shape(run, jnp.float64(0.5), params)
    assert kinds(after) == kinds(first)
    assert kinds(grads) == kinds(params)


@every_setting
def test_float64_strengths_of_a_method_change_no_dtype(setting):
    """Oracle: the first state; every number that a method takes besides its parts'."""

    def run(number, *given):
        method = make_method(
            whole.LOSS,
            optax.sgd(number),
            gradient=transforms.sam(number),
            regularizer=regularizers.l2(number),
            memory=memory.reservoir(8, 4, store=whole.LOGITS),
            replay_loss=dark_experience_loss(whole.LOGITS, number, number),
            replay_weight=number,
            perturb_penalty=False,
        )
        return stepped(method, *given)

    with jax.enable_x64(SETTINGS[setting].x64):
        given = inputs(SETTINGS[setting], whole.PARAMS, whole.TASK)
        (first, *later), info, _ = jax.eval_shape(run, jnp.asarray(0.5), *given)
    for state in later:
        assert kinds(state) == kinds(first)
    assert_wide((info.loss, info.metrics))
