"""How the loss curves: the Fisher information and what is made of it."""

from jaxcl.curvature.fisher import (
    Fisher,
    batched_fisher,
    empirical_fisher,
    exact_fisher,
    example_gradients,
    sampled_fisher,
)
from jaxcl.curvature.importance import (
    largest_entry,
    mean_entry,
    normalised,
    shuffled,
    trace,
    uniform_importance,
)

__all__ = [
    "Fisher",
    "batched_fisher",
    "empirical_fisher",
    "exact_fisher",
    "example_gradients",
    "largest_entry",
    "mean_entry",
    "normalised",
    "sampled_fisher",
    "shuffled",
    "trace",
    "uniform_importance",
]
