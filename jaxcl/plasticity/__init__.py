"""What keeps a network able to learn, and how to see whether it still is."""

from jaxcl.plasticity.continual_backprop import (
    Traces,
    Utility,
    adaptable_contribution,
    continual_backprop,
    contribution,
)
from jaxcl.plasticity.measures import (
    dead_share,
    dormant_share,
    effective_rank,
    measure,
    singular_values,
    srank,
    stable_rank,
)
from jaxcl.plasticity.redo import redo
from jaxcl.plasticity.renewal import chain_renewals, no_renewal, shrink_and_perturb
from jaxcl.plasticity.units import dormancy_score, renew_units

__all__ = [
    "Traces",
    "Utility",
    "adaptable_contribution",
    "chain_renewals",
    "continual_backprop",
    "contribution",
    "dead_share",
    "dormancy_score",
    "dormant_share",
    "effective_rank",
    "measure",
    "no_renewal",
    "redo",
    "renew_units",
    "shrink_and_perturb",
    "singular_values",
    "srank",
    "stable_rank",
]
