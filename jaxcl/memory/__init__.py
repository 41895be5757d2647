"""Replay memories: which examples are stored, and which are replayed.

A memory refuses sizes that are not positive ints known before tracing, and (while tracing)
rows unlike the example given to ``init`` in structure, shape or dtype, by a ValueError.
"""

from jaxcl.memory.balanced import (
    BalancedState,
    class_balanced_reservoir,
    greedy_balanced,
)
from jaxcl.memory.base import after, blank_rows, no_memory
from jaxcl.memory.episodic import EpisodicState, episodic
from jaxcl.memory.kmeans import kmeans, kmeans_examples
from jaxcl.memory.reservoir import ReservoirState, reservoir
from jaxcl.memory.selection import Select, class_balanced_examples, random_examples
from jaxcl.memory.shared import SharedState, shared_episodic

__all__ = [
    "BalancedState",
    "EpisodicState",
    "ReservoirState",
    "Select",
    "SharedState",
    "after",
    "blank_rows",
    "class_balanced_examples",
    "class_balanced_reservoir",
    "episodic",
    "greedy_balanced",
    "kmeans",
    "kmeans_examples",
    "no_memory",
    "random_examples",
    "reservoir",
    "shared_episodic",
]
