"""What is remembered as a pull: soft penalties and hard projections."""

from jaxcl.regularizers.base import no_regularizer, scaled, sum_of
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

__all__ = [
    "BoxState",
    "DistillState",
    "EwcState",
    "box",
    "boxed",
    "convert_strength",
    "distill",
    "ewc",
    "feature_distillation",
    "l2",
    "l2_init",
    "largest_stable_strength",
    "no_regularizer",
    "scaled",
    "sum_of",
]
