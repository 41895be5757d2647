"""Losses per example of a batch, and the outputs that they are computed from.

A *loss* is ``(params, batch, keys [b]) -> [b]``: batch-first, one number per example.
*Outputs* are ``(params, batch, keys=None) -> [b, ...]``: they select the network's outputs
for each example (:func:`single_head`, :func:`heads`), and losses, metrics, Fishers and
distillation are built from them.

The row law: row ``i`` of a loss or of outputs depends on row ``i`` of the batch only. This
allows a batch to be split into chunks, padded, joined with a replay, or processed example
by example for a Fisher. Batch statistics violate it; :func:`check_rows_independent` tests.
"""

from jaxcl.losses.examples import (
    check_rows_independent,
    example_losses,
    mean_loss,
    of_one,
    per_example,
)
from jaxcl.losses.outputs import MASKED, class_mask, heads, past_heads, single_head
from jaxcl.losses.replay import FromAverage, ReplayWeight, by_rows, by_tasks
from jaxcl.losses.supervised import (
    LargestLogits,
    accuracy,
    cross_entropy,
    dark_experience_loss,
    largest_logits,
    squared_error,
    token_accuracy,
    token_cross_entropy,
)
from jaxcl.typing import Outputs

__all__ = [
    "MASKED",
    "FromAverage",
    "LargestLogits",
    "Outputs",
    "ReplayWeight",
    "accuracy",
    "by_rows",
    "by_tasks",
    "check_rows_independent",
    "class_mask",
    "cross_entropy",
    "dark_experience_loss",
    "example_losses",
    "heads",
    "largest_logits",
    "mean_loss",
    "of_one",
    "past_heads",
    "per_example",
    "single_head",
    "squared_error",
    "token_accuracy",
    "token_cross_entropy",
]
