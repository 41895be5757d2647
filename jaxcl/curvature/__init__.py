"""How the loss curves: the Fisher information, and sharpness around a point."""

from jaxcl.curvature.fisher import (
    Fisher,
    batched_fisher,
    empirical_fisher,
    exact_fisher,
    example_gradients,
    most_likely_fisher,
    output_sensitivity,
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
from jaxcl.curvature.sharpness import sam_sharpness, top_eigenvalue

__all__ = [
    "Fisher",
    "batched_fisher",
    "empirical_fisher",
    "exact_fisher",
    "example_gradients",
    "largest_entry",
    "mean_entry",
    "most_likely_fisher",
    "normalised",
    "output_sensitivity",
    "sam_sharpness",
    "sampled_fisher",
    "shuffled",
    "top_eigenvalue",
    "trace",
    "uniform_importance",
]
