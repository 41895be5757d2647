"""Plasticity: resets that maintain it, and measures of it."""

from jaxcl.plasticity.continual_backprop import (
    Traces,
    Utility,
    adaptable_contribution,
    continual_backprop,
    contribution,
)
from jaxcl.plasticity.measures import (
    dead_fraction,
    dormant_fraction,
    effective_rank,
    measure,
    singular_values,
    srank,
    stable_rank,
)
from jaxcl.plasticity.redo import redo
from jaxcl.plasticity.reset import chain_resets, shrink_and_perturb
from jaxcl.plasticity.units import dormancy_score, reset_units

__all__ = [
    "Traces",
    "Utility",
    "adaptable_contribution",
    "chain_resets",
    "continual_backprop",
    "contribution",
    "dead_fraction",
    "dormancy_score",
    "dormant_fraction",
    "effective_rank",
    "measure",
    "redo",
    "reset_units",
    "shrink_and_perturb",
    "singular_values",
    "srank",
    "stable_rank",
]
