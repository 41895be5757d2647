"""Gradient transformations for optax that may evaluate further gradients.

Each is an ``optax.GradientTransformationExtraArgs`` that takes a gradient and returns a
gradient. It does not depend on the learning rate and goes first in a chain:

    optimizer = optax.chain(sam(0.05), optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)

``grad_fn(params)`` is the gradient at other parameters, on the same batch with the same
key. ``replay_grad_fn(params)`` is the gradient on replayed examples, and
``task_grad_fn(params)`` has one row ``[T]`` per past task. An update without ``params`` is
refused by a ValueError, as are numbers that a builder knows to be out of their range;
without a function that it needs, Python names the argument. The state holds scalars unless
it says otherwise.

=================== ======================================== ==============
transformation      gradients per step, with the first one   needs
=================== ======================================== ==============
sam                 2                                        grad_fn
gnp                 2                                        grad_fn
gsam                2                                        grad_fn
looksam             1 + 1/k                                  grad_fn
friendly_sam        2                                        grad_fn
c_flat              4                                        grad_fn
adaptive_rho        2; the radius follows a target rise      grad_fn
adaptive_strength   those of the wrapped transformation      grad_fn
reverse_sam         2; control: perturbs downhill            grad_fn
random_sam          2; control: random direction             grad_fn
agem                1, and 1 on replay; a projection         replay_grad_fn
gem                 1, and 1 per task; a projection          task_grad_fn
=================== ======================================== ==============

:func:`across_devices` runs any of them over a mapped axis; :func:`accumulated` makes a
``grad_fn`` for batches that do not fit in memory; :func:`scale_by_progress` is a schedule
by the fraction of a task that is done.
"""

from jaxcl.transforms._perturb import PerturbationState
from jaxcl.transforms.accumulate import accumulated
from jaxcl.transforms.across_devices import across_devices
from jaxcl.transforms.adaptive_strength import (
    AdaptiveStrengthState,
    adaptive_rho,
    adaptive_strength,
    perturbation_curvature,
    perturbation_rise,
)
from jaxcl.transforms.agem import ProjectionState, agem
from jaxcl.transforms.by_progress import scale_by_progress
from jaxcl.transforms.c_flat import c_flat
from jaxcl.transforms.friendly_sam import FriendlySamState, friendly_sam
from jaxcl.transforms.gem import gem
from jaxcl.transforms.gnp import gnp
from jaxcl.transforms.gsam import gsam, rho_schedule
from jaxcl.transforms.looksam import LookSamState, looksam
from jaxcl.transforms.sam import RandomSamState, random_sam, reverse_sam, sam

__all__ = [
    "AdaptiveStrengthState",
    "FriendlySamState",
    "LookSamState",
    "PerturbationState",
    "ProjectionState",
    "RandomSamState",
    "accumulated",
    "across_devices",
    "adaptive_rho",
    "adaptive_strength",
    "agem",
    "c_flat",
    "friendly_sam",
    "gem",
    "gnp",
    "gsam",
    "looksam",
    "perturbation_curvature",
    "perturbation_rise",
    "random_sam",
    "reverse_sam",
    "rho_schedule",
    "sam",
    "scale_by_progress",
]
