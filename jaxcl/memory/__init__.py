"""What is remembered as data: which examples are kept, and which of them come back."""

from jaxcl.memory.base import after, no_memory
from jaxcl.memory.episodic import EpisodicState, episodic
from jaxcl.memory.kmeans import kmeans, kmeans_rows
from jaxcl.memory.reservoir import ReservoirState, reservoir
from jaxcl.memory.selection import Select, class_balanced_rows, random_rows

__all__ = [
    "EpisodicState",
    "ReservoirState",
    "Select",
    "after",
    "class_balanced_rows",
    "episodic",
    "kmeans",
    "kmeans_rows",
    "no_memory",
    "random_rows",
    "reservoir",
]
