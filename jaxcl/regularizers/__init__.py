"""Regularizers towards past solutions: penalties and projections."""

from jaxcl.regularizers.base import scaled, sum_of
from jaxcl.regularizers.box import BoxState, box, boxed
from jaxcl.regularizers.distill import DistillState, distill
from jaxcl.regularizers.ewc import (
    EwcState,
    convert_strength,
    ewc,
    largest_stable_strength,
)
from jaxcl.regularizers.feature_distillation import feature_distillation
from jaxcl.regularizers.l2 import l2, l2_init
from jaxcl.regularizers.path import (
    SynapticState,
    WalkState,
    riemannian_walk,
    synaptic_intelligence,
)

__all__ = [
    "BoxState",
    "DistillState",
    "EwcState",
    "SynapticState",
    "WalkState",
    "box",
    "boxed",
    "convert_strength",
    "distill",
    "ewc",
    "feature_distillation",
    "l2",
    "l2_init",
    "largest_stable_strength",
    "riemannian_walk",
    "scaled",
    "sum_of",
    "synaptic_intelligence",
]
