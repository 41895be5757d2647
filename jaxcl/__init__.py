"""Flatness-aware continual learning in JAX."""

from importlib.metadata import version

__version__ = version("jaxcl")
