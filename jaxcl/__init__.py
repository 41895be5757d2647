"""Flatness-aware continual learning in JAX."""
