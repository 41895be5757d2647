"""Regularizers towards past solutions: penalties and projections.

A builder refuses a number known to be out of its range by a ValueError.
"""

from jaxcl.regularizers.base import AnchorState, scaled, sum_of
from jaxcl.regularizers.box import box, boxed
from jaxcl.regularizers.distill import distill
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
    "AnchorState",
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
